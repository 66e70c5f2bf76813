"""What `dengine doctor` reports."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from engines.backends import auto_engine
from engines.backends.base import cpu_has_bf16
from engines.doctor import examine


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


def test_every_runtime_is_reported_with_version_devices_and_precisions() -> None:
    found = {runtime.name: runtime for runtime in examine().runtimes}
    assert set(found) == {"torch", "openvino", "onnxruntime", "tensorrt"}
    for name in ("torch", "openvino", "onnxruntime"):
        assert found[name].ready
        assert found[name].version[0].isdigit()
        assert found[name].devices[0] == "CPU"
        assert "f32" in found[name].precisions
        assert ("bf16" in found[name].precisions) == (cpu_has_bf16() and name != "onnxruntime")
    assert not found["tensorrt"].ready


def test_the_engine_named_is_the_one_that_auto_takes() -> None:
    diagnosis = examine()
    assert diagnosis.engine == auto_engine()
    assert diagnosis.bf16 == cpu_has_bf16()
    assert diagnosis.cores >= 1
    assert diagnosis.threads >= 1


@pytest.mark.usefixtures("without_openvino")
def test_a_missing_runtime_comes_with_what_to_install() -> None:
    diagnosis = examine()
    openvino = next(runtime for runtime in diagnosis.runtimes if runtime.name == "openvino")
    assert not openvino.ready
    assert "pip install openvino" in openvino.advice
    assert diagnosis.engine != "openvino"


def test_a_runtime_that_does_not_import_is_reported_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    load = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "onnxruntime":
            raise ImportError("libcublas.so.13: cannot open shared object file")
        return load(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    onnxruntime = next(runtime for runtime in examine().runtimes if runtime.name == "onnxruntime")
    assert not onnxruntime.ready
    assert "libcublas.so.13" in onnxruntime.advice


def test_the_cache_is_reported_with_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (examine().cache, examine().cache_bytes) == (tmp_path / "dengine", 0)
    (tmp_path / "dengine").mkdir()
    (tmp_path / "dengine" / "x.blob").write_bytes(b"12345")
    assert examine().cache_bytes == 5
