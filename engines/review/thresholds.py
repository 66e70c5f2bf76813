"""The thresholds that a review chose.

Knows: how what a run's next dataset is made by is changed. Knows nothing about the page.
"""

from collections.abc import Sequence
from pathlib import Path

from engines.labels.boxes import SCORE_FLOOR
from engines.labels.rules import Rules
from engines.review.sources import with_thresholds
from engines.runs.saved_score import save_score


def save_thresholds(folder: Path, rules: Rules, thresholds: Sequence[float]) -> Rules:
    """Choose thresholds for `finalize`, in the order of the classes; gives the rules with them."""
    chosen = with_thresholds(rules, [max(SCORE_FLOOR, round(one, 4)) for one in thresholds])
    save_score(folder, chosen.thresholds)
    return chosen
