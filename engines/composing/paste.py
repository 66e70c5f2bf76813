"""Objects out of one picture and into another.

Knows: how an object is cut with a margin, kept for the next time, scaled, mirrored, turned and put down without a seam.
Its box is the annotation's own, scaled, mirrored and turned with it: right angles keep it exact, and labels are alike
on pasted objects and on those that were there. Knows nothing about which objects are pasted where (`plan`).

H/W pixels of a frame or a patch.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.composing.given import Canvas, Given, Origin
from engines.composing.masks import Box, Pixels, background, mask_of, outside
from engines.composing.plan import Paste
from engines.datasets.records import Record
from engines.errors import DatasetError
from engines.labels.boxes import Instances, join

_MARGIN = 0.25  # of an object's longer side, that its patch shows round it
_LEAST_MARGIN = 4  # pixels
_SEEN = 0.5  # of a soft mask: an object that is nowhere so solid can't be seen
_FEATHER = 0.8  # deviation in painted pixels of the blur that makes a mask soft
_RING = 0.3  # of an object's longer side: how far round its place the background is looked at
_MOST_SHIFT = 60.0  # of 255, of a colour
_SEAM = 4  # pixels round a pasted object that are painted, too
_CUTS_KEPT = 256  # objects
_BYTES_KEPT = 64 << 20


@dataclass(frozen=True, eq=False)
class Cut:
    """An object with the margin that its mask fades in."""

    pixels: Pixels  # [H, W, 3]
    inside: npt.NDArray[np.float32]  # [H, W], 0 or 1
    box: Box  # the annotated one, in the patch's pixels
    ground: npt.NDArray[np.float64]  # colour of the background round it, [3]
    told: bool  # whether colours told the object from its background; else the mask is an ellipse


class Cutter:
    """Cuts objects out of records as they are asked for, and keeps the last ones; several threads may ask."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._kept: OrderedDict[tuple[int, int], Cut | None] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.done, self.ellipses, self.nothing = 0, 0, 0  # objects that were cut, as ellipses, and not at all

    def __call__(self, record: int, place: int) -> Cut | None:
        """Object `place` of a record; None where nothing of it can be told from its surroundings.

        Raises DatasetError for a picture that cannot be read.
        """
        key = (record, place)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = cut(self._records[record], place)
        with self._lock:
            self.done += 1
            self.nothing += found is None
            self.ellipses += found is not None and not found.told
            if key not in self._kept:
                self._kept[key] = found
                self._bytes += _size(found)
            while len(self._kept) > _CUTS_KEPT or self._bytes > _BYTES_KEPT:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
        return found


def _size(found: Cut | None) -> int:
    return 0 if found is None else found.pixels.nbytes + found.inside.nbytes


def cut(record: Record, place: int) -> Cut | None:
    """Object `place` of a record, with a margin; None for one without a pixel of its own."""
    pixels = upright(record)
    boxes = record.instances.boxes.astype(np.float64)
    box = boxes[place]
    margin = max(_LEAST_MARGIN, round(_MARGIN * float((box[2:] - box[:2]).max())))
    x0, y0 = (max(int(np.floor(side)) - margin, 0) for side in box[:2])
    x1 = min(int(np.ceil(box[2])) + margin, record.width)
    y1 = min(int(np.ceil(box[3])) + margin, record.height)
    patch = pixels[y0:y1, x0:x1]
    corner = np.array([x0, y0, x0, y0])
    others = np.delete(boxes, place, axis=0) - corner
    ground = background(patch, outside(patch.shape[:2], boxes - corner))
    if ground is None:
        ground = background(pixels, outside(pixels.shape[:2], boxes))
    if ground is None:
        ground = background(patch, outside(patch.shape[:2], (box - corner)[None]))
    if ground is None:
        return None
    found = mask_of(patch, box - corner, others, ground)
    if found is None:
        return None
    return Cut(np.ascontiguousarray(patch), found[0].astype(np.float32), box - corner, ground, found[1])


def upright(record: Record) -> Pixels:
    """A record's pixels, [H, W, 3]; DatasetError where they are not as its header had it."""
    image = record.pixels()
    if image.shape[:2] != (record.height, record.width):
        found = f"{image.shape[1]}x{image.shape[0]}"
        raise DatasetError(
            f"{record.file} has {found} pixels; its header or annotation said {record.width}x{record.height}."
        )
    return image


def compose(
    canvas: Pixels,
    own: Instances,
    pastes: Sequence[Paste],
    records: Sequence[Record],
    cutter: Cutter,
    labels: Sequence[int],
    *,
    keep: bool = False,
) -> tuple[Pixels, Given]:
    """Paste objects into a picture [H, W, 3] whose boxes are `own`; the new picture, and the labels of all.

    labels: the class of the run for each of the dataset's. An object whose mask comes out empty is left out.
    keep: have the labels bring what is to stay of the picture once it is painted: all but pasted objects and seams.
    """
    picture, found, origins = canvas.copy(), [own], []
    touched = np.zeros(picture.shape[:2], dtype=np.float32)
    for paste in pastes:
        piece = cutter(paste.record, paste.place)
        if piece is None:
            continue
        there = join(found)
        box = _put(picture, touched, piece, paste, there.boxes.astype(np.float64))
        if box is None:
            continue
        corners, scores = np.round(box, 2)[None], np.ones(1, dtype=np.float64)
        found.append(Instances.of(corners, [labels[paste.label]], scores))
        x0, y0, x1, y1 = (round(float(side), 2) for side in records[paste.record].instances.boxes[paste.place])
        origins.append(Origin(records[paste.record].name, paste.place, (x0, y0, x1, y1)))
    return picture, Given(join(found), tuple(origins), Canvas(picture, _with_seams(touched)) if keep else None)


def _with_seams(touched: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What pasted objects cover [H, W], and a soft edge round it."""
    from scipy import ndimage

    wide = ndimage.maximum_filter(touched, size=2 * _SEAM + 1)
    soft: npt.NDArray[np.float32] = ndimage.gaussian_filter(wide, _SEAM / 2)
    return np.clip(soft, 0.0, 1.0)


def _put(picture: Pixels, touched: npt.NDArray[np.float32], piece: Cut, paste: Paste, taken: Box) -> Box | None:
    """Paste an object into a picture, in place; the box of what is seen of it, or None where nothing is.

    `touched` [H, W] comes to hold how much of each pixel is an object's.
    """
    pixels, alpha, box = _transformed(piece, paste)
    if alpha.max() < _SEEN:
        return None
    x, y = round(paste.x - box[0]), round(paste.y - box[1])
    height, width = picture.shape[:2]
    left, top = max(0, -x), max(0, -y)
    right, bottom = min(alpha.shape[1], width - x), min(alpha.shape[0], height - y)
    if right <= left or bottom <= top:
        return None
    alpha, pixels = alpha[top:bottom, left:right, None], pixels[top:bottom, left:right]
    here = picture[y + top : y + bottom, x + left : x + right]
    shift = np.zeros(3)
    ground = _ground(picture, box + np.array([x, y, x, y]), taken)
    if ground is not None:
        shift = np.clip(ground - piece.ground, -_MOST_SHIFT, _MOST_SHIFT)
    mixed = alpha * (pixels + shift) + (1.0 - alpha) * here
    here[...] = np.clip(np.round(mixed), 0, 255).astype(np.uint8)
    over = touched[y + top : y + bottom, x + left : x + right]
    np.maximum(over, alpha[..., 0], out=over)
    seen = np.clip(box + np.array([x, y, x, y]), 0.0, [width, height, width, height])
    return seen if (seen[2:] - seen[:2] >= 1.0).all() else None


def _transformed(piece: Cut, paste: Paste) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Box]:
    """Pixels [H, W, 3], soft mask [H, W] and the object's box, at the scale of the painting."""
    from scipy import ndimage

    height, width = piece.inside.shape
    size = max(1, round(width * paste.scale)), max(1, round(height * paste.scale))
    factor = np.array([size[0] / width, size[1] / height] * 2)
    pixels = np.asarray(Image.fromarray(piece.pixels).resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    mask = np.asarray(Image.fromarray(piece.inside).resize(size, Image.Resampling.BILINEAR), dtype=np.float64)
    boxes = Instances.of((piece.box * factor)[None], [0])
    if paste.flip:
        pixels, mask, boxes = pixels[:, ::-1], mask[:, ::-1], boxes.mirror(size[0])
    for _ in range(paste.turns):
        boxes = boxes.rotate(mask.shape[1])
        pixels, mask = np.rot90(pixels), np.rot90(mask)
    soft = np.clip(ndimage.gaussian_filter(mask, _FEATHER), 0.0, 1.0)
    return pixels, soft, boxes.boxes[0]


def _ground(picture: Pixels, box: Box, taken: Box) -> npt.NDArray[np.float64] | None:
    """The colour of the background round a place, else of the whole picture; None where objects cover all of it."""
    reach = max(_LEAST_MARGIN, _RING * float((box[2:] - box[:2]).max()))
    height, width = picture.shape[:2]
    x0, y0 = max(int(box[0] - reach), 0), max(int(box[1] - reach), 0)
    x1, y1 = min(int(np.ceil(box[2] + reach)), width), min(int(np.ceil(box[3] + reach)), height)
    corner = np.array([x0, y0, x0, y0])
    ground = background(picture[y0:y1, x0:x1], outside((y1 - y0, x1 - x0), taken - corner))
    return background(picture, outside((height, width), taken)) if ground is None else ground
