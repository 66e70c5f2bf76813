"""How far painted pictures lie from photographs, by what a network sees in them: wrong shapes show, which colours and
detail do not.

Knows: the measure. Knows nothing about networks, or about what is good. That the nearest neighbour among features tells
of a picture's likeness is Kynkäänniemi et al.'s (arXiv 1904.06991).

N, n pictures, C features.
"""

import numpy as np
import numpy.typing as npt

FEWEST = 8  # photographs; among fewer nothing is near
_SAME = 1e-3  # deviations: no nearer neighbour is another picture

Features = npt.NDArray[np.float64]  # [N, C], a vector a picture


def times_apart(painted: Features, photographs: Features) -> float | None:
    """How many times as far painted pictures lie from their nearest photograph as photographs lie from theirs: medians
    of distances, each feature in deviations of the photographs'. None where there are too few photographs to tell, or
    where most of them are one picture.

    >>> photographs = np.arange(10.0)[:, None]
    >>> times_apart(np.array([[2.5], [14.0], [15.0]]), photographs)
    5.0
    """
    if len(photographs) < FEWEST or not len(painted):
        return None
    deviation = photographs.std(axis=0) + 1e-9
    among = _distances(photographs / deviation, photographs / deviation)
    np.fill_diagonal(among, np.inf)
    own = float(np.median(among.min(axis=1)))
    away = float(np.median(_distances(painted / deviation, photographs / deviation).min(axis=1)))
    return round(away / own, 2) if own > _SAME else None


def _distances(some: Features, others: Features) -> npt.NDArray[np.float64]:
    """[n, N], the root of the mean square over features."""
    found: npt.NDArray[np.float64] = np.sqrt(np.square(some[:, None] - others[None]).mean(axis=2))
    return found
