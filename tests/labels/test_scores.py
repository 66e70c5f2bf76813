"""Score thresholds: what is refused, and where classes left out get theirs."""

from refusals import refused

from engines.errors import UsageError
from engines.labels.scores import (
    FALLBACK,
    by_label,
    check_uncertain,
    full_score,
    highest,
)

NAMES = ("RBC", "WBC", "Platelets")


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
    with refused(UsageError, "score", "nucleus", *NAMES):
        full_score({"nucleus": 0.5}, {}, NAMES)
    with refused(UsageError, "score", "RBC=1.5"):
        full_score({"RBC": 1.5}, {}, NAMES)


def test_uncertain_lies_below_some_threshold() -> None:
    check_uncertain(0.0, 0.3)
    check_uncertain(0.4, {"RBC": 0.3, "WBC": 0.5})
    for uncertain in (0.01, 0.3, float("nan")):
        with refused(UsageError, "uncertain", uncertain):
            check_uncertain(uncertain, 0.3)
