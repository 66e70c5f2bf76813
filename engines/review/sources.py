"""What is reviewed: a run or a dataset, as one kind of thing.

Knows: how each is read into the index, and how one image's boxes, words and files are found again. Knows nothing about
decisions or pages.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from engines.common.quote import shorten
from engines.datasets.dataset import Dataset
from engines.errors import DatasetError, DengineError, RunError
from engines.labels.boxes import Instances
from engines.labels.rules import DropReason, Rules, candidates
from engines.painting.references import open_references
from engines.painting.run_settings import RunSettings
from engines.painting.settings import LIMIT
from engines.review.index import KEPT, Index, Part, part_of_instances
from engines.runs.given_lines import given_of
from engines.runs.journal import JOURNAL, Entry, find_image, image_name, read_line
from engines.runs.lines import check_boxes
from engines.runs.rules_in_force import rules_in_force

_FIRST_BLOCK, _BLOCK = 32, 500  # images read into the index at once: the first soon, for somebody waits
_BREATH = 0.005  # seconds between two blocks, in which who looks already is answered
_REASONS = tuple(DropReason)


@dataclass(frozen=True, eq=False)
class Item:
    """One image, as it is looked at."""

    name: str  # of its file: what decisions call it
    file: Path | None  # None: it was never written
    width: int
    height: int
    instances: Instances  # as given: before any threshold or decision
    prompt: str | None = None
    reference: str | None = None
    strength: float | None = None
    reason: str | None = None  # why it was dropped when it was painted


class Source(Protocol):
    """A run or a dataset."""

    folder: Path  # where decisions are kept
    kind: str  # "run" or "dataset"
    title: str
    class_names: tuple[str, ...]

    def rules(self) -> Rules:
        """What it takes as labels: of a dataset, everything that is there."""

    def fill(self, index: Index) -> None:
        """Read everything into the index. Errors are noted there."""

    def item(self, number: int, place: int) -> Item:
        """One image, of its number and place in the index."""

    def number_of(self, name: str) -> int | None:
        """The number of the image of that name."""

    def reference(self, item: Item) -> Path | None:
        """The image that it was painted from."""

    def close(self) -> None:
        """Let go of what is open."""


class RunSource:
    """The folder of a run."""

    kind = "run"

    def __init__(self, folder: Path, run: RunSettings) -> None:
        self.folder, self.run = folder, run
        self._rules = rules_in_force(folder, run)
        self.title, self.class_names = folder.resolve().name, run.class_names
        self._journal = (folder / JOURNAL).open("rb")  # kept open: a place in it is a file's bytes, whatever happens

    def rules(self) -> Rules:
        """What the run's next dataset goes by, as it was when the review began."""
        return self._rules

    def fill(self, index: Index) -> None:
        """Read the journal's whole lines."""
        path = self.folder / JOURNAL
        index.total = path.stat().st_size
        try:
            with path.open("rb") as file:
                for part, read in _parts(path, file, self.run, self.rules()):
                    index.add(part)
                    index.read = read
                    time.sleep(_BREATH)
        except (OSError, DengineError) as cause:
            index.trouble = str(cause)
        finally:
            index.complete = True

    def item(self, number: int, place: int) -> Item:
        """Read one line of the journal again. Raises RunError for one that is none."""
        try:
            entry = read_line(_line_at(self._journal.fileno(), place), self.run)
        except ValueError as cause:
            raise RunError(f"{self.folder / JOURNAL}, image {number}: {shorten(cause, 200)}.") from None
        file = self._file(entry) if entry.file else None
        width, height = self.run.frame
        return Item(
            entry.file or image_name(entry.index, self.run.suffix), file, width, height,
            candidates(entry.instances, self._rules, entry.known),
            entry.prompt, entry.reference, entry.strength, None if entry.drop is None else entry.drop.text,
        )  # fmt: skip

    def number_of(self, name: str) -> int | None:
        """A run's images are named for their jobs."""
        stem = name.partition(".")[0]
        return (
            int(stem)
            if stem.isdecimal() and len(stem) < 19 and name == image_name(int(stem), self.run.suffix)
            else None
        )

    def reference(self, item: Item) -> Path | None:
        """The whole reference, where the references are still where they were."""
        return None if item.reference is None else self._references().get(item.reference)

    def close(self) -> None:
        """Let go of the journal."""
        self._journal.close()

    def _file(self, entry: Entry) -> Path | None:
        try:
            return find_image(self.folder, entry)
        except RunError:  # shown as an image that cannot be seen
            return None

    @lru_cache(maxsize=1)  # noqa: B019  a source lives as long as the program
    def _references(self) -> dict[str, Path]:
        asked = self.run.options
        if asked.reference is None:
            return {}
        try:
            found = open_references(asked, skip_bad=True)
        except DatasetError:
            return {}
        return {record.name: record.file for record in found.records}


class DatasetSource:
    """A labelled dataset of any format that is read."""

    kind = "dataset"

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self.folder, self.dataset = folder, dataset
        self.title, self.class_names = dataset.root.resolve().name, dataset.class_names
        self._numbers = {record.name: number for number, record in enumerate(dataset.records)}

    def rules(self) -> Rules:
        """Everything that is there is a label."""
        return Rules(dict.fromkeys(self.class_names, 0.0), keep_empty=True)

    def fill(self, index: Index) -> None:
        """Take the records' boxes."""
        records = self.dataset.records
        index.total = len(records)
        for first in range(0, len(records), _BLOCK):
            block = records[first : first + _BLOCK]
            index.add(part_of_instances([record.instances for record in block], first))
            index.read = first + len(block)
        index.complete = True

    def item(self, number: int, place: int) -> Item:
        """A record."""
        record = self.dataset.records[number]
        return Item(record.name, record.file, record.width, record.height, record.instances, record.caption)

    def number_of(self, name: str) -> int | None:
        """By the name that the dataset has for it."""
        return self._numbers.get(name)

    def reference(self, item: Item) -> Path | None:
        """A photograph was painted from nothing."""
        return None

    def close(self) -> None:
        """Nothing is held open."""


def with_thresholds(rules: Rules, thresholds: Sequence[float]) -> Rules:
    """The rules with other thresholds, in the order of the classes."""
    return replace(rules, thresholds=dict(zip(rules.thresholds, map(float, thresholds), strict=True)))


def _parts(path: Path, file: Any, run: RunSettings, rules: Rules) -> Iterator[tuple[Part, int]]:
    """The journal's lines in blocks, and the bytes read so far; a last line that a kill cut short is passed over."""
    place, part, size = 0, _new_part(), _FIRST_BLOCK
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            _note(part, json.loads(line), place, rules)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as cause:
            raise RunError(
                f"{path}, line {number}, is not a journal line: what comes after it is not shown."
            ) from cause
        place += len(line)
        if len(part.numbers) >= size:
            yield _checked(part, run, f"{path}, up to line {number}"), place
            part, size = _new_part(), _BLOCK
    yield _checked(part, run, f"{path}, up to its end"), place


def _checked(part: Part, run: RunSettings, where: str) -> Part:
    """The part, if its boxes can be of the run: all at once, since a run may have millions. RunError if not."""
    try:
        found = Instances.from_rows(part.rows)
        check_boxes(found, run.frame, len(run.class_names))
        if len(found) and not 0.0 <= found.scores.min() <= found.scores.max() <= 1.0:
            raise ValueError("a score is none from 0 to 1")
    except (ValueError, TypeError, OverflowError) as cause:
        raise RunError(f"{where}, is not a journal: {shorten(cause, 200)}.") from cause
    return part


def _new_part() -> Part:
    return Part([], [], [], [], [], [], [])


def _note(part: Part, value: dict[str, Any], place: int, rules: Rules) -> None:
    rows, strength = value["boxes"], value["strength"]
    crowds = [False] * len(rows)
    if rules.labels != "adapter" and (given := given_of(value)) is not None:
        found = candidates(Instances.from_rows(rows), rules, given.instances)
        rows, crowds = found.to_rows(), found.crowd.tolist()
    index, last = value["index"], part.numbers[-1] if part.numbers else -1
    if type(index) is not int or not last < index <= LIMIT:
        raise ValueError("an index out of order")
    kept = value["outcome"] == "kept"
    reason = KEPT if kept else 1 + _REASONS.index(DropReason(value.get("drop", "unreadable")))
    if strength is not None and not 0.0 <= strength <= 1.0:
        raise ValueError("a strength is none from 0 to 1")
    part.numbers.append(index)
    part.outcomes.append(reason)
    part.places.append(place)
    part.strengths.append(float("nan") if strength is None else float(strength))
    part.counts.append(len(rows))
    part.rows.extend(rows)
    part.crowds.extend(crowds)


def _line_at(descriptor: int, place: int) -> bytes:
    """The whole line that begins there."""
    found, step = b"", 1 << 13
    while b"\n" not in found:
        block = os.pread(descriptor, step, place + len(found))
        if not block:
            raise RunError(f"{JOURNAL} ended while it was read: start the review again.")
        found += block
    return found[: found.index(b"\n")]
