"""Bundles and references where a run's workers find them.

Knows: that a worker takes the folder that was named where it holds what the run was begun with, and else what its
driver left in the store, which reaches a machine once. Knows nothing about what is in these folders.

    assets/bundle.json                 the files of a folder: name, SHA-256
    assets/files/<SHA-256>             each of them, once
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.cluster.commits import HEX
from engines.cluster.store import Store
from engines.common.cache import cache_folder
from engines.common.files import safe_join, sha256_file
from engines.common.quote import shorten
from engines.common.schema import from_object, hold
from engines.errors import BundleError, DatasetError, RunError
from engines.painting.settings import GenerateSettings
from engines.runs.run_folder import run_errors

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle
    from engines.datasets.dataset import Dataset

ASSETS, BUNDLE, REFERENCES = "assets", "bundle", "references"
_AGAIN = "Give the `dengine generate` command again"


@dataclass(frozen=True)
class _Listing:
    """The files of a folder."""

    root: str  # the folder, or the only file
    files: tuple[tuple[str, str], ...]  # name, SHA-256


def leave_assets(store: Store, asked: GenerateSettings, bundle: "Bundle", say: Callable[[str], None]) -> None:
    """Copy bundle and references into a bucket, where they are not there yet; a folder's workers share its disk.

    The bundled model is everywhere where dengine is.
    """
    if store.folder is not None:
        return
    if asked.bundle is not None:
        _leave(store, BUNDLE, bundle.folder, say)
    if asked.reference is not None:
        _leave(store, REFERENCES, asked.reference, say)


def find_bundle(store: Store, asked: GenerateSettings) -> "Bundle":
    """The bundle of a run, opened: where it was named, or out of the store."""
    from engines.bundle.bundle import default_bundle, open_bundle

    folder = asked.bundle or default_bundle()
    try:
        return open_bundle(folder)
    except BundleError:
        fetched = _fetch(store, BUNDLE)
        if fetched is None:
            raise
        return open_bundle(fetched)


def find_references(store: Store, asked: GenerateSettings) -> "Dataset | None":
    """The references of a run, opened: where they were named, or out of the store; None for a run without."""
    from engines.painting.references import open_references

    if asked.reference is None:
        return None
    try:
        return open_references(asked)
    except DatasetError:
        fetched = _fetch(store, REFERENCES) if not asked.reference.exists() else None
        if fetched is None:
            raise
        return open_references(dataclasses.replace(asked, reference=fetched))


def _leave(store: Store, name: str, path: Path, say: Callable[[str], None]) -> None:
    """Put the files of a folder, or one file, into the store, and the list of them last."""
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    rows = [(item.relative_to(root).as_posix(), sha256_file(item)) for item in files]
    listing = json.dumps({"root": "." if path.is_dir() else path.name, "files": rows}, ensure_ascii=False).encode()
    if store.get(f"{ASSETS}/{name}.json") == listing:
        return
    there = set(store.names(f"{ASSETS}/files"))
    missing = [(item, sha256) for item, (_, sha256) in zip(files, rows, strict=True) if _file(sha256) not in there]
    say(f"copying {len(missing)} files of {path} to {store.where}")
    for item, sha256 in missing:
        store.put(_file(sha256), item.read_bytes())
    store.put(f"{ASSETS}/{name}.json", listing)


def _fetch(store: Store, name: str) -> Path | None:
    """The folder of what was left under a name, in this user's cache; None where nothing was.

    It appears whole or not at all, under the digest of its list, whoever fetches it at the same time.
    """
    listing = store.get(f"{ASSETS}/{name}.json")
    if listing is None:
        return None
    place = cache_folder() / ASSETS / hashlib.sha256(listing).hexdigest()
    where = f"{store.where}, {ASSETS}/{name}.json"
    try:
        found = from_object(_Listing, json.loads(listing), RunError, where)
    except (ValueError, TypeError, RecursionError) as cause:
        raise RunError(f"{where} is not readable: {shorten(cause)}. {_AGAIN}.") from None
    hashes = all(len(sha256) == 64 and set(sha256) <= HEX for _, sha256 in found.files)
    hold(found, [("files", "names with 64 hex digits each", hashes)], RunError, where, f"{_AGAIN}.")
    if not place.is_dir():
        part = place.with_name(f"{place.name}.{os.getpid()}.tmp")
        try:
            with run_errors(part):
                for file, sha256 in found.files:
                    _write(store, safe_join(part, file, RunError, where), sha256)
            with contextlib.suppress(OSError):  # another worker of this machine was faster
                part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return safe_join(place, found.root, RunError, where) if found.root != "." else place


def _write(store: Store, path: Path, sha256: str) -> None:
    data = store.get(_file(sha256))
    if data is None or hashlib.sha256(data).hexdigest() != sha256:
        raise RunError(f"{store.where}, {_file(sha256)} is gone or changed. {_AGAIN}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _file(sha256: str) -> str:
    return f"{ASSETS}/files/{sha256}"
