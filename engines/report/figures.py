"""What a report says of a run: counts over its whole journal, and what a sample of its images shows beside references.

Knows: which figures there are and how they are sampled. Knows nothing about how they are drawn. Memory does not grow
with the number of images: boxes are counted into histograms, and images are sampled by their index.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.datasets.dataset import Record
from engines.datasets.duplicates import NEAR, near_pairs, thumbnail
from engines.datasets.images import read_image
from engines.errors import DatasetError
from engines.labels.boxes import Instances
from engines.labels.rules import Rules, quality
from engines.painting.references import open_references
from engines.painting.run_settings import RunSettings
from engines.quality.look import Look as PixelLook
from engines.quality.look import look_at, looks_of, scaled
from engines.quality.verdicts import Likeness
from engines.runs.choices import Choice, choices_on_disk
from engines.runs.journal import find_image
from engines.runs.likeness import COMPARED, Memory, learned_by, like, nearest, spread

BINS, GRID = 40, 16
_SAMPLE = 100  # images whose pixels are looked at (COMPARED where these may repeat what was learned), and references
SHOWN, UNSURE = 24, 12  # images in the report
_SEED = 0

Counts = npt.NDArray[np.int64]


@dataclass(eq=False)
class Boxes:
    """Boxes of one dataset, counted."""

    images: int = 0
    by_class: Counter[int] = field(default_factory=Counter)
    sizes: Counts = field(
        default_factory=lambda: np.zeros(BINS, dtype=np.int64)
    )  # root of the area, share of the frame
    places: Counts = field(default_factory=lambda: np.zeros((GRID, GRID), dtype=np.int64))  # of centres, rows downward

    def add(self, found: Instances, width: int, height: int) -> None:
        """Count an image's boxes."""
        self.images += 1
        self.by_class.update(found.labels.tolist())
        corners = np.clip(found.boxes.astype(np.float64) / np.array([width, height] * 2), 0.0, 1.0)
        sides = np.sqrt(np.prod(corners[:, 2:] - corners[:, :2], axis=1))
        np.add.at(self.sizes, np.minimum((sides * BINS).astype(int), BINS - 1), 1)
        centres = np.minimum(((corners[:, :2] + corners[:, 2:]) / 2 * GRID).astype(int), GRID - 1)
        np.add.at(self.places, (centres[:, 1], centres[:, 0]), 1)


@dataclass(eq=False)
class Look:
    """What the pixels of a sample show, image by image."""

    seen: list[PixelLook] = field(default_factory=list)
    thumbnails: list[npt.NDArray[np.float32]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def add(self, file: Path, pixels: npt.NDArray[np.uint8]) -> None:
        """Look at an image, uint8 [H, W, 3]."""
        self.seen.append(look_at(pixels))
        self.thumbnails.append(thumbnail(pixels))
        self.files.append(file)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image in the report."""

    file: Path
    instances: Instances
    size: tuple[int, int]  # width and height that the boxes are of


@dataclass(eq=False)
class Figures:
    """All of them."""

    class_names: tuple[str, ...]
    painted: int = 0  # journal lines
    dropped: Counter[str] = field(default_factory=Counter)
    scores: Counts = field(default_factory=lambda: np.zeros((1, BINS), dtype=np.int64))  # [K, BINS] of all boxes
    labels: Boxes = field(default_factory=Boxes)
    references: Boxes | None = None
    look: Look = field(default_factory=Look)
    look_references: Look = field(default_factory=Look)
    repeats: int = 0  # images of the sample that nearly repeat another of it
    closest: tuple[Path, Path, float] | None = None  # a painted image, the reference nearest to it, their correlation
    likeness: Likeness | None = None  # of the sample to photographs, where there are any to compare with
    memory: Memory | None = None  # of images that the models learned from, where the run had no references
    shown: list[Picture] = field(default_factory=list)
    unsure: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Draw:
    """A few of very many things, each as likely as any other, taken while they pass (a reservoir)."""

    def __init__(self, most: int) -> None:
        self.taken: list[Any] = []
        self._most, self._seen, self._random = most, 0, random.Random(_SEED)

    def see(self, one: Any) -> None:
        """Take this one, or not."""
        self._seen += 1
        place = self._random.randrange(self._seen)
        if len(self.taken) < self._most:
            self.taken.append(one)
        elif place < self._most:
            self.taken[place] = one

    def some(self, most: int) -> list[Any]:
        """So many of what was taken, in any order."""
        return self._random.sample(self.taken, min(most, len(self.taken)))


def gather(folder: Path, run: RunSettings, rules: Rules) -> Figures:
    """Count a run's journal, and look at a sample of its images and of its references."""
    found = Figures(run.class_names, scores=np.zeros((len(run.class_names), BINS), dtype=np.int64))
    learned = learned_by(run)
    sample, unsure = Draw(COMPARED if learned else _SAMPLE), list[tuple[float, int, Choice]]()
    for choice in choices_on_disk(folder, run, rules):
        every = choice.entry.instances
        found.painted += 1
        bins = np.minimum((every.scores * BINS).astype(int), BINS - 1)
        np.add.at(found.scores, (every.labels, bins), 1)
        if choice.drop is not None:
            found.dropped[choice.drop.text] += 1
            continue
        found.labels.add(choice.instances.single, *run.frame)
        sample.see(choice)
        if len(unsure) < UNSURE or quality(every) < unsure[-1][0]:
            unsure = sorted([*unsure, (quality(every), choice.entry.index, choice)], key=lambda one: one[:2])[:UNSURE]
    for choice in sample.taken:
        file = find_image(folder, choice.entry)
        found.look.add(file, read_image(file))
    for picked, into in ((sample.some(SHOWN), found.shown), ([one for *_, one in unsure], found.unsure)):
        into += [Picture(find_image(folder, one.entry), one.instances.single, run.frame) for one in picked]
    _compare(found, run)
    if found.look.seen:
        photographs = looks_of(found.look_references.seen) if found.look_references.seen else None
        found.likeness = like(found.look.seen, run, photographs)
        found.memory = nearest(found.look.thumbnails, learned)
    return found


def _compare(found: Figures, run: RunSettings) -> None:
    """Look at the references, and for what nearly repeats something."""
    thumbs = _stacked(found.look)
    found.repeats = len({place for pair in near_pairs(thumbs, None, NEAR) for place in pair[:2]}) if len(thumbs) else 0
    records = _references(found, run)
    if not records:
        return
    found.references = Boxes()
    same = {name: label for label, name in enumerate(run.class_names)}
    for record, names in records:
        kept = [place for place, label in enumerate(record.instances.labels) if names[label] in same]
        mine = record.instances.take(kept)
        labels = np.array([same[names[label]] for label in mine.labels], dtype=np.int64)
        found.references.add(Instances.of(mine.boxes, labels).single, record.width, record.height)
    for record, _ in spread(records, _SAMPLE):
        try:
            pixels = _scaled(record, run)
        except DatasetError:
            continue
        found.look_references.add(record.file, pixels)
    others = _stacked(found.look_references)
    if len(thumbs) and len(others):
        alike = thumbs @ others.T
        row, column = divmod(int(alike.argmax()), len(others))
        pair = found.look.files[row], found.look_references.files[column]
        found.closest = (*pair, float(min(1.0, alike[row, column])))


def _references(found: Figures, run: RunSettings) -> list[tuple[Record, tuple[str, ...]]]:
    asked = run.options
    if asked.reference is None:
        found.notes.append("Painted from text alone: there are no references to compare with.")
        return []
    try:
        dataset = open_references(asked, skip_bad=True)
    except DatasetError:
        found.notes.append(f"The references, {asked.reference}, are no longer there to compare with.")
        return []
    return [(record, dataset.class_names) for record in dataset.records]


def _scaled(record: Record, run: RunSettings) -> npt.NDArray[np.uint8]:
    """A reference at the scale that it was painted at, so that sharpness means the same."""
    return scaled(record.pixels(), run.short_side or min(run.frame))


def _stacked(look: Look) -> npt.NDArray[np.float32]:
    return np.stack(look.thumbnails) if look.thumbnails else np.zeros((0, 1), dtype=np.float32)


def median(values: Sequence[float] | Iterable[float]) -> float:
    """The median; 0 of nothing."""
    known = list(values)
    return float(np.median(known)) if known else 0.0
