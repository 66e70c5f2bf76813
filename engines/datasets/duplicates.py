"""Copies and near-copies among images.

Knows: a hash of an image's pixels, whatever file holds them, and a thumbnail of each image whose correlation with
another's says how alike two pictures are. Knows nothing about datasets, splits, or what is done with what is found.

The correlation looks at where a picture is bright and dark, not at its brightness, contrast or size: a copy that was
scaled, compressed again or recoloured scores 0.97 and more, as do two shots of nearly one scene, while different
pictures of one kind stay below 0.75 (blood cells under one microscope: 0.979 for the one near pair, then 0.667).
What it does not see: a small cut-out of a larger picture, or a turned one.

Every thumbnail is compared with every other. A few numbers of each, its sketch, bound how alike two can be: what the
bound rules out needs no closer look. So the time still grows with the square of the number of images, but little: about
3 ns of a core for each two, 15 s for 100,000 crops of blood smears. Nothing is missed, as by an index of neighbours.

N, M images; D values of a thumbnail; E, O values of a sketch.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.datasets.images import read_image
from engines.datasets.records import Record

Thumbnails = npt.NDArray[np.float32]

SIDE = 24  # pixels of a thumbnail's sides
NEAR = 0.95  # correlation from which two pictures are nearly one
_BLOCK = 512  # thumbnails compared at once with as many others: what comes of it stays in a core's own cache
_WAVES = 8  # cosines of a sketch, each way
_SLACK = 1e-3  # on the bound: roots of what rounding leaves
_MANY = 0.05  # share of a block's pairs from which all of them are compared at once


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


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What tells copies: of N images, in their order."""

    hashes: list[str]  # `pixel_hash` of each
    thumbnails: Thumbnails  # [N, D]

    def take(self, rows: Sequence[int]) -> "Fingerprints":
        """Those of some of the images."""
        return Fingerprints([self.hashes[row] for row in rows], self.thumbnails[rows])


def fingerprint(pixels: npt.NDArray[np.uint8]) -> Fingerprints:
    """Those of one image, uint8 [H, W, 3]."""
    return Fingerprints([pixel_hash(pixels)], thumbnail(pixels)[None])


def fingerprints(images: Iterable[Path | Record]) -> Fingerprints:
    """Hashes and thumbnails of images, each decoded once. Raises DatasetError for a file that cannot be read."""
    return joined([fingerprint(one.pixels() if isinstance(one, Record) else read_image(one)) for one in images])


def joined(prints: Sequence[Fingerprints]) -> Fingerprints:
    """All of them, in order."""
    rows = [one.thumbnails for one in prints] or [np.zeros((0, SIDE * SIDE), dtype=np.float32)]
    return Fingerprints([own for one in prints for own in one.hashes], np.concatenate(rows))


def mirrored(images: Thumbnails) -> Thumbnails:
    """Thumbnails [N, D] of the same pictures mirrored left to right."""
    return np.ascontiguousarray(images.reshape(-1, SIDE, SIDE)[:, :, ::-1]).reshape(images.shape)


@dataclass(frozen=True, eq=False)
class Sketches:
    """Thumbnails made ready to be compared with many others."""

    thumbnails: Thumbnails  # [N, D]
    even: npt.NDArray[np.float32]  # [N, E]: slow cosines that a mirror leaves as they are, and the length of the rest
    odd: npt.NDArray[np.float32]  # [N, O]: slow cosines that a mirror turns round

    def __len__(self) -> int:
        return len(self.thumbnails)

    def part(self, rows: slice | Sequence[int]) -> "Sketches":
        """Those of some of the images."""
        return Sketches(self.thumbnails[rows], self.even[rows], self.odd[rows])


def join_sketches(parts: Sequence[Sketches]) -> Sketches:
    """All of them, in order; at least one."""
    return Sketches(*(np.concatenate([getattr(one, name) for one in parts]) for name in ("thumbnails", "even", "odd")))


def sketch(images: Thumbnails) -> Sketches:
    """The sketches of thumbnails [N, D]."""
    even, odd = (images @ waves.T for waves in _slow_waves())
    held = np.square(even).sum(axis=1) + np.square(odd).sum(axis=1)
    rest = np.sqrt(np.maximum(np.square(images).sum(axis=1) - held, 0.0))
    return Sketches(images, np.concatenate([even, rest[:, None]], axis=1), odd)


def near_pairs(
    first: Thumbnails, second: Thumbnails | None = None, threshold: float = NEAR, *, mirror: bool = True
) -> Iterator[Pair]:
    """Pairs whose thumbnails correlate by `threshold` or more, one by one: of frames of a video nearly all are, and
    there may be millions. Those of one `first` come with rising `second`.

    first: [N, D]; second: [M, D], or None for the pairs within `first`, each named once, the lower index first.
    mirror: a picture and its mirror image count as nearly one, too.
    """
    return near_sketches(sketch(first), None if second is None else sketch(second), threshold, mirror=mirror)


def near_sketches(
    first: Sketches, second: Sketches | None = None, threshold: float = NEAR, *, mirror: bool = True
) -> Iterator[Pair]:
    """`near_pairs` of thumbnails that were sketched before."""
    within, second = second is None, first if second is None else second
    for start in range(0, len(first), _BLOCK):
        block = first.part(slice(start, start + _BLOCK))
        for other in range(start if within else 0, len(second), _BLOCK):
            found = _near(block, second.part(slice(other, other + _BLOCK)), threshold, mirror)
            for row, column, correlation in zip(*found, strict=True):
                if not within or start + row < other + column:
                    yield Pair(start + row, other + column, min(1.0, correlation))


def near_groups(images: Thumbnails) -> list[list[int]]:
    """The indices of thumbnails [N, D], those that are nearly one, by others perhaps, together; each group rises, and
    they come by their first."""
    parent = list(range(len(images)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = place = parent[parent[place]]
        return place

    for pair in near_pairs(images):
        low, high = sorted((root(pair.first), root(pair.second)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for place in range(len(images)):
        groups.setdefault(root(place), []).append(place)
    return list(groups.values())


def _near(
    first: Sketches, second: Sketches, threshold: float, mirror: bool
) -> tuple[list[int], list[int], list[float]]:
    """Rows, columns and correlations of the pairs that reach the threshold.

    With u = e + o + r (even cosines, odd ones, the rest), and r v never above |r| |v|:
    u v is at most e e' + o o' + |r| |r'|, and u times v mirrored at most e e' - o o' + |r| |r'|.
    """
    bound = first.odd @ second.odd.T
    if mirror:
        np.abs(bound, out=bound)
    bound += first.even @ second.even.T
    rows, columns = np.divmod(np.flatnonzero(bound >= threshold - _SLACK), bound.shape[1])
    if len(rows) > _MANY * bound.size:
        alike = first.thumbnails @ second.thumbnails.T
        if mirror:
            alike = np.maximum(alike, mirrored(first.thumbnails) @ second.thumbnails.T)
        correlations = alike[rows, columns]
    else:
        ours, theirs = first.thumbnails[rows], second.thumbnails[columns]
        correlations = np.einsum("nd,nd->n", ours, theirs)
        if mirror:
            correlations = np.maximum(correlations, np.einsum("nd,nd->n", mirrored(ours), theirs))
    near = correlations >= threshold
    return rows[near].tolist(), columns[near].tolist(), correlations[near].tolist()


@cache
def _slow_waves() -> tuple[Thumbnails, Thumbnails]:
    """The slowest cosines of a thumbnail, of length 1 and at right angles, float32: even [_, D] and odd ones [_, D]."""
    waves, places = np.arange(_WAVES)[:, None], np.arange(SIDE) + 0.5
    lines = np.cos(np.pi / SIDE * waves * places) * np.where(waves, np.sqrt(2 / SIDE), np.sqrt(1 / SIDE))
    pictures = np.einsum("vy,hx->hvyx", lines, lines).reshape(_WAVES, _WAVES, -1).astype(np.float32)
    return pictures[::2].reshape(-1, SIDE * SIDE), pictures[1::2].reshape(-1, SIDE * SIDE)
