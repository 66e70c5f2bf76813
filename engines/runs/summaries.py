"""What a run came to: the summaries of `generate`, `finalize` and `merge`.

Knows: their fields. Knows nothing about how they are made or shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engines.labels.scores import StoredScore
from engines.quality.verdicts import Likeness
from engines.runs.likeness import Memory


@dataclass(frozen=True)
class DatasetSummary:
    """What the dataset files of a run hold: what `finalize` and `merge` give.

    >>> from pathlib import Path
    >>> DatasetSummary(Path("run"), Path("run/annotations.json"), None, 8, 20, {"rbc": 20}, jobs=9).images
    8
    """

    folder: Path  # the run
    annotations: Path  # the COCO file
    preview: Path | None  # the contact sheet; None for a dataset without images
    images: int  # in the dataset
    boxes: int  # in the dataset
    boxes_by_class: Mapping[str, int]  # every class, in the bundle's order
    jobs: int  # journal lines: images painted, kept or not
    dropped: Mapping[str, int] = field(default_factory=dict)  # why not in the dataset -> how many
    ignored: int = 0  # regions to ignore, beside the boxes
    score: StoredScore = 0.0  # what a label scores at least
    frequencies: Mapping[str, float] = field(default_factory=dict)  # labels an image to expect, where that is known


@dataclass(frozen=True)
class GenerateSummary:
    """What one start of a run did, and the dataset it left: what `generate` gives.

    >>> summary = dengine.generate(dengine.GenerateSettings(out="few", jobs=1, steps=2, keep_empty=True))
    >>> summary.painted, summary.interrupted
    (1, False)
    """

    dataset: DatasetSummary
    painted: int  # images painted by this start
    seconds: float  # of this start, set-up and all
    images_per_second: float  # painted by this start, from its first network call to its last image; 0 for none
    first_image_seconds: float | None  # from the start to the first image in place; None when there was none
    ticks: int  # network calls of the sampler
    done: int  # of the target
    target: int  # kept images or, where jobs were asked for, painted ones
    interrupted: bool  # stopped before its target; the same command goes on
    backend: str  # one line: engine, device, precision, threads
    likeness: Likeness | None = None  # how its images compare with photographs, where there are any to compare with
    memory: Memory | None = None  # how near they come to what was learned from; of text alone, where the bundle says it
