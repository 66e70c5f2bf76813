"""What a line of the journal may say: every value of it, before anything believes one.

Knows: the type and the range of each value. Knows nothing about files, or what is done with a line.
"""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.common.quote import quote
from engines.labels.boxes import Instances
from engines.painting.settings import LIMIT

IMAGE_NAME = re.compile(r"\d{8,10}\.(jpg|png)")  # nothing that could lead out of the folder
_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_BOXES = 10_000  # of an image
_LEAST_SIDE = 2.0**-10  # pixels, more than which every side has, so that it has some on the grid of the writers, too
Table = npt.NDArray[np.float64]  # [N, 6]: four corners, score, label
_OUTCOMES = {"kept": True, "dropped": False}


def checked_line(line: bytes | str) -> tuple[dict[str, Any], Table]:
    """The object of a line, and its boxes as a table; ValueError that says what is wrong with it."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(value, Mapping) or value.get("outcome") not in ("kept", "dropped"):
        raise ValueError("it is not a journal line")
    table = _table(value.get("boxes"))
    for name, expected, fits in _checks(value, table):
        if not fits:
            found = quote(value[name]) if name in value else "missing"
            raise ValueError(f'"{name}" is {found}; {expected} was expected')
    assert table is not None
    return dict(value), table


def check_boxes(found: Instances, frame: tuple[int, int], classes: int) -> None:
    """Raise ValueError for the first box that has no area inside the frame, (width, height), or none of its classes."""
    if not len(found):
        return
    corners = found.boxes
    inside = (corners >= 0.0) & (corners <= np.array([*frame, *frame]))
    good = inside.all(axis=1) & (corners[:, 2:] - corners[:, :2] > _LEAST_SIDE).all(axis=1)
    if not good.all():
        number = int(np.flatnonzero(~good)[0])
        size = f"{frame[0]}x{frame[1]}"
        raise ValueError(f"box {number}, {quote(corners[number].tolist())}, has no area inside its {size} image")
    known = found.labels < classes
    if not known.all():
        number = int(np.flatnonzero(~known)[0])
        raise ValueError(f"box {number} is of class {quote(int(found.labels[number]))}; there are {classes}, from 0 on")


def _checks(value: Mapping[str, Any], table: Table | None) -> Iterator[tuple[str, str, bool]]:
    """(key, what was expected, whether it is so)."""
    index, file = value.get("index"), value.get("file")
    yield "index", "a whole number from 0 on", type(index) is int and 0 <= index <= LIMIT
    if _OUTCOMES[value["outcome"]]:
        named = isinstance(file, str) and IMAGE_NAME.fullmatch(file) is not None
        yield "file", "an image of a run", named
        yield "file", "the image of its own index", named and int(str(file).partition(".")[0]) == index
        sha256 = value.get("sha256")
        yield "sha256", "64 hex digits", isinstance(sha256, str) and _HASH.fullmatch(sha256) is not None
    else:
        yield "reason", "a text", is_text(value.get("reason"))
        yield "drop", "a text", is_text(value.get("drop", ""))
    yield "prompt", "a text", is_text(value.get("prompt"))
    reference, strength = value.get("reference"), value.get("strength")
    yield "reference", "a name, or null", "reference" in value and (reference is None or is_text(reference))
    fits = strength is None or (is_number(strength) and 0.0 <= strength <= 1.0)
    yield "strength", "a number from 0 to 1, or null", "strength" in value and fits
    rows = value.get("boxes")
    yield "boxes", "a list", isinstance(rows, list) and len(rows) <= _MOST_BOXES
    yield "boxes", "rows of x0, y0, x1, y1, score, label", table is not None


def _table(rows: object) -> Table | None:
    """Rows of four numbers, a score and a class, all at once, since a run may have millions; None for anything else."""
    if not isinstance(rows, list) or not all(type(row) is list and len(row) == 6 for row in rows):
        return None
    if not set(map(type, chain.from_iterable(rows))) <= {int, float}:
        return None
    try:
        table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    except OverflowError:
        return None
    bounded = bool((np.abs(table[:, :4]) <= LIMIT).all())  # NaN is not
    scores, labels = table[:, 4], table[:, 5]
    scored = bool(((scores >= 0.0) & (scores <= 1.0)).all())
    classes = bool(((labels >= 0) & (labels <= LIMIT) & (labels == np.floor(labels))).all())
    return table if bounded and scored and classes else None


def is_number(value: object) -> bool:
    """Whether this is a number, and no truth value; it may be NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """Whether this is a text that a file can hold: without halves of letters."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
