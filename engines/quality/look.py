"""What the pixels of an image show, in a few numbers, and what many images show together.

Knows: the numbers. Knows nothing about where images come from, or about what is good.

They depend on scale: images that are compared must show things equally large. H/W pixels.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

_BLOCK = 4  # pixels of the sides of the blocks that detail is measured on
_BANDS = (2, 4)  # the same of the bands that outlines are looked for in
_BLOBS = float(np.sqrt(2 / np.pi))  # mean size of normally distributed values of deviation 1
_SHARES = (0.1, 0.5, 0.9)  # quantiles

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """One image."""

    sharpness: float  # standard deviation of the Laplacian of its grey values: noise counts, too
    detail: float  # the same of the means of blocks of 4 x 4 pixels: outlines and no noise; 0 of an image below 12 x 12
    brightness: float  # mean, 0 to 255
    colour: float  # mean difference of the largest and smallest channel, 0 to 255: how far it is from grey
    chroma: float  # deviation of its colour differences (Cb and Cr of JPEG): how many colours it has; 0 of one tint


def look_at(pixels: Pixels) -> Look:
    """Look at an image, uint8 [H, W, 3].

    >>> look_at(np.full((8, 8, 3), 90, dtype=np.uint8))
    Look(sharpness=0.0, detail=0.0, brightness=90.0, colour=0.0, chroma=0.0)
    """
    values = pixels.astype(np.float32)
    grey = _grey(values)
    blocks = _means(grey, _BLOCK)
    luma = values @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    blue, red = (values[..., 2] - luma) * 0.564, (values[..., 0] - luma) * 0.713
    channels = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    spread = functools.reduce(np.maximum, channels) - functools.reduce(np.minimum, channels)
    return Look(
        sharpness=_laplacian(grey),
        detail=_laplacian(blocks),
        brightness=float(grey.mean()),
        colour=float(spread.mean()),
        chroma=round(float(np.sqrt(blue.var() + red.var())), 4),  # rounded, so that grey is 0 to the last bit
    )


def outlines(pixels: Pixels) -> float:
    """How far an image uint8 [H, W, 3] consists of even areas and outlines: 0 where it is blobs or noise.

    Photographs' bands of detail are sparse, most values small and few large (Field 1987), as what they show has
    outlines; blobs' and noise's are distributed normally. Mean size against deviation tells, as in the shape that
    BRISQUE fits (Mittal et al. 2012). The mean of two bands, of blocks of 2 and 4 pixels; 0 of an image below 8 x 8.
    """
    grey, found = _grey(pixels.astype(np.float32)), []
    for side in _BANDS:
        blocks = _means(grey, side)
        coarse = _means(blocks, 2).repeat(2, axis=0).repeat(2, axis=1)
        band = blocks[: coarse.shape[0], : coarse.shape[1]] - coarse
        deviation = float(band.std()) if band.size else 0.0
        found.append(1 - float(np.abs(band).mean()) / deviation / _BLOBS if deviation else 0.0)
    return float(np.mean(found))


def _grey(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return (values[..., 0] + values[..., 1] + values[..., 2]) / np.float32(3)  # faster than a mean over axis 2


def _means(grey: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Means of whole blocks of grey values [H, W], [H // side, W // side]."""
    rows, columns = (length // side for length in grey.shape)
    blocks = grey[: rows * side, : columns * side].reshape(rows, side, columns, side)
    means: npt.NDArray[np.float32] = blocks.mean(axis=(1, 3))
    return means


def _laplacian(grey: npt.NDArray[np.float32]) -> float:
    """The deviation of the Laplacian of grey values [H, W]; 0 where there is none."""
    if min(grey.shape) < 3:
        return 0.0
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(edges.std())


@dataclass(frozen=True)
class Looks:
    """Many images: how many, and of each number the first decile, the median and the last decile."""

    images: int
    sharpness: tuple[float, float, float]
    detail: tuple[float, float, float]
    chroma: tuple[float, float, float]
    brightness: tuple[float, float, float]


def looks_of(found: Sequence[Look]) -> Looks:
    """What images show together; all 0 of none."""

    def deciles(values: list[float]) -> tuple[float, float, float]:
        low, middle, high = np.quantile(values, _SHARES).tolist() if values else (0.0, 0.0, 0.0)
        return round(low, 3), round(middle, 3), round(high, 3)

    return Looks(
        images=len(found),
        sharpness=deciles([one.sharpness for one in found]),
        detail=deciles([one.detail for one in found]),
        chroma=deciles([one.chroma for one in found]),
        brightness=deciles([one.brightness for one in found]),
    )


def scaled(pixels: Pixels, short_side: int) -> Pixels:
    """An image uint8 [H, W, 3] with its short side at so many pixels, so that its numbers mean what another's do."""
    height, width = pixels.shape[:2]
    factor = short_side / min(height, width)
    size = max(_BLOCK, round(width * factor)), max(_BLOCK, round(height * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), dtype=np.uint8)


def psnr(rebuilt: Pixels, pixels: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of two images uint8 [H, W, 3]; 99 at most."""
    error = float(np.square(rebuilt.astype(np.float64) - pixels).mean())
    return min(99.0, float(10 * np.log10(255.0**2 / max(error, 1e-12))))
