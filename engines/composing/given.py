"""The labels that an image has before any network looks at it: its reference's own boxes, and those of pasted objects.

Knows: where boxes come to lie when their picture is cropped, scaled and mirrored, and which of them still count. Knows
nothing about how objects are chosen and pasted (`plan`, `paste`), or what an adapter makes of it (`labels.rules`).

N boxes of an image; its frame is (width, height) in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engines.labels.boxes import Instances

LEAST_VISIBLE = 0.3  # share of a box's area inside the frame, below which it is a region to ignore, and no label
_LEAST_SIDE = 1.0  # pixels; less of an object is nothing
_HARDLY = 0.02  # share of the painting below which a pixel is the picture's own
_ROUND = 24.0  # deviation in pixels of the blur that says how the painting's colours are off

Crop = tuple[float, float, float, float]  # x0, y0, x1, y1 in the reference's own pixels
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Origin:
    """Where a pasted object was cut."""

    reference: str  # name of the image
    annotation: int  # which of its boxes, from 0, in the order of the dataset
    box: Corners  # there, in that image's own pixels


@dataclass(frozen=True, eq=False)
class Canvas:
    """A composed picture of which a part alone is to be painted."""

    pixels: npt.NDArray[np.uint8]  # [H, W, 3]
    painted: npt.NDArray[np.float32]  # [H, W], how much of the painting is seen at each pixel, 0 to 1

    def under(self, painting: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The painting [H, W, 3] where it is wanted, in the colours of what is round it; the own pixels elsewhere."""
        from scipy import ndimage

        share = self.painted[..., None].astype(np.float64)
        away = (self.painted < _HARDLY).astype(np.float64)
        cast = (self.pixels.astype(np.float64) - painting) * away[..., None]
        near = ndimage.gaussian_filter(away, _ROUND)[..., None]
        cast = ndimage.gaussian_filter(cast, (_ROUND, _ROUND, 0)) / np.maximum(near, 1e-6)
        mixed = np.round(share * (painting + cast) + (1.0 - share) * self.pixels)
        seen: npt.NDArray[np.uint8] = np.clip(mixed, 0, 255).astype(np.uint8)
        return seen


@dataclass(frozen=True)
class Given:
    """Labels by construction."""

    instances: Instances  # scores 1; crowds among them; float64, rounded to hundredths of a pixel
    pasted: tuple[Origin, ...] = ()  # of the last boxes of `instances`, in their order
    canvas: Canvas | None = None  # until the image is painted, where a part of it alone is

    @property
    def origins(self) -> list[tuple[int, Origin]]:
        """Each pasted object with its place in `instances`."""
        first = len(self.instances) - len(self.pasted)
        return list(enumerate(self.pasted, start=first))


def moved(found: Instances, crop: Crop, flip: bool, frame: tuple[int, int], labels: Sequence[int]) -> Instances:
    """A reference's boxes where they lie once `crop` fills the frame, cut to it: float64, rounded.

    labels: the class of the run for each of the reference's. An object of which less than LEAST_VISIBLE is in the frame
    becomes a crowd: its rest can be seen, but a box round it would be no such object's. Less than a pixel is left out.
    """
    width, height = frame
    x0, y0, x1, y1 = (np.float64(side) for side in crop)
    scale = np.array([width / (x1 - x0), height / (y1 - y0)] * 2)
    whole = replace(found, boxes=found.boxes.astype(np.float64), masks=None).moved((float(x0), float(y0)), scale)
    if flip:
        whole = whole.mirror(width)
    corners = np.round(np.clip(whole.boxes, 0.0, [width, height, width, height]), 2)
    sides, before = corners[:, 2:] - corners[:, :2], whole.boxes[:, 2:] - whole.boxes[:, :2]
    visible = sides.prod(axis=1) / np.maximum(before.prod(axis=1), 1e-9)
    kept = np.asarray((sides >= np.minimum(_LEAST_SIDE, before * 0.99)).all(axis=1))
    mapped = np.asarray(labels, dtype=np.int64)[whole.labels] if len(whole) else whole.labels
    crowd = whole.crowd | (visible < LEAST_VISIBLE)
    return Instances.of(corners, mapped, np.ones(len(whole), dtype=np.float64), crowd).take(kept)
