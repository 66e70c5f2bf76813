"""What a run's dataset is made by, beside the run's own settings: what `finalize` was last asked for, and keeps.

Knows: the rules that may be asked for, the file that holds them, what they come to for a run, and which cannot be had
without painting again. Knows nothing about how the dataset's files come to be (`dataset_files`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from engines.common.files import read_json, write_json
from engines.common.quote import quote
from engines.common.schema import AnyPath, from_object, settle, to_object
from engines.datasets.tree import list_images
from engines.errors import DatasetError, Mistake, RunError, UsageError, refuse
from engines.labels.matched import matched_score
from engines.labels.rules import LABEL_SOURCES, Rules
from engines.labels.scores import ScoreKind, ScoreLike, ScorePolicy, Thresholds, check_ignore_score, shown, stored
from engines.painting.run_settings import RunSettings
from engines.painting.settings import DATASET_FORMATS
from engines.runs.journal import JOURNAL, OWN, Entry, read_entries

RULES = f"{OWN}/rules.json"
_FORMAT = 1
_FILES = ("formats", "val_fraction")  # what files there are; everything else says what they hold


@dataclass(frozen=True, kw_only=True)
class DatasetRules:
    """What a dataset takes from a run's journal, and which files it has. What is None is as the run itself has it.

    Paths may be text. Raises UsageError that lists every mistake at once.

    >>> DatasetRules(score=0.5, formats=["coco", "yolo"]).formats
    ('coco', 'yolo')
    """

    score: ScoreLike | None = None  # a box below is no label; "matched": labels as frequent as annotations were
    ignore_score: float | None = None  # a box from this up to `score` makes a region to ignore; 0: none is
    min_quality: float | None = None  # an image whose boxes are less sure as a whole goes, 0 to 1
    max_overlap: float | None = None  # of labels of a class that overlap (IoU) more, one stays; 1: all
    near_duplicates: float | None = None  # correlation from which an image repeats another or a reference; 0: all stay
    formats: Sequence[str] | None = None  # of DATASET_FORMATS; COCO is always written
    keep_empty: bool | None = None  # keep images without a label
    val_fraction: float | None = None  # about what share of the images YOLO's files call validation, by reference
    labels: str | None = None  # the adapter's boxes, the references' own, or both: one of LABEL_SOURCES
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
        if self.labels is not None and self.labels not in LABEL_SOURCES:
            text = f"`labels` is {quote(self.labels)}; {', '.join(LABEL_SOURCES)} are known"
            mistakes.append(("labels", text))
        if unknown := [name for name in self.formats or () if name not in DATASET_FORMATS]:
            text = f"`formats` holds {quote(unknown[0])}, which is unknown; {', '.join(DATASET_FORMATS)} are known"
            mistakes.append(("formats", text))
        refuse(mistakes)
        if self.score is not None:
            ScorePolicy.of(self.score)


@dataclass(frozen=True)
class Applied:
    """What rules come to for a run."""

    run: RunSettings  # with the options that they change
    rules: Rules
    training: tuple[Path, ...] = ()  # images that the networks learned from


def read_rules(folder: Path) -> DatasetRules:
    """The rules that the last `finalize` of a run left; those of the run itself, all None, where there was none.

    Raises RunError that names the file and lists what is wrong in it.
    """
    path = folder / RULES
    if not path.exists():
        return DatasetRules()
    value = read_json(path, RunError)
    mend = "Remove the file, and the dataset is by the run's own rules again"
    if value.pop("format", None) != _FORMAT:
        raise RunError(f"{path}: its format is not {_FORMAT}. {mend}.")
    try:
        return from_object(DatasetRules, value, RunError, str(path))
    except UsageError as cause:
        raise RunError(f"{path}: {cause} {mend}.", field=cause.field) from cause


def write_rules(folder: Path, rules: DatasetRules) -> None:
    """Write the rules into a run's folder; none, where they are the run's own."""
    (folder / OWN).mkdir(parents=True, exist_ok=True)
    if rules == DatasetRules():
        (folder / RULES).unlink(missing_ok=True)
        return
    score = rules.score if rules.score is None else ScorePolicy.of(rules.score).plain
    write_json(folder / RULES, {"format": _FORMAT, **to_object(replace(rules, score=score))})


def without_own(rules: DatasetRules, run: RunSettings) -> DatasetRules:
    """The rules, but None where they say what the run itself says, and with COCO among the formats."""
    options = run.options
    formats = None if rules.formats is None else tuple(dict.fromkeys(("coco", *rules.formats)))
    training = None if rules.training is None else rules.training.absolute()
    same: dict[str, Any] = {
        item.name: None
        for item in fields(DatasetRules)
        if item.name not in ("score", "formats", "training")
        and getattr(rules, item.name) == getattr(options, item.name)
    }
    policy = ScorePolicy.of({} if rules.score is None else rules.score)
    numbers = policy.kind in (ScoreKind.FIXED, ScoreKind.PER_CLASS)
    if numbers and policy.thresholds(run.thresholds, run.class_names) == run.thresholds:
        same["score"] = None
    return replace(rules, **{"formats": None if formats == options.formats else formats, "training": training, **same})


def keep_files(asked: DatasetRules, before: DatasetRules) -> DatasetRules:
    """What was asked for, with the formats that are there where it names none."""
    return replace(asked, **{name: getattr(before, name) for name in _FILES if getattr(asked, name) is None})


def common_rules(found: Mapping[Path, DatasetRules]) -> DatasetRules:
    """The rules of all shards of a run, with the formats of each; RunError where they would hold different labels."""
    (first, rules), *others = found.items()
    for folder, other in others:
        if differs := [name for name in _names() if getattr(rules, name) != getattr(other, name)]:
            raise RunError(
                f"{folder} and {first} were last finalized with another `{differs[0]}`: finalize all shards alike, "
                "then merge.",
                field=differs[0],
            )
    formats = [name for one in found.values() for name in one.formats or ()]
    return replace(rules, formats=tuple(dict.fromkeys(formats)) or None)


def _names() -> list[str]:
    return [item.name for item in fields(DatasetRules) if item.name != "formats"]


def apply_rules(folder: Path, run: RunSettings, asked: DatasetRules) -> Applied:
    """What the rules come to for the run in `folder`; the score "matched" is found in its journal.

    Raises UsageError for what cannot be had without painting again, and for a folder without training images.
    """
    learned = () if asked.training is None else tuple(list_images(asked.training))
    if asked.training is not None and not learned:
        raise UsageError(f"`training`: {asked.training} holds no image.", field="training")
    policy = None if asked.score is None else ScorePolicy.of(asked.score)
    if policy is not None and policy.kind is ScoreKind.MATCHED:
        policy = ScorePolicy.of(_matched(folder, run, asked.max_overlap))
    options = replace(run.options, **_given(asked, "near_duplicates", *_FILES))
    return Applied(replace(run, options=options), _other_rules(run, policy, asked), learned)


def kept_rules(folder: Path, run: RunSettings, asked: DatasetRules) -> Applied:
    """`apply_rules` of rules that a folder holds: RunError that says so where they can no longer be had.

    Where a score is matched anew, to more images, it may fall below `ignore_score`: then no region is.
    """
    try:
        return apply_rules(folder, run, asked)
    except (UsageError, DatasetError) as cause:
        if cause.field == "ignore_score" and asked.score == "matched":
            return kept_rules(folder, run, replace(asked, ignore_score=0.0))
        text = f"{folder / RULES}: the last `dengine finalize` cannot be repeated: {cause} Finalize it once more."
        raise RunError(text, field=cause.field) from cause


def _given(settings: DatasetRules, *names: str) -> dict[str, Any]:
    """The settings that are not as the run has them."""
    return {name: value for name in names if (value := getattr(settings, name)) is not None}


def _other_rules(run: RunSettings, policy: ScorePolicy | None, asked: DatasetRules) -> Rules:
    """The rules of a run with changes. Raises UsageError for what cannot be had without painting again."""
    own = run.rules.thresholds
    if policy is not None and policy.kind is ScoreKind.ADAPTER:
        raise UsageError(
            "`score=adapter` is for generate and label: a run's own scores are what finalize starts from.",
            field="score",
        )
    wanted = own if policy is None else policy.thresholds(own, run.class_names)
    changes = _given(asked, "ignore_score", "min_quality", "keep_empty", "max_overlap", "labels")
    _check_labels(run, asked.labels)
    rules = replace(run.rules, thresholds=wanted, **changes)
    least = run.options.min_quality
    again = "Run `dengine generate` into a new folder with the lower"
    if any(wanted[name] < own[name] for name in own) and not run.options.keep_empty:
        raise UsageError(
            f"`score={shown(stored(wanted)):.60}` is below the run's own, {shown(run.score):.60}: images without a "
            f"box above that were not kept. {again} score, or with `keep_empty=True`.",
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


def _check_labels(run: RunSettings, labels: str | None) -> None:
    """Raise UsageError for labels that the run's journal does not hold."""
    if labels in ("reference", "both") and not run.gives:
        raise UsageError(
            f"`labels={labels}`: the run's own are the adapter's alone, and its journal holds no others. Run "
            f"`dengine generate` into a new folder with `labels={labels}`.",
            field="labels",
        )
    if labels in ("adapter", "both") and run.options.labels == "reference" and run.options.strength == (0.0, 0.0):
        raise UsageError(
            f"`labels={labels}`: at strength 0 with `labels=reference` no adapter looked at the images. Run "
            f"`dengine generate` into a new folder with `labels={labels}`.",
            field="labels",
        )


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
    own = run.rules
    rules = own if max_overlap is None else replace(own, max_overlap=max_overlap)
    painted = (entry.instances for entry in read_entries(folder / JOURNAL, run) if was_painted(entry))
    return matched_score(painted, rules, run.frequencies)


def was_painted(entry: Entry) -> bool:
    """Whether an image was painted, so that other rules may keep it."""
    return entry.drop is None or entry.drop.reason.by_rule
