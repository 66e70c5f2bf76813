"""Score thresholds by which labels are as frequent as the annotations that the adapter learned from.

Knows: how boxes are counted by score, and which threshold leaves a wanted number of them. Knows nothing about where
the boxes come from. The idea: labelled and other images of one kind hold the same classes equally often, so the
number of labels says more than a score does, whose meaning changes from adapter to adapter (LabelMatch, arXiv
2206.06608, which sets thresholds so inside a training).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from engines.errors import UsageError
from engines.labels.boxes import LEAST_COUNTED, SCORE_FLOOR, Instances
from engines.labels.rules import Rules, is_label
from engines.labels.scores import Thresholds

_STEPS = 100  # thresholds are whole hundredths
_TINY = 1e-6  # of a hundredth: a score on one is not below it


def check_frequencies(frequencies: Mapping[str, float]) -> None:
    """Raise UsageError where no class has a frequency."""
    if not frequencies:
        raise UsageError(
            f"`score=matched`: the adapter learned from fewer than {LEAST_COUNTED} objects of every class, too few to "
            "say how frequent they are. Give numbers.",
            field="score",
        )


def matched_score(images: Iterable[Instances], rules: Rules, frequencies: Mapping[str, float]) -> Thresholds:
    """The thresholds by which the labels of each class come nearest to `frequencies`, in labels an image.

    `images`: all boxes of each; `rules`: theirs are the least of every class, the others hold. A class takes its
    least where it has no frequency, or where fewer than LEAST_COUNTED labels would be right, which says too little. Of
    thresholds that leave the same boxes it is the middle one, furthest from the boxes on both sides. Memory does not
    grow with the images. Raises UsageError without any frequency.
    """
    check_frequencies(frequencies)
    every = replace(rules, thresholds=dict.fromkeys(rules.class_names, SCORE_FLOOR))
    counts = np.zeros((len(rules.class_names), _STEPS + 1), dtype=np.int64)
    number = 0
    for boxes in images:
        number += 1
        labels = boxes.take(is_label(boxes, every))
        np.add.at(counts, (labels.labels, (labels.scores.astype(np.float64) * _STEPS + _TINY).astype(np.int64)), 1)
    return {
        name: _nearest(counts[label], frequencies.get(name, 0.0) * number, least)
        for label, (name, least) in enumerate(rules.thresholds.items())
    }


def _nearest(counts: npt.NDArray[np.int64], wanted: float, least: float) -> float:
    """The threshold that leaves about `wanted` of a class's boxes, counted by hundredths."""
    lowest = math.ceil(least * _STEPS - _TINY)
    left = counts[::-1].cumsum()[::-1][lowest:]  # boxes that score so much or more
    if wanted < LEAST_COUNTED or left[0] <= wanted:
        return least
    nearest = left[np.abs(left - wanted).argmin()]
    return (lowest + int(np.median(np.flatnonzero(left == nearest)))) / _STEPS
