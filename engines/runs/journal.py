"""The journal: what is done, on disk, one JSON line an image, in index order.

Knows: the line of an image, how lines are appended so that a line on disk always has its image beside it, and how a
journal that a kill cut short is read back. Knows nothing about how images are painted, or what is made of the lines.
"""

import json
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engines.common.files import OWN as OWN
from engines.common.files import sync_folder
from engines.common.quote import shorten
from engines.composing.given import Given
from engines.errors import RunError
from engines.labels.boxes import Instances
from engines.labels.rules import Drop, DropReason, Rules, chosen
from engines.painting.run_settings import RunSettings
from engines.runs.given_lines import given_of, given_to_json
from engines.runs.lines import IMAGE_NAME, check_boxes, checked_line

JOURNAL = "journal.jsonl"
IMAGES = "images"
SPARE = f"{OWN}/spare"  # images that were kept, but that the dataset does not use at present
PARTIAL = f"{OWN}/partial"  # files while they are written
OLD_SPARE = "spare"  # of an earlier dengine
_BATCH = 32  # lines between two flushes to disk


@dataclass(frozen=True)
class Entry:
    """One line: an image that was painted."""

    index: int  # of its job
    prompt: str
    reference: str | None  # name of the image it was painted from
    strength: float | None
    drop: Drop | None  # why it was dropped; None for a kept image
    file: str | None  # name in the images folder; None for a dropped image, which is never written
    sha256: str | None  # of the file
    instances: Instances  # all that score at least the journal's floor, best first; float64
    given: Given | None = None  # labels that it had before the adapter looked; None where the run does not read them

    def to_line(self) -> str:
        """The line, without its newline."""
        outcome: dict[str, Any] = {"outcome": "kept", "file": self.file, "sha256": self.sha256}
        if self.drop is not None:
            outcome = {"outcome": "dropped", "drop": self.drop.reason, "reason": self.drop.text}
        words = {"prompt": self.prompt, "reference": self.reference, "strength": self.strength}
        value = {"index": self.index, **outcome, **words, "boxes": self.instances.to_rows()}
        if self.given is not None:
            value |= given_to_json(self.given)
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_line(cls, line: bytes | str) -> "Entry":
        """Read what `to_line` wrote; ValueError that says what is wrong with anything else."""
        value, table = checked_line(line)
        kept = value["outcome"] == "kept"
        return cls(
            index=value["index"],
            prompt=value["prompt"],
            reference=value["reference"],
            strength=value["strength"],
            drop=None if kept else _drop(value),
            file=value["file"] if kept else None,
            sha256=value["sha256"] if kept else None,
            instances=Instances.from_table(table),
            given=given_of(value),
        )

    def labels(self, rules: Rules | None) -> Instances:
        """`rules.chosen` of the line's boxes."""
        return chosen(self.instances, rules, self.known)

    @property
    def known(self) -> Instances | None:
        """The boxes of `given`."""
        return None if self.given is None else self.given.instances


@dataclass(frozen=True)
class Progress:
    """How far a journal is, counted in whole chunks."""

    size: int = 0  # bytes of all whole chunks
    chunks: int = 0  # whole chunks
    jobs: int = 0  # their lines
    kept: int = 0  # their kept images
    unkept: int = 0  # their lines since the last kept image
    labels: int = 0  # boxes of the kept ones that are labels by the run's own rules
    next_index: int | None = None  # first index after them; None when no chunk is left


def image_name(index: int, suffix: str) -> str:
    """File name of image `index`: `00000042.jpg`."""
    return f"{index:08d}.{suffix}"


def find_image(folder: Path, entry: Entry) -> Path:
    """Where a run has the image of a kept entry, in its dataset or put away. Raises RunError where it is gone."""
    for part in (IMAGES, SPARE, OLD_SPARE):
        if (path := folder / part / str(entry.file)).exists():
            return path
    raise RunError(
        f"{folder / IMAGES / str(entry.file)} is missing, but {JOURNAL} has its labels: put it back, or generate into "
        "a new folder."
    )


def read_progress(path: Path, chunks: Iterable[range], run: RunSettings | None = None) -> Progress:
    """How far the journal at `path` is through `chunks`. A torn or foreign line ends what counts.

    `run`: whose line must be, with boxes of its classes inside its frame; None: no box is looked at, or counted.
    """
    progress = Progress()
    source = iter(chunks)
    current = next(source, None)
    if not path.exists():
        return Progress(next_index=current.start if current else None)
    with path.open("rb") as file:
        while current is not None:
            size, kept, unkept, labels = progress.size, progress.kept, progress.unkept, progress.labels
            for index in current:
                entry = _whole_line(line := file.readline(), run)
                if entry is None or entry.index != index:
                    return replace(progress, next_index=current.start)
                size += len(line)
                if entry.drop is None:
                    kept, unkept = kept + 1, 0
                    labels += len(entry.labels(run.rules).single) if run else 0
                else:
                    unkept += 1
            progress = Progress(size, progress.chunks + 1, progress.jobs + len(current), kept, unkept, labels)
            current = next(source, None)
    return progress


def read_entries(path: Path, run: RunSettings | None = None) -> Iterator[Entry]:
    """The entries of a journal, one at a time; a last line that a kill cut short is passed over.

    `run`: whose they must be, with boxes of its classes inside its frame; None: they are not compared.
    Raises RunError that names a line that cannot be read, or is out of order, and what is wrong with it.
    """
    last = -1
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    entry = read_line(line, run)
                    if entry.index <= last:
                        raise ValueError(f'"index" is {entry.index}, after {last}')
                except ValueError as cause:
                    raise RunError(
                        f"{path}, line {number}: {shorten(cause, 200)}. Go on with the run (the same "
                        "`dengine generate` command): it paints again from there on."
                    ) from None
                last = entry.index
                yield entry
    except FileNotFoundError:
        raise RunError(f"{path} is missing: give the folder of a run, as `dengine generate` made it.") from None


def read_files(path: Path) -> Iterator[str | None]:
    """The image's file of each line that `read_entries` has read already: nothing is checked once more."""
    with path.open("rb") as file:
        yield from (json.loads(line).get("file") if line.endswith(b"\n") else None for line in file)


class Journal:
    """The journal of a run that is being written; a context manager.

    Entries come in any order within a chunk and the next, and are written in index order, each only after its image is
    in place; those of a whole chunk are on the disk at once.
    Only a chunk that is given up has gaps: what counts as done ends before it (`read_progress`).
    """

    def __init__(self, folder: Path, size: int) -> None:
        """Open the journal of the run in `folder`, and cut it back to its first `size` bytes."""
        self._fd = os.open(folder / JOURNAL, os.O_RDWR | os.O_CREAT, 0o644)
        self._size = size
        self._cut()
        sync_folder(folder)
        self.next_index = 0  # first index whose entry has not come yet
        self._chunks: deque[range] = deque()  # begun and not whole
        self._waiting: dict[int, Entry] = {}
        self._ready: list[Entry] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def begin(self, chunk: range) -> None:
        """Expect the entries of a chunk, behind those of chunks that have begun and are not whole."""
        self._chunks.append(chunk)
        self.next_index = self.next_index if len(self._chunks) > 1 else chunk.start

    def add(self, entry: Entry) -> None:
        """Take an entry whose image, if it has one, is in place."""
        self._waiting[entry.index] = entry
        whole = False
        while self._chunks and self.next_index in self._waiting:
            self._ready.append(self._waiting.pop(self.next_index))
            self.next_index += 1
            if self.next_index == self._chunks[0].stop:
                whole = True
                self._chunks.popleft()
                self.next_index = self._chunks[0].start if self._chunks else self.next_index
        if whole or len(self._ready) >= _BATCH:
            self.flush()

    @property
    def waiting(self) -> frozenset[int]:
        """The indices of entries that came and that an earlier one is missing for."""
        return frozenset(self._waiting)

    def flush(self, *, gaps: bool = False) -> None:
        """Write all entries that no earlier one is missing for, and see them on the disk; with `gaps` the others too,
        after which no more entries of these chunks are taken."""
        if gaps:
            self._ready += [self._waiting.pop(index) for index in sorted(self._waiting)]
            self._chunks.clear()
        if not self._ready:
            return
        data = b"".join(entry.to_line().encode() + b"\n" for entry in self._ready)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._fd, data[written:])
            os.fsync(self._fd)
        except BaseException:
            self._cut()  # no half line stays behind a full disk, and no line comes twice after a second Ctrl-C
            raise
        self._size += len(data)
        self._ready.clear()

    def _cut(self) -> None:
        os.ftruncate(self._fd, self._size)
        os.lseek(self._fd, self._size, os.SEEK_SET)


def remove_images_from(folder: Path, index: int | None, but: Collection[int] = ()) -> None:
    """Remove temporary files, and the images from `index` on, that no journal line stands for; those of `but` stay.

    Only files named as a run names them are touched: in the images folder, among the spare and the unfinished ones.
    """
    for part in (folder / IMAGES, folder / SPARE, folder / PARTIAL):
        if not part.is_dir():
            continue
        with os.scandir(part) as found:
            for item in found:
                unfinished = item.name.startswith(".") and item.name.endswith(".tmp")
                if unfinished or (IMAGE_NAME.fullmatch(item.name) and _goes(item.name, index, but)):
                    os.unlink(item.path)


def _goes(name: str, index: int | None, but: Collection[int]) -> bool:
    """Whether the image of this name is one from `index` on, and not in `but`."""
    number = int(name.partition(".")[0])
    return index is not None and number >= index and number not in but


def _drop(value: dict[str, Any]) -> Drop:
    """Why a line's image was dropped; lines of an earlier dengine have the sentence alone."""
    text = str(value["reason"])
    if "drop" in value:
        return Drop(DropReason(value["drop"]), text)
    before = {"no box ": DropReason.NO_BOX, "doubtful labels": DropReason.DOUBTFUL}
    return Drop(
        next((reason for words, reason in before.items() if text.startswith(words)), DropReason.UNREADABLE), text
    )


def read_line(line: bytes, run: RunSettings | None) -> Entry:
    """The entry of a line; of `run`, where that is given. ValueError that says what is wrong with anything else."""
    entry = Entry.from_line(line)
    if run is not None:
        check_boxes(entry.instances, run.frame, len(run.class_names))
        if entry.known is not None:
            check_boxes(entry.known, run.frame, len(run.class_names))
    return entry


def _whole_line(line: bytes, run: RunSettings | None) -> Entry | None:
    with suppress(ValueError):
        return read_line(line, run) if line.endswith(b"\n") else None
    return None
