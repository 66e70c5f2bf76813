"""What is pasted into an image, and where: pure draws from the annotations, before any pixel is read.

Knows: how many objects, of which classes, at which size, and where they do not overlap others more than they do in the
data. Knows nothing about masks or pixels (`masks`, `paste`).

Frame pixels throughout; N boxes that are there already.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.composing.stock import Stock
from engines.datasets.records import Record
from engines.labels.boxes import Instances, covered

_SCALES = (0.8, 1.25)  # an object's own size is multiplied by a number from here, evenly on a log scale
_SHARE = 0.5  # of an image's usual number of objects: the most that is pasted into one
_TRIES = 40  # places that are tried for an object


@dataclass(frozen=True)
class Paste:
    """One object to paste."""

    record: int  # which record it is cut from
    place: int  # which of its boxes
    label: int  # class, of the dataset
    scale: float  # painted pixels for one of the record's
    flip: bool  # mirrored left to right, before it is turned
    turns: int  # by right angles against the clock
    x: float  # left edge of its box in the frame
    y: float  # top edge


def draw_pastes(
    stock: Stock,
    records: Sequence[Record],
    there: Instances,
    frame: tuple[int, int],
    short_side: int,
    rng: np.random.Generator,
    *,
    flip: bool,
    rotate: bool,
) -> tuple[Paste, ...]:
    """What to paste beside the boxes that are `there`; nothing where no place is found.

    Up to half as many objects as a random image of the data has, each whole. How far it overlaps others
    is drawn from the overlaps in the data, where there is room, and never more than these.
    """
    objects = max(1, round(_SHARE * int(stock.counts[rng.integers(len(stock.counts))])))
    taken = there.boxes.astype(np.float64)
    pastes = []
    for _ in range(int(rng.integers(1, objects + 1))):
        label = int(rng.choice(len(stock.shares), p=stock.shares))
        own = np.flatnonzero(stock.labels == label)
        which = int(own[rng.integers(len(own))])
        record, place = records[stock.records[which]], int(stock.places[which])
        jitter = float(np.exp(rng.uniform(*np.log(_SCALES))))
        scale = jitter * short_side / min(record.width, record.height)
        mirrored = bool(rng.random() < 0.5) and flip
        turns = int(rng.integers(4)) if rotate else 0
        box = record.instances.boxes[place].astype(np.float64)
        sides = (box[2:] - box[:2]) * scale
        usual = float(stock.crowding[rng.integers(len(stock.crowding))])
        most = float(stock.crowding[-1])
        corner = _place(sides[::-1] if turns % 2 else sides, taken, frame, (usual, most), rng)
        if corner is not None:
            x, y = corner
            width, height = sides[::-1] if turns % 2 else sides
            taken = np.concatenate([taken, [[x, y, x + width, y + height]]])
            pastes.append(Paste(int(stock.records[which]), place, label, scale, mirrored, turns, x, y))
    return tuple(pastes)


def _place(
    sides: npt.NDArray[np.float64],
    taken: npt.NDArray[np.float64],
    frame: tuple[int, int],
    overlaps: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[float, float] | None:
    """A place for a box of these sides: its corner; None where none of _TRIES is one.

    overlaps: what share of the smaller of it and another may lie in both: the first place with no more than the first
    number, else the freest one, with no more than the second.
    """
    room = np.array(frame) - sides
    if (room <= 0).any():
        return None
    corners = rng.uniform(0.0, 1.0, (_TRIES, 2)) * room
    boxes = np.concatenate([corners, corners + sides], axis=1)
    if len(taken):
        shares = np.maximum(covered(boxes, taken), covered(taken, boxes).T).max(axis=1)
    else:
        shares = np.zeros(_TRIES)
    best = int(np.argmax(shares <= overlaps[0])) if (shares <= overlaps[0]).any() else int(np.argmin(shares))
    return (float(corners[best, 0]), float(corners[best, 1])) if shares[best] <= overlaps[1] else None
