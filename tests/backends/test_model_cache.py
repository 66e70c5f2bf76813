"""Compiled models come back whole, and only as what was compiled."""

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from small_graphs import SIZES, Float, fill, open_small, prepare_unet, small_bundle, small_specs

from engines.backends.openvino.backend import OpenVinoBackend
from engines.backends.registry import open_backend
from engines.bundle.bundle import Bundle
from engines.common import cache


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dengine"


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path)


def run_once(bundle: Bundle) -> Float:
    """The small UNet's outputs for fixed inputs, from a fresh OpenVINO backend."""
    call = prepare_unet(open_small(bundle), SIZES[0])
    fill(call, small_specs()["unet"].example(SIZES[0], 1))
    call.run()
    return np.concatenate([tensor.numpy().ravel() for tensor in call.outputs.values()])


def no_compiling(*_: Any, **__: Any) -> Any:
    raise AssertionError("compiled again")


def test_a_cached_model_is_not_compiled_again_and_gives_the_same_bytes(
    small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_once(small)
    monkeypatch.setattr(OpenVinoBackend, "_compile", no_compiling)
    assert run_once(small).tobytes() == first.tobytes()


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "foreign"])
def test_a_damaged_entry_is_made_again(
    small: Bundle, cache_home: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_once(small)
    (entry,) = cache_home.iterdir()
    whole = entry.read_bytes()
    if damage == "foreign":
        assert cache.store(entry.stem, b"whole, but no compiled model")
    else:
        changed = whole[:-1] + bytes([whole[-1] ^ 1])
        entry.write_bytes({"cut": whole[: len(whole) // 2], "changed": changed, "empty": b""}[damage])
    assert run_once(small).tobytes() == first.tobytes()
    monkeypatch.setattr(OpenVinoBackend, "_compile", no_compiling)
    assert run_once(small).tobytes() == first.tobytes()


def test_everything_that_matters_makes_another_entry(small: Bundle, cache_home: Path) -> None:
    backend = open_small(small)
    prepare_unet(backend, SIZES[0])
    prepare_unet(backend, SIZES[0])
    assert len(list(cache_home.iterdir())) == 1
    prepare_unet(backend, SIZES[1])
    prepare_unet(backend, SIZES[0], ["div1"])
    prepare_unet(open_backend(small, "openvino", precision="f32", threads=2), SIZES[0])
    cast(Any, small.manifest).files = {"unet.onnx": "1" * 64}
    prepare_unet(backend, SIZES[0])
    assert len(list(cache_home.iterdir())) == 5


def test_nothing_is_kept_when_told_so(small: Bundle, cache_home: Path) -> None:
    prepare_unet(open_small(small, keep_compiled=False), SIZES[0])
    assert not cache_home.exists()


def test_a_cache_folder_that_cannot_be_written_stops_nothing(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert np.isfinite(run_once(small)).all()
    assert not cache.store("key", b"value")


def test_the_cache_gives_back_what_was_stored_and_nothing_else(cache_home: Path) -> None:
    assert cache.load("key") is None
    assert cache.store("key", b"value")
    assert cache.load("key") == b"value"
    assert cache.store("key", b"other")
    assert cache.load("key") == b"other"
    assert [path.name for path in cache_home.iterdir()] == ["key.blob"]


def test_the_cache_forgets_what_was_not_used_for_longest(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT_BYTES", 2 * (32 + 10))
    for age, key in enumerate(("b", "a")):
        cache.store(key, bytes(10))
        path = cache_home / f"{key}.blob"
        os.utime(path, (1000 + age, 1000 + age))
    assert cache.load("b") is not None  # used now, so a is the older one
    cache.store("c", bytes(10))
    assert sorted(path.stem for path in cache_home.iterdir()) == ["b", "c"]


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_the_cache_is_in_the_home_folder_unless_told_otherwise(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "dengine"
