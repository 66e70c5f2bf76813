"""Fixtures that several test files share, each made once a session, when it is first asked for."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy


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


@pytest.fixture(scope="session")
def toy_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of random base models by kind: `sd1` and `sd2`. Read only: copy before changing."""
    root = tmp_path_factory.mktemp("bases")
    return {kind: toy.make_toy_base(root / kind, kind) for kind in toy.KINDS}


@pytest.fixture(scope="session")
def toy_adapters(tmp_path_factory: pytest.TempPathFactory, toy_bases: dict[str, Path]) -> dict[str, Path]:
    """Folders of random adapters by the kind of their base, one of each head. Read only: copy before changing."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        "sd1": toy.make_toy_adapter(root / "sd1", toy_bases["sd1"], head="rt_detr"),
        "sd2": toy.make_toy_adapter(root / "sd2", toy_bases["sd2"], head="deformable_detr"),
    }


@pytest.fixture(scope="session")
def toy_bundle(
    tmp_path_factory: pytest.TempPathFactory, toy_bases: dict[str, Path], toy_adapters: dict[str, Path]
) -> Path:
    """A bundle of the random sd1 model, exported and checked on every runtime. Half a minute; read only."""
    return _export("sd1", tmp_path_factory, toy_bases, toy_adapters)


@pytest.fixture(scope="session")
def toy_bundle_sd2(
    tmp_path_factory: pytest.TempPathFactory, toy_bases: dict[str, Path], toy_adapters: dict[str, Path]
) -> Path:
    """The same of the random sd2 model."""
    return _export("sd2", tmp_path_factory, toy_bases, toy_adapters)


@pytest.fixture(scope="session")
def overflowing_toy(tmp_path_factory: pytest.TempPathFactory, toy_bases: dict[str, Path]) -> tuple[Path, Path]:
    """The random sd1 base with a block that overflows float16, and an adapter of it. Read only."""
    root = tmp_path_factory.mktemp("overflowing")
    base = toy.make_overflowing_base(root / "base", toy_bases["sd1"])
    return base, toy.make_toy_adapter(root / "adapter", base)


@pytest.fixture(scope="session")
def toy_bundle_fp16(tmp_path_factory: pytest.TempPathFactory, overflowing_toy: tuple[Path, Path]) -> Path:
    """A bundle of `overflowing_toy` whose graphs compute in half precision, checked on every runtime. Read only."""
    from export.assemble import export
    from export.settings import ExportSettings

    base, adapter = overflowing_toy
    out = tmp_path_factory.mktemp("bundles") / "fp16"
    return export(ExportSettings(base, adapter, out, graph_dtype="float16", threads=1)).folder


def _export(kind: str, factory: pytest.TempPathFactory, bases: dict[str, Path], adapters: dict[str, Path]) -> Path:
    from export.assemble import export
    from export.settings import ExportSettings

    out = factory.mktemp("bundles") / kind
    return export(ExportSettings(bases[kind], adapters[kind], out, threads=1)).folder
