"""The score from which a box is a label: how it is asked for, and the thresholds that it comes to.

Knows: the four ways to ask for a score, how thresholds are checked, filled in from an adapter's own, written and shown.
Knows nothing about boxes or images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Real
from typing import Literal

from engines.common.names import class_words
from engines.common.quote import shorten
from engines.errors import UsageError
from engines.labels.boxes import SCORE_FLOOR

FALLBACK = 0.3  # DiffusionEngine's, for classes that nobody has a threshold for
EXPECTED_SCORE = f"a number from {SCORE_FLOOR} to 1, or one for each class,"  # in messages

_LISTED = 200  # characters of the classes' names

Thresholds = dict[str, float]  # the lowest score of a label, of every class in the order of its labels
StoredScore = Thresholds | float  # as files hold them: one number where all classes have the same


class ScoreKind(StrEnum):
    """The ways to ask for a score."""

    FIXED = "fixed"  # one number for all classes
    PER_CLASS = "per class"  # numbers for some; the others take the adapter's own
    ADAPTER = "adapter"  # the adapter's own, chosen on its dev split
    MATCHED = "matched"  # by which labels are as frequent as the annotations that the adapter learned from


@dataclass(frozen=True)
class ScorePolicy:
    """What was asked for; made with `of`.

    >>> ScorePolicy.of({"RBC": 0.5}).kind.value
    'per class'
    """

    kind: ScoreKind
    value: float = FALLBACK  # of FIXED
    by_class: Mapping[str, float] = field(default_factory=dict)  # of PER_CLASS

    @classmethod
    def of(cls, asked: "ScoreLike") -> "ScorePolicy":
        """A number, numbers by class (none of them: the adapter's own), or "adapter" or "matched", as a policy.

        Raises UsageError for other words, and for numbers that are no scores: SCORE_FLOOR to 1.
        """
        if isinstance(asked, ScorePolicy):
            return asked
        if isinstance(asked, str):
            if asked not in (ScoreKind.ADAPTER, ScoreKind.MATCHED):
                raise _unexpected(f'"{asked:.60}"')
            return cls(ScoreKind(asked))
        numbers = asked if isinstance(asked, Mapping) else {"": asked}
        if not all(type(number) is not bool and isinstance(number, Real) for number in numbers.values()):
            raise _unexpected(shorten(repr(asked)))
        if not all(SCORE_FLOOR <= number <= 1.0 for number in numbers.values()):
            raise _unexpected(shorten(shown(dict(asked) if isinstance(asked, Mapping) else asked)))
        if isinstance(asked, Mapping):
            return cls(ScoreKind.PER_CLASS, by_class=dict(asked)) if asked else cls(ScoreKind.ADAPTER)
        return cls(ScoreKind.FIXED, float(asked))

    @property
    def plain(self) -> "ScoreLike":
        """The policy as a file may say it: what `of` makes the same one of."""
        if self.kind is ScoreKind.FIXED:
            return self.value
        if self.kind is ScoreKind.PER_CLASS:
            return self.by_class
        return "matched" if self.kind is ScoreKind.MATCHED else "adapter"

    def thresholds(self, own: Mapping[str, float], class_names: Sequence[str]) -> Thresholds:
        """What it comes to for these classes: those it has no number for take their `own`, or FALLBACK.

        Classes are matched as they are, else as prompts spell them: `rbc` names `RBC`. MATCHED gives the least that may
        be found, FALLBACK. Raises UsageError for a name that is none of them, and for two that name one class.
        """
        if self.kind in (ScoreKind.FIXED, ScoreKind.MATCHED):
            return dict.fromkeys(class_names, self.value)
        known = {class_words(name): name for name in class_names} | {name: name for name in class_names}
        meant = {name: known.get(name) or known.get(class_words(name)) for name in self.by_class}
        if unknown := [name for name, known_as in meant.items() if known_as is None]:
            names = shorten(", ".join(class_names), _LISTED)
            raise UsageError(f"`score` names {shorten(', '.join(unknown))}; the classes are {names}.", field="score")
        if twice := [name for name, known_as in meant.items() if list(meant.values()).count(known_as) > 1]:
            raise UsageError(f"`score` has several numbers for one class: {shorten(', '.join(twice))}.", field="score")
        given = {meant[name]: number for name, number in self.by_class.items()}
        return {name: given.get(name, own.get(name, FALLBACK)) for name in class_names}


ScoreLike = ScorePolicy | Mapping[str, float] | float | Literal["adapter", "matched"]


def stored(thresholds: Thresholds) -> StoredScore:
    """Thresholds as files hold them."""
    numbers = set(thresholds.values())
    return numbers.pop() if len(numbers) == 1 else thresholds


def unstored(score: StoredScore, class_names: Sequence[str]) -> Thresholds:
    """What `stored` was given; KeyError for a class that the file has no number for."""
    return {name: score[name] if isinstance(score, Mapping) else score for name in class_names}


def check_ignore_score(ignore_score: float, thresholds: Thresholds) -> None:
    """Raise UsageError where no box could be one to ignore: `ignore_score` is below no class's threshold. 0 is off."""
    if ignore_score and not SCORE_FLOOR <= ignore_score < max(thresholds.values()):
        raise UsageError(
            f"`ignore_score` is {ignore_score:g}; 0 (off), or a number from {SCORE_FLOOR} to below `score` "
            f"({shorten(shown(stored(thresholds)))}) was expected.",
            field="ignore_score",
        )


def shown(score: StoredScore) -> str:
    """`0.3`, or `RBC=0.5,WBC=0.3`: as the command line reads it."""
    if isinstance(score, Mapping):
        return ",".join(f"{name}={number:g}" for name, number in score.items())
    return f"{score:g}"


def _unexpected(what: str) -> UsageError:
    return UsageError(f"`score` is {what}; {EXPECTED_SCORE} was expected.", field="score")
