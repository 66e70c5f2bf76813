"""Bundles and references reach a machine that has not got them, once, and as they were."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import make_bundle, tree
from painting import make_references

from engines.cluster.assets import find_bundle, find_references, leave_assets
from engines.cluster.store import Store
from engines.errors import BundleError, DatasetError, RunError
from engines.painting.settings import GenerateSettings

pytestmark = pytest.mark.cluster
OpenFresh = Callable[[str], Store]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GenerateSettings:
    """A run whose bundle and references lie on the driver's disk; workers' caches are of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bundle" / "unet").mkdir(parents=True)
    (tmp_path / "bundle" / "manifest.json").write_text("{}", "utf-8")
    (tmp_path / "bundle" / "unet" / "weights").write_bytes(b"weights" * 99)

    def open_bundle(folder: Path) -> object:
        if not (folder / "unet" / "weights").exists():
            raise BundleError(f"{folder} does not exist.")
        return make_bundle(folder)

    monkeypatch.setattr("engines.bundle.bundle.open_bundle", open_bundle)
    references = make_references(tmp_path / "references", 3)
    return GenerateSettings(out=tmp_path / "run", count=4, bundle=tmp_path / "bundle", reference=references)


def moved(asked: GenerateSettings, away: Path) -> dict[str, bytes]:
    """The folders' files; then they lie elsewhere, as on another machine."""
    away.mkdir()
    found: dict[str, bytes] = {}
    for folder in (asked.bundle, asked.reference):
        assert folder is not None
        found |= tree(folder)
        folder.rename(away / folder.name)
    return found


def test_a_machine_without_the_folders_takes_them_from_the_store(
    open_fresh: OpenFresh, asked: GenerateSettings, tmp_path: Path
) -> None:
    store, said = open_fresh("assets"), list[str]()
    bundle = find_bundle(store, asked)
    leave_assets(store, asked, bundle, said.append)
    if store.folder is not None:  # a shared disk: nothing is copied
        assert said == []
        return
    leave_assets(store, asked, bundle, said.append)
    assert len(said) == 2  # a folder each, once
    files = moved(asked, tmp_path / "away")
    fetched = find_bundle(store, asked)
    references = find_references(store, asked)
    assert references is not None
    assert tree(fetched.folder) | tree(references.records[0].file.parent) == files
    assert find_bundle(store, asked).folder == fetched.folder

    (name, *_) = store.names("assets/files")
    store.put(name, b"something else")
    (tmp_path / "cache").rename(tmp_path / "old-cache")
    with pytest.raises(RunError, match="changed"):
        [find_bundle(store, asked), find_references(store, asked)]


def test_folders_that_are_nowhere_are_said(open_fresh: OpenFresh, asked: GenerateSettings, tmp_path: Path) -> None:
    store = open_fresh("nowhere")
    moved(asked, tmp_path / "away")
    with pytest.raises(BundleError):
        find_bundle(store, asked)
    with pytest.raises(DatasetError):
        find_references(store, asked)
