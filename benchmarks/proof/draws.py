"""Average precision on many draws of the validation images, small enough to be kept with every run.

Knows: how one run's detections become its AP on each of the same draws. Because draw number n is the same for every
run, differences of runs on it are paired: intervals follow from the records alone, without any detections.
Knows nothing about arms.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from engines.common.rng import generator
from engines.labels.average_precision import Annotations, Detections
from engines.worth.matching import average_precision, figures, match

KEPT = ("AP", "AP50")
_STREAM = 50  # as in engines.evaluation.worth_figures: its intervals and ours see the same draws


def draws(
    annotations: Sequence[Annotations], detections: Sequence[Detections], class_names: Sequence[str], resamples: int
) -> dict[str, str]:
    """AP and AP50 on each draw with replacement, as large as the set: ten-thousandths, as text; `-` for none."""
    matches, images = match(annotations, detections, len(class_names)), len(annotations)
    found: dict[str, list[str]] = {name: [] for name in KEPT}
    for number in range(resamples):
        chosen = generator(0, _STREAM, number + 1).integers(images, size=images)
        values = figures(average_precision(matches, np.bincount(chosen, minlength=images)), class_names)
        for name in KEPT:
            found[name].append(str(round(1e4 * values[name])) if name in values else "-")
    return {name: " ".join(texts) for name, texts in found.items()}


def read_draws(text: str) -> npt.NDArray[np.float64]:
    """What `draws` wrote for one figure, in 0..1; NaN where there was none."""
    return np.array([math.nan if word == "-" else int(word) / 1e4 for word in text.split()])


def interval(after: Sequence[Mapping[str, str]], before: Sequence[Mapping[str, str]], name: str) -> tuple[float, float]:
    """The 95% interval of the difference of two arms' means over paired runs, over the draws they share."""
    means = [np.mean([read_draws(run[name]) for run in arm], axis=0) for arm in (after, before)]
    low, high = np.nanquantile(means[0] - means[1], (0.025, 0.975)).tolist()
    return low, high
