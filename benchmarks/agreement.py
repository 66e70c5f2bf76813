"""How far the labels of painted images agree with what an independent detector finds on them.

Knows: a detector that `dengine evaluate` trained on real images alone (its OUT/trainings/real-seed0), by pixels alone,
without base model or adapter. It errs too, so its figures tell settings apart, and are no accuracy by themselves.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.common.names import class_words
from engines.common.rng import generator
from engines.datasets.images import read_image
from engines.errors import UsageError
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.worth.detectors.model import Detector
from engines.worth.matching import average_precision, figures, match

LEAST = 0.5  # score of the detector's boxes that count
RESAMPLES = 1000  # draws for an interval
_DRAWS = 60  # what their random stream is for


def agreement(
    detector: Detector, files: Sequence[Path], labels: Sequence[Instances], class_names: Sequence[str],
    groups: Sequence[object],
) -> dict[str, Any]:  # fmt: skip
    """How far the labels of images agree with what the detector finds there: `label_ap50` (0 to 1), its `interval`, the
    `labels` an image, and `images`. Classes are matched by name; UsageError where they are not the detector's.

    `groups` has the group of every image: those painted from one reference are alike.
    """
    truth = found_by(detector, files, class_names)
    return {
        "images": len(files),
        "label_ap50": mean_average_precision(truth, labels, class_names)["AP50"],
        "interval": interval(truth, labels, class_names, groups),
        "labels": sum(len(one) for one in labels) / max(len(labels), 1),
    }


def found_by(detector: Detector, files: Sequence[Path], class_names: Sequence[str]) -> list[Instances]:
    """What the detector finds on images with a score of at least LEAST; its classes are matched by name."""
    own = {class_words(name): label for label, name in enumerate(class_names)}
    mapping = np.array([own.get(class_words(name), -1) for name in detector.info.class_names], dtype=np.int64)
    if set(mapping.tolist()) != set(own.values()):
        raise UsageError(
            f"The detector knows {', '.join(detector.info.class_names)}, the bundle {', '.join(class_names)}."
        )
    sure = (found.take(found.scores >= LEAST) for found in detector.predict(read_image(file) for file in files))
    return [Instances.of(found.boxes, mapping[found.labels]) for found in sure]


def interval(
    truth: Sequence[Instances], labels: Sequence[Instances], class_names: Sequence[str], groups: Sequence[object]
) -> list[float]:
    """Where AP50 lies in nineteen of twenty draws of as many groups of images, [low, high]."""
    if not truth:
        return [0.0, 0.0]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    member_of = np.array([numbers[group] for group in groups])
    matches = match(truth, labels, len(class_names))
    draws = (generator(_DRAWS, number + 1).integers(len(numbers), size=len(numbers)) for number in range(RESAMPLES))
    counts = (np.bincount(drawn, minlength=len(numbers))[member_of] for drawn in draws)
    found = [figures(average_precision(matches, count), class_names)["AP50"] for count in counts]
    low, high = np.quantile(found, (0.025, 0.975)).tolist()
    return [low, high]
