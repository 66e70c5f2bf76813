"""How likely a find without a label is an object that the labels left out.

Knows: how that follows from the finds that do have a label. Knows nothing about images, or how finds and labels were
paired.

Where annotators overlook objects whatever these look like, a find's chance to be labelled is its chance to be an object
times one number, the share of objects that are labelled (Elkan and Noto, "Learning classifiers from only positive and
unlabeled data", KDD 2008). That share shows among the surest finds, which are objects; then a find's chance to be
labelled says how likely one without a label is an object. So the same score means much where half of the objects have
no label, and little where all but a few have one.

N finds.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEAST_LABELLED = 30  # labelled finds that a belief is drawn from
_SUREST = 0.2  # share of the labelled finds whose scores count as those of objects
_LEAST_SUREST = 10


@dataclass(frozen=True)
class Belief:
    """What is believed of the finds of one kind. Without any `scores`, a find is believed as much as it scores."""

    completeness: float | None = None  # share of the objects that are labelled; None: too few finds to say
    scores: tuple[float, ...] = ()  # rising
    labelled: tuple[float, ...] = ()  # of each, the chance of such a find to have a label

    def of(self, scores: npt.NDArray[np.floating[npt.NBitBase]]) -> Floats:
        """How likely finds [N] without a label are objects, 0 to 1."""
        if self.completeness is None:
            return np.asarray(scores, dtype=np.float64)
        share = self.completeness
        chance = np.minimum(np.interp(scores, self.scores, self.labelled), share)
        return np.asarray((1 - share) * chance / np.maximum(share * (1 - chance), 1e-9))


def believe(scores: npt.NDArray[np.floating[npt.NBitBase]], labelled: Mask) -> Belief:
    """The belief that finds of these scores [N] give, of which some are `labelled` [N]."""
    from scipy.optimize import isotonic_regression

    if labelled.sum() < LEAST_LABELLED:
        return Belief()
    surest = max(_LEAST_SUREST, round(_SUREST * int(labelled.sum())))
    least = np.sort(scores[labelled])[-surest]
    order = np.argsort(scores, kind="stable")
    chances = isotonic_regression(labelled[order].astype(np.float64)).x
    return Belief(
        completeness=float(labelled[scores >= least].mean()),
        scores=tuple(scores[order].astype(np.float64).tolist()),
        labelled=tuple(chances.tolist()),
    )
