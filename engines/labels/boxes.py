"""The boxes of an image: the one type that everything from a dataset's reader to its writer hands on.

Knows: what a box is, how boxes are cut, mirrored and turned with their picture, how two of them overlap, and which of
several are the same object seen twice. Knows nothing about where boxes come from or what they are for.

Boxes: corners x0, y0, x1, y1 in pixels of the upright image, as continuous edges: a box over the whole image is
[0, 0, width, height]. N boxes of an image.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import supervision

SCORE_FLOOR = 0.05  # detections below this are never kept
LEAST_COUNTED = 10  # objects of a class that a statement about its frequency is believed from
_MOST_CLASSES = 10**9
_BLOCK = 200  # boxes that are compared at once

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Instances:
    """Objects in one image, as parallel arrays; made with `of`, which fills in what is left out.

    >>> found = Instances.of([[0, 0, 10, 20], [5, 5, 8, 8]], [1, 0], scores=[0.9, 0.3])
    >>> found.take(found.scores >= 0.5).boxes.tolist()
    [[0.0, 0.0, 10.0, 20.0]]
    """

    boxes: Floats  # [N, 4] corners in pixels; float32 as networks give them, float64 as files hold them
    labels: npt.NDArray[np.int64]  # [N], index into the class names
    scores: Floats  # [N], 0 to 1; 1 for what a person drew
    crowd: npt.NDArray[np.bool_]  # [N], True for a box round several objects, which teaches and counts nothing
    masks: npt.NDArray[np.bool_] | None = None  # [N, H, W] of the image, where they are known

    @classmethod
    def of(
        cls,
        boxes: npt.ArrayLike,
        labels: npt.ArrayLike,
        scores: npt.ArrayLike | None = None,
        crowd: npt.ArrayLike | None = None,
    ) -> Self:
        """Instances of arrays or lists of the same length N; scores left out are 1, and no box is a crowd.

        Float64 boxes and scores stay so; everything else becomes float32. Raises ValueError where lengths differ.

        >>> len(Instances.of([[0, 0, 10, 20]], [1]))
        1
        """
        corners = _floats(boxes).reshape(-1, 4)
        count = len(corners)
        found = cls(
            boxes=corners,
            labels=np.asarray(labels, dtype=np.int64).reshape(-1),
            scores=np.ones(count, dtype=np.float32) if scores is None else _floats(scores).reshape(-1),
            crowd=np.zeros(count, dtype=np.bool_) if crowd is None else np.asarray(crowd, dtype=np.bool_).reshape(-1),
        )
        if not len(found.labels) == len(found.scores) == len(found.crowd) == count:
            others = f"{len(found.labels)} labels, {len(found.scores)} scores and {len(found.crowd)} crowd flags"
            raise ValueError(f"{count} boxes, but {others}")
        return found

    @classmethod
    def none(cls) -> Self:
        """An image without objects."""
        return cls.of(np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64))

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[float]]) -> Self:
        """What `to_rows` gave; ValueError for rows that are not six numbers, the last a class."""
        table = np.array(list(rows), dtype=np.float64)
        if len(table) and (table.shape[1:] != (6,) or not np.isfinite(table).all()):
            raise ValueError("not rows of x0, y0, x1, y1, score, label")
        return cls.from_table(table.reshape(-1, 6))

    @classmethod
    def from_table(cls, table: npt.NDArray[np.float64]) -> Self:
        """Of rows x0, y0, x1, y1, score, label, [N, 6], all of them finite; ValueError for a label that none can be."""
        if ((table[:, 5] < 0) | (table[:, 5] > _MOST_CLASSES)).any():
            raise ValueError("not rows of x0, y0, x1, y1, score, label")
        return cls.of(table[:, :4], table[:, 5].astype(np.int64), table[:, 4])

    def to_rows(self) -> list[list[float]]:
        """[x0, y0, x1, y1, score, label] of each box, as JSON holds them; crowds and masks are not in them."""
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [[*corners, score, label] for corners, score, label in rows]

    def __len__(self) -> int:
        return len(self.boxes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Instances):
            return NotImplemented
        mine, theirs = (
            (one.boxes, one.labels, one.scores, one.crowd, np.zeros(0) if one.masks is None else one.masks)
            for one in (self, other)
        )
        return all(np.array_equal(ours, others) for ours, others in zip(mine, theirs, strict=True))

    __hash__ = None  # type: ignore[assignment]  # arrays can change

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | Sequence[int] | Sequence[bool]) -> "Instances":
        """Those of a mask [N] or of indices, in that order."""
        picked = rows if isinstance(rows, np.ndarray) else np.array(rows, dtype=None if len(rows) else np.int64)
        masks = None if self.masks is None else self.masks[picked]
        return Instances(self.boxes[picked], self.labels[picked], self.scores[picked], self.crowd[picked], masks)

    @property
    def single(self) -> "Instances":
        """Those that are no crowd."""
        return self.take(~self.crowd)

    @property
    def crowds(self) -> "Instances":
        """The crowds."""
        return self.take(self.crowd)

    def moved(self, offset: tuple[float, float], factor: npt.ArrayLike = 1.0) -> "Instances":
        """With `offset` (x, y) taken from the corners, which are then multiplied by `factor`, one or [4]; no masks."""
        shift = np.array([*offset, *offset], dtype=self.boxes.dtype)
        boxes = (self.boxes - shift) * np.asarray(factor, dtype=self.boxes.dtype)
        return replace(self, boxes=boxes, masks=None)

    def clip(self, size: tuple[int, int], min_visible: float = 0.0) -> "Instances":
        """Cut to a (width, height) frame; only what keeps `min_visible` of its area and more than one pixel stays."""
        clipped = np.clip(self.boxes, 0, np.array([*size, *size], dtype=np.float32)).astype(np.float32)
        visible = areas(clipped) / np.maximum(areas(self.boxes), 1e-6)
        kept = (visible >= min_visible) & (areas(clipped) > 1.0)
        return replace(self, boxes=clipped, masks=None).take(kept)

    def mirror(self, width: int) -> "Instances":
        """As in the picture of that width mirrored left to right."""
        boxes = np.stack(
            [width - self.boxes[:, 2], self.boxes[:, 1], width - self.boxes[:, 0], self.boxes[:, 3]], axis=1
        )
        return replace(self, boxes=boxes, masks=None if self.masks is None else self.masks[:, :, ::-1])

    def rotate(self, width: int) -> "Instances":
        """As in the picture turned 90 degrees against the clock (`numpy.rot90`); `width` is the one before."""
        boxes = np.stack(
            [self.boxes[:, 1], width - self.boxes[:, 2], self.boxes[:, 3], width - self.boxes[:, 0]], axis=1
        )
        return replace(self, boxes=boxes, masks=None if self.masks is None else np.rot90(self.masks, axes=(1, 2)))

    def count(self, class_names: Sequence[str]) -> dict[str, int]:
        """Boxes of each class, every class named; crowds count like the rest."""
        counts = Counter(self.labels.tolist())
        return {name: counts[label] for label, name in enumerate(class_names)}

    def to_supervision(self) -> "supervision.Detections":
        """The same as `supervision.Detections`; needs the package `supervision`, which dengine does not install."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            class_id=self.labels,
            confidence=self.scores.astype(np.float32),
            mask=self.masks,
            data={"iscrowd": self.crowd},
        )


def _floats(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values)
    return array if array.dtype == np.float64 and isinstance(values, np.ndarray) else array.astype(np.float32)


def join(parts: Sequence[Instances]) -> Instances:
    """All of them, in order, without masks; of none of them, none."""
    if not parts:
        return Instances.none()
    return Instances(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes", "labels", "scores", "crowd"))
    )


def areas(boxes: Floats) -> npt.NDArray[np.float32]:
    """Areas of corner boxes [N, 4], 0 where a side is negative: [N]."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return np.asarray(sides[:, 0] * sides[:, 1], dtype=np.float32)


def cxcywh_to_xyxy(boxes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Centre, width, height [..., 4] to corners [..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=-1)


def covered(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The share of each corner box [N, 4] that lies in each of [M, 4]: [N, M]."""
    own = (first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1])
    return np.asarray(_overlaps(first, second) / np.maximum(own, 1e-9)[:, None])


def iou_matrix(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Intersection over union of corner boxes [N, 4] and [M, 4]: [N, M]."""
    overlap = _overlaps(first, second)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - overlap
    return np.asarray(overlap / np.maximum(union, 1e-9))


def _overlaps(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The area that each of [N, 4] has in common with each of [M, 4]: [N, M]."""
    # One axis at a time: a product over a last axis of two costs numpy many times the work itself.
    sides = [
        np.minimum(first[:, None, axis + 2], second[None, :, axis + 2])
        - np.maximum(first[:, None, axis], second[None, :, axis])
        for axis in (0, 1)
    ]
    return np.asarray(np.clip(sides[0], 0.0, None) * np.clip(sides[1], 0.0, None))


def without_duplicates(corners: npt.NDArray[Any], duplicate_iou: float, limit: int) -> npt.NDArray[np.int64]:
    """Indices of the first `limit` boxes [N, 4], best first, that no kept one covers by more than `duplicate_iou`."""
    kept: list[int] = []
    for first in range(0, len(corners), _BLOCK):  # hundreds of queries, of which the best few are all that is kept
        block = range(first, min(first + _BLOCK, len(corners)))
        rivals = [*kept, *block]
        overlaps = iou_matrix(corners[block], corners[rivals]) > duplicate_iou
        places = list(range(len(kept)))  # of the kept ones among the rivals
        before = len(kept)
        for row, index in enumerate(block):
            if len(kept) == limit:
                return np.array(kept, dtype=np.int64)
            if not overlaps[row, places].any():
                kept.append(index)
                places.append(before + row)
    return np.array(kept, dtype=np.int64)
