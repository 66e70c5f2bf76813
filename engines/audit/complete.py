"""A dataset with the labels that it misses: a new folder, COCO.

Knows: which labels are added, which boxes are moved, and how both are marked. The images are copied, since a dataset's
files lie in its own folder; the dataset that was audited is not touched.
"""

import filecmp
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.datasets.dataset import Record
from engines.datasets.writers import IMAGES, AnnotatedImage, write_coco
from engines.labels.boxes import Instances, join
from engines.labels.findings import Finding

ANNOTATIONS = "annotations.json"
Boxes = npt.NDArray[np.float32]  # [M, 4] corners in pixels
DESCRIPTION = "completed by dengine"


def write_completed(
    folder: Path,
    records: Sequence[Record],
    missing: Sequence[Finding],
    class_names: Sequence[str],
    *,
    crowds: bool,
    moved: Sequence[Boxes] | None = None,
) -> int:
    """Write `folder`/annotations.json and `folder`/images: every label that is there, and the missing ones behind them.

    What is added has the fields `added` (true), `score` (the detector's) and `confidence`, and with `crowds` is a
    crowd, which teaches and counts nothing. The boxes that were there stay as they are, or are those of `moved` ([M, 4]
    of each image): such a one has its own place as `given_bbox`. Returns how many were moved.
    """
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    images, count = [], 0
    for index, (record, added, together) in enumerate(_together(records, missing, crowds)):
        _copy(record.file, folder / IMAGES / record.name)
        marks: list[dict[str, Any]] = [{} for _ in range(len(record.instances))]
        if moved is not None:
            given, boxes = record.instances.boxes, together.boxes.copy()
            boxes[: len(given)] = moved[index]
            together = replace(together, boxes=boxes)
            for place in np.flatnonzero((moved[index] != given).any(axis=1)).tolist():
                x, y, right, bottom = (float(side) for side in given[place])
                marks[place] = {"given_bbox": [x, y, right - x, bottom - y]}
                count += 1
        marks += [{"added": True, "score": _short(one.score), "confidence": _short(one.confidence)} for one in added]
        images.append(AnnotatedImage(record.name, record.width, record.height, together, scored=False, marks=marks))
    info = {"description": DESCRIPTION, "added": len(missing), "as": "crowds" if crowds else "labels"}
    write_coco(folder / ANNOTATIONS, images, class_names, info | ({} if moved is None else {"moved": count}))
    return count


def _copy(file: Path, target: Path) -> None:
    """Have an image at `target`, whole: what an earlier start left there may be half of it, or another one."""
    if target.exists() and filecmp.cmp(file, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(file, temporary)
    temporary.replace(target)


def completed(records: Sequence[Record], missing: Sequence[Finding]) -> list[Record]:
    """The images with the missing labels behind their own, for an adapter to learn from."""
    every = _together(records, missing, crowds=False)
    return [replace(record, instances=together, outside=()) for record, _, together in every]


def _together(
    records: Sequence[Record], missing: Sequence[Finding], crowds: bool
) -> Iterator[tuple[Record, list[Finding], Instances]]:
    """(image, what is added to it, its labels with those) of every image."""
    by_image: dict[int, list[Finding]] = {}
    for one in missing:
        by_image.setdefault(one.image, []).append(one)
    for index, record in enumerate(records):
        added = by_image.get(index, [])
        new = Instances.of(
            [one.box for one in added if one.box is not None], [one.label for one in added if one.label is not None],
            crowd=[crowds] * len(added),
        )  # fmt: skip
        yield record, added, join([record.instances, new])


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
