"""Painted images that nearly repeat an earlier one, the reference that they were painted from, or a training image.

Knows: which images a dataset drops for it, in index order, and how a run's references are found again. What "nearly"
means is `engines.datasets.duplicates`' correlation of thumbnails. Knows nothing about journals or dataset files.

A repainted image is compared with the very crop it was painted from (at low strength it is that crop again), and with
every reference as a whole (a network may have learned one by heart), as with every training image that is given. The
images of the dataset so far are compared as thumbnails, 2 KB each: the only thing here that grows with their number.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.datasets.dataset import Record
from engines.datasets.duplicates import NEAR, Sketches, Thumbnails, join_sketches, near_sketches, sketch, thumbnail
from engines.datasets.images import read_image
from engines.errors import DatasetError, RunError
from engines.painting.jobs import JobSource, make_job
from engines.painting.references import open_references
from engines.painting.run_settings import RunSettings

REPEATS_IMAGE = "nearly repeats an earlier image"
REPEATS_REFERENCE = "nearly repeats a reference"
REPEATS_TRAINING = "nearly repeats a training image"
REPEATS = (REPEATS_IMAGE, REPEATS_REFERENCE, REPEATS_TRAINING)
_BLOCK = 256  # images looked at together
_PART = 4096  # kept images that a block is compared with at once
_THREADS = 4  # that read images; Pillow decodes outside Python's lock


@dataclass(frozen=True)
class Candidate:
    """An image that would be in the dataset."""

    index: int  # of its job
    file: Path


def find_repeats(
    candidates: Iterable[Candidate], run: RunSettings, source: JobSource | None, training: Sequence[Path] = ()
) -> dict[int, str]:
    """The indices of the images that repeat something by `run.options.near_duplicates` or more -> what.

    candidates: in index order; no more are read than the run's count needs. source: with the references; None without.
    training: image files that the networks learned from; where the run drops no repeats, these are compared with all
    the same, by the usual correlation, and with nothing else.
    An image that is dropped itself is nothing that a later one could repeat.
    Raises DatasetError for an image that cannot be read, references aside where the run skips bad ones.
    """
    threshold = run.options.near_duplicates
    found: dict[int, str] = {}
    kept: list[Sketches] = []
    every = iter(candidates)
    with ThreadPoolExecutor(_THREADS) as pool:
        wholes = None
        learned = sketch(_stacked(pool.map(_thumbnail, training))) if training else None
        if source is not None and threshold:
            wholes = sketch(_stacked(pool.map(partial(_whole, run), source.references)))
        while block := list(islice(every, _BLOCK)):
            thumbs = sketch(_stacked(pool.map(_thumbnail, [one.file for one in block])))
            if source is not None and wholes is not None:
                crops = _stacked(pool.map(partial(_crop, run, source), [one.index for one in block]))
                again = {pair.first for pair in near_sketches(thumbs, wholes, threshold)}
                again |= set(np.flatnonzero((thumbs.thumbnails * crops).sum(axis=1) >= threshold).tolist())
                found |= {block[row].index: REPEATS_REFERENCE for row in again}
            for pair in near_sketches(thumbs, learned, threshold or NEAR) if learned is not None else ():
                found.setdefault(block[pair.first].index, REPEATS_TRAINING)
            if threshold:
                _drop_repeats(block, thumbs, kept, threshold, found)
            _keep(kept, thumbs.part([row for row, one in enumerate(block) if one.index not in found]))
            if run.options.count is not None and sum(map(len, kept)) >= run.options.count:
                break
    return found


def reference_source(run: RunSettings) -> JobSource | None:
    """The references of a run, and how its jobs cropped them; None where there are none to compare with.

    Raises RunError where they are gone, or are no longer those that the run was painted from.
    """
    from engines.painting.resolve import dataset_hash

    asked = run.options
    if asked.reference is None:
        return None
    if run.short_side is None:
        raise RunError(
            "This run does not say how its references were cropped: give its `dengine generate` command once more, or "
            "take `near_duplicates=0`.",
            field="near_duplicates",
        )
    try:
        dataset = open_references(asked)
    except DatasetError as cause:
        raise RunError(
            f"`near_duplicates` compares with the references: {cause} Or take `near_duplicates=0`.",
            field="near_duplicates",
        ) from cause
    if dataset_hash(dataset) != run.reference_hash:
        raise RunError(
            f"{asked.reference} does not hold the references that the run was painted from: put them back, or take "
            "`near_duplicates=0`.",
            field="near_duplicates",
        )
    return JobSource(
        frame=asked.size,
        short_side=run.short_side,
        style="",
        references=dataset.records,
        class_names=dataset.class_names,
        strength=asked.strength or (1.0, 1.0),
        flip=asked.flip,
        balance=asked.balance,
    )


def _keep(kept: list[Sketches], new: Sketches) -> None:
    """Put sketches behind those that are there, in parts that are worth a comparison each."""
    if kept and len(kept[-1]) + len(new) <= _PART:
        kept[-1] = join_sketches([kept[-1], new])
    else:
        kept.append(new)


def _drop_repeats(
    block: Sequence[Candidate], thumbs: Sketches, kept: Sequence[Sketches], threshold: float, found: dict[int, str]
) -> None:
    """Note the images of a block that repeat one of those kept so far, or an earlier one of the block that stays."""
    for earlier in kept:
        for pair in near_sketches(thumbs, earlier, threshold):
            found.setdefault(block[pair.first].index, REPEATS_IMAGE)
    for pair in sorted(near_sketches(thumbs, None, threshold), key=lambda pair: (pair.second, pair.first)):
        if block[pair.first].index not in found:
            found.setdefault(block[pair.second].index, REPEATS_IMAGE)


def _thumbnail(file: Path) -> Thumbnails:
    return thumbnail(read_image(file))


def _whole(run: RunSettings, record: Record) -> Thumbnails:
    """The thumbnail of a whole reference."""
    return _unless_broken(run, record.pixels)


def _crop(run: RunSettings, source: JobSource, index: int) -> Thumbnails:
    """The thumbnail of what job `index` repainted, mirrored where it was."""
    from engines.painting.crops import read_crop

    return _unless_broken(run, lambda: read_crop(source, make_job(source, run.options.seed, index)))


def _unless_broken(run: RunSettings, read: Callable[[], npt.NDArray[np.uint8]]) -> Thumbnails:
    """The thumbnail of what `read` gives; all 0, which is like nothing, for a broken image that may be skipped."""
    try:
        return thumbnail(read())
    except DatasetError:
        if not run.options.skip_bad:
            raise
        return thumbnail(np.zeros((1, 1, 3), dtype=np.uint8))


def _stacked(rows: Iterator[Thumbnails]) -> Thumbnails:
    return np.stack(list(rows))
