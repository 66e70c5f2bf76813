"""What a run tells the one who started it.

Knows: the events of a run while it works, and the summary at its end. Knows nothing about how they are shown:
`dengine_cli` draws bars and tables from them, tests read them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engines.datasets.records import Dataset
from engines.labels.scores import StoredScore


@dataclass(frozen=True)
class DatasetRead:
    """A dataset was read: what was left out of it, and what was taken for something."""

    dataset: Dataset  # its remarks, degenerate boxes and skipped items are what is to be shown


@dataclass(frozen=True)
class Stage:
    """A step of the set-up or the end began."""

    text: str  # what is being done, such as "preparing unet"


@dataclass(frozen=True)
class Opened:
    """The run is set up and begins to paint (or has nothing left to paint)."""

    backend: str  # one line: engine, device, precision, threads
    target: int  # images that `count` asks for, or jobs that `jobs` (this shard of them) comes to
    counts_kept: bool  # True: target counts kept images; False: it counts jobs
    done: int  # of the target, done by earlier starts of the run


@dataclass(frozen=True)
class Tick:
    """One network call of the sampler was made: the run is alive."""

    calls: int  # network calls since this start


@dataclass(frozen=True)
class Painted:
    """An image was painted and labelled, and kept or dropped."""

    index: int  # of its job
    done: int  # of the target, so far; may pass it, since chunks are painted whole
    target: int
    boxes: int  # that score at least the run's threshold
    reason: str | None  # why it was dropped; None for a kept image


@dataclass(frozen=True)
class Labelled:
    """So many of the images that `label` was given are done."""

    done: int
    total: int


Event = DatasetRead | Stage | Opened | Tick | Painted | Labelled
Report = Callable[[Event], None]


@dataclass(frozen=True)
class DatasetSummary:
    """What the dataset files of a run hold."""

    folder: Path  # the run
    annotations: Path  # the COCO file
    preview: Path | None  # the contact sheet; None for a dataset without images
    images: int  # in the dataset
    boxes: int  # in the dataset
    boxes_by_class: Mapping[str, int]  # every class, in the bundle's order
    jobs: int  # journal lines: images painted, kept or not
    dropped: Mapping[str, int] = field(default_factory=dict)  # why not in the dataset -> how many
    uncertain: int = 0  # regions marked as uncertain, beside the boxes
    score: StoredScore = 0.0  # what a label scores at least
    frequencies: Mapping[str, float] = field(default_factory=dict)  # labels an image to expect, where that is known


@dataclass(frozen=True)
class RunSummary:
    """What one start of a run did, and the dataset it left."""

    dataset: DatasetSummary
    painted: int  # images painted by this start
    seconds: float  # of this start, set-up and all
    images_per_second: float  # painted by this start, from its first network call to its last image; 0 for none
    first_image_seconds: float | None  # from the start to the first image in place; None when there was none
    interrupted: bool  # stopped before its target; the same command goes on
    backend: str  # one line: engine, device, precision, threads
