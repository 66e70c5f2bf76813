"""Which images a filter shows, in which order, and how many labels a threshold leaves: arithmetic over the index.

Knows: filters, orders, histograms and counts, over all images at once. What a person decided comes as arrays beside the
index (`Overlay`), and images whose boxes were edited are counted one by one. Knows nothing about files or pages.

N images, B boxes, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from engines.labels.boxes import Instances
from engines.review.index import KEPT, View

BINS = 100  # of a histogram of scores, 0 to 1
UNDECIDED, KEEP, REJECT = 0, 1, 2  # verdicts

Mask = npt.NDArray[np.bool_]
Order = Literal["order", "unsure", "sure", "many", "few", "shuffled"]
Status = Literal["all", "undecided", "kept", "rejected", "edited"]


@dataclass(frozen=True)
class Filter:
    """What is looked for. What is None is not asked."""

    label: int | None = None  # images with a label of this class
    least: int | None = None  # labels, of the class if one is named
    most: int | None = None
    smallest: float | None = None  # a label with sides (root of the area) from here, pixels
    largest: float | None = None  # to here
    lowest: float | None = None  # a box that scores from here, whatever the threshold
    highest: float | None = None  # to here
    weakest: float | None = None  # strength from here
    strongest: float | None = None  # to here
    prompt: str | None = None  # in the prompt, whatever case
    reference: str | None = None  # in the reference's name
    status: Status = "all"
    reason: str | None = None  # not in the dataset, and why
    order: Order = "order"

    @property
    def asks_of_words(self) -> bool:
        """Whether the images' own lines have to be read."""
        return bool(self.prompt or self.reference)


@dataclass(eq=False)
class Overlay:
    """What was decided, beside the index."""

    verdicts: npt.NDArray[np.uint8]  # [N] UNDECIDED, KEEP or REJECT
    edited: Mapping[int, Instances] = field(default_factory=dict)  # by row: labels after edits, at any threshold


def labels_mask(view: View, thresholds: Sequence[float]) -> Mask:
    """Which boxes score enough, and can be labels [B]."""
    return np.asarray((view.scores >= np.array(thresholds, dtype=np.float32)[view.labels]) & ~view.never)


def _own_labels(found: Instances, thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """The classes of the labels of an image that was edited."""
    return found.labels[(found.scores >= np.array(thresholds)[found.labels]) & ~found.crowd]


def histogram(view: View, classes: int) -> list[list[int]]:
    """Boxes of each class by score, in BINS of equal width: [K][BINS]."""
    bins = np.minimum((view.scores * BINS + 1e-4).astype(np.int64), BINS - 1)
    counts = np.bincount(view.labels.astype(np.int64) * BINS + bins, minlength=classes * BINS)
    rows: list[list[int]] = counts.reshape(classes, BINS).tolist()
    return rows


def count(view: View, overlay: Overlay, thresholds: Sequence[float], inside: Mask) -> list[int]:
    """How many labels of each class these thresholds leave in the images that are `inside` the dataset, [N]: [K]."""
    mask = labels_mask(view, thresholds)
    plain = inside.copy()
    plain[list(overlay.edited)] = False
    if not plain.all():
        mask &= np.repeat(plain, np.diff(view.starts))
    boxes = np.bincount(view.labels[mask], minlength=len(thresholds))
    for row, found in overlay.edited.items():
        if inside[row]:
            boxes += np.bincount(_own_labels(found, thresholds), minlength=len(thresholds))
    counts: list[int] = boxes.tolist()
    return counts


def select(view: View, overlay: Overlay, thresholds: Sequence[float], asked: Filter) -> Mask:
    """Which images the filter shows [N], words aside."""
    shown = np.asarray(view.outcomes == KEPT)
    mask = labels_mask(view, thresholds)
    of_class = mask if asked.label is None else mask & (view.labels == asked.label)
    if asked.label is not None or asked.least is not None or asked.most is not None:
        numbers = view.per_image(of_class)
        for row, found in overlay.edited.items():
            own = _own_labels(found, thresholds)
            numbers[row] = len(own) if asked.label is None else int((own == asked.label).sum())
        least = asked.least if asked.least is not None else int(asked.label is not None and asked.most is None)
        shown &= numbers >= least
        if asked.most is not None:
            shown &= numbers <= asked.most
    if asked.smallest is not None or asked.largest is not None:
        shown &= view.any_box(of_class & _between(view.sides, asked.smallest, asked.largest))
    if asked.lowest is not None or asked.highest is not None:
        every = np.ones(len(mask), dtype=np.bool_) if asked.label is None else view.labels == asked.label
        shown &= view.any_box(every & _between(view.scores, asked.lowest, asked.highest))
    if asked.weakest is not None or asked.strongest is not None:
        shown &= _between(view.strengths, asked.weakest, asked.strongest)
    return shown & _of_status(overlay, asked.status, len(view))


def arrange(view: View, rows: npt.NDArray[np.int64], order: Order) -> npt.NDArray[np.int32]:
    """The rows in the order that was asked for."""
    if order == "order":
        return rows.astype(np.int32)
    if order == "shuffled":
        return np.random.default_rng(0).permutation(rows).astype(np.int32)
    key = quality(view) if order in ("unsure", "sure") else np.diff(view.starts).astype(np.float64)
    sign = -1.0 if order in ("sure", "many") else 1.0
    return rows[np.argsort(sign * key[rows], kind="stable")].astype(np.int32)


def quality(view: View) -> npt.NDArray[np.float64]:
    """`labels.rules.quality` of every image [N]."""
    scores = view.scores.astype(np.float64)
    total, squares = view.per_image(scores), view.per_image(scores**2)
    return np.where(total > 0, squares / np.maximum(total, 1e-12), 1.0)


def boxes_of_class(
    view: View, overlay: Overlay, label: int, low: float, high: float, rising: bool
) -> npt.NDArray[np.int32]:
    """The boxes of a class that score in a range, by score, of images that are not rejected: places among all B."""
    alive = np.repeat((view.outcomes == KEPT) & (overlay.verdicts != REJECT), np.diff(view.starts))
    found = np.flatnonzero(alive & (view.labels == label) & (view.scores >= low) & (view.scores <= high))
    scores = view.scores[found]
    return found[np.argsort(scores if rising else -scores, kind="stable")].astype(np.int32)


def _between(values: npt.NDArray[Any], low: float | None, high: float | None) -> Mask:
    found = np.ones(len(values), dtype=np.bool_)
    if low is not None:
        found &= values >= low
    if high is not None:
        found &= values <= high
    return found


def _of_status(overlay: Overlay, status: Status, count: int) -> Mask:
    edited = np.zeros(count, dtype=np.bool_)
    edited[[row for row in overlay.edited if row < count]] = True
    if status == "edited":
        return edited
    if status == "undecided":
        return np.asarray((overlay.verdicts == UNDECIDED) & ~edited)
    if status in ("kept", "rejected"):
        return np.asarray(overlay.verdicts == (KEEP if status == "kept" else REJECT))
    return np.ones(count, dtype=np.bool_)
