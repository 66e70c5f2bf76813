"""Copies and near-copies among images.

Knows: a hash of an image's pixels, whatever file holds them, and a thumbnail of each image whose correlation with
another's says how alike two pictures are. Knows nothing about datasets, splits, or what is done with what is found.

The correlation looks at where a picture is bright and dark, not at its brightness, contrast or size: a copy that was
scaled, compressed again or recoloured scores 0.97 and more, as do two shots of nearly one scene, while different
pictures of one kind stay below 0.75 (blood cells under one microscope: 0.979 for the one near pair, then 0.667).
What it does not see: a small cut-out of a larger picture, or a turned one.

N, M images; D values of a thumbnail.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.datasets.images import read_image

Thumbnails = npt.NDArray[np.float32]

SIDE = 24  # pixels of a thumbnail's sides
NEAR = 0.95  # correlation from which two pictures are nearly one
_BLOCK = 1024  # thumbnails compared at once with all others


class Pair(NamedTuple):
    """Two images that are nearly one."""

    first: int  # index in the first set
    second: int  # index in the second set
    correlation: float  # of their thumbnails, at most 1


def pixel_hash(pixels: npt.NDArray[np.uint8]) -> str:
    """SHA-256 of an image's size and pixels, uint8 [H, W, 3]: the same for two files that show the same."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def thumbnail(pixels: npt.NDArray[np.uint8]) -> Thumbnails:
    """An image uint8 [H, W, 3] as float32 [D]: small, grey, of mean 0 and length 1; all 0 where it is of one colour."""
    grey = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float32).reshape(-1)
    values = values - values.mean()
    length = float(np.linalg.norm(values))
    return np.asarray(values / max(length, 1e-12), dtype=np.float32)


def thumbnails(files: Iterable[Path]) -> Thumbnails:
    """Thumbnails of image files, float32 [N, D], in their order. Raises DatasetError for a file that cannot be read."""
    return fingerprints(files).thumbnails


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What tells copies: of N images, in their order."""

    hashes: list[str]  # `pixel_hash` of each
    thumbnails: Thumbnails  # [N, D]


def fingerprints(files: Iterable[Path]) -> Fingerprints:
    """Hashes and thumbnails of image files, each decoded once. Raises DatasetError for a file that cannot be read."""
    hashes, rows = [], []
    for file in files:
        pixels = read_image(file)
        hashes.append(pixel_hash(pixels))
        rows.append(thumbnail(pixels))
    return Fingerprints(hashes, np.stack(rows) if rows else np.zeros((0, SIDE * SIDE), dtype=np.float32))


def mirrored(images: Thumbnails) -> Thumbnails:
    """Thumbnails [N, D] of the same pictures mirrored left to right."""
    return np.ascontiguousarray(images.reshape(-1, SIDE, SIDE)[:, :, ::-1]).reshape(len(images), -1)


def near_pairs(
    first: Thumbnails, second: Thumbnails | None = None, threshold: float = NEAR, *, mirror: bool = True
) -> list[Pair]:
    """Pairs whose thumbnails correlate by `threshold` or more, in the order of their indices.

    first: [N, D]; second: [M, D], or None for the pairs within `first`, each named once, the lower index first.
    mirror: a picture and its mirror image count as nearly one, too.
    """
    return sorted(_pairs(first, first if second is None else second, threshold, mirror, within=second is None))


def _pairs(first: Thumbnails, second: Thumbnails, threshold: float, mirror: bool, within: bool) -> Iterator[Pair]:
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK]
        alike = block @ second.T
        if mirror:
            alike = np.maximum(alike, mirrored(block) @ second.T)
        for row, column in np.argwhere(alike >= threshold).tolist():
            if not within or start + row < column:
                yield Pair(start + row, column, min(1.0, float(alike[row, column])))
