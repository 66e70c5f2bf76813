"""Folders that take long to make, kept from one run of the tests to the next and shared by the workers of one run.

Knows: what decides a toy bundle's files (`SOURCES`, the libraries' versions, this processor), and that a kept folder is
made whole or not at all, by one process while the others wait. Does not know what is made (`toy`).

What the gates of an export use besides, painting and labels, is not in the key: it changes no file, and every whole
run of the tests exports once, whatever is kept (`fresh`).
"""

import fcntl
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "test-cache"
SOURCES = (
    "engines/adapter", "engines/backends", "engines/bundle", "engines/common", "engines/diffusion", "engines/errors.py",
    "export", "tests/helpers/rtx.py", "tests/helpers/toy.py",
)  # fmt: skip
PACKAGES = (
    "diffusers", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "onnxscript", "openvino", "safetensors",
    "torch", "transformers",
)  # fmt: skip
MOST_KEYS = 4  # the newest are kept: a few branches' worth
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex  # the same in every worker of a run


def kept(name: str, out: Path, make: Callable[[Path], object], *, fresh: bool = False) -> Path:
    """Copy the folder kept as `name` to `out`, and return `out`; `make` writes it first where it is not there yet.

    Args:
        name: says, with the sources, all that decides what is in it.
        out: must not exist. It is the caller's own: what becomes of it changes nothing that is kept.
        make: is given the folder to write, which does not exist.
        fresh: whether it must have been made in this run of the tests, by whichever worker.
    """
    place = FOLDER / _key() / name
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = place.with_name(f"{name}.lock")
    with _alone(lock):
        if not place.is_dir():
            _make(place, make)
            place.with_name(f"{name}.tmp").rename(place)
    if fresh:  # others may copy the earlier one meanwhile
        with _alone(place.with_name(f"{name}.fresh.lock")):
            if _maker(place).read_text("utf-8") != _RUN:
                _make(place, make)
                with _alone(lock):
                    shutil.rmtree(place)
                    place.with_name(f"{name}.tmp").rename(place)
    with _alone(lock):
        shutil.copytree(place, out)
    return out


def _make(place: Path, make: Callable[[Path], object]) -> None:
    """Write what becomes the folder `place` beside it, and by which run of the tests."""
    work = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    make(work)
    _maker(place).write_text(_RUN, "utf-8")
    _forget()


def _maker(place: Path) -> Path:
    return place.with_name(f"{place.name}.made-by")


@functools.cache
def _key() -> str:
    """A hash of the sources, the versions and the processor that decide a toy bundle."""
    from engines.common.devices import cpu_has_bf16, cpu_has_int8

    digest = hashlib.sha256()
    for path in _files():
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        digest.update(f"{package}={version}\0".encode())
    here = (platform.python_version(), platform.system(), platform.machine(), cpu_has_bf16(), cpu_has_int8())
    digest.update(repr(here).encode())
    return digest.hexdigest()[:16]


def _files() -> Iterator[Path]:
    for name in SOURCES:
        source = ROOT / name
        yield from [source] if source.is_file() else sorted(source.rglob("*.py"))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock `path`; processes that ask for it meanwhile wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget() -> None:
    """Remove what the oldest keys kept."""
    others = [path for path in FOLDER.iterdir() if path.is_dir() and path.name != _key()]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[MOST_KEYS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
