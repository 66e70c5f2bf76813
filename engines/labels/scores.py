"""The score from which a box is a label: one number for all classes, or one for each.

Knows: how such thresholds, and the other numbers by which a dataset is cleaned, are checked, filled in from an
adapter's own, and shown. Knows nothing about boxes or images.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from engines.common.names import class_words
from engines.errors import UsageError
from engines.labels.boxes import SCORE_FLOOR

Score = dict[str, float] | float  # a number for all classes, or class -> number
Matched = Literal["matched"]  # thresholds that `matched` finds, once all boxes are known
MATCHED: Matched = "matched"
FALLBACK = 0.3  # DiffusionEngine's, for classes that nobody has a threshold for
EXPECTED_SCORE = f"a number from {SCORE_FLOOR} to 1, or CLASS=NUMBER,CLASS=NUMBER"  # in messages


def in_range(score: Score) -> bool:
    """Whether every number is a score that the journal holds: SCORE_FLOOR to 1."""
    numbers = score.values() if isinstance(score, Mapping) else (score,)
    return all(SCORE_FLOOR <= number <= 1.0 for number in numbers)


def full_score(score: Score, own: Mapping[str, float], class_names: Sequence[str]) -> Score:
    """`score` with every class: one that it does not name takes its own, or FALLBACK. One number where all agree.

    Classes are matched as prompts spell them: `rbc` names `RBC`. Raises UsageError for a name that is none of them, and
    for numbers out of range.
    """
    if not in_range(score):
        raise UsageError(f"`score` is {shown(score)}; {EXPECTED_SCORE} was expected.", field="score")
    if not isinstance(score, Mapping):
        return score
    known = {class_words(name): name for name in class_names}
    unknown = [name for name in score if class_words(name) not in known]
    if unknown:
        raise UsageError(
            f"`score` names {', '.join(unknown)}; the classes are {', '.join(class_names)}.", field="score"
        )
    given = {known[class_words(name)]: number for name, number in score.items()}
    every = {name: given.get(name, own.get(name, FALLBACK)) for name in class_names}
    return same_or_each(every)


def same_or_each(every: dict[str, float]) -> Score:
    """One number where all classes have the same."""
    return next(iter(every.values())) if len(set(every.values())) == 1 else every


def check_uncertain(uncertain: float, score: Score) -> None:
    """Raise UsageError where no box could be uncertain: `uncertain` is below no class's threshold in the full `score`.

    0 is off.
    """
    if uncertain and not SCORE_FLOOR <= uncertain < highest(score):
        raise UsageError(
            f"`uncertain` is {uncertain:g}; 0 (off), or a number from {SCORE_FLOOR} to below `score` "
            f"({shown(score)}) was expected.",
            field="uncertain",
        )


def highest(score: Score) -> float:
    """The highest threshold of a full `score`."""
    return max(score.values()) if isinstance(score, Mapping) else score


def by_label(score: Score, class_names: Sequence[str]) -> tuple[float, ...]:
    """The threshold of each class, in the order of its labels; `score` is a full one."""
    return tuple(score[name] if isinstance(score, Mapping) else score for name in class_names)


def shown(score: Score) -> str:
    """`0.3`, or `RBC=0.5,WBC=0.3`: as the command line reads it."""
    if isinstance(score, Mapping):
        return ",".join(f"{name}={number:g}" for name, number in score.items())
    return f"{score:g}"
