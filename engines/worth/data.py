"""The images of a comparison: real and generated ones to train on, and those that measure, checked against each other.

Knows: whose class list holds, how real and generated images come to one scale, how much
generated data each arm gets, and what to do when training and validation share images. Knows nothing about detectors.

Scale: a run's images were painted at the scale that its bundle learned, real images with their short side at
`short_side` pixels (`run.json`). The detector sees real images with their short side at its own short side; a
generated image is resized by the quotient of the two, whatever its frame is. So an object is equally large in both.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from engines.common.events import Report, note
from engines.common.files import read_json
from engines.datasets.copies import known_from
from engines.datasets.dataset import Dataset, Record, open_dataset, readable
from engines.datasets.duplicates import Fingerprints, fingerprints
from engines.errors import DatasetError, RunError, UsageError
from engines.runs.dataset_files import ANNOTATIONS
from engines.runs.rules_in_force import check_obeyed, rules_in_force
from engines.runs.run_folder import RUN, require_run
from engines.worth.detectors.batches import Sample
from engines.worth.detectors.train import annotations_digest
from engines.worth.leaks import known_images
from engines.worth.settings import Amount, EvaluateSettings, Times


@dataclass(frozen=True, eq=False)
class ValSet:
    """A validation dataset: what measures every detector once."""

    name: str  # its folder, and its part where it has one
    records: list[Record]  # without those that nearly repeat a training image
    left_out: tuple[str, ...]  # which these are, and what they repeat, or are a part of
    known: tuple[str, ...]  # of those that measure, what is known to what painted the runs: a line each
    hashes: tuple[str, ...]  # `pixel_hash` of every image, those left out, too

    def digest(self) -> str:
        """A short hash of the images that are measured on, and of their annotations."""
        text = "".join((annotations_digest(self.records), *self.hashes))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class WorthData:
    """Everything that is trained and measured on."""

    class_names: tuple[str, ...]
    real: list[Sample]
    generated: list[Sample]
    val: tuple[ValSet, ...]
    short_side: int  # pixels at which the detector sees images
    arms: tuple[int, ...]  # generated images in each arm, beginning with 0
    split_images: int  # of the real dataset before `images` chose among them: what "2x" counts in
    notes: tuple[str, ...]  # what a reader of the figures should know
    hashes: tuple[tuple[str, ...], ...]  # `pixel_hash` of every image to train on: real, generated

    def pixels_with(self, generated: int) -> str:
        """A short hash of all pixels that an arm learns from."""
        real, painted = self.hashes
        return hashlib.sha256("".join((*real, *painted[:generated])).encode()).hexdigest()[:16]


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
    measured = [_open(folder, split=split, class_names=names, **options) for folder, split in settings.val_sets]
    for dataset in (real, *measured, *(found for found, _, _ in runs)):
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
    painted = [sample.record for sample in generated]
    training = [(records, fingerprints(records)) for records in (real.records, painted)]
    val = tuple(
        _val_set(*one, training, settings.synthetic, report) for one in zip(measured, settings.val_sets, strict=True)
    )
    return WorthData(
        class_names=names,
        real=[Sample(record, short_side) for record in chosen],
        generated=generated,
        val=val,
        short_side=short_side,
        arms=arms,
        split_images=len(real.records),
        notes=tuple(note for _, _, note in runs if note),
        hashes=tuple(tuple(found.hashes) for _, found in training),
    )


def _open(folder: Path, *, skip_bad: bool, **options: Any) -> Dataset:
    """`open_dataset`; with `skip_bad` images whose pixels cannot be read are left out and listed, too."""
    dataset = open_dataset(folder, skip_bad=skip_bad, **options)
    return readable(dataset) if skip_bad else dataset


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


def _val_set(
    dataset: Dataset,
    place: tuple[Path, str | None],
    training: Sequence[tuple[Sequence[Record], Fingerprints]],
    synthetic: Sequence[Path],
    report: Report,
) -> ValSet:
    """A validation dataset, held against the real and the painted images to train on, and against what painted these;
    DatasetError where nothing of it may measure."""
    folder, split = place
    records, prints = dataset.records, fingerprints(dataset.records)
    repeats: dict[int, str] = {}
    for number, (others, known) in enumerate(training):  # parts of real images alone: painted ones are no cut-outs
        for row, words in known_from(records, prints, others, known, crops=number == 0, report=report).items():
            repeats.setdefault(row, f"{records[row].name} {words}")
    rows = [row for row in range(len(records)) if row not in repeats]
    kept = [records[row] for row in rows]
    left_out = tuple(repeats[row] for row in sorted(repeats))
    if not _has_boxes(kept):
        first = f", {left_out[0]} first" if left_out else ""
        raise DatasetError(
            f"{dataset.root}: no validation image with boxes is left beside {len(left_out)} copies of training images"
            f"{first}: what was trained on cannot measure. Name other splits, or other images."
        )
    (_, real), _ = training
    return ValSet(
        name=f"{folder} ({split})" if split else str(folder),
        records=kept,
        left_out=left_out,
        known=known_images(kept, prints.take(rows), synthetic, frozenset(real.hashes), report),
        hashes=tuple(prints.hashes),
    )
