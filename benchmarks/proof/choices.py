"""What is chosen by measuring on tune parts: pure functions from figures to settings.

Knows: each rule. Knows nothing about files or validation images: none of these figures come from them.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any


def best(figures: Mapping[float, Sequence[float]]) -> float:
    """The setting with the highest mean; of equal ones the lowest."""
    return min(figures, key=lambda setting: (-fmean(figures[setting]), setting))


def strength(rows: Sequence[Mapping[str, Any]], least: float, slack: float) -> tuple[float, float]:
    """The range of strengths to paint with: as much change as the labels stand.

    rows: of `benchmarks/ablation.py`. Of those that change the strength alone, the highest whose F1 against the
    independent detector is at most `slack` below the best is the upper end; `least` is the lower one.
    """
    tried = {row["settings"]["strength"][1]: row["f1"] for row in rows if str(row["setting"]).startswith("strength")}
    top = max(value for value, f1 in tried.items() if f1 >= max(tried.values()) - slack)
    return least, max(top, least)


def score_text(thresholds: Mapping[str, float | None], fallback: float) -> str:
    """`--score` for thresholds by class; a class without one takes the fallback."""
    return ",".join(f"{name}={fallback if value is None else value:g}" for name, value in sorted(thresholds.items()))
