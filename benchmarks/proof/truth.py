"""How right labels are: those of generated images, and of other photographs, against the true labels of what they show.

Knows: where the objects of a reference lie in the image that was painted from it. With 10% of the labels it reads true
labels which that setting pretends not to have: it explains figures, and no other stage reads it. An object that was
painted where the reference has none counts as wrong, though the picture may show it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.proof.workplace import ProofError, Workplace
from engines.datasets.dataset import Record, open_dataset
from engines.labels.average_precision import Detections
from engines.labels.thresholds import precision_and_recall
from engines.painting.jobs import Job, make_job
from engines.runs.journal import JOURNAL, read_entries
from engines.runs.near_duplicates import reference_plan
from engines.runs.run_folder import RUN, require_run
from engines.training.views import clip_boxes, mirror_boxes

EDGES = (0.0, 0.2, 0.3, 0.45, 0.6)  # strengths that the ranges which are told apart begin with
_VISIBLE = 0.3  # share of an object that has to lie in the crop to count


@dataclass(frozen=True, eq=False)
class _Shown:
    """What an image should have boxes around."""

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    iscrowd: npt.NDArray[np.bool_]  # objects that count neither way: hardly in view, or crowds
    strength: float | None  # None for a photograph


def read_labels(place: Workplace, sources: Mapping[str, str]) -> dict[str, Any]:
    """Precision and recall by class and range of strengths. `sources`: by labelled folder, whose images these are."""
    dataset = open_dataset(place.data, split="train")
    rows = []
    for folder, images in sources.items():
        truth = dict(_truth(place, images, dataset.records))
        by_range: dict[float | None, list[Record]] = {}
        for record in open_dataset(place.folder(folder), class_names=dataset.class_names, require_boxes=False).records:
            strength = truth[record.name].strength
            least = None if strength is None else max(edge for edge in EDGES if edge <= strength)
            by_range.setdefault(least, []).append(record)
        for _, records in sorted(by_range.items(), key=lambda item: item[0] or 0.0):
            shown = [truth[record.name] for record in records]
            painted = [one.strength for one in shown if one.strength is not None]
            rows.append(
                {
                    "labels": folder,
                    "strengths": [min(painted), max(painted)] if painted else None,
                    "images": len(records),
                    "figures": precision_and_recall(shown, [_as_found(one) for one in records], dataset.class_names),
                }
            )
    return {"rows": rows}


def _truth(place: Workplace, images: str, annotated: Sequence[Record]) -> Iterator[tuple[str, _Shown]]:
    """By the file's name, what each image of a stage shows. `annotated`: the train images with their true labels."""
    records = {record.name: record for record in annotated}
    folder = place.folder(images)
    if not (folder / RUN).exists():
        yield from ((name, _Shown(one.boxes, one.labels, one.iscrowd, None)) for name, one in records.items())
        return
    run = require_run(folder)
    # Where they lie here: a run may have been painted on another machine.
    references = str(place.data if run.reference_split else place.folder("train-images"))
    plan = reference_plan(replace(run, reference=references)) if run.reference else None
    if plan is None:
        raise ProofError(f"{folder} was painted from text: there is nothing that its labels could be held against.")
    for entry in read_entries(folder / JOURNAL):
        if entry.file and entry.reference and entry.strength is not None:
            job = make_job(plan, run.seed, entry.index)
            yield entry.file, _cropped(records[entry.reference], job, run.frame, entry.strength)


def _cropped(record: Record, job: Job, frame: tuple[int, int], strength: float) -> _Shown:
    """The objects of a reference where a job's image has them."""
    if job.crop is None:
        raise ProofError(f"Image {job.index} has no crop.")
    x0, y0, x1, y1 = job.crop
    width, height = frame
    boxes = (record.boxes - [x0, y0, x0, y0]) * np.array([width / (x1 - x0), height / (y1 - y0)] * 2)
    boxes = boxes.astype(np.float32)
    if job.flip:
        boxes = mirror_boxes(boxes, width)
    _, in_view = clip_boxes(boxes, frame, _VISIBLE)
    return _Shown(boxes.clip(0, [*frame, *frame]), record.labels, record.iscrowd | ~in_view, strength)


def _as_found(record: Record) -> Detections:
    """An image's labels; what is uncertain is none."""
    sure = ~record.iscrowd
    return Detections(record.boxes[sure], np.ones(int(sure.sum()), np.float32), record.labels[sure])
