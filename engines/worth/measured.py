"""What a training found on a validation set, and what all of them say together: the files of both.

Knows: their fields. Knows nothing about trainings.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.common.files import read_json, write_atomic
from engines.common.quote import shorten
from engines.common.schema import to_object
from engines.datasets.dataset import instances_of
from engines.errors import RunError
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.labels.finds import finds_of
from engines.training.stopping import check_same
from engines.worth.data import ValSet, WorthData
from engines.worth.detectors.batches import mix_value
from engines.worth.detectors.config import DetectorOptions
from engines.worth.settings import EvaluateSettings

FORMAT = 2  # 1: one validation set alone


def write_measured(
    path: Path, val: ValSet, identity: Mapping[str, Any], found: Sequence[Instances], class_names: Sequence[str]
) -> None:
    """Write what a training found on a validation set, with its figures; `identity`: all that decides it."""
    value = {
        "format": FORMAT,
        "identity": identity,
        "val": val.name,
        "figures": mean_average_precision(instances_of(val.records), found, class_names),
        "images": [record.name for record in val.records],
        "detections": [_to_lists(item) for item in found],
    }
    write_atomic(path, (json.dumps(value, allow_nan=False) + "\n").encode())


def read_measured(path: Path, identity: Mapping[str, Any], val: ValSet, classes: int) -> list[Instances] | None:
    """What a training found on each image of a validation set; None where it has not been measured.

    Raises RunError for a training of another identity, and for finds that are none.
    """
    if not path.exists():
        return None
    stored = read_json(path, RunError)
    check_same(path.parent, stored.get("identity"), identity, RunError)
    try:
        rows = [[[*box, score, label] for box, score, label in zip(*one, strict=True)] for one in stored["detections"]]
        found = finds_of(rows, [(record.width, record.height) for record in val.records], classes)
    except (KeyError, TypeError, ValueError) as cause:
        said = shorten(cause, 200) if isinstance(cause, ValueError) else "it has no detections"
        raise RunError(f"{path}: {said}. Remove it, and the detector is measured again.") from None
    return [replace(one, boxes=one.boxes.astype(np.float32), scores=one.scores.astype(np.float32)) for one in found]


def detections_of(stored: Mapping[str, Any]) -> list[Instances]:
    """What was found on each of the file's `images`, as it stands there."""
    return [_from_lists(item) for item in stored["detections"]]


def _to_lists(found: Instances) -> list[Any]:
    return [found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()]


def _from_lists(value: Sequence[Any]) -> Instances:
    boxes, scores, labels = value
    return Instances.of(np.array(boxes, dtype=np.float32), labels, np.array(scores, dtype=np.float32))


def comparison_of(
    sets: Sequence[dict[str, Any]],
    data: WorthData,
    options: DetectorOptions,
    settings: EvaluateSettings,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """The content of `comparison.json`."""
    return {
        "format": FORMAT,
        "detector": to_object(options),
        "weights": str(settings.weights) if settings.weights else None,
        "mix": mix_value(settings.mix),
        "seeds": list(seeds),
        "resamples": settings.resamples,
        "data": {
            "real": str(settings.real),
            "real_images": len(data.real),
            "synthetic": [str(folder) for folder in settings.synthetic],
            "generated_images": len(data.generated),
            "class_names": list(data.class_names),
            "short_side": data.short_side,
            "notes": list(data.notes),
        },
        "sets": list(sets),
    }
