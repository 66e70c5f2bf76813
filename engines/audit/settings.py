"""What `audit` is asked for, and what it says.

Knows: the settings, their ranges, and the summary. Does nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engines.adapter.looks import TTA_LOOKS, TTA_WANTED, check_looks
from engines.common.schema import AnyPath, settle
from engines.errors import UsageError, refuse, wrong_values
from engines.labels.findings import CONFIDENT, Judgement
from engines.training.adapter_options import AdapterTrainOptions

COMPLETIONS = ("labels", "crowds")
# How a fold's adapter is trained, where the settings do not say otherwise.
FOLD_DEFAULTS: Mapping[str, Any] = {"tune_fraction": 0.0, "cache_views": 8, "ignore_finds": 0.25}
_OF_FOLDS = ("base", "training", "rounds", "steps_scale")
_OF_BUNDLE = ("engine", "threads")


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What `audit` is asked for. Paths may be text. Raises UsageError that lists every mistake at once.

    >>> AuditSettings(data="my-dataset", out="audit", folds=3, steps_scale=0.5).fold_options().steps
    1500
    """

    data: AnyPath  # a labelled dataset, in any format that dengine reads
    out: AnyPath  # folder for what is found
    bundle: AnyPath | None = None  # whose adapter judges, or with folds whose base is learned on; None: the bundled one
    base: str | AnyPath | None = None  # with folds: a base model in place of a bundle's
    folds: int = 0  # adapters to train, each judging the images that it did not see; 0: the bundle's own judges all
    rounds: int = 2  # of the folds: each learns with the labels that the one before found missing
    steps_scale: float = 1.0  # of a fold's training: its steps, as a multiple of the usual ones
    training: Mapping[str, Any] = field(default_factory=dict)  # AdapterTrainOptions fields of the folds
    complete: str | None = None  # one of COMPLETIONS: write the dataset with what is missing, as that; None: don't
    refine: bool = False  # in that dataset, boxes lie in the middle between the label's and the find's
    confidence: float = CONFIDENT  # from which a finding counts, and a missing label is added
    worst: int = 30  # images on the page, at most
    split: str | None = None  # part of the dataset, such as train
    tta: int = 1  # looks that an adapter takes at an image, of TTA_LOOKS
    engine: str = "auto"  # of the bundle: a backend's name
    precision: str = "auto"  # of the arithmetic
    threads: int | None = None  # of the engine, on a CPU; None: its own choice
    device: str | None = None  # cpu, cuda or cuda:N; None: what the engine is fastest on; of folds, a GPU if any
    skip_bad: bool = False  # leave bad images and boxes out, instead of stopping
    follow_links: bool = False  # follow links that lead outside the dataset
    boxes: str = "auto"  # what the numbers of its boxes mean, see `open_dataset`

    def __post_init__(self) -> None:
        settle(self)
        checks = (
            ("folds", "0, or 2 and more", self.folds == 0 or self.folds >= 2),
            ("rounds", "1 or more", self.rounds > 0),
            ("steps_scale", "positive", self.steps_scale > 0),
            ("complete", " or ".join(COMPLETIONS), self.complete is None or self.complete in COMPLETIONS),
            ("confidence", "above 0 and at most 1", 0 < self.confidence <= 1),
            ("worst", "0 or more", self.worst >= 0),
            ("tta", TTA_WANTED, self.tta in TTA_LOOKS),
        )
        usual = {item.name: item.default for item in fields(self)} | {"training": {}}
        names = _OF_BUNDLE if self.folds else _OF_FOLDS
        whose = "adapters that are trained: give `folds`, too"
        if self.folds:
            whose = "the bundle's own adapter: leave it out, or `folds`"
        alone = [(name, f"`{name}` is for {whose}") for name in names if getattr(self, name) != usual[name]]
        if self.refine and self.complete is None:
            alone.append(("refine", "`refine` moves boxes of the dataset that `complete` writes: give that, too"))
        both = [("base", "`base` and `bundle` both name a base: give one")] if self.base and self.bundle else []
        refuse([*wrong_values(self, checks), *alone, *both])
        rotate = self.fold_options().rotate  # its mistakes are ours
        if self.folds:
            check_looks(self.tta, rotate, 'give "turns": true in `training`')

    def fold_options(self) -> AdapterTrainOptions:
        """How each fold's adapter is trained. Raises UsageError for what `training` cannot say."""
        given = {**FOLD_DEFAULTS, **self.training}
        given |= {} if self.device is None else {"device": self.device}
        given |= {} if self.precision == "auto" else {"precision": self.precision}
        usual = given.get("steps", AdapterTrainOptions().steps)
        if isinstance(usual, int):
            given["steps"] = max(1, round(usual * self.steps_scale))
        return AdapterTrainOptions.from_json(given, "training")


@dataclass(frozen=True)
class AuditSummary:
    """What `audit` found.

    >>> dengine.audit(dengine.AuditSettings(data="run", out="audited")).images  # doctest: +SKIP
    2
    """

    images: int
    labels: int  # crowds aside
    class_names: tuple[str, ...]
    judgement: Judgement  # every finding, the surest first, and how complete each class's labels are
    counts: Mapping[str, Mapping[str, int]]  # kind -> class -> findings at least as sure as was asked for
    added: int  # missing labels that the completed dataset has
    moved: int  # boxes of it that lie elsewhere than their labels'
    remark: str | None  # where the labels look incomplete, that in a line
    report: Path  # audit.json
    page: Path  # audit.html
    completed: Path | None  # folder of the completed dataset
    unknown_classes: tuple[str, ...]  # labelled, but not known to the bundle's adapter: not judged
    skipped: tuple[str, ...]  # bad items that were left out
    seconds: float


def check_known(unknown: tuple[str, ...], class_names: tuple[str, ...], bundle_names: tuple[str, ...]) -> None:
    """UsageError where an adapter knows no class of the dataset."""
    if len(unknown) == len(class_names):
        raise UsageError(
            f"The bundle's adapter knows {', '.join(bundle_names)}, and the dataset's labels are "
            f"{', '.join(class_names)}: take a bundle for these classes, or train adapters with `folds=3`.",
            field="bundle",
        )
