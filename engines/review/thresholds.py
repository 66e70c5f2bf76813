"""The thresholds of a review: those that are there, and those that were chosen.

Knows: what a run's next dataset is made by, and how that is changed. Knows nothing about the page.
"""

from collections.abc import Sequence
from pathlib import Path

from engines.labels.boxes import SCORE_FLOOR
from engines.labels.rules import Rules
from engines.review.sources import RunSource, Source, with_thresholds
from engines.runs import rules_in_force as in_force
from engines.runs.saved_score import save_score


def rules_in_force(source: Source) -> Rules:
    """What `finalize` would go by; of a dataset, everything that is there."""
    return in_force.rules_in_force(source.folder, source.run) if isinstance(source, RunSource) else source.rules()


def save_thresholds(folder: Path, rules: Rules, thresholds: Sequence[float]) -> Rules:
    """Choose thresholds for `finalize`, in the order of the classes; gives the rules with them."""
    chosen = with_thresholds(rules, [max(SCORE_FLOOR, round(one, 4)) for one in thresholds])
    save_score(folder, chosen.thresholds)
    return chosen
