"""Which objects of a dataset are worth cutting, and how its images are filled: from the annotations alone.

Knows: when an object lies free enough to be cut, how often each class is drawn, and how far boxes of the data overlap.
Knows nothing about pixels or random draws. What it holds are a few numbers an object, never an image.

R records, M objects worth cutting, N boxes of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.datasets.records import Record
from engines.labels.boxes import Instances, covered

_BORDER = 1.5  # pixels that an object keeps from the edges of its image, so that all of it is there
_COVERED = 0.15  # share of an object's box that another box may cover: more, and the other would be cut with it
_LEAST_SIDE = 5.0  # pixels of an object in the painted image
_LARGEST_SHARE = 0.7  # of a frame's side
_CROWDED = 95  # percentile of how far an object's box overlaps another, above which it is an exception
_MOST_CROWDED = 0.35  # whatever the data has: an object that another covers by more can hardly be seen
_MEASURED = 2000  # images whose overlaps are looked at, at most

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Stock:
    """Objects that may be cut, and what is drawn of them."""

    records: npt.NDArray[np.int64]  # [M] which record
    places: npt.NDArray[np.int64]  # [M] which of its boxes
    labels: npt.NDArray[np.int64]  # [M] class, of the dataset
    shares: npt.NDArray[np.float64]  # how often each class is drawn: adds up to 1, 0 where it has nothing to cut
    counts: npt.NDArray[np.int64]  # objects of each annotated image
    crowding: npt.NDArray[np.float64]  # how far objects overlap others, see `crowding`: ascending, never empty
    without: tuple[int, ...] = ()  # classes of the dataset with boxes, none of which can be cut


def take_stock(records: Sequence[Record], classes: int, frame: tuple[int, int], short_side: int) -> Stock:
    """The stock of a dataset's records, for images of `frame` pixels at the scale that makes short sides `short_side`.

    A class is drawn by the square root of its share of the objects, so that rare ones come more often.
    """
    found = [
        (number, place, int(record.instances.labels[place]))
        for number, record in enumerate(records)
        for place in np.flatnonzero(worth_cutting(record, frame, short_side)).tolist()
    ]
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    objects = np.zeros(classes, dtype=np.int64)
    for record in records:
        np.add.at(objects, record.instances.single.labels, 1)
    there = np.bincount(table[:, 2], minlength=classes) > 0
    weights = np.sqrt(objects) * there
    counts = [len(record.instances.single) for record in records]
    return Stock(
        records=table[:, 0],
        places=table[:, 1],
        labels=table[:, 2],
        shares=weights / max(float(weights.sum()), 1e-9),
        counts=np.array([count for count in counts if count], dtype=np.int64),
        crowding=crowding(records),
        without=tuple(np.flatnonzero((objects > 0) & ~there).tolist()),
    )


def worth_cutting(record: Record, frame: tuple[int, int], short_side: int) -> Bools:
    """Which objects of an image can be cut, [N]: whole ones that no other box covers much, and of a fitting size."""
    found = record.instances
    if not len(found):
        return np.zeros(0, dtype=np.bool_)
    boxes = found.boxes.astype(np.float64)
    scale = short_side / min(record.width, record.height)
    sides = (boxes[:, 2:] - boxes[:, :2]) * scale
    inside = (boxes[:, :2] >= _BORDER) & (boxes[:, 2:] <= np.array([record.width, record.height]) - _BORDER)
    fits = (sides >= _LEAST_SIDE) & (sides <= _LARGEST_SHARE * np.array(frame))
    others = covered(boxes, boxes)
    np.fill_diagonal(others, 0.0)
    whole = np.zeros(len(found)) if not record.outside else np.array(record.outside)
    free = (others.max(axis=1) <= _COVERED) & (whole <= 0.0)
    return np.asarray(~found.crowd & free & inside.all(axis=1) & fits.all(axis=1))


def crowding(records: Sequence[Record]) -> npt.NDArray[np.float64]:
    """How far boxes of the data overlap: of every object, the largest share of the smaller of two boxes that lies in
    the other; the percentiles 0 to _CROWDED of these, none above _MOST_CROWDED."""
    step = max(1, len(records) // _MEASURED)
    found = [overlap(record.instances.single) for record in records[::step]]
    shares = np.concatenate([np.zeros(0), *found])
    if not len(shares):
        return np.zeros(1)
    return np.asarray(np.minimum(np.percentile(shares, np.arange(_CROWDED + 1)), _MOST_CROWDED))


def overlap(found: Instances) -> npt.NDArray[np.float64]:
    """Of each box, the largest share of the smaller of it and another that lies in both, [N]."""
    boxes = found.boxes.astype(np.float64)
    if len(boxes) < 2:
        return np.zeros(len(boxes))
    shares = covered(boxes, boxes)
    np.fill_diagonal(shares, 0.0)
    return np.asarray(np.maximum(shares, shares.T).max(axis=1))
