"""The folder of a run: who may write in it, which settings it was started with, and what it may be.

Knows: the lock, `run.json`, which folders a new run may take, where a run's bundle is, and what lay elsewhere in an
earlier dengine's. Knows nothing about what is painted.

    RUN/run.json, journal.jsonl          what was asked, and what came of it, line by line
    RUN/images/, annotations.json, ...   the dataset, in its formats
    RUN/.dengine/                        what is no data: lock, log, preview, spare images, unfinished files, rules.json
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.bundle.bundle import default_bundle
from engines.bundle.files import MANIFEST
from engines.common.files import read_json, sha256_file, sync_folder, write_json
from engines.errors import BundleError, RunError
from engines.painting.run_settings import GOES_ON, RunSettings, differences
from engines.runs.journal import IMAGES, JOURNAL, OLD_SPARE, OWN, PARTIAL, SPARE

RUN = "run.json"
LOCK, PREVIEW = f"{OWN}/lock", f"{OWN}/preview.png"
_OLD_LOCK, _OLD_PREVIEW = ".lock", "preview.png"  # of an earlier dengine
_NOT_YET = (OWN, _OLD_LOCK, f".{RUN}.tmp")  # what a folder may hold before it is a run


def check_folder(folder: Path) -> None:
    """Raise RunError unless `folder` is a run, or may become one: it is new or empty."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give a new folder, or the folder of a run.", field="out")
    if folder.is_dir() and not (folder / RUN).exists() and any(item.name not in _NOT_YET for item in folder.iterdir()):
        raise RunError(f"{folder} is not empty, and not a run (no {RUN}): give a new folder.", field="out")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock, made where it is missing; what did not become a run is left as it was found.

    The lock belongs to the process and falls with it, however it ends. Raises RunError when another one holds it.
    """
    made = [one for one in (folder / OWN, folder, *folder.parents) if not one.exists()]
    with run_errors(folder):
        (folder / OWN).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(folder, descriptor)
        yield
        made = []
    finally:
        if made and not holds_more(folder):
            shutil.rmtree(folder / OWN, ignore_errors=True)
            with contextlib.suppress(OSError):  # another one put something there meanwhile
                for one in made[1:]:
                    one.rmdir()
        os.close(descriptor)


def holds_more(folder: Path) -> bool:
    """Whether a folder holds anything but what `locked` leaves in one."""
    return any(item.name not in (OWN, _OLD_LOCK) for item in folder.iterdir())


def _lock(folder: Path, descriptor: int) -> None:
    """Take the lock of an open file of this folder; RunError where another one has it."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"{folder} is in use by another dengine: wait for it, or give another folder.") from None
    except OSError as cause:
        raise RunError(f"{folder} cannot be locked ({cause.strerror}): give a folder on a local disk.") from cause


def bring_up_to_date(folder: Path) -> None:
    """Move what is no data where it belongs, in a run of an earlier dengine whose folder is locked.

    Such a run is told by its lock, which goes last: one that is killed here is brought up to date at its next start.
    Raises RunError while an earlier dengine is at work in it.
    """
    if not (folder / _OLD_LOCK).exists() or not (folder / RUN).exists():
        return
    descriptor = os.open(folder / _OLD_LOCK, os.O_RDWR)
    try:
        _lock(folder, descriptor)
        if (folder / OLD_SPARE).is_dir():
            (folder / SPARE).mkdir(exist_ok=True)
            for image in (folder / OLD_SPARE).iterdir():
                image.rename(folder / SPARE / image.name)
            (folder / OLD_SPARE).rmdir()
        if (folder / _OLD_PREVIEW).exists():
            (folder / _OLD_PREVIEW).rename(folder / PREVIEW)
        sync_folder(folder / OWN)
        (folder / _OLD_LOCK).unlink()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def run_errors(folder: Path) -> Iterator[None]:
    """Turn the system's refusals inside the block (a full disk, a read-only folder) into a RunError."""
    try:
        yield
    except BrokenPipeError:  # whoever read our output is gone: no matter of this folder
        raise
    except OSError as cause:
        where = cause.filename or folder
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"No space left on the disk that holds {folder}: free some and run the same command again."
            ) from cause
        if cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RunError(f"{where} cannot be written ({cause.strerror}): give a folder that can.") from cause
        if cause.errno in (errno.ENOTDIR, errno.EEXIST):
            raise RunError(f"{where} has a file where a folder is needed: give another folder.") from cause
        raise RunError(f"{where}: {cause.strerror or cause}.") from cause


def read_run(folder: Path) -> RunSettings | None:
    """The settings a run was started with; None for a folder that is not a run yet."""
    path = folder / RUN
    return RunSettings.from_json(read_json(path, RunError), str(path)) if path.exists() else None


def require_run(folder: Path) -> RunSettings:
    """The settings of a run that has to be there."""
    if not folder.is_dir():
        raise RunError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; give the folder of a run.")
    settings = read_run(folder)
    if settings is None or not (folder / JOURNAL).exists():
        raise RunError(f"{folder} is not a run (no {RUN} or no {JOURNAL}): give a folder that `dengine generate` made.")
    return settings


def bundle_of(run: RunSettings) -> Path | None:
    """The folder of a run's bundle, if it is there and still the same."""
    try:
        folder = run.options.bundle or default_bundle()
        return folder if sha256_file(folder / MANIFEST) == run.bundle_hash else None
    except (BundleError, OSError):
        return None


def check_format(folder: Path, stored: RunSettings | None) -> None:
    """Raise RunError for a run that an older dengine painted: its chunks were put together otherwise."""
    if stored is not None and stored.format not in GOES_ON:
        raise RunError(
            f"{folder} was painted by an older dengine: finalize and merge still work on it, generate does not. Give a "
            "new folder."
        )


def check_same(folder: Path, wanted: RunSettings, stored: RunSettings) -> None:
    """Raise RunError that shows every difference to the stored settings of a run but a larger count."""
    if found := differences(stored, wanted):
        raise RunError(
            f"{folder} was started with other settings: {'; '.join(text for _, text in found)}. Run it with the "
            "settings it was started with (a larger count is fine), or give a new folder.",
            field=found[0][0],
        )


def start_run(folder: Path, wanted: RunSettings, stored: RunSettings | None) -> None:
    """Make the folder a run with `wanted` settings, or go on with the `stored` ones where they are the same.

    Raises RunError that shows every difference but a larger count.
    """
    if stored is not None:
        check_same(folder, wanted, stored)
    (folder / PARTIAL).mkdir(parents=True, exist_ok=True)
    if wanted != stored:
        write_json(folder / RUN, wanted.to_json(), folder / PARTIAL)
    (folder / IMAGES).mkdir(exist_ok=True)
