"""Devices by name: what each name means here, and what is refused."""

import pytest
import torch
from refusals import refused

from engines.common.devices import find_device, resolve_precision
from engines.errors import BackendError, UsageError

CPU = torch.device("cpu")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without a GPU build of PyTorch: a device is counted, and cannot be used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_named_with_its_number_and_is_what_no_name_means() -> None:
    assert (
        find_device(None)
        == find_device("auto")
        == find_device("cuda")
        == find_device("cuda:0")
        == torch.device("cuda", 0)
    )
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == find_device("cpu:0") == CPU


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_no_name_means_the_cpu() -> None:
    assert find_device(None) == find_device("auto") == find_device("cpu") == CPU


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_beyond_those_that_are_here_is_refused_with_how_many_there_are() -> None:
    with refused(BackendError, "device", "CUDA device 2", "2 found", "`device=cpu`"):
        find_device("cuda:2")


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_pytorch_cannot_use_is_refused_unless_only_its_name_is_asked_for() -> None:
    with refused(BackendError, "device", "0 found", "`device=cpu`"):
        find_device("cuda")
    assert find_device("cuda", check=False) == torch.device("cuda", 0)
    assert find_device("cuda:3", check=False) == torch.device("cuda", 3)


@pytest.mark.parametrize("name", ["gpu", "tpu", "mps", "meta", "xpu:1", "cuda:x", "cuda:-1", "CPU ", "", "0"])
@pytest.mark.parametrize("check", [True, False])
def test_names_that_are_no_device_of_ours_are_refused(name: str, check: bool) -> None:
    with refused(UsageError, "device", f'"{name}"', "cuda:N"):
        find_device(name, check=check)


def test_a_long_name_is_quoted_in_part() -> None:
    with pytest.raises(UsageError) as caught:
        find_device("x" * 500)
    assert "x" * 60 in str(caught.value)
    assert "x" * 61 not in str(caught.value)


def test_auto_precision_is_bf16_where_the_device_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert (resolve_precision("auto", "cuda:1"), resolve_precision("auto", "cpu")) == ("bf16", "f32")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    for feature in ("amx_bf16", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda feature=feature: {feature: True})
        assert (resolve_precision("auto", "cuda:1"), resolve_precision("auto", "cpu")) == ("f32", "bf16")
    assert (resolve_precision("f32", "cpu"), resolve_precision("bf16", "cuda")) == ("f32", "bf16")
    with refused(UsageError, "precision", "fp8"):
        resolve_precision("fp8", "cpu")
