"""The review's own file, as it is written: one line a decision, each on the disk before anybody is told so.

Knows: who may write, what a kill leaves behind, and that a decision that is sent again counts once. What lines mean is
`engines.runs.decisions`' matter.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from engines.common.files import sync_folder
from engines.errors import RunError
from engines.runs.decision import Decision
from engines.runs.decisions import REVIEW, read_decisions
from engines.runs.run_folder import run_errors

OWN = ".dengine"  # a run's or a dataset's folder for what is no data
_LOCK = "review.lock"


class ReviewLog:
    """The decisions of a folder, held by one reviewer; a context manager.

    The lock falls with the process, however it ends. Raises RunError where another review holds it, and for a line
    that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / REVIEW
        with run_errors(folder):
            (folder / OWN).mkdir(exist_ok=True)
            self._lock = os.open(folder / OWN / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _take(self._lock, folder)
                self.decisions = read_decisions(folder)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
                self._size = self._cut()
                sync_folder(folder)
            except BaseException:
                os.close(self._lock)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        if not self._size:
            self._path.unlink(missing_ok=True)  # a look that decided nothing leaves nothing
        os.close(self._lock)

    def add(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Write decisions that are not there yet and see them on the disk; gives those that were new.

        Raises ValueError for an undo of nothing, and then none is written; OSError where the disk is full.
        """
        new: list[Decision] = []
        known = self.decisions.lines.keys() | set()
        for one in decisions:
            if one.id not in known:
                new.append(one)
                known.add(one.id)
                if one.of is not None and one.of not in known:
                    raise ValueError(f'"of" is {one.of}, which is no decision before it')
        if not new:
            return []
        data = "".join(one.to_line() + "\n" for one in new).encode()
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except BaseException:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(data)
        for one in new:
            self.decisions.add(one)
        return new

    def _cut(self) -> int:
        """Cut off a last line that a kill left without its end: nobody was told of it."""
        data = self._path.read_bytes()
        size = data.rfind(b"\n") + 1
        os.ftruncate(self._file, size)
        os.lseek(self._file, size, os.SEEK_SET)
        return size


def _take(descriptor: int, folder: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(
            f"{folder} is being reviewed by another dengine: go on there, where its page may be open twice, or end "
            "that first."
        ) from None
    except OSError as cause:
        raise RunError(f"{folder} cannot be locked ({cause.strerror}): put it on a local disk.") from cause
