"""Score thresholds: how they are spelt, what is refused, and where classes left out get theirs."""

import pytest

from engines.errors import UsageError
from engines.labels.scores import (
    FALLBACK,
    Score,
    by_label,
    check_uncertain,
    full_score,
    highest,
    parse_near_duplicates,
    parse_score,
    shown,
)

NAMES = ("RBC", "WBC", "Platelets")


@pytest.mark.parametrize(
    ("text", "score"),
    [("0.5", 0.5), ("RBC=0.5, WBC=.3", {"RBC": 0.5, "WBC": 0.3}), ("a=b=0.2", {"a=b": 0.2}), ("adapter", {})],
)
def test_a_score_is_a_number_or_one_for_each_class(text: str, score: Score) -> None:
    assert parse_score(text) == score
    assert parse_score(None) is None
    if score != {}:
        assert parse_score(shown(score)) == score


@pytest.mark.parametrize("text", ["", "high", "RBC=", "=0.5", "RBC=0.5,", "RBC=0.5,WBC", "RBC=0.5,RBC=0.6"])
def test_a_score_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="CLASS=NUMBER"):
        parse_score(text)


def test_classes_left_out_take_the_adapters_own_threshold_then_the_fallback() -> None:
    full = full_score({"rbc": 0.6}, {"WBC": 0.45}, NAMES)
    assert full == {"RBC": 0.6, "WBC": 0.45, "Platelets": FALLBACK}
    assert by_label(full, NAMES) == (0.6, 0.45, FALLBACK)
    assert highest(full) == 0.6


def test_thresholds_that_agree_are_one_number() -> None:
    assert full_score({}, {}, NAMES) == FALLBACK
    assert full_score({"WBC": FALLBACK}, {}, NAMES) == FALLBACK
    assert by_label(0.4, NAMES) == (0.4, 0.4, 0.4)


def test_classes_that_are_unknown_and_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="names nucleus; the classes are RBC, WBC"):
        full_score({"nucleus": 0.5}, {}, NAMES)
    with pytest.raises(UsageError, match=r"RBC=1\.5.*0\.05 to 1"):
        full_score({"RBC": 1.5}, {}, NAMES)


def test_uncertain_lies_below_some_threshold() -> None:
    check_uncertain(0.0, 0.3)
    check_uncertain(0.4, {"RBC": 0.3, "WBC": 0.5})
    for uncertain in (0.01, 0.3, float("nan")):
        with pytest.raises(UsageError, match="below --score"):
            check_uncertain(uncertain, 0.3)


def test_near_duplicates_are_kept_dropped_or_measured() -> None:
    assert [parse_near_duplicates(text) for text in ("keep", "drop", "0.9")] == [0.0, 0.95, 0.9]
    with pytest.raises(UsageError, match="keep, drop, or a correlation"):
        parse_near_duplicates("maybe")
