"""What a detector found on images, as rows that a file held: checked before anything is counted by them.

Knows: which rows can be finds on images of known sizes. Knows nothing about files.
"""

from collections.abc import Sequence

import numpy as np

from engines.common.quote import quote
from engines.labels.boxes import Instances

_SLACK = 1.0  # pixels that rounding may put a box outside its image


def finds_of(rows: object, sizes: Sequence[tuple[int, int]], classes: int) -> list[Instances]:
    """The rows x0, y0, x1, y1, score, label of each image; `sizes` are the images' (width, height), in their order.

    Raises ValueError that says what no detector of so many classes finds on them.

    >>> [len(one) for one in finds_of([[[1, 2, 9, 8, 0.5, 0]], []], [(10, 10), (10, 10)], classes=1)]
    [1, 0]
    """
    if not isinstance(rows, list) or len(rows) != len(sizes):
        found = len(rows) if isinstance(rows, list) else quote(rows)
        raise ValueError(f"{len(sizes)} images were expected, and it has {found}")
    return [
        _found(one, size, classes, f"image {place}") for place, (one, size) in enumerate(zip(rows, sizes, strict=True))
    ]


def _found(rows: object, size: tuple[int, int], classes: int, where: str) -> Instances:
    try:
        found = Instances.from_rows(rows)  # type: ignore[arg-type]  # which is what is asked
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise ValueError(f"{where} has no rows of x0, y0, x1, y1, score, label") from None
    inside = (found.boxes >= -_SLACK) & (found.boxes <= np.array([*size, *size]) + _SLACK)
    good = inside.all(axis=1) & (found.scores >= 0) & (found.scores <= 1)
    good &= (found.labels >= 0) & (found.labels < classes)
    if not good.all():
        raise ValueError(
            f"{where} has {quote(found.to_rows()[int(np.flatnonzero(~good)[0])])}, which no find on it can be"
        )
    return found
