"""Files on disk: hashes, atomic writes, JSON, and paths that cannot leave their folder.

Knows: how to write a file so that a crash leaves the old one or the new one, never half of either.
Knows nothing about what the files mean.
"""

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from engines.common.quote import quote
from engines.errors import DengineError

LFS_POINTER = "version https://git-lfs"  # how the file begins that Git leaves in place of a large one
OWN = ".dengine"  # folder for what is no data, in a folder that a verb writes
LOG_FILE = f"{OWN}/dengine.log"  # what verbs said while they worked on a folder, with times
_LONGEST_NAME, _LONGEST_PATH = 255, 2048  # bytes of a file's name, characters of a path inside its folder


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush `folder` and every file and folder below it to disk: what other libraries wrote there is then safe."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


@contextmanager
def replacing(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """A path for the new content of `path`, which takes its place when the block ends well, and vanishes otherwise.

    It lies in `partial`, a folder of the same disk, or in the file's own. The content is flushed to disk, then renamed,
    and the folder flushed: a crash leaves the old file or the new one.
    """
    temporary = (partial or path.parent) / f".{path.name}.tmp"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def usual_mode(where: Path) -> None:
    """Give safetensors files, `where` or all below it, the mode that new files have.

    safetensors 0.8 makes its own for their owner alone, so that nobody else could load what was trained or exported.
    """
    files = [where] if where.is_file() else list(where.rglob("*.safetensors"))
    probe = (where.parent if where.is_file() else where) / f".mode-{uuid.uuid4().hex}"
    try:
        probe.touch()
        mode = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
    for file in files:
        found = file.lstat().st_mode
        if stat.S_ISREG(found) and stat.S_IMODE(found) != mode:
            with suppress(PermissionError):  # somebody else's, as it was before
                file.chmod(mode)


def write_atomic(path: Path, data: bytes, partial: Path | None = None) -> None:
    """Write `data` to `path`, whole or not at all; `partial` as in `replacing`."""
    with replacing(path, partial) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any, partial: Path | None = None) -> None:
    """Write `value` as indented JSON with a trailing newline, as `write_atomic` does, keys in insertion order."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode(), partial)


def read_json(path: Path, error: type[DengineError]) -> dict[str, Any]:
    """Read a JSON object; a missing, unreadable or malformed file raises `error` naming it."""
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except FileNotFoundError:
        raise error(f"{path} is missing.") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as cause:
        if text.startswith(LFS_POINTER):
            raise error(
                f'{path} is a Git LFS pointer and not the file. Run "git lfs pull" where it came from.'
            ) from None
        raise error(f"{path} is not readable as JSON: {cause}.") from cause
    if not isinstance(value, Mapping):
        raise error(f"{path} holds a JSON {type(value).__name__}; an object was expected.")
    return dict(value)


def safe_join(root: Path, name: str, error: type[DengineError], where: str) -> Path:
    """Join a relative POSIX `name` to `root`; raise `error` (prefixed with `where`) if it would leave `root`.

    Refused: empty names, absolute paths, drives, `..`, and links that lead outside.
    """
    posix = PurePosixPath(name)
    windows = PureWindowsPath(name)
    if not name or posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise error(f'{where}: {quote(name)} must be a relative path inside {root}, without "..".')
    if not _can_name_a_file(name):
        raise error(f"{where}: {quote(name)} cannot be the name of a file.")
    path = root / posix
    if not path.resolve().is_relative_to(root.resolve()):
        raise error(f"{where}: {quote(name)} leads outside {root}.")
    return path


def _can_name_a_file(name: str) -> bool:
    """Whether the system could be asked for a file of this name at all."""
    try:
        parts = [os.fsencode(part) for part in name.split("/")]
    except UnicodeEncodeError:
        return False
    return b"\0" not in b"".join(parts) and max(map(len, parts)) <= _LONGEST_NAME and len(name) <= _LONGEST_PATH
