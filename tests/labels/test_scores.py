"""Scores: what may be asked for, what it comes to for the classes, what files hold, and what is refused."""

from typing import Any

import pytest
from refusals import refused

from engines.errors import UsageError
from engines.labels.boxes import SCORE_FLOOR
from engines.labels.scores import (
    FALLBACK,
    ScoreKind,
    ScorePolicy,
    Thresholds,
    check_ignore_score,
    shown,
    stored,
    unstored,
)

NAMES = ("RBC", "WBC", "Platelets")
OWN = {"RBC": 0.6, "WBC": 0.45}


def every(score: float) -> Thresholds:
    return dict.fromkeys(NAMES, score)


@pytest.mark.parametrize(
    ("asked", "policy"),
    [
        (0.5, ScorePolicy(ScoreKind.FIXED, 0.5)),
        (1, ScorePolicy(ScoreKind.FIXED, 1.0)),
        (SCORE_FLOOR, ScorePolicy(ScoreKind.FIXED, SCORE_FLOOR)),
        ({"RBC": 0.5}, ScorePolicy(ScoreKind.PER_CLASS, by_class={"RBC": 0.5})),
        ({}, ScorePolicy(ScoreKind.ADAPTER)),
        ("adapter", ScorePolicy(ScoreKind.ADAPTER)),
        ("matched", ScorePolicy(ScoreKind.MATCHED)),
    ],
)
def test_what_is_asked_for_is_one_of_four_kinds(asked: Any, policy: ScorePolicy) -> None:
    assert ScorePolicy.of(asked) == policy
    assert ScorePolicy.of(policy) is policy


def test_a_policy_keeps_no_hold_on_the_numbers_it_was_made_of() -> None:
    numbers = {"RBC": 0.5}
    policy = ScorePolicy.of(numbers)
    numbers["RBC"] = 0.9
    assert policy.thresholds({}, NAMES)["RBC"] == 0.5


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (1.5, "1.5"),
        (0.0, "0"),
        (SCORE_FLOOR - 0.001, "0.049"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        ({"RBC": 1.5}, "RBC=1.5"),
        ({"RBC": 0.5, "WBC": float("nan")}, "WBC=nan"),
        ("high", "high"),
        ("fixed", "fixed"),
        ("per class", "per class"),
        ("", ""),
    ],
)
def test_words_and_numbers_that_are_no_score_are_refused(asked: Any, said: str) -> None:
    with refused(UsageError, "score", said):
        ScorePolicy.of(asked)


def test_a_long_word_is_quoted_in_part() -> None:
    with pytest.raises(UsageError) as caught:
        ScorePolicy.of("x" * 500)  # type: ignore[arg-type]
    assert "x" * 60 in str(caught.value)
    assert "x" * 61 not in str(caught.value)


def test_one_number_is_every_classs_threshold_whatever_the_adapters_own() -> None:
    assert ScorePolicy.of(0.4).thresholds(OWN, NAMES) == every(0.4)


def test_classes_left_out_take_the_adapters_own_threshold_then_the_fallback() -> None:
    assert ScorePolicy.of({"rbc": 0.7}).thresholds(OWN, NAMES) == {"RBC": 0.7, "WBC": 0.45, "Platelets": FALLBACK}
    for policy in (ScorePolicy.of({}), ScorePolicy.of("adapter")):
        assert policy.thresholds(OWN, NAMES) == {"RBC": 0.6, "WBC": 0.45, "Platelets": FALLBACK}
        assert policy.thresholds({}, NAMES) == every(FALLBACK)


def test_names_are_taken_as_they_are_and_two_for_one_class_are_refused() -> None:
    alike = ("RBC", "rbc")
    assert ScorePolicy.of({"RBC": 0.9, "rbc": 0.2}).thresholds({}, alike) == {"RBC": 0.9, "rbc": 0.2}
    with refused(UsageError, "score", "RBC, rbc"):
        ScorePolicy.of({"RBC": 0.9, "rbc": 0.2}).thresholds({}, NAMES)


def test_thresholds_are_in_the_order_of_the_labels() -> None:
    found = ScorePolicy.of({"Platelets": 0.7, "RBC": 0.5}).thresholds({}, NAMES)
    assert tuple(found) == tuple(ScorePolicy.of(0.4).thresholds({}, NAMES)) == NAMES


def test_matched_scores_begin_at_the_fallback_and_not_at_the_adapters_own() -> None:
    assert ScorePolicy.of("matched").thresholds(OWN, NAMES) == every(FALLBACK)


def test_classes_that_are_unknown_are_refused_by_name() -> None:
    with refused(UsageError, "score", "nucleus", *NAMES):
        ScorePolicy.of({"RBC": 0.4, "nucleus": 0.5}).thresholds({}, NAMES)


@pytest.mark.parametrize("thresholds", [every(0.4), {"RBC": 0.5, "WBC": 0.3, "Platelets": 0.3}])
def test_files_give_back_the_thresholds_they_were_given(thresholds: Thresholds) -> None:
    assert unstored(stored(thresholds), NAMES) == thresholds


def test_thresholds_that_agree_are_one_number_in_files() -> None:
    assert stored(every(0.4)) == 0.4
    assert stored({"RBC": 0.4}) == 0.4
    assert stored({**every(0.4), "WBC": 0.5}) == {**every(0.4), "WBC": 0.5}


def test_a_file_without_a_number_for_a_class_is_not_believed() -> None:
    with pytest.raises(KeyError):
        unstored({"RBC": 0.4}, NAMES)


def test_a_score_is_shown_as_the_command_line_reads_it() -> None:
    assert shown(0.3) == "0.3"
    assert shown({"RBC": 0.5, "WBC": 0.3}) == "RBC=0.5,WBC=0.3"


def test_an_ignore_score_lies_below_some_threshold() -> None:
    check_ignore_score(0.0, every(0.3))
    check_ignore_score(0.4, {"RBC": 0.3, "WBC": 0.5})
    for ignore_score in (0.01, 0.3, float("nan")):
        with refused(UsageError, "ignore_score", ignore_score):
            check_ignore_score(ignore_score, every(0.3))
