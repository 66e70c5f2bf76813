"""`finalize`: the dataset of a run once more, by other rules or in other formats.

Knows: what may be asked for, and which of it cannot be had without painting again. How the files come to be is
`dataset_files`' matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.common.events import Report, note, silent
from engines.common.schema import AnyPath, settle
from engines.datasets.tree import list_images
from engines.errors import Mistake, UsageError, refuse
from engines.labels.matched import matched_score
from engines.labels.rules import Rules
from engines.labels.scores import ScoreKind, ScoreLike, ScorePolicy, Thresholds, check_ignore_score, shown, stored
from engines.painting.run_settings import RunSettings
from engines.painting.settings import DATASET_FORMATS
from engines.runs.dataset_files import entries_of, rules_of, was_painted, write_dataset
from engines.runs.journal import JOURNAL
from engines.runs.run_folder import locked, require_run, run_errors
from engines.runs.saved_score import forget_score, saved_score
from engines.runs.summaries import DatasetSummary


@dataclass(frozen=True)
class FinalizeSettings:
    """What `finalize` is asked for. What is None is as the run itself has it, and so are classes without a score.

    Paths may be text. Raises UsageError that lists every mistake at once.

    >>> FinalizeSettings("runs/first", score=0.5, formats=["coco", "yolo"]).formats
    ('coco', 'yolo')
    """

    run: AnyPath  # the folder of a run
    score: ScoreLike | None = None  # a box below is no label; "matched": labels as frequent as annotations were
    ignore_score: float | None = None  # a box from this up to `score` makes a region to ignore; 0: none is
    min_quality: float | None = None  # an image whose boxes are less sure as a whole goes, 0 to 1
    max_overlap: float | None = None  # of labels of a class that overlap (IoU) more, one stays; 1: all
    near_duplicates: float | None = None  # correlation from which an image repeats another or a reference; 0: all stay
    formats: Sequence[str] | None = None  # of DATASET_FORMATS; COCO is always written
    keep_empty: bool | None = None  # keep images without a label
    val_fraction: float | None = None  # about what share of the images YOLO's files call validation, by reference
    training: AnyPath | None = None  # images that the networks learned from: what nearly repeats one of them goes

    def __post_init__(self) -> None:
        settle(self)
        mistakes: list[Mistake] = []
        if self.near_duplicates is not None and not 0.0 <= self.near_duplicates <= 1.0:
            text = f"`near_duplicates` is {self.near_duplicates}; a number from 0 (keep all) to 1 was expected"
            mistakes.append(("near_duplicates", text))
        if self.val_fraction is not None and not 0.0 < self.val_fraction < 1.0:
            text = f"`val_fraction` is {self.val_fraction}; a number above 0, below 1 was expected"
            mistakes.append(("val_fraction", text))
        if unknown := [name for name in self.formats or () if name not in DATASET_FORMATS]:
            text = f"`formats` holds {', '.join(unknown)}, which is unknown; {', '.join(DATASET_FORMATS)} are known"
            mistakes.append(("formats", text))
        refuse(mistakes)
        if self.score is not None:
            ScorePolicy.of(self.score)


def finalize(settings: FinalizeSettings, *, report: Report | None = None) -> DatasetSummary:
    """Write the dataset files of a run again. Nothing is painted.

    With the score "matched", labels are as frequent in the images that were painted as annotations were in those that
    the adapter learned from: see `matched_score`; no class's score is below the run's own. Files of formats that are
    not asked for are removed. The old dataset stays until the new one is whole.
    Raises RunError for a folder that is no run, is in use or lacks an image or its references, DatasetError for a
    training image that cannot be read, UsageError for values out of range, or below the run's own where images that
    only now would be in the dataset were never written.

    >>> finalize(FinalizeSettings("run", score=0.5, keep_empty=True)).images
    2
    """
    report, folder = report or silent, settings.run
    run = require_run(folder)
    learned = () if settings.training is None else tuple(list_images(settings.training))
    if settings.training is not None and not learned:
        raise UsageError(f"`training`: {settings.training} holds no image.", field="training")
    with locked(folder), run_errors(folder):
        score = saved_score(folder) if settings.score is None else settings.score  # as a review chose
        policy = None if score is None else ScorePolicy.of(score)
        if policy is not None and policy.kind is ScoreKind.MATCHED:
            report(note("finding the score by which labels are as frequent as annotations were"))
            policy = ScorePolicy.of(_matched(folder, run, settings.max_overlap))
        rules = _other_rules(run, policy, settings)
        options = replace(run.options, **_given(settings, "near_duplicates", "formats", "val_fraction"))
        report(note("writing the dataset files"))
        summary = write_dataset(folder, replace(run, options=options), rules, training=learned)
        if settings.score is not None:
            forget_score(folder)
        return summary


def _given(settings: FinalizeSettings, *names: str) -> dict[str, Any]:
    """The settings that are not as the run has them."""
    return {name: value for name in names if (value := getattr(settings, name)) is not None}


def _other_rules(run: RunSettings, policy: ScorePolicy | None, asked: FinalizeSettings) -> Rules:
    """The rules of a run with changes. Raises UsageError for what cannot be had without painting again."""
    own = rules_of(run).thresholds
    if policy is not None and policy.kind is ScoreKind.ADAPTER:
        raise UsageError(
            "`score=adapter` is for generate and label: a run's own scores are what finalize starts from.",
            field="score",
        )
    wanted = own if policy is None else policy.thresholds(own, run.class_names)
    changes = _given(asked, "ignore_score", "min_quality", "keep_empty", "max_overlap")
    rules = replace(rules_of(run), thresholds=wanted, **changes)
    least = run.options.min_quality
    again = "Run `dengine generate` into a new folder with the lower"
    if any(wanted[name] < own[name] for name in own) and not run.options.keep_empty:
        raise UsageError(
            f"`score={shown(stored(wanted))}` is below the run's own, {shown(run.score)}: images without a box above "
            f"that were not kept. {again} score, or with `keep_empty=True`.",
            field="score",
        )
    if not least <= rules.min_quality <= 1.0:
        raise UsageError(
            f"`min_quality` is {rules.min_quality:g}; a number from {least:g}, the run's own, to 1 was "
            f"expected: images below were not kept. {again} quality.",
            field="min_quality",
        )
    if not 0.0 < rules.max_overlap <= 1.0:
        raise UsageError(
            f"`max_overlap` is {rules.max_overlap:g}; a number above 0, up to 1 (off), was expected.",
            field="max_overlap",
        )
    check_ignore_score(rules.ignore_score, wanted)
    return rules


def _matched(folder: Path, run: RunSettings, max_overlap: float | None) -> Thresholds:
    """The score by which labels are as frequent as the adapter's annotations were."""
    if run.frequencies is None:
        raise UsageError(
            "`score=matched`: this run was begun by an earlier dengine, which did not note how frequent its classes "
            "are. `dengine label` finds such scores for the images of any folder.",
            field="score",
        )
    if run.options.balance:
        raise UsageError(
            "`score=matched`: with `balance` the run shows rare classes more often, so this says nothing.",
            field="score",
        )
    own = rules_of(run)
    rules = own if max_overlap is None else replace(own, max_overlap=max_overlap)
    painted = (entry.instances for entry in entries_of(folder / JOURNAL, run) if was_painted(entry))
    return matched_score(painted, rules, run.frequencies)
