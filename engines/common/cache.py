"""Compiled models kept in the user's cache folder.

Knows: where the folder is, how an entry is named after everything that decides it, and how a damaged entry is told
from a whole one. Nothing here can stop a run: an entry that cannot be read is absent, one that cannot be written is
not kept. Does not know: what an entry holds.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_BYTES = 8 << 30  # the least recently used entries go when the folder outgrows this
_DIGEST = hashlib.sha256().digest_size
_SUFFIX = ".blob"
COMPILED = "compiled models"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/dengine`, or `~/.cache/dengine` where that variable is unset or relative."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "dengine"


@dataclass(frozen=True)
class Kept:
    """One kind of what lies in the cache folder."""

    name: str  # compiled models, or a folder's name
    files: int
    bytes: int


def cached() -> tuple[Kept, ...]:
    """What lies in the cache folder, by kind, the largest first; nothing where there is no such folder."""
    found: dict[str, list[int]] = {}
    for path in cache_folder().rglob("*"):
        with contextlib.suppress(OSError):  # another process may prune meanwhile
            if path.is_file():
                inside = path.relative_to(cache_folder()).parts
                found.setdefault(inside[0] if len(inside) > 1 else COMPILED, []).append(path.stat().st_size)
    kinds = (Kept(name, len(sizes), sum(sizes)) for name, sizes in found.items())
    return tuple(sorted(kinds, key=lambda one: (-one.bytes, one.name)))


def cache_key(parts: dict[str, Any]) -> str:
    """A name for everything in `parts` (JSON values): equal parts, equal name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load(key: str) -> bytes | None:
    """What was stored under `key`; None if it is absent, unreadable, or not whole."""
    path = cache_folder() / (key + _SUFFIX)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, value = data[:_DIGEST], data[_DIGEST:]
    if hashlib.sha256(value).digest() != digest:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # so that `_prune` sees it as used
    return value


def store(key: str, value: bytes) -> bool:
    """Keep `value` under `key`; False where the folder cannot be written. Processes may store the same key at once."""
    folder = cache_folder()
    temporary: str | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(suffix=".tmp", dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(value).digest())
            file.write(value)
        os.replace(temporary, folder / (key + _SUFFIX))
        _prune(folder)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return False
    return True


def _prune(folder: Path) -> None:
    """Remove the entries that were not used for longest, until the rest fit LIMIT_BYTES."""
    total = 0
    entries = [(path.stat(), path) for path in folder.glob("*" + _SUFFIX)]
    for status, path in sorted(entries, key=lambda entry: entry[0].st_mtime, reverse=True):
        total += status.st_size
        if total > LIMIT_BYTES:
            path.unlink(missing_ok=True)
