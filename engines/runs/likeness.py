"""Whether what a run painted looks like photographs: its references, or those that its adapter learned from.

Knows: which images are compared with which, and where a bundle keeps figures of its photographs. What figures mean is
`engines.quality`'s matter.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from engines.adapter.info import read_info
from engines.bundle.bundle import default_bundle
from engines.bundle.files import MANIFEST
from engines.common.files import sha256_file
from engines.datasets.dataset import Record
from engines.datasets.images import read_image
from engines.errors import DatasetError, DengineError
from engines.painting.run_settings import RunSettings
from engines.quality.look import Look, Looks, look_at, looks_of, scaled
from engines.quality.verdicts import Likeness, compare
from engines.runs.journal import IMAGES
from engines.runs.lines import IMAGE_NAME

SAMPLE = 48  # images of each kind that are looked at
T = TypeVar("T")


def likeness(folder: Path, run: RunSettings, references: Sequence[Record] = ()) -> Likeness | None:
    """A sample of the dataset's images beside the run's `references`, or beside what its bundle says of the images
    that its adapter learned from; None where there is nothing to compare. Raises DatasetError for a broken image.
    """
    names = sorted(item.name for item in os.scandir(folder / IMAGES) if IMAGE_NAME.fullmatch(item.name))
    seen = [look_at(read_image(folder / IMAGES / name)) for name in spread(names, SAMPLE)]
    photographs = list(_looks(spread(references, SAMPLE), run)) if references and seen else []
    return like(seen, run, looks_of(photographs) if photographs else None)


def like(painted: Sequence[Look], run: RunSettings, references: Looks | None) -> Likeness | None:
    """Painted images beside references, where these are known, or what the bundle says of its training images."""
    known = references or _training_images(run)
    if not painted or known is None or not known.images:
        return None
    return compare(looks_of(painted), known, "the references" if references else "the training images")


def spread(items: Sequence[T], most: int) -> list[T]:
    """So many of them at most, evenly spaced."""
    step = max(1, -(-len(items) // most))
    return list(islice(items, 0, None, step))


def _looks(records: Sequence[Record], run: RunSettings) -> Iterator[Look]:
    for record in records:
        try:
            yield look_at(scaled(record.pixels(), run.short_side or min(run.frame)))
        except DatasetError:
            if not run.options.skip_bad:
                raise


def _training_images(run: RunSettings) -> Looks | None:
    """What the run's bundle says of the images that its adapter learned from, if it is there and still the same."""
    try:
        folder = run.options.bundle or default_bundle()
        if sha256_file(folder / MANIFEST) != run.bundle_hash:
            return None
        return read_info(folder / "adapter").photographs
    except (DengineError, OSError):
        return None
