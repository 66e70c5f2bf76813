"""What the four numbers of a box mean: the forms that formats and tools write, as corners in pixels.

Knows: sides, corners and centres, pixels and fractions, and boxes turned about their centre. Knows nothing about which
of them a file holds (`evidence`).

N boxes; a frame is the (width, height) that the numbers are of.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Row = tuple[float, float, float, float]
Boxes = npt.NDArray[np.float64]  # [N, 4]

# What `boxes` may say: let the file's own evidence decide; take boxes as the format has them, in the image's pixels; as
# of the size that the annotation states; as of the stored image, before its EXIF turn; or which form they have.
BOXES = ("auto", "written", "stated", "stored", "corners", "sides", "centres", "fractions")


class Form(StrEnum):
    """What the numbers are."""

    SIDES = "sides"  # x, y, width, height
    CORNERS = "corners"  # x0, y0, x1, y1
    CENTRES = "centres"  # x and y of the centre, width, height


@dataclass(frozen=True)
class Reading:
    """A form, and its unit."""

    form: Form
    fractions: bool = False  # of the frame; else pixels
    first: int = 0  # what the first pixel is called: 1 in Pascal VOC, whose far corners lie inside the box

    def corners(self, rows: Boxes, frame: tuple[float, float]) -> Boxes:
        """Rows [N, 4] as corners in pixels of the frame: float64 [N, 4]; what has no area as written keeps none."""
        rows = np.asarray(rows, dtype=np.float64).reshape(-1, 4)
        if self.form is Form.SIDES:
            corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1)
        elif self.form is Form.CENTRES:
            corners = np.concatenate([rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2], axis=1)
        else:
            corners = rows.copy()
        if self.first and self.form is Form.CORNERS and not self.fractions:
            solid = (corners[:, 2:] > corners[:, :2]).all(axis=1)
            corners[solid, :2] -= self.first
        return corners * np.array([*frame, *frame], dtype=np.float64) if self.fractions else corners

    def ordered(self, rows: Boxes) -> tuple[Boxes, npt.NDArray[np.bool_]]:
        """Rows whose corners are in order, and which of them [N] had to be swapped: those of CORNERS alone may."""
        swapped = np.zeros(len(rows), dtype=np.bool_)
        if self.form is Form.CORNERS:
            swapped |= (rows[:, 2:] < rows[:, :2]).any(axis=1)
        low, high = np.minimum(rows[:, :2], rows[:, 2:]), np.maximum(rows[:, :2], rows[:, 2:])
        return np.where(swapped[:, None], np.concatenate([low, high], axis=1), rows), swapped

    def __str__(self) -> str:
        names = {
            Form.SIDES: "x, y, width, height",
            Form.CORNERS: "x0, y0, x1, y1",
            Form.CENTRES: "x_centre, y_centre, width, height",
        }
        return f"[{names[self.form]}] in {'fractions of the image' if self.fractions else 'pixels'}"


CORNERS = Reading(Form.CORNERS)
SIDES = Reading(Form.SIDES)
VOC = Reading(Form.CORNERS, first=1)
YOLO = Reading(Form.CENTRES, fractions=True)
FRACTIONS = Reading(Form.CORNERS, fractions=True)


def alternatives(own: Reading) -> list[Reading]:
    """The same unit in the other forms."""
    return [replace(own, form=form, first=0) for form in Form if form is not own.form]


def hull(points: Sequence[float]) -> Row:
    """The corners round points x, y, x, y, ..."""
    xs, ys = points[::2], points[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def turned_hull(corners: Row, degrees: float) -> Row:
    """The corners round a box that was turned clockwise about its centre."""
    x0, y0, x1, y1 = corners
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    half_width = ((x1 - x0) * cos + (y1 - y0) * sin) / 2
    half_height = ((x1 - x0) * sin + (y1 - y0) * cos) / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def turned_upright(boxes: Boxes, stored: tuple[int, int], orientation: int) -> Boxes:
    """Corners [N, 4] in a stored image of (width, height), in the image that its EXIF orientation makes upright."""
    width, height = stored
    x0, y0, x1, y1 = boxes.T
    turned: dict[int, tuple[Any, Any, Any, Any]] = {
        2: (width - x1, y0, width - x0, y1),
        3: (width - x1, height - y1, width - x0, height - y0),
        4: (x0, height - y1, x1, height - y0),
        5: (y0, x0, y1, x1),
        6: (height - y1, x0, height - y0, x1),
        7: (height - y1, width - x1, height - y0, width - x0),
        8: (y0, width - x1, y1, width - x0),
    }
    return np.stack(turned[orientation], axis=1) if orientation in turned else boxes
