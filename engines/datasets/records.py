"""The one in-memory form of a dataset, what a reader hands on towards it, and what it met on the way.

Knows: what a record is, how bad items are left out, and how remarks are gathered. Knows nothing about formats, nor how
boxes are held against their images (`assemble`).

Boxes: xyxy in pixels of the upright image (EXIF applied), as continuous edges: a box over the whole image is
[0, 0, width, height]. N boxes of an image.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.common.events import Report, left_out, note
from engines.common.quote import quote
from engines.datasets.images import read_image
from engines.datasets.readings import Reading, Row
from engines.errors import DatasetError
from engines.labels.boxes import Instances, join

Size = tuple[int, int]  # width, height


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its boxes; the pixels stay on disk."""

    file: Path  # the image
    name: str  # POSIX path relative to the image folder
    width: int  # of the upright image, read from the file
    height: int
    instances: Instances  # float32, inside the image, with positive area; labels index the dataset's class names
    caption: str | None  # the image's own caption, where the dataset has one
    outside: tuple[float, ...] = ()  # of each box, what share of it lay outside the image; empty where none did
    white: float | None = None  # the file's value that is white, where the whole set shows another than its mode says

    def pixels(self) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, 3] RGB, upright; DatasetError naming a file that cannot be read."""
        return read_image(self.file, white=self.white)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A whole dataset (one split of it, where a split was named)."""

    root: Path  # the folder that was opened
    class_names: tuple[str, ...]
    records: Sequence[Record]
    dropped: tuple[str, ...]  # degenerate boxes: file, index and why
    skipped: tuple[str, ...]  # bad items that `skip_bad` left out: file, field and why
    source: str = ""  # what was found, in words: "Pascal VOC, split train"
    remarks: tuple[str, ...] = ()  # what was corrected, passed over or taken for something: a sentence each

    def lines(self) -> Iterator[str]:
        """What its reading met, in a few lines: remarks, and what was left out; none where it met nothing."""
        yield from self.remarks
        yield from left_out(self.dropped, self.skipped)

    def tell(self, report: Report) -> None:
        """Report the same: how every verb does it."""
        for line in self.lines():
            report(note(line))

    def objects(self) -> dict[str, int]:
        """How many boxes each class has, crowds aside."""
        return join([found.single for found in instances_of(self.records)]).count(self.class_names)


def instances_of(records: Iterable[Record]) -> list[Instances]:
    """The objects of each record, in order."""
    return [record.instances for record in records]


def readable(dataset: Dataset) -> Dataset:
    """The dataset without the images whose pixels cannot be read, which are listed among what was left out. Each is
    decoded: opening looks at the headers and ends of files alone. Raises DatasetError where none is left.
    """
    records, skipped = [], list(dataset.skipped)
    for record in dataset.records:
        try:
            record.pixels()
        except DatasetError as cause:
            skipped.append(str(cause))
        else:
            records.append(record)
    if not records:
        raise DatasetError(f"{dataset.root}: no image can be read, beginning with: {skipped[0]}")
    return replace(dataset, records=records, skipped=tuple(skipped))


def image_folder(records: Sequence[Record]) -> Path:
    """The folder that the names of a dataset's records are relative to, absolute; there must be a record."""
    first = records[0]
    return first.file.absolute().parents[first.name.count("/")]


@dataclass(frozen=True)
class ReadOptions:
    """How a dataset is to be read; see `open_dataset`."""

    split: str | None = None
    class_names: tuple[str, ...] | None = None
    skip_bad: bool = False
    follow_links: bool = False
    boxes: str = "auto"  # one of readings.BOXES


@dataclass(eq=False)
class Draft:
    """An image and its objects as the annotation file has them, before they are held against the image."""

    file: Path
    name: str  # POSIX path relative to the image folder
    where: str  # of its size, for messages
    stated: Size | None = None  # what the annotation says the image's size is
    caption: str | None = None
    rows: list[Row] = field(default_factory=list)  # N boxes: four numbers each
    readings: list[Reading | None] = field(default_factory=list)  # [N] what they mean; None: what the file's boxes do
    labels: list[int] = field(default_factory=list)  # [N]
    crowd: list[bool] = field(default_factory=list)  # [N]
    wheres: list[str] = field(default_factory=list)  # [N] file and index, for messages

    def add(self, where: str, row: Row, label: int, crowd: bool = False, reading: Reading | None = None) -> None:
        """Add an object."""
        self.rows.append(row)
        self.readings.append(reading)
        self.labels.append(label)
        self.crowd.append(crowd)
        self.wheres.append(where)


class _BadItemError(DatasetError):
    """A bad item whose message says already how to leave it out."""


@dataclass
class Findings:
    """What a reader met on the way: degenerate boxes, bad items where these may be left out, and remarks."""

    skip_bad: bool
    dropped: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    _remarks: dict[str, tuple[int, str]] = field(default_factory=dict)  # what -> how often, the first

    @contextmanager
    def item(self) -> Iterator[None]:
        """Run the block for one item; with `skip_bad` a DatasetError in it is noted and the item left out."""
        try:
            yield
        except _BadItemError:
            raise
        except DatasetError as error:
            if not self.skip_bad:
                hint = "Or leave bad items out with `skip_bad=True`."
                raise _BadItemError(f"{error} {hint}", field=error.field) from error
            self.skipped.append(str(error))

    def degenerate(self, where: str, value: object) -> None:
        """Note a box that is not four finite numbers; it is dropped, as one without area is."""
        self.dropped.append(f"{where}: box {quote(value)} is not four finite numbers.")

    def remark(self, sentence: str) -> None:
        """Note something once."""
        self._remarks.setdefault(sentence, (0, ""))

    def count(self, what: str, example: str) -> None:
        """Note something that may come often: it is said once, with its number and the first example."""
        number, first = self._remarks.get(what, (0, example))
        self._remarks[what] = number + 1, first

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence for each thing noted."""
        return tuple(
            f"{number} {what} (first: {first})." if number else what for what, (number, first) in self._remarks.items()
        )
