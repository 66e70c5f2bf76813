"""What `dengine doctor` reports."""

import importlib
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engines.backends.torch as torch_backend
from dengine_cli.doctor import describe
from engines import doctor
from engines.backends import onnxruntime as ort_backend
from engines.backends import probe
from engines.backends.probe import Device, Probe, try_device
from engines.backends.registry import BACKENDS, auto_engine, backend_info, probe_backend
from engines.common.devices import cpu_has_bf16
from engines.doctor import Diagnosis, examine


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which `import openvino` finds nothing."""
    find, load = importlib.util.find_spec, importlib.import_module

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name == "openvino" else find(name, package)

    def import_module(name: str, package: str | None = None) -> Any:
        if name == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'", name="openvino")
        return load(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(importlib, "import_module", import_module)


def write_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an nvidia-smi of our own first in the search path."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def runtime(found: Diagnosis, name: str) -> Probe:
    return next(entry for entry in found.runtimes if entry.name == name)


def test_every_runtime_is_reported_with_version_devices_and_precisions() -> None:
    found = examine()
    assert [entry.name for entry in found.runtimes] == [info.name for info in BACKENDS]
    for name in ("torch", "openvino", "onnxruntime"):
        entry = runtime(found, name)
        assert entry.ready
        assert entry.version[0].isdigit()
        assert entry.devices[0].name == "CPU"
        assert entry.devices[0].problem == ""
        assert "f32" in entry.devices[0].precisions
        assert ("bf16" in entry.devices[0].precisions) == (cpu_has_bf16() and name != "onnxruntime")
    assert "CPUExecutionProvider" in runtime(found, "onnxruntime").details["providers"]
    assert found.packages["torch"] == runtime(found, "torch").version


def test_the_engine_named_is_the_one_that_auto_takes() -> None:
    found = examine()
    assert found.engine == auto_engine()
    assert found.bf16 == cpu_has_bf16()
    assert ("AVX-512 BF16" in found.features or "AMX BF16" in found.features) == cpu_has_bf16()
    assert found.cores >= 1
    assert found.threads >= 1


@pytest.mark.parametrize("name", ["torch", "openvino", "onnxruntime"])
def test_a_runtime_that_computes_wrong_numbers_does_not_count_as_working(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "tiny_expected", lambda: np.ones((1, 3, 2, 2), np.float32))
    found = probe_backend(backend_info(name))
    assert not found.ready
    assert "wrong numbers" in found.devices[0].problem


def test_the_tiny_graph_is_exact_in_half_and_bfloat16() -> None:
    expected = probe.tiny_expected()
    assert expected.shape == (1, 3, 2, 2)
    assert 0 < (expected > 0).sum() < expected.size  # the relu does something
    for dtype in (torch.float16, torch.bfloat16):
        x, w = (torch.from_numpy(array).to(dtype) for array in (probe.tiny_input(), probe.tiny_weights()))
        assert np.array_equal(torch.nn.functional.conv2d(x, w).relu().float().numpy(), expected)


def test_a_device_that_fails_in_one_precision_still_works_in_the_other() -> None:
    def run(precision: str) -> Any:
        if precision == "f16":
            raise RuntimeError("no kernel image\nis available")
        return probe.tiny_expected()

    assert try_device("GPU", ("f32", "f16"), run) == Device("GPU", True, ("f32",), "f16: no kernel image is available")


@pytest.mark.usefixtures("without_openvino")
def test_a_missing_runtime_comes_with_what_to_install() -> None:
    found = examine()
    openvino = runtime(found, "openvino")
    assert not openvino.ready
    assert "pip install openvino" in openvino.advice
    assert found.engine != "openvino"


def test_a_runtime_that_does_not_import_is_reported_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    load = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "onnxruntime":
            raise ImportError("libcublas.so.13: cannot open shared object file")
        return load(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    onnxruntime = runtime(examine(), "onnxruntime")
    assert not onnxruntime.ready
    assert "libcublas.so.13" in onnxruntime.advice


def test_a_backend_that_raises_when_asked_is_reported_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> Probe:
        raise OSError("undefined symbol: nvinfer")

    monkeypatch.setattr(torch_backend, "probe", explode)
    found = examine()
    assert not runtime(found, "torch").ready
    assert "undefined symbol: nvinfer" in runtime(found, "torch").advice
    assert runtime(found, "openvino").ready


def test_gpus_and_driver_come_from_the_drivers_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "echo 'NVIDIA H200, 143771, 580.95.05, 9.0'; echo 'NVIDIA T4, [N/A], 580.95.05, 7.5'"
    write_nvidia_smi(tmp_path, rows, monkeypatch)
    found = examine()
    assert [(gpu.name, gpu.memory, gpu.capability) for gpu in found.gpus] == [
        ("NVIDIA H200", 143771 << 20, "9.0"),
        ("NVIDIA T4", 0, "7.5"),
    ]
    assert found.driver == "580.95.05"
    text = describe(found)
    assert "NVIDIA H200, 140 GiB, compute capability 9.0, driver 580.95.05" in text
    assert "NVIDIA T4, unknown, compute capability 7.5" in text


@pytest.mark.skipif(torch.version.cuda is not None, reason="says what a CPU build of PyTorch lacks")
def test_a_gpu_that_a_cpu_build_cannot_use_comes_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nvidia_smi(tmp_path, "echo 'NVIDIA T4, 15360, 580.95.05, 7.5'", monkeypatch)
    found = runtime(examine(), "torch")
    assert found.ready  # on the CPU
    assert "CPU build" in found.advice
    assert "pip install" in found.advice


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "sleep 5"])
def test_a_driver_tool_that_fails_or_hangs_leaves_no_gpu_and_no_error(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_PATIENCE", 0.2)
    monkeypatch.setattr(doctor, "KERNEL_DRIVER", tmp_path / "none")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    write_nvidia_smi(tmp_path, script, monkeypatch)
    assert doctor._gpus() == ((), "")


def test_without_the_tool_the_driver_is_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 2025\n", "utf-8")
    monkeypatch.setattr(doctor, "KERNEL_DRIVER", version)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._gpus()[1] == "580.95.05"


def test_the_diagnosis_is_json() -> None:
    found = json.loads(json.dumps(examine().to_json()))
    assert {entry["name"]: entry["ready"] for entry in found["runtimes"]}["torch"] is True
    assert found["runtimes"][0]["devices"] == [] or found["runtimes"][0]["devices"][0]["name"]
    assert isinstance(found["cache"], str)


def test_the_text_has_a_row_for_each_device_and_a_line_for_each_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = (Device("CPU", True, ("f32", "f16")), Device("NVIDIA T4", False, (), "f32: cuDNN is missing"))
    monkeypatch.setattr(ort_backend, "probe", lambda: Probe("onnxruntime", "1.31.1", devices, "install cuDNN"))
    lines = [" ".join(line.split()) for line in describe(examine()).splitlines()]
    assert "onnxruntime 1.31.1 CPU yes f32, f16" in lines
    assert "NVIDIA T4 no -" in lines
    assert "onnxruntime on NVIDIA T4: f32: cuDNN is missing" in lines
    assert "onnxruntime: install cuDNN" in lines


def test_the_text_names_the_providers_of_onnxruntime() -> None:
    assert re.search(r"^onnxruntime: providers .*CPUExecutionProvider", describe(examine()), re.MULTILINE)


def test_the_cache_is_reported_with_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (examine().cache, examine().cache_bytes) == (tmp_path / "dengine", 0)
    (tmp_path / "dengine" / "plans").mkdir(parents=True)
    (tmp_path / "dengine" / "x.blob").write_bytes(b"12345")
    (tmp_path / "dengine" / "plans" / "unet.plan").write_bytes(b"678")
    assert examine().cache_bytes == 8
