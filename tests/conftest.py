"""Fixtures that several test files share, each made once a session, when it is first asked for, or kept from an earlier
session whose sources were the same.
"""

import gc
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from browsing import browser
from kept import kept

__all__ = ["browser"]  # a fixture of its own file

# One thread a process, said before anything imports torch: `make test` has a process for every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

FIRST_EXPORTS = {"toy_bundle", "fresh_toy_bundle"}
LAST_EXPORTS = {"toy_bundle_sd2", "toy_bundle_fp16"}
SLOW_KINDS = ("tensorrt", "browser", "cluster")  # markers of tests that are slow, whatever they ask for


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs an exported bundle or is of SLOW_KINDS. Files of the sd1 bundle come first, those of the
    others last.

    Workers of `--dist worksteal` begin at different places, and so export different bundles at the same time, rather
    than wait for each other's.
    """
    places: dict[Path, int] = {}
    for item in items:
        asked = set(getattr(item, "fixturenames", ()))
        if asked & (FIRST_EXPORTS | LAST_EXPORTS) or any(map(item.get_closest_marker, SLOW_KINDS)):
            item.add_marker(pytest.mark.slow)
        place = 1 if asked & LAST_EXPORTS else -1 if asked & FIRST_EXPORTS else 0
        places[item.path] = max(places.get(item.path, place), place, key=lambda number: (abs(number), number))
    items.sort(key=lambda item: places[item.path])


def pytest_collection_finish() -> None:
    _pass_over_modules()


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Compiled models go to a folder of the session's own: a test neither reads nor fills the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="module", autouse=True)
def imported_libraries() -> Iterator[None]:
    """What a file's tests imported, the next files' `gc.collect()` passes over."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 100:
        _pass_over_modules()


@pytest.fixture(scope="session")
def toy_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of random base models by kind: `sd1` and `sd2`. Read only: copy before changing."""
    import toy

    root = tmp_path_factory.mktemp("bases")
    return {kind: kept(f"base-{kind}", root / kind, partial(toy.make_toy_base, kind=kind)) for kind in toy.KINDS}


@pytest.fixture(scope="session")
def toy_adapters(tmp_path_factory: pytest.TempPathFactory, toy_bases: dict[str, Path]) -> dict[str, Path]:
    """Folders of random adapters by the kind of their base, one of each head. Read only: copy before changing."""
    import toy

    root = tmp_path_factory.mktemp("adapters")
    return {
        "sd1": toy.make_toy_adapter(root / "sd1", toy_bases["sd1"], head="rt_detr"),
        "sd2": toy.make_toy_adapter(root / "sd2", toy_bases["sd2"], head="deformable_detr"),
    }


@pytest.fixture(scope="session")
def toy_bundle(
    tmp_path_factory: pytest.TempPathFactory, toy_bases: dict[str, Path], toy_adapters: dict[str, Path]
) -> Path:
    """A bundle of the random sd1 model, exported and checked on every runtime. Half a minute if none is kept; read
    only.
    """
    return _bundle("sd1", tmp_path_factory, toy_bases["sd1"], toy_adapters["sd1"])


@pytest.fixture(scope="session")
def fresh_toy_bundle(
    tmp_path_factory: pytest.TempPathFactory, toy_bases: dict[str, Path], toy_adapters: dict[str, Path]
) -> Path:
    """The same, certain to have been exported and checked in this very run of the tests."""
    return _bundle("sd1", tmp_path_factory, toy_bases["sd1"], toy_adapters["sd1"], fresh=True)


@pytest.fixture(scope="session")
def toy_bundle_sd2(
    tmp_path_factory: pytest.TempPathFactory, toy_bases: dict[str, Path], toy_adapters: dict[str, Path]
) -> Path:
    """A bundle of the random sd2 model. Read only."""
    return _bundle("sd2", tmp_path_factory, toy_bases["sd2"], toy_adapters["sd2"])


@pytest.fixture(scope="session")
def overflowing_toy(tmp_path_factory: pytest.TempPathFactory, toy_bases: dict[str, Path]) -> tuple[Path, Path]:
    """The random sd1 base with a block that overflows float16, and an adapter of it. Read only."""
    import toy

    root = tmp_path_factory.mktemp("overflowing")
    base = toy.make_overflowing_base(root / "base", toy_bases["sd1"])
    return base, toy.make_toy_adapter(root / "adapter", base)


@pytest.fixture(scope="session")
def toy_bundle_fp16(tmp_path_factory: pytest.TempPathFactory, overflowing_toy: tuple[Path, Path]) -> Path:
    """A bundle of `overflowing_toy` whose graphs compute in half precision, checked on every runtime. Read only."""
    return _bundle("fp16", tmp_path_factory, *overflowing_toy, graph_dtype="float16")


def _bundle(
    name: str,
    factory: pytest.TempPathFactory,
    base: Path,
    adapter: Path,
    *,
    graph_dtype: str = "float32",
    fresh: bool = False,
) -> Path:
    import toy

    export = partial(toy.export_toy_bundle, base=base, adapter=adapter, graph_dtype=graph_dtype)
    return kept(f"bundle-{name}", factory.mktemp("bundles") / name, export, fresh=fresh)


def _pass_over_modules() -> None:
    """Python's garbage collector looks no more at what is there by now: a search of all modules, which the gates of an
    export ask for many times, takes longer than most tests.
    """
    gc.collect()
    gc.freeze()
