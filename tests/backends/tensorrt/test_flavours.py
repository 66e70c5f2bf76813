"""Which TensorRT a GPU takes, and what is said where it is missing, too old, or not for that GPU."""

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import assert_fails, dengine

from engines.backends.tensorrt import flavours
from engines.backends.tensorrt.flavours import (
    CLASSIC,
    RTX,
    Flavour,
    check_driver,
    flavour_for,
    load_library,
    parse_targets,
    version_of,
)
from engines.errors import BackendError, UsageError

load_anew = load_library.__wrapped__  # what is loaded in a process stays, for other tests, too


def installed(patch: pytest.MonkeyPatch, *names: Flavour) -> None:
    present: Collection[Flavour] = names
    patch.setattr(flavours, "is_installed", lambda flavour: flavour in present)


@pytest.mark.parametrize(
    ("capability", "present", "taken"),
    [
        ("8.9", (RTX, CLASSIC), RTX),
        ("12.0", (RTX,), RTX),
        ("8.9", (CLASSIC,), CLASSIC),
        ("9.0", (RTX, CLASSIC), CLASSIC),
        ("8.0", (RTX, CLASSIC), CLASSIC),
    ],
)
def test_a_gpu_takes_what_serves_it_and_is_installed(
    monkeypatch: pytest.MonkeyPatch, capability: str, present: tuple[Flavour, ...], taken: Flavour
) -> None:
    installed(monkeypatch, *present)
    assert flavour_for(capability) == taken


def test_what_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with pytest.raises(BackendError, match=r'pip install dengine\[tensorrt-rtx\]"'):
        flavour_for("8.9")
    with pytest.raises(BackendError, match=r'pip install dengine\[tensorrt-cu13\]"'):
        flavour_for("9.0")
    installed(monkeypatch, RTX)
    with pytest.raises(BackendError, match=r"RTX is installed, and does not serve compute capability 9.0.*cu13\]"):
        flavour_for("9.0")


def absent(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named '{name}'", name=name)


@pytest.mark.parametrize("flavour", [CLASSIC, RTX])
def test_a_library_that_does_not_import_comes_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour
) -> None:
    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(BackendError, match=rf"pip install dengine\[{flavour.extra}\]"):
        load_anew(flavour)


def test_a_library_that_is_too_old_comes_with_the_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: SimpleNamespace(__version__="10.9.0.34"))
    with pytest.raises(BackendError, match=r"TensorRT 10\.9\.0\.34 is installed; 10\.12 or newer.*--upgrade dengine"):
        load_anew(CLASSIC)


def test_versions_are_compared_as_numbers() -> None:
    assert version_of("10.9.0.34") < version_of("10.12.0.36") < version_of("10.14.1.48.post1") < version_of("11.0")


def test_a_driver_that_is_too_old_for_the_library_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours, "cuda_of", lambda flavour: 13)
    for flavour, other in ((CLASSIC, "dengine[tensorrt-cu12]"), (RTX, "dengine[tensorrt-rtx-cu12]")):
        with pytest.raises(BackendError) as error:
            check_driver(flavour, (12, 8))
        assert "supports CUDA 12.8" in str(error.value)
        assert "580 or newer" in str(error.value)
        assert other in str(error.value)
        check_driver(flavour, (13, 1))
        check_driver(flavour, (0, 0))  # a driver that does not say
    monkeypatch.setattr(flavours, "cuda_of", lambda flavour: 0)
    check_driver(CLASSIC, (12, 8))


def test_targets_are_read_and_others_refused_with_those_there_are() -> None:
    assert parse_targets(["sm89", "sm120", "sm89"]) == ("8.9", "12.0")
    for wrong in ("sm90", "8.9", "h100"):
        with pytest.raises(UsageError, match="sm75, sm86, sm89, sm120, sm121") as error:
            parse_targets(["sm89", wrong])
        assert error.value.field == "targets"


def test_the_command_line_refuses_what_cannot_be_built_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["export", "--bundle", "b", "--engine", "tensorrt", "--for"]
    assert_fails(dengine(*command, "sm90"), 2, "sm90", "leave --for out")
    assert_fails(dengine("export", "--bundle", "b", "--for", "sm89"), 2, "--engine tensorrt")
    monkeypatch.setattr("export.tensorrt.build.load_library", load_anew)
    monkeypatch.setattr("importlib.import_module", absent)
    assert_fails(dengine(*command, "sm89"), 1, "pip install dengine[tensorrt-rtx]")
