"""The dataset files of a run, made from its journal: COCO always, YOLO and imagefolder on request, and a preview.

Knows: which of the painted images are in the dataset (a threshold, a count, whether empty images stay), and how the
files on disk come to say so. Knows nothing about networks: nothing is painted here, and it can be done again.

An image that the dataset does not use is moved to `spare/`, from where a later `finalize`, or a larger count, brings
it back: so no image is without its label, and no label without its image.
"""

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engines.adapter.inference import SCORE_FLOOR
from engines.datasets.writers import (
    DATA_YAML,
    LABELS,
    METADATA,
    Annotated,
    write_coco,
    write_imagefolder,
    write_yolo,
)
from engines.errors import RunError, UsageError
from engines.files import sync_folder
from engines.generation.events import DatasetSummary
from engines.generation.filters import drop_reason
from engines.generation.journal import (
    IMAGES,
    JOURNAL,
    SPARE,
    Box,
    Entry,
    boxes_above,
    read_entries,
    remove_images_from,
)
from engines.generation.preview import PREVIEW_IMAGES, Sample, write_preview
from engines.generation.run_folder import RUN, locked, require_run, run_errors
from engines.generation.settings import DATASET_FORMATS, RunSettings

ANNOTATIONS = "annotations.json"
PREVIEW = "preview.png"
_BEYOND = "beyond the count"


def finalize(
    folder: Path,
    *,
    score: float | None = None,
    formats: Sequence[str] | None = None,
    keep_empty: bool | None = None,
) -> DatasetSummary:
    """Write the dataset files of a run again, with another threshold, other formats, or without empty images.

    What is None is as the run itself has it. COCO is always written; files of formats that are not asked for are
    removed. Raises RunError for a folder that is no run, is in use or lacks an image, UsageError for a threshold below
    the run's own, unless the run kept its empty images: images that only now would have a box were never written.
    """
    run = require_run(folder)
    score = run.score if score is None else score
    if not SCORE_FLOOR <= score <= 1.0:
        raise UsageError(f"--score is {score}; a number from {SCORE_FLOOR} to 1 was expected.")
    if score < run.score and not run.keep_empty:
        raise UsageError(
            f"--score {score} is below the run's own, {run.score}: images without a box above that were not kept. "
            "Run `dengine generate` into a new folder with the lower score, or with --keep-empty."
        )
    unknown = [name for name in formats or () if name not in DATASET_FORMATS]
    if unknown:
        raise UsageError(f"--format {', '.join(unknown)} is unknown; {', '.join(DATASET_FORMATS)} are known.")
    with locked(folder), run_errors(folder):
        return write_dataset(
            folder,
            run,
            score,
            run.formats if formats is None else tuple(formats),
            run.keep_empty if keep_empty is None else keep_empty,
        )


def write_dataset(
    folder: Path, run: RunSettings, score: float, formats: Sequence[str], keep_empty: bool
) -> DatasetSummary:
    """Make the dataset files of a run whose folder is locked. Memory does not grow with the number of images."""
    _remove_leftovers(folder)

    def choose() -> Iterator[_Choice]:
        return _choices(folder / JOURNAL, run, score, keep_empty)

    tally = _bring_back(folder, choose(), run.class_names)
    remove_images_from(folder, tally.next_index)
    info = {
        "description": "painted and labelled by dengine",
        "bundle_sha256": run.bundle_hash,
        "seed": run.seed,
        "score": score,
    }
    write_coco(folder / ANNOTATIONS, _annotated(choose(), run), run.class_names, info)
    if "yolo" in formats:
        write_yolo(folder, _annotated(choose(), run), run.class_names)
    else:
        _remove_yolo(folder)
    if "imagefolder" in formats:
        write_imagefolder(folder, _annotated(choose(), run), run.class_names)
    else:
        (folder / IMAGES / METADATA).unlink(missing_ok=True)
    preview = _write_preview(folder, choose, run)
    _put_away(folder, choose())
    return DatasetSummary(
        folder=folder,
        annotations=folder / ANNOTATIONS,
        preview=preview,
        images=tally.images,
        boxes=sum(tally.boxes.values()),
        boxes_by_class={name: tally.boxes[label] for label, name in enumerate(run.class_names)},
        jobs=tally.jobs,
        dropped=dict(tally.dropped),
    )


def remove_dataset_files(folder: Path) -> None:
    """Remove what `write_dataset` wrote, images aside: a run that goes on would leave it out of date."""
    for name in (ANNOTATIONS, PREVIEW, f"{IMAGES}/{METADATA}"):
        (folder / name).unlink(missing_ok=True)
    _remove_yolo(folder)
    _remove_leftovers(folder)


@dataclass(frozen=True)
class _Choice:
    """A journal line, and what the dataset makes of it."""

    entry: Entry
    boxes: list[Box]  # that score enough
    reason: str | None  # why the image is not in the dataset; None when it is


@dataclass
class _Tally:
    images: int = 0
    jobs: int = 0
    next_index: int = 0  # after the last line
    boxes: Counter[int] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def _choices(journal: Path, run: RunSettings, score: float, keep_empty: bool) -> Iterator[_Choice]:
    """What the dataset makes of every line: images with a box, and no more of them than were asked for."""
    images = 0
    for entry in read_entries(journal):
        boxes = boxes_above(entry.boxes, score)
        if any(not 0 <= box.label < len(run.class_names) for box in boxes):
            raise RunError(f"{journal}: image {entry.index} has a box of a class that {RUN} does not name.")
        reason = drop_reason(boxes, score, keep_empty) or entry.reason
        if reason is None and run.count is not None and images == run.count:
            reason = _BEYOND
        images += reason is None
        yield _Choice(entry, boxes, reason)


def _bring_back(folder: Path, choices: Iterator[_Choice], class_names: Sequence[str]) -> _Tally:
    """See every image of the dataset in its place, and count."""
    tally = _Tally()
    for choice in choices:
        tally.jobs += 1
        tally.next_index = choice.entry.index + 1
        if choice.reason is not None:
            tally.dropped[choice.reason] += 1
            continue
        tally.images += 1
        tally.boxes.update(box.label for box in choice.boxes)
        image = folder / IMAGES / str(choice.entry.file)
        if image.exists():
            continue
        try:
            (folder / SPARE / image.name).rename(image)
        except FileNotFoundError:
            raise RunError(
                f"{image} is missing, but {JOURNAL} has its labels: put it back, or generate into a new folder."
            ) from None
    return tally


def _put_away(folder: Path, choices: Iterator[_Choice]) -> None:
    """Move the images that were kept, but are not in the dataset, to the spare ones."""
    spare = folder / SPARE
    for choice in choices:
        if choice.reason is None or choice.entry.file is None:
            continue
        image = folder / IMAGES / choice.entry.file
        if image.exists():
            spare.mkdir(exist_ok=True)
            image.rename(spare / image.name)
    if spare.is_dir():
        sync_folder(spare)
        with contextlib.suppress(OSError):  # not empty
            spare.rmdir()
    sync_folder(folder / IMAGES)


def _annotated(choices: Iterator[_Choice], run: RunSettings) -> Iterator[Annotated]:
    width, height = run.frame
    for choice in choices:
        if choice.reason is None:
            rows = np.array(choice.boxes, dtype=np.float64).reshape(-1, 6)
            yield Annotated(
                file_name=str(choice.entry.file),
                width=width,
                height=height,
                boxes=rows[:, :4].astype(np.float32),
                labels=rows[:, 5].astype(np.int64),
                scores=rows[:, 4].astype(np.float32),
                prompt=choice.entry.prompt,
            )


def _write_preview(folder: Path, choose: Callable[[], Iterator[_Choice]], run: RunSettings) -> Path | None:
    path = folder / PREVIEW
    samples = []
    for choice in choose():
        if choice.reason is None:
            samples.append(Sample(folder / IMAGES / str(choice.entry.file), choice.boxes))
        if len(samples) == PREVIEW_IMAGES:
            break
    if not samples:
        path.unlink(missing_ok=True)
        return None
    write_preview(path, samples, run.class_names)
    return path


def _remove_yolo(folder: Path) -> None:
    (folder / DATA_YAML).unlink(missing_ok=True)
    if (folder / LABELS).exists():
        shutil.rmtree(folder / LABELS)


def _remove_leftovers(folder: Path) -> None:
    """Remove what an unfinished write left in the folder itself."""
    for item in folder.iterdir():
        if item.name.startswith(".") and item.name.endswith((".tmp", ".spool", ".old")):
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink()
