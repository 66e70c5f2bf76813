"""Random views of training images: one crop, scaled, flipped and turned, with its boxes.

Knows: how to cut a view out of an image in one resampling step and carry the boxes along.
Knows nothing about networks or prompts. A view is a pure function of its random stream.

H, W pixels of the view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.datasets.dataset import Record
from engines.labels.boxes import Instances


@dataclass(frozen=True)
class ViewOptions:
    """How views are drawn."""

    width: int  # pixels of a view
    height: int  # pixels of a view
    short_side: int  # images are first thought of as scaled to this short side, in pixels
    scale: tuple[float, float] = (0.95, 1.15)  # random factor on that scale, log-uniform
    flip: bool = True  # mirror left to right, half of the time
    rotate: bool = False  # turn by a random right angle (by 180 degrees where width and height differ)
    min_visible: float = 0.5  # a box stays when at least this share of its area is in the view


@dataclass(frozen=True)
class View:
    """One view: pixels uint8 [H, W, 3], and the objects in it."""

    pixels: npt.NDArray[np.uint8]
    instances: Instances  # float32, in its pixels


class ImageStore:
    """Decoded images, kept in memory up to a limit; beyond it they are decoded again at every use.

    A record that comes several times is kept once.
    """

    def __init__(self, records: Sequence[Record], limit_bytes: int = 2 << 30) -> None:
        self.records = records
        self._left = limit_bytes
        self._kept: dict[Record, npt.NDArray[np.uint8]] = {}

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """Pixels of image `index`, uint8 [H, W, 3]."""
        record = self.records[index]
        pixels = self._kept.get(record)
        if pixels is None:
            pixels = record.pixels()
            if pixels.nbytes <= self._left:
                self._left -= pixels.nbytes
                self._kept[record] = pixels
        return pixels


def draw_view(store: ImageStore, index: int, options: ViewOptions, rng: np.random.Generator) -> View:
    """Draw one view of image `index`.

    The scale is raised where the image would not fill the view, so that no padding is ever seen.
    """
    pixels, record = store[index], store.records[index]
    image_height, image_width = pixels.shape[:2]
    quarter_turns = int(rng.integers(4)) if options.rotate else 0
    mirrored = bool(options.flip and rng.random() < 0.5)
    if options.width != options.height:
        quarter_turns -= quarter_turns % 2
    low, high = np.log(options.scale)
    scale = options.short_side / min(image_height, image_width) * float(np.exp(rng.uniform(low, high)))
    scale = max(scale, options.width / image_width, options.height / image_height)
    width, height = options.width / scale, options.height / scale  # of the cut, in the image's pixels
    left = float(rng.uniform(0, max(0.0, image_width - width)))
    top = float(rng.uniform(0, max(0.0, image_height - height)))
    cut = (left, top, min(left + width, image_width), min(top + height, image_height))
    size = (options.width, options.height)
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=cut))
    factors = np.array([size[0] / (cut[2] - cut[0]), size[1] / (cut[3] - cut[1])] * 2, dtype=np.float32)
    found = record.instances.moved((left, top), factors).clip(size, options.min_visible)
    if mirrored:
        resized, found = resized[:, ::-1], found.mirror(options.width)
    for _ in range(quarter_turns):
        found = found.rotate(resized.shape[1])
        resized = np.rot90(resized)
    return View(resized.copy(), found)
