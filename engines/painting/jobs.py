"""Jobs: everything that decides image number i, as a pure function of the run's source, its seed and i.

Knows: which reference an index repaints, which part of it, at what strength, and the words of its prompt; and which
indices make a chunk and a shard. Knows nothing about networks, files or what ran before, so that nothing depends on
batch size, on the number of machines, or on interruptions.

W/H frame in pixels; all crops are in the reference's own pixels.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engines.common.names import class_words
from engines.common.rng import Stream, generator
from engines.diffusion.prompts import MAX_LISTED, count_word, generic_prompt, listing_prompt

if TYPE_CHECKING:
    from engines.composing.composer import Composer
    from engines.composing.plan import Paste
    from engines.datasets.dataset import Record


@dataclass(frozen=True)
class JobSource:
    """What the jobs of a run have in common."""

    frame: tuple[int, int]  # (width, height) of a painted image, in pixels
    short_side: int  # pixels that the short side of a whole reference is thought of as scaled to
    style: str  # style words of the prompts
    references: "Sequence[Record]" = ()  # images to repaint; none: text to image
    class_names: tuple[str, ...] = ()  # of the references' labels
    strength: tuple[float, float] = (1.0, 1.0)  # range it is drawn from
    flip: bool = True  # mirror references half of the time
    template: str | None = None  # of the prompt, with {style}, {classes}, {caption}
    class_statistics: Sequence[Mapping[str, int]] = ()  # objects by class in training images
    balance: bool = False  # draw references, and classes of training images, by `balanced_shares`
    labels: tuple[int, ...] | None = None  # the run's class for each of the references'; None: theirs are not read
    composer: "Composer | None" = None  # pastes objects of references into them

    @functools.cached_property
    def reference_places(self) -> npt.NDArray[np.float64]:
        """Where in 0..1 the share of each reference ends, when they are balanced."""
        counts = [Counter(record.instances.single.labels.tolist()) for record in self.references]
        named = [Counter({self.class_names[label]: n for label, n in found.items()}) for found in counts]
        return np.cumsum(balanced_shares(named))

    @functools.cached_property
    def statistics_places(self) -> npt.NDArray[np.float64]:
        """The same of the training images."""
        return np.cumsum(balanced_shares(self.class_statistics))


@dataclass(frozen=True)
class Job:
    """One image to paint."""

    index: int  # its number in the run
    seed: int  # the run's; with the index, the key of its noise
    prompt: str
    reference: int | None = None  # which of the source's references; None: text to image
    crop: tuple[float, float, float, float] | None = None  # x0, y0, x1, y1 of the part that fills the frame
    flip: bool = False  # mirror the crop left to right
    strength: float | None = None  # how much of the crop is repainted
    pasted: "tuple[Paste, ...]" = ()  # objects of references that are pasted into it


def make_job(source: JobSource, run_seed: int, index: int) -> Job:
    """Job number `index`, a pure function of its arguments.

    References are taken in passes, each in a random order of its own, so that all are used equally often; balanced
    ones as often as their share says, rounded up or down in each pass.
    """
    rng = generator(run_seed, index, Stream.JOB)
    if not source.references:
        return Job(index, run_seed, _prompt(source, _drawn_counts(source, rng), None, rng))
    number, place = divmod(index, len(source.references))
    reference = _order(run_seed, number, len(source.references))[place]
    if source.balance:
        offset = float(generator(run_seed, number, Stream.BALANCE).random())
        reference = _at(source.reference_places, (reference + offset) / len(source.references))
    record = source.references[reference]
    crop = _draw_crop(source, record.width, record.height, rng)
    flip = bool(rng.random() < 0.5) and source.flip
    low, high = source.strength
    strength = min(max(round(float(rng.uniform(low, high)), 4), low), high)
    counts = _counts_inside(record, crop, source.class_names)
    if record.caption is None and len(record.instances) == 0:
        counts = _drawn_counts(source, rng)
    pasted = source.composer.draw(run_seed, index, reference, crop, flip) if source.composer else ()
    for paste in pasted:
        name = source.class_names[paste.label]
        counts[name] = counts.get(name, 0) + 1
    return Job(index, run_seed, _prompt(source, counts, record.caption, rng), reference, crop, flip, strength, pasted)


def balanced_shares(counts: Sequence[Mapping[str, int]]) -> npt.NDArray[np.float64]:
    """How often each image is drawn, from its objects by class, so that rare classes appear more often: adds up to 1.

    Every class gets the same share of the draws, and deals it out to its images by the part of their objects that it
    makes up. Images without objects are drawn as often as if nothing were balanced.
    """
    named = {name: column for column, name in enumerate(sorted({name for found in counts for name in found}))}
    objects = np.zeros((len(counts), len(named)))
    for row, found in enumerate(counts):
        for name, number in found.items():
            objects[row, named[name]] = number
    totals = objects.sum(axis=1, keepdims=True)
    filled = totals[:, 0] > 0
    parts = objects / np.maximum(totals, 1)
    parts = parts[:, parts.any(axis=0)]
    shares = np.full(len(counts), 1 / max(len(counts), 1))
    if filled.any():
        shares[filled] = filled.mean() * (parts / parts.sum(axis=0)).mean(axis=1)[filled]
    return shares


def chunk_ranges(chunk: int, jobs: int | None, shard: tuple[int, int] | None = None) -> Iterator[range]:
    """The chunks of a run in order, each as its range of job indices; without end where `jobs` is None.

    Shard (k, n) gets every n-th chunk, from the k-th on. The last chunk may be short.
    """
    part, parts = shard or (1, 1)
    for number in itertools.count(part - 1, parts):
        first = number * chunk
        if jobs is not None and first >= jobs:
            return
        yield range(first, first + chunk if jobs is None else min(first + chunk, jobs))


def _at(places: npt.NDArray[np.float64], point: float) -> int:
    """The index whose share holds `point`, in 0..1."""
    return min(int(np.searchsorted(places, point, side="right")), len(places) - 1)


@functools.lru_cache(maxsize=2)
def _order(run_seed: int, number: int, references: int) -> tuple[int, ...]:
    """The order of the references in pass `number`."""
    return tuple(generator(run_seed, number, Stream.REFERENCE_ORDER).permutation(references).tolist())


def _draw_crop(
    source: JobSource, width: int, height: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random part of a width x height reference with the frame's shape, at the source's scale.

    A reference that would not fill the frame at that scale is scaled up until it does.
    """
    frame_width, frame_height = source.frame
    scale = max(source.short_side / min(width, height), frame_width / width, frame_height / height)
    crop_width, crop_height = min(frame_width / scale, width), min(frame_height / scale, height)
    left = float(rng.uniform(0.0, 1.0)) * (width - crop_width)
    top = float(rng.uniform(0.0, 1.0)) * (height - crop_height)
    return left, top, min(left + crop_width, width), min(top + crop_height, height)


def _counts_inside(
    record: "Record", crop: tuple[float, float, float, float], class_names: Sequence[str]
) -> dict[str, int]:
    """How many objects of each class have their centre in the crop; crowds are left out."""
    found = record.instances.single
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    inside = (centres >= crop[:2]).all(axis=1) & (centres <= crop[2:]).all(axis=1)
    return {class_names[label]: n for label, n in sorted(Counter(found.labels[inside].tolist()).items())}


def _drawn_counts(source: JobSource, rng: np.random.Generator) -> dict[str, int]:
    """The classes of one training image of the adapter, drawn at random; none where there are no statistics."""
    if not source.class_statistics:
        return {}
    if source.balance:
        return dict(source.class_statistics[_at(source.statistics_places, float(rng.random()))])
    return dict(source.class_statistics[int(rng.integers(len(source.class_statistics)))])


def _prompt(source: JobSource, counts: Mapping[str, int], caption: str | None, rng: np.random.Generator) -> str:
    """The words: the template's, else the caption's, else the listing of classes, in random order as in training."""
    named = [(name, count) for name, count in counts.items() if count > 0]
    listed = [named[i] for i in rng.permutation(len(named)).tolist()]
    if source.template is not None:
        classes = " and ".join(f"{count_word(n)} {class_words(name)}" for name, n in listed[:MAX_LISTED])
        filled = source.template.format(style=source.style, classes=classes, caption=caption or "")
        return " ".join(filled.split())
    if caption:
        return f"{generic_prompt(source.style)} of {caption}"
    return listing_prompt(source.style, dict(listed))
