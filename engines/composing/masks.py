"""Which pixels of a box are the object: a soft mask from colours alone.

Knows: the background round a box, how far each pixel's colour is from it, and what becomes of masks that come out empty
or fill the box. Knows nothing about classes, datasets or where an object is pasted.

A patch has H/W pixels, uint8 [H, W, 3]: an object's box and a margin round it.
"""

import numpy as np
import numpy.typing as npt

_NOISE = 4.0  # of 255: colours of a background that seems even still differ by so much
_FAR = 2.5  # deviations of the background from which a colour is not of it
_SHARE = 0.3  # of the distance that the object's clearest pixels have
_BULGE = 4.0  # exponent of the rounded box that a mask stays in: 2 is an ellipse, more comes nearer the corners
_REACH = 1.04  # of that rounded box's half sides
_ELLIPSE = 0.97  # of the half sides of a box: less of the background round an object comes with it
_EMPTY, _FULL = 0.25, 0.97  # share of the ellipse in a box that a mask of an object covers
_SAME = 0.75  # IoU of a mask's own box with the annotated one, below which it is the mask of something else
_ENOUGH = 24  # pixels of a background that are believed
_OPENED = 12  # pixels of a box's side from which thin threads are taken off its mask

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = npt.NDArray[np.float64]  # x0, y0, x1, y1 in a patch's pixels


def background(pixels: Pixels, free: Mask) -> npt.NDArray[np.float64] | None:
    """The colour [3] that most of the `free` pixels [H, W] have; None where there are too few."""
    if int(free.sum()) < _ENOUGH:
        return None
    return np.asarray(np.median(pixels[free].astype(np.float64), axis=0))


def outside(shape: tuple[int, int], boxes: Box) -> Mask:
    """Which pixels lie in none of the boxes [N, 4]."""
    free = np.ones(shape, dtype=np.bool_)
    for x0, y0, x1, y1 in boxes:
        free[
            max(int(np.floor(y0)), 0) : max(int(np.ceil(y1)), 0), max(int(np.floor(x0)), 0) : max(int(np.ceil(x1)), 0)
        ] = False
    return free


def mask_of(pixels: Pixels, box: Box, others: Box, ground: npt.NDArray[np.float64]) -> tuple[Mask, bool] | None:
    """The object of a box [4] in a patch that shows `others` [N, 4], too, on a background of colour `ground`: which
    pixels [H, W] it has, and whether colours told it.

    Where they do not, it is the ellipse in the box; None where not even that holds a pixel.
    """
    rounded, ellipse = _radius(pixels.shape[:2], box, _BULGE), _radius(pixels.shape[:2], box, 2.0) <= _ELLIPSE
    if not ellipse.any():
        return None
    allowed = (rounded <= _REACH) & (outside(pixels.shape[:2], others) | ellipse)
    found = _coloured(pixels, box, allowed, ground)
    share = float((found & ellipse).sum()) / float(ellipse.sum())
    fits = share >= _EMPTY and float(found.sum()) / float(allowed.sum()) <= _FULL
    if fits and _iou(_box_of(found), box) >= _SAME:
        return found, True
    return ellipse, False


def _coloured(pixels: Pixels, box: Box, allowed: Mask, ground: npt.NDArray[np.float64]) -> Mask:
    """The pixels whose colour is far from the background's, as one piece without holes."""
    from scipy import ndimage

    free = outside(pixels.shape[:2], box[None])
    values = pixels.astype(np.float64) - ground
    spread = 1.4826 * np.median(np.abs(values[free]), axis=0) if free.sum() >= _ENOUGH else np.zeros(3)
    distance = np.sqrt(((values / np.maximum(spread, _NOISE)) ** 2).mean(axis=2))
    inside = distance[allowed]
    if not inside.size:
        return np.zeros_like(allowed)
    far = (distance > max(_FAR, _SHARE * float(np.percentile(inside, 90)))) & allowed
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(far, iterations=1) & allowed)
    if min(box[2] - box[0], box[3] - box[1]) >= _OPENED:
        closed = ndimage.binary_opening(closed, iterations=1)
    pieces, count = ndimage.label(closed)
    if not count:
        return np.zeros_like(allowed)
    sizes = np.bincount(pieces.ravel())[1:]
    return np.asarray(pieces == 1 + int(sizes.argmax()))


def _radius(shape: tuple[int, int], box: Box, power: float) -> npt.NDArray[np.float64]:
    """How far each pixel [H, W] is from the box's centre; 1 on the rounded box inside it."""
    rows, columns = np.arange(shape[0])[:, None] + 0.5, np.arange(shape[1])[None, :] + 0.5
    across = np.abs(columns - (box[0] + box[2]) / 2) / max((box[2] - box[0]) / 2, 1e-6)
    down = np.abs(rows - (box[1] + box[3]) / 2) / max((box[3] - box[1]) / 2, 1e-6)
    return np.asarray((across**power + down**power) ** (1.0 / power))


def _box_of(mask: Mask) -> Box:
    """The corners of what is set, which is something."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def _iou(first: Box, second: Box) -> float:
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    common = float(np.clip(sides, 0.0, None).prod())
    both = float((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod()) - common
    return common / max(both, 1e-9)
