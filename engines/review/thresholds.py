"""The thresholds of a review: those that are there, and those that were chosen.

Knows: what a run's next dataset is made by, and how that is changed. Knows nothing about the page.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engines.labels.boxes import SCORE_FLOOR
from engines.labels.rules import Rules
from engines.labels.scores import ScorePolicy
from engines.review.sources import Source, with_thresholds
from engines.runs.saved_score import save_score, saved_score


def rules_in_force(source: Source) -> Rules:
    """What `finalize` would go by."""
    rules = source.rules()
    score = saved_score(source.folder) if source.kind == "run" else None
    if score is None:
        return rules
    return replace(rules, thresholds=ScorePolicy.of(score).thresholds(rules.thresholds, source.class_names))


def save_thresholds(folder: Path, rules: Rules, thresholds: Sequence[float]) -> Rules:
    """Choose thresholds for `finalize`, in the order of the classes; gives the rules with them."""
    chosen = with_thresholds(rules, [max(SCORE_FLOOR, round(one, 4)) for one in thresholds])
    save_score(folder, chosen.thresholds)
    return chosen
