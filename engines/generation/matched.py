"""Score thresholds by which labels are as frequent as the annotations that the adapter learned from.

Knows: how boxes are counted by score, and which threshold leaves a wanted number of them. Knows nothing about where
the boxes come from. The idea: labelled and other images of one kind hold the same classes equally often, so the
number of labels says more than a score does, whose meaning changes from adapter to adapter (LabelMatch, arXiv
2206.06608, which sets thresholds so inside a training).
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from engines.generation.journal import Box
from engines.generation.scores import Score, same_or_each

_STEPS = 100  # thresholds are whole hundredths
_TINY = 1e-6  # of a hundredth: a score on one is not below it


class ScoreCounts:
    """How many boxes of each class score how much; memory does not grow with the boxes."""

    def __init__(self, classes: int) -> None:
        self.images = 0
        self._counts = np.zeros((classes, _STEPS + 1), dtype=np.int64)

    def add(self, boxes: Iterable[Box]) -> None:
        """Count the boxes of one more image."""
        self.images += 1
        for box in boxes:
            self._counts[box.label, int(box.score * _STEPS + _TINY)] += 1

    def matched(
        self, frequencies: Mapping[str, float], class_names: Sequence[str], least: Mapping[str, float]
    ) -> Score:
        """The full score by which the labels of each class come nearest to `frequencies`, in labels an image.

        No class's threshold is below its own of `least`, which a class without a frequency takes. Of thresholds that
        leave the same boxes it is the middle one, furthest from the boxes on both sides.
        """
        above = self._counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # [K, hundredths]: boxes that score so much or more
        every = {name: least[name] for name in class_names}
        for label, name in enumerate(class_names):
            wanted = frequencies.get(name, math.inf) * max(1, self.images)
            lowest = math.ceil(least[name] * _STEPS - _TINY)
            left = above[label, lowest:]
            if left[0] > wanted:
                nearest = left[np.abs(left - wanted).argmin()]
                every[name] = (lowest + int(np.median(np.flatnonzero(left == nearest)))) / _STEPS
        return same_or_each(every)
