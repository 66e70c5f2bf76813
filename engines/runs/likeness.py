"""Whether what a run painted looks like photographs, its references or those that its adapter learned from, and whether
it repeats such.

Knows: which images are compared with which, and where a bundle keeps figures and fingerprints of its photographs. What
figures mean is `engines.quality`'s matter, and what makes two images nearly one that of `engines.datasets.duplicates`.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from engines.adapter.info import read_info
from engines.common.plurals import counted
from engines.datasets.dataset import Record
from engines.datasets.duplicates import NEAR, Thumbnails, mirrored, thumbnail
from engines.datasets.images import read_image
from engines.datasets.learned import LEARNED, read_learned
from engines.errors import DatasetError, DengineError, ModelError
from engines.painting.run_settings import RunSettings
from engines.quality.look import Look, Looks, look_at, looks_of, scaled
from engines.quality.verdicts import Likeness, compare
from engines.runs.journal import IMAGES
from engines.runs.lines import IMAGE_NAME
from engines.runs.run_folder import bundle_of

SAMPLE = 48  # images of each kind that are looked at
COMPARED = 400  # painted images that are held against all that was learned from
_BLOCK = 8192  # thumbnails of these at once
T = TypeVar("T")


@dataclass(frozen=True)
class Memory:
    """How near painted images come to those that the models of their bundle learned from.

    >>> Memory(images=48, nearest=0.62, repeats=0).words
    '0.62 at most to an image that was learned from, in 48 images (nearly the same from 0.95 on)'
    """

    images: int  # painted ones that were compared
    nearest: float  # the highest correlation of a painted image's thumbnail with any that was learned from
    repeats: int  # painted images that nearly repeat one

    @property
    def words(self) -> str:
        """The figures."""
        looked = counted(self.images, "image")
        how = f"nearly the same from {NEAR:g} on"
        return f"{self.nearest:.2f} at most to an image that was learned from, in {looked} ({how})"

    @property
    def remark(self) -> str | None:
        """What is to be said where images are repeated; None where none is."""
        if not self.repeats:
            return None
        return (
            f"{self.repeats} of {counted(self.images, 'painted image')} looked at nearly repeat one that the bundle's "
            "models learned from: they paint it by heart. `finalize` leaves such images out, given the folder that was "
            "learned from (`training`); a base that learns from more images remembers fewer"
        )


def hold_against(
    folder: Path, run: RunSettings, references: Sequence[Record] = ()
) -> tuple[Likeness | None, Memory | None]:
    """A sample of a run's images beside its `references`, or beside what its bundle says of the images that its adapter
    learned from; and beside all that the bundle's models learned from, where there are no references. Each None where
    there is nothing to compare with. Raises DatasetError for a broken image of the run.
    """
    learned = learned_by(run)
    names = sorted(item.name for item in os.scandir(folder / IMAGES) if IMAGE_NAME.fullmatch(item.name))
    chosen = spread(names, COMPARED if learned else SAMPLE)
    looked_at, seen, small = set(spread(chosen, SAMPLE)), [], []
    for name in chosen:
        pixels = read_image(folder / IMAGES / name)
        if learned:
            small.append(thumbnail(pixels))
        if name in looked_at:
            seen.append(look_at(pixels))
    photographs = list(_looks(spread(references, SAMPLE), run)) if references and seen else []
    return like(seen, run, looks_of(photographs) if photographs else None), nearest(small, learned)


def like(painted: Sequence[Look], run: RunSettings, references: Looks | None) -> Likeness | None:
    """Painted images beside references, where these are known, or what the bundle says of its training images."""
    known = references or _training_images(run)
    if not painted or known is None or not known.images:
        return None
    return compare(looks_of(painted), known, "the references" if references else "the training images")


def learned_by(run: RunSettings) -> list[Thumbnails]:
    """Thumbnails of all that the models of a run's bundle learned from. None of a run with references, which are
    compared with elsewhere (`near_duplicates`), and of a bundle that doesn't say.
    """
    bundle = None if run.options.reference else bundle_of(run)
    try:
        known = [read_learned(bundle / part / LEARNED) for part in (".", "adapter")] if bundle else []
    except ModelError:
        return []
    return [one.thumbnails for one in known if one is not None and len(one.thumbnails)]


def nearest(painted: Sequence[Thumbnails], learned: Sequence[Thumbnails]) -> Memory | None:
    """How near thumbnails, [D] each, come to those of `learned`, [N, D] each, mirrored or not; None without either."""
    if not painted or not learned:
        return None
    images = np.stack(painted)
    best = np.full(len(images), -1.0, dtype=np.float32)
    for block in (part[first : first + _BLOCK] for part in learned for first in range(0, len(part), _BLOCK)):
        for either in (images, mirrored(images)):
            best = np.maximum(best, (either @ block.T).max(axis=1))
    return Memory(len(images), round(min(1.0, float(best.max())), 3), int((best >= NEAR).sum()))


def spread(items: Sequence[T], most: int) -> list[T]:
    """So many of them at most, evenly spaced."""
    step = max(1, -(-len(items) // most))
    return list(islice(items, 0, None, step))


def _looks(records: Sequence[Record], run: RunSettings) -> Iterator[Look]:
    """Those that can be read: whether a run painted others is no matter here."""
    for record in records:
        with contextlib.suppress(DatasetError):
            yield look_at(scaled(record.pixels(), run.short_side or min(run.frame)))


def _training_images(run: RunSettings) -> Looks | None:
    """What the run's bundle says of the images that its adapter learned from."""
    try:
        folder = bundle_of(run)
        return read_info(folder / "adapter").photographs if folder else None
    except (DengineError, OSError):
        return None
