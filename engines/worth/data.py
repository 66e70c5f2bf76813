"""The images of a comparison: real and generated ones to train on, and those that measure, checked against each other.

Knows: which options there are, whose class list holds, how real and generated images come to one scale, how much
generated data each arm gets, and what to do when training and validation share images. Knows nothing about detectors.

Scale: a run's images were painted at the scale that its bundle learned, real images with their short side at
`short_side` pixels (`run.json`). The detector sees real images with their short side at its own short side; a
generated image is resized by the quotient of the two, whatever its frame is. So an object is equally large in both.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from engines.common.events import Report, note
from engines.common.files import read_json
from engines.common.schema import AnyPath, settle
from engines.datasets.dataset import Dataset, Record, open_dataset
from engines.datasets.duplicates import NEAR, Fingerprints, fingerprints, near_pairs
from engines.errors import DatasetError, RunError, UsageError, refuse
from engines.runs.dataset_files import ANNOTATIONS
from engines.runs.rules_in_force import check_obeyed, rules_in_force
from engines.runs.run_folder import RUN, require_run
from engines.worth.detectors.batches import Sample
from engines.worth.detectors.config import MULTIPLE


@dataclass(frozen=True)
class Times:
    """An amount of generated images as a multiple of the real dataset's images.

    >>> str(Times(2))
    '2x'
    """

    factor: float

    def __str__(self) -> str:
        return f"{self.factor:g}x"


Amount = int | Times  # of generated images


@dataclass(frozen=True)
class EvaluateSettings:
    """What `evaluate` is asked for. Paths may be text. Raises UsageError that lists every mistake at once.

    >>> EvaluateSettings("real", synthetic=["runs/first"], val="val", out="worth", amounts=[20, Times(2)]).mix
    (0.5, 0.5)
    """

    real: AnyPath  # labelled dataset to train on
    synthetic: Sequence[AnyPath]  # runs; or labelled datasets, at the real images' scale; empty: real images alone
    val: AnyPath  # labelled dataset to measure on
    out: AnyPath  # folder of the comparison
    split: str | None = None  # of the real dataset
    val_split: str | None = None  # of the validation dataset
    images: AnyPath | None = None  # text file with the names of the real images to train on; None: all of them
    detector: str = "rt_detr"  # one of config.KINDS
    preset: str = "small"  # one of config.PRESETS
    seeds: int | None = None  # trainings of each arm; None: the preset's
    seed: int = 0  # the first of them
    mix: tuple[float, float] = (0.5, 0.5)  # probability of drawing a generated image: at the first draw, at the last
    amounts: Sequence[Amount] = ()  # of generated images, or multiples of the real dataset; empty: all there are
    weights: AnyPath | None = None  # checkpoint folder to begin with; None: random weights
    short_side: int | None = None  # pixels at which the detector sees images; None: the runs', at most the preset's
    changes: Mapping[str, Any] = field(default_factory=dict)  # DetectorOptions fields in place of the preset's
    resamples: int = 1000  # draws of the bootstrap
    resume: bool = False  # go on with what OUT holds
    skip_bad: bool = False  # leave broken images and annotations out
    follow_links: bool = False  # follow links that lead outside the real and the validation dataset
    boxes: str = "auto"  # what the numbers of their boxes mean, see `open_dataset`

    def __post_init__(self) -> None:
        settle(self)
        checks = (
            (
                "amounts",
                bool(self.synthetic) or not self.amounts,
                "`amounts` counts generated images: give `synthetic`",
            ),
            (
                "mix",
                all(0 <= mix <= 1 for mix in self.mix) and any(self.mix),
                f"`mix` is {':'.join(f'{one:g}' for one in dict.fromkeys(self.mix))}; a number above 0, at most 1, was "
                "expected, or two of which one may be 0, such as 0.6:0",
            ),
            ("seeds", self.seeds is None or self.seeds > 0, f"`seeds` is {self.seeds}; 1 or more was expected"),
            ("seed", 0 <= self.seed < 2**31, f"`seed` is {self.seed}; a whole number from 0 to 2^31 - 1 was expected"),
            ("resamples", self.resamples > 0, f"`resamples` is {self.resamples}; 1 or more was expected"),
            (
                "short_side",
                self.short_side is None or self.short_side >= MULTIPLE,
                f"`short_side` is {self.short_side}; {MULTIPLE} pixels or more were expected",
            ),
            *(
                ("amounts", _number(amount) >= 0, f"`amounts` holds {amount}; 0 or more was expected")
                for amount in self.amounts
            ),
        )
        refuse((name, text) for name, fits, text in checks if not fits)


@dataclass(frozen=True, eq=False)
class WorthData:
    """Everything that is trained and measured on."""

    class_names: tuple[str, ...]
    real: list[Sample]
    generated: list[Sample]
    val: list[Record]
    short_side: int  # pixels at which the detector sees images
    arms: tuple[int, ...]  # generated images in each arm, beginning with 0
    split_images: int  # of the real dataset before `images` chose among them: what "2x" counts in
    left_out: tuple[str, ...]  # validation images that nearly repeat a training image
    notes: tuple[str, ...]  # what a reader of the figures should know
    hashes: tuple[tuple[str, ...], ...]  # `pixel_hash` of every image: real, generated, validation

    def pixels_with(self, generated: int) -> str:
        """A short hash of all pixels that decide the result of an arm."""
        real, painted, val = self.hashes
        return hashlib.sha256("".join((*real, *painted[:generated], *val)).encode()).hexdigest()[:16]


def open_data(settings: EvaluateSettings, most: int, report: Report) -> WorthData:
    """Open and check all datasets. `most`: pixels of the short side that the detector sees, at most.

    Raises DatasetError, RunError, UsageError; nothing is written.
    """
    report(note("reading annotations"))
    skip = settings.skip_bad
    options: dict[str, Any] = {"skip_bad": skip, "follow_links": settings.follow_links, "boxes": settings.boxes}
    real = _open(settings.real, split=settings.split, **options)
    names = real.class_names
    chosen = _chosen(real, settings.images)
    runs = [_open_synthetic(folder, real, skip) for folder in settings.synthetic]
    val = _open(settings.val, split=settings.val_split, class_names=names, **options)
    for dataset in (real, val, *(found for found, _, _ in runs)):
        dataset.tell(report)
    scales = [scale for _, scale, _ in runs if scale is not None]
    short_side = settings.short_side or min([most, *scales])
    generated = [
        Sample(record, round(min(record.width, record.height) * short_side / scale) if scale else short_side)
        for dataset, scale, _ in runs
        for record in dataset.records
    ]
    arms = _arms(settings.amounts, len(real.records), len(generated))
    generated = generated[: arms[-1]]
    report(note("looking for copies among training and validation images"))
    prints = [fingerprints(records) for records in (
        real.records, [sample.record for sample in generated], val.records
    )]  # fmt: skip
    left_out = _near_copies(real.records, [sample.record for sample in generated], val.records, prints)
    kept = [record for index, record in enumerate(val.records) if index not in left_out]
    if not _has_boxes(kept):
        raise DatasetError(f"{val.root}: no validation image with boxes is left that repeats no training image.")
    return WorthData(
        class_names=names,
        real=[Sample(record, short_side) for record in chosen],
        generated=generated,
        val=kept,
        short_side=short_side,
        arms=arms,
        split_images=len(real.records),
        left_out=tuple(left_out[index] for index in sorted(left_out)),
        notes=tuple(note for _, _, note in runs if note),
        hashes=tuple(tuple(found.hashes) for found in prints),
    )


def _open(folder: Path, *, skip_bad: bool, **options: Any) -> Dataset:
    """`open_dataset`; with `skip_bad` images whose pixels cannot be read are left out and listed, too."""
    dataset = open_dataset(folder, skip_bad=skip_bad, **options)
    if not skip_bad:
        return dataset
    records, skipped = [], list(dataset.skipped)
    for record in dataset.records:
        try:
            record.pixels()
        except DatasetError as cause:
            skipped.append(str(cause))
        else:
            records.append(record)
    if not records:
        raise DatasetError(f"{folder}: no image can be read, beginning with: {skipped[0]}")
    return replace(dataset, records=records, skipped=tuple(skipped))


def _open_synthetic(folder: Path, real: Dataset, skip_bad: bool) -> tuple[Dataset, int | None, str]:
    """(images, pixels of the short side that real images have at its scale, or None for the real ones' own, a note)."""
    is_run = (folder / RUN).exists()
    scale, note = None, ""
    if is_run:
        run = require_run(folder)
        _check_classes(folder, run.class_names, real)
        if not (folder / ANNOTATIONS).exists():
            raise RunError(
                f"{folder} has no {ANNOTATIONS}: go on with the run (the same `dengine generate` command), "
                "or write its dataset with `dengine finalize`."
            )
        if not read_json(folder / ANNOTATIONS, RunError).get("images"):
            raise RunError(f"{folder} kept no image, so there is nothing to learn from: give another run.")
        check_obeyed(folder, read_json(folder / ANNOTATIONS, RunError).get("info"), rules_in_force(folder, run))
        scale = run.short_side
        if scale is None:
            scale = min(run.frame)
            note = (
                f"{folder} does not say its scale: real images are taken to have a short side of {scale} pixels there"
            )
    elif not folder.is_dir():
        raise RunError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; give the folder of a run.")
    else:
        _check_classes(folder, open_dataset(folder, skip_bad=skip_bad).class_names, real)
    dataset = _open(folder, class_names=real.class_names, skip_bad=skip_bad, require_boxes=not is_run)
    if not _has_boxes(dataset.records):
        raise RunError(f"{folder} has {len(dataset.records)} images and no box to learn from: give another run.")
    return dataset, scale, note


def _has_boxes(records: Sequence[Record]) -> bool:
    """Whether there is a box of a single object: crowds teach nothing."""
    return any((~record.instances.crowd).any() for record in records)


def _check_classes(folder: Path, names: Sequence[str], real: Dataset) -> None:
    if set(names) != set(real.class_names):
        raise DatasetError(
            f"{folder} has the classes {', '.join(names)}, but {real.root} has {', '.join(real.class_names)}: "
            "both must have the same. Generate with a bundle that was trained on these classes."
        )


def _chosen(real: Dataset, file: Path | None) -> list[Record]:
    """The real images that a list names: by path in the image folder, by file name, or by that without its suffix."""
    if file is None:
        return list(real.records)
    try:
        wanted = {line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(
            f"`images`: {file} cannot be read as a list of image names: {cause}.", field="images"
        ) from cause
    spellings = [{record.name, Path(record.name).name, PurePosixPath(record.name).stem} for record in real.records]
    if unknown := sorted(wanted - set().union(*spellings)):
        raise UsageError(
            f"`images`: {file} names {len(unknown)} images that {real.root} lacks, {unknown[0]!r:.60} first.",
            field="images",
        )
    chosen = [record for record, names in zip(real.records, spellings, strict=True) if names & wanted]
    if not _has_boxes(chosen):
        raise UsageError(f"`images`: {file} names {len(chosen)} images, and none of them has a box.", field="images")
    return chosen


def _arms(amounts: Sequence[Amount], real: int, generated: int) -> tuple[int, ...]:
    """Generated images in each arm, in order, beginning with none."""
    if not amounts:
        return (0, generated) if generated else (0,)
    counts = {0}
    for amount in amounts:
        count = round(amount.factor * real) if isinstance(amount, Times) else amount
        if count > generated:
            raise UsageError(
                f"`amounts={amount}` is {count} images, but the runs hold {generated}: generate more, or ask for less.",
                field="amounts",
            )
        counts.add(count)
    if counts == {0}:
        raise UsageError(
            "`amounts` holds 0 alone: there is nothing to compare; add an amount such as 1x.", field="amounts"
        )
    return tuple(sorted(counts))


def _number(amount: Amount) -> float:
    return amount.factor if isinstance(amount, Times) else amount


def _near_copies(
    real: Sequence[Record], generated: Sequence[Record], val: Sequence[Record], prints: Sequence[Fingerprints]
) -> dict[int, str]:
    """Validation images that nearly repeat a training image, and which; DatasetError for exact copies."""
    training = [*real, *generated]
    owner = dict(zip([*prints[0].hashes, *prints[1].hashes], training, strict=True))
    copies = [(record, owner[own]) for record, own in zip(val, prints[2].hashes, strict=True) if own in owner]
    if copies:
        record, other = copies[0]
        raise DatasetError(
            f"{len(copies)} validation images are copies of training images, {record.file} of {other.file} first: "
            "what was trained on cannot measure. Name other splits, or take the copies out."
        )
    found: dict[int, str] = {}
    for offset, part in ((0, prints[0]), (len(real), prints[1])):
        for pair in near_pairs(prints[2].thumbnails, part.thumbnails, NEAR):
            name = training[offset + pair.second].name
            found.setdefault(pair.first, f"{val[pair.first].name} nearly repeats {name} ({pair.correlation:.3f})")
    return found
