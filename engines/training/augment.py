"""Augmented frames for the adapter: scale, crop, mirror, turn, pad, colours; the boxes go with the pixels.

Knows: how a frame of fixed size is drawn from an image so that it looks as `inference.prepare_frame` will show whole
images later: scaled about the same short side, padded right and below with edge pixels where it is too small.
Knows nothing about networks. A frame is a pure function of its random stream.

H, W pixels of the frame.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.common.pixels import padded
from engines.labels.boxes import Instances, join
from engines.training.views import View

_GREY = np.full(3, 1 / np.sqrt(3.0))  # axis of the hue circle in RGB


@dataclass(frozen=True)
class FrameOptions:
    """How frames are drawn."""

    width: int  # pixels of a frame
    height: int  # pixels of a frame
    short_side: int  # images are scaled to this short side, in pixels
    scale: tuple[float, float] = (0.8, 1.25)  # random factor on that scale, log-uniform
    flips: bool = True  # mirror left to right, half of the time
    rotate: bool = False  # turn by a random right angle (by 180 degrees where width and height differ)
    colour: float = 1.0  # strength of changes to brightness, contrast, saturation and hue; 0 for none
    min_visible: float = 0.3  # a box stays when at least this share of its area is in the frame


def draw_frame(
    pixels: npt.NDArray[np.uint8],
    found: Instances,
    options: FrameOptions,
    rng: np.random.Generator,
) -> View:
    """Draw one frame from an image: uint8 [H, W, 3] with what is seen of its objects.

    `pixels` is uint8 of any size, `found` in its pixels. An object cut away is gone; of a crowd, what is seen stays.
    """
    height, width = pixels.shape[:2]
    low, high = np.log(options.scale)
    scale = options.short_side / min(height, width) * float(np.exp(rng.uniform(low, high)))
    # What is seen of the image, in its own pixels, and the size that becomes in the frame.
    out_width = min(options.width, max(1, round(width * scale)))
    out_height = min(options.height, max(1, round(height * scale)))
    cut_width, cut_height = min(width, out_width / scale), min(height, out_height / scale)
    left = float(rng.uniform(0, width - cut_width)) if cut_width < width else 0.0
    top = float(rng.uniform(0, height - cut_height)) if cut_height < height else 0.0
    cut = (left, top, left + cut_width, top + cut_height)
    seen = np.asarray(Image.fromarray(pixels).resize((out_width, out_height), Image.Resampling.BILINEAR, box=cut))
    factor = np.array([out_width / cut_width, out_height / cut_height] * 2, dtype=np.float32)
    moved, size = found.moved((left, top), factor), (out_width, out_height)
    placed = join([moved.single.clip(size, options.min_visible), moved.crowds.clip(size)])
    seen, placed = _mirror_and_turn(seen, placed, options, rng)
    if options.colour > 0:
        seen = shift_colours(seen, options.colour, rng)
    return View(np.ascontiguousarray(padded(seen, options.width, options.height)), placed)


def shift_colours(pixels: npt.NDArray[np.uint8], strength: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Change brightness, contrast, saturation and hue a little, uint8 [H, W, 3] to the same.

    At strength 1: brightness by up to 6% of the range, contrast and saturation by up to 20%, hue by up to 0.12 rad.
    """
    brightness, contrast, saturation, hue = rng.uniform(-strength, strength, size=4)
    matrix = np.exp(0.18 * contrast) * _colour_matrix(float(np.exp(0.18 * saturation)), float(0.12 * hue))
    values = pixels.astype(np.float32)
    mean = values.mean(axis=(0, 1))
    shifted = (values - mean) @ matrix.T.astype(np.float32) + (mean + np.float32(15.0 * brightness))
    return np.asarray(np.clip(np.rint(shifted), 0, 255), dtype=np.uint8)


def _colour_matrix(saturation: float, hue: float) -> npt.NDArray[np.float64]:
    """A turn about the grey axis by `hue` radians, and a stretch away from it by `saturation`: [3, 3]."""
    grey = np.outer(_GREY, _GREY)
    cross = np.array([[0, -_GREY[2], _GREY[1]], [_GREY[2], 0, -_GREY[0]], [-_GREY[1], _GREY[0], 0]])
    turned = grey + np.cos(hue) * (np.eye(3) - grey) + np.sin(hue) * cross
    return np.asarray(grey + saturation * (turned - grey))


def _mirror_and_turn(
    pixels: npt.NDArray[np.uint8], found: Instances, options: FrameOptions, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], Instances]:
    mirrored, quarter_turns = bool(rng.random() < 0.5), int(rng.integers(4))
    if options.flips and mirrored:
        pixels, found = pixels[:, ::-1], found.mirror(pixels.shape[1])
    if not options.rotate:
        return pixels, found
    if options.width != options.height:
        quarter_turns -= quarter_turns % 2
    for _ in range(quarter_turns):
        found = found.rotate(pixels.shape[1])
        pixels = np.rot90(pixels)
    return pixels, found
