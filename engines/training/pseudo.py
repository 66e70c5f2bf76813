"""Self-training: an adapter that learns once more, from images that an adapter labelled.

Knows: which of these images may be learned from, and how they are mixed with the labelled ones. Knows nothing about
how their boxes were found (`engines.labelling`) or about training.

Source: self-training with a student that is shown augmented images, as in STAC (arXiv 2005.04757), here with one
round, boxes above a threshold, and regions of doubt that teach nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engines.common.files import read_json
from engines.datasets.dataset import Dataset, Record, open_dataset, readable
from engines.datasets.duplicates import NEAR, fingerprints, near_pairs
from engines.errors import DatasetError
from engines.labelling import DESCRIPTION
from engines.labels.boxes import SCORE_FLOOR


def open_pseudo(folder: Path, labelled: Dataset, *, skip_bad: bool = False) -> tuple[Dataset, int]:
    """The images of a folder of `dengine label`, and how many were left out because they nearly repeat a labelled one.

    Such an image would bring the dev split's labels, or worse ones for a picture that has its own. The labels are
    indices into the class names of `labelled`. Raises DatasetError for boxes of every score (`label` without a
    score), for other classes than `labelled` has, and where no box is left.
    """
    found = open_dataset(folder, skip_bad=skip_bad, require_boxes=False)
    found = readable(found) if skip_bad else found
    _check_scores(found)
    if set(found.class_names) != set(labelled.class_names):
        raise DatasetError(
            f"{folder} has the classes {', '.join(found.class_names) or '(none)'}, but {labelled.root} has "
            f"{', '.join(labelled.class_names)}: label it with an adapter for the same classes."
        )
    theirs, own = (fingerprints(one.records) for one in (labelled, found))
    hashes = set(theirs.hashes)
    repeats = {pair.first for pair in near_pairs(own.thumbnails, theirs.thumbnails, NEAR)}
    repeats |= {index for index, one in enumerate(own.hashes) if one in hashes}
    order = np.array([labelled.class_names.index(name) for name in found.class_names], dtype=np.int64)
    kept = [
        replace(record, instances=replace(record.instances, labels=order[record.instances.labels]))
        for index, record in enumerate(found.records)
        if index not in repeats
    ]
    if not any((~record.instances.crowd).any() for record in kept):
        raise DatasetError(
            f"{folder} has {len(found.records)} images, {len(repeats)} of which nearly repeat labelled ones (their "
            f"thumbnails correlate by {NEAR:g} or more, as two pictures of one scene do), and no box in the rest: give "
            "other images, or label them with a lower score."
        )
    return replace(found, class_names=labelled.class_names, records=kept), len(repeats)


def _check_scores(found: Dataset) -> None:
    kind, _, name = found.source.partition(", ")
    info = read_json(found.root / name, DatasetError).get("info") if kind == "COCO" else None
    if isinstance(info, dict) and info.get("description") == DESCRIPTION and "score" not in info:
        raise DatasetError(
            f"{found.root / name} holds every box from a score of {SCORE_FLOOR:g} on, which is no label: label these "
            "images again with `score={}`, or with a number.",
            field="score",
        )


def blend(labelled: Sequence[Record], pseudo: Sequence[Record], share: float) -> list[Record]:
    """Labelled images first, then the others; either kind repeated so that about `share` of them is `pseudo`.

    share: above 0, below 1. Each image comes at least once.
    """
    if not pseudo:
        return list(labelled)
    ratio = share / (1.0 - share) * len(labelled) / len(pseudo)
    return [*labelled] * max(1, round(1.0 / ratio)) + [*pseudo] * max(1, round(ratio))
