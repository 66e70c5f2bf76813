"""What a review knows of every image and box: numbers in flat arrays, so that a million images fit.

Knows: how the arrays grow while a journal is read, and where an image's own boxes are among all. Knows nothing about
thresholds, decisions or pixels; what an image's line says beyond these numbers is read again when it is looked at.

N images, B boxes of all of them.
"""

import threading
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.labels.boxes import Instances
from engines.labels.rules import without_doubles

Array = npt.NDArray[Any]
KEPT = 0  # the outcome of an image that has a picture; others are 1 + the place of their DropReason
_FIRST = 4096  # rows that an array begins with


class Column:
    """An array that grows at its end."""

    def __init__(self, dtype: Any) -> None:
        self._data: Array = np.empty(_FIRST, dtype=dtype)
        self.size = 0

    def extend(self, values: npt.ArrayLike) -> None:
        """Add values at the end."""
        new = np.asarray(values, dtype=self._data.dtype)
        if self.size + len(new) > len(self._data):
            larger = np.empty(max(2 * len(self._data), self.size + len(new)), dtype=self._data.dtype)
            larger[: self.size] = self._data[: self.size]
            self._data = larger
        self._data[self.size : self.size + len(new)] = new
        self.size += len(new)

    def view(self, size: int) -> Array:
        """The first `size` values."""
        return self._data[:size]


@dataclass(frozen=True, eq=False)
class Part:
    """Some images in a row, to be added."""

    numbers: list[int]  # of each image: its job, or its place in the dataset
    places: list[int]  # where its line begins in the journal
    outcomes: list[int]
    strengths: list[float]  # NaN where there is none
    counts: list[int]  # boxes of each
    rows: list[list[float]]  # x0, y0, x1, y1, score, label of all
    crowds: list[bool]  # which of them are regions to ignore


@dataclass(frozen=True, eq=False)
class View:
    """The images that are known so far; it does not change."""

    numbers: npt.NDArray[np.int64]  # [N] rising
    places: npt.NDArray[np.int64]  # [N]
    outcomes: npt.NDArray[np.uint8]  # [N]
    strengths: npt.NDArray[np.float32]  # [N]
    starts: npt.NDArray[np.int64]  # [N + 1] of its boxes
    scores: npt.NDArray[np.float32]  # [B]
    labels: npt.NDArray[np.uint16]  # [B]
    sides: npt.NDArray[np.float16]  # [B] root of the area, pixels
    never: npt.NDArray[np.bool_]  # [B] no labels at any threshold: regions to ignore, and what a surer box covers

    def __len__(self) -> int:
        return len(self.numbers)

    def of_box(self, boxes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The images of boxes."""
        return np.searchsorted(self.starts, boxes, side="right") - 1

    def per_image(self, values: Array) -> Array:
        """The sum of a value a box [B] over each image's boxes [N]."""
        sums = np.concatenate([np.zeros(1, dtype=np.result_type(values.dtype, np.int64)), np.cumsum(values)])
        return np.asarray(sums[self.starts[1:]] - sums[self.starts[:-1]])

    def any_box(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which images have a box of the mask [B]: [N]."""
        if not len(mask):
            return np.zeros(len(self), dtype=np.bool_)
        found = np.logical_or.reduceat(mask, np.minimum(self.starts[:-1], len(mask) - 1))
        return np.asarray(found & (self.starts[1:] > self.starts[:-1]))


@dataclass(eq=False)
class Index:
    """The arrays, filled by one thread and read by others."""

    max_overlap: float = 1.0  # of the rules that labels are counted by
    total: int = 0  # bytes, or images, to read in all
    read: int = 0  # of them
    complete: bool = False
    trouble: str | None = None  # what ended the reading early
    _columns: dict[str, Column] = field(default_factory=dict)
    _view: View | None = None
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        kinds = {
            "numbers": np.int64, "places": np.int64, "outcomes": np.uint8, "strengths": np.float32, "starts": np.int64,
            "scores": np.float32, "labels": np.uint16, "sides": np.float16, "never": np.bool_,
        }  # fmt: skip
        self._columns = {name: Column(kind) for name, kind in kinds.items()}
        self._columns["starts"].extend([0])

    def add(self, part: Part) -> None:
        """Add images at the end."""
        table = np.array(part.rows, dtype=np.float64).reshape(-1, 6)
        sides = np.sqrt(np.clip(np.prod(table[:, 2:4] - table[:, :2], axis=1), 0.0, 4e9))
        before = self._columns["scores"].size
        added = {
            "numbers": part.numbers, "places": part.places, "outcomes": part.outcomes, "strengths": part.strengths,
            "starts": before + np.cumsum(part.counts), "scores": table[:, 4], "labels": table[:, 5], "sides": sides,
            "never": self._never(part),
        }  # fmt: skip
        with self._guard:
            for name, values in added.items():
                self._columns[name].extend(values)
            self._view = None

    def _never(self, part: Part) -> npt.NDArray[np.bool_]:
        """Which boxes of the part are labels at no threshold, [B]."""
        never = np.array(part.crowds, dtype=np.bool_)
        ends = np.cumsum(part.counts).tolist()
        for start, end in zip([0, *ends], ends, strict=False) if self.max_overlap < 1.0 else ():
            found = replace(Instances.from_rows(part.rows[start:end]), crowd=never[start:end])
            never[start:end] |= ~without_doubles(found, self.max_overlap)
        return never

    def view(self) -> View:
        """All that is known now."""
        with self._guard:
            if self._view is None:
                n, boxes = self._columns["numbers"].size, self._columns["scores"].size
                sizes = {"starts": n + 1, "scores": boxes, "labels": boxes, "sides": boxes, "never": boxes}
                self._view = View(**{name: one.view(sizes.get(name, n)) for name, one in self._columns.items()})
            return self._view


def part_of_instances(found: list[Instances], first: int) -> Part:
    """Images of a dataset from the `first` on."""
    count = len(found)
    return Part(
        numbers=list(range(first, first + count)), places=[0] * count, outcomes=[KEPT] * count,
        strengths=[float("nan")] * count, counts=[len(one) for one in found],
        rows=[row for one in found for row in one.to_rows()],
        crowds=[crowd for one in found for crowd in one.crowd.tolist()],
    )  # fmt: skip
