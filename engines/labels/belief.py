"""How likely a find without a label is an object that the labels left out.

Knows: how that follows from the scores of the finds that do have a label. Knows nothing about images, or how finds and
labels were paired.

Objects that were overlooked look like those that were labelled, so their finds score alike (the assumption of Elkan and
Noto, "Learning classifiers from only positive and unlabeled data", KDD 2008). A find is as good as a labelled one where
it scores what all but a few of these reach: a threshold of each class's own, as in confident learning (Northcutt et
al., arXiv 1911.00068), which averages where this takes a low quantile, since labelled objects are the ones that a
detector learned to score high.

N finds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEAST_LABELLED = 30  # labelled finds that a belief is drawn from
USUAL = 0.02  # share of the labelled finds that score less than is usual


@dataclass(frozen=True)
class Belief:
    """What is believed of the finds of one kind."""

    usual: float | None = None  # score that labelled finds reach; None: too few to say, and a find counts as it scores

    def of(self, scores: npt.NDArray[Any]) -> Floats:
        """How sure finds [N] without a label are objects, 0 to 1: one half at the usual score."""
        given = np.asarray(scores, dtype=np.float64)
        return given if self.usual is None else given / np.maximum(given + self.usual, 1e-9)


def believe(scores: npt.NDArray[Any], labelled: Mask) -> Belief:
    """The belief that finds of these scores [N] give, of which some are `labelled` [N]."""
    if labelled.sum() < LEAST_LABELLED:
        return Belief()
    return Belief(float(np.quantile(scores[labelled].astype(np.float64), USUAL)))
