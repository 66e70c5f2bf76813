"""What the numbers of one image make of it: labels, uncertain regions, and reasons to drop it."""

import pytest

from engines.labels.rules import Rules, drop_reason, is_rule, labels_of, quality, uncertain_of
from engines.runs.journal import Box

NAMES = ("a", "b")


def box(score: float, label: int = 0, left: float = 0.0) -> Box:
    return Box(left, 0.0, left + 10.0, 10.0, score, label)


def test_each_class_has_its_own_threshold() -> None:
    boxes = [box(0.5), box(0.5, 1), box(0.35), box(0.35, 1)]
    assert labels_of(boxes, Rules({"a": 0.3, "b": 0.4}, NAMES)) == [boxes[0], boxes[1], boxes[2]]
    assert labels_of(boxes, Rules(0.4, NAMES)) == boxes[:2]


def test_of_two_labels_of_a_class_that_overlap_too_much_the_surer_stays() -> None:
    weak, sure, other, beside = box(0.6), box(0.9, 0, 2.0), box(0.5, 1, 2.0), box(0.7, 0, 8.0)  # IoU 0.67, 1 and 0.25
    boxes = [weak, sure, other, beside]
    assert labels_of(boxes, Rules(0.3, NAMES)) == boxes
    assert labels_of(boxes, Rules(0.3, NAMES, max_overlap=0.5)) == [sure, other, beside]
    assert labels_of(boxes, Rules(0.3, NAMES, max_overlap=0.2)) == [sure, other]
    assert labels_of(boxes, Rules(0.3, NAMES, max_overlap=0.7)) == boxes
    assert labels_of(boxes[:1], Rules(0.3, NAMES, max_overlap=0.5)) == [weak]


def test_boxes_between_the_low_and_the_accepting_threshold_are_uncertain() -> None:
    boxes = [box(0.9), box(0.35, 0, 20), box(0.35, 1, 40), box(0.2, 1, 60), box(0.19, 1, 80)]
    rules = Rules({"a": 0.3, "b": 0.4}, NAMES, uncertain=0.2)
    assert uncertain_of(boxes, rules) == [boxes[2], boxes[3]]
    assert uncertain_of(boxes, Rules({"a": 0.3, "b": 0.4}, NAMES)) == []
    assert uncertain_of(boxes[3:4], rules) == boxes[3:4], "without a label beside it, too"


def test_another_try_at_a_labelled_object_is_not_uncertain() -> None:
    rules = Rules(0.5, NAMES, uncertain=0.1)
    sure, again, beside = box(0.9), box(0.3, 1, left=3.0), box(0.3, 0, left=4.0)  # IoU 0.54 and 0.43
    assert uncertain_of([sure, again, beside], rules) == [beside]


def test_quality_is_the_mean_score_weighted_by_itself_and_knows_no_threshold() -> None:
    assert quality([box(0.9), box(0.9)]) == pytest.approx(0.9)
    assert quality([box(0.8), box(0.2)]) == pytest.approx((0.64 + 0.04) / 1.0)
    assert quality([]) == 1.0
    assert quality([box(0.8), *[box(0.05)] * 4]) > quality([box(0.8), *[box(0.2)] * 4]), "a hint less, a doubt more"


def test_reasons_to_drop_an_image() -> None:
    sure, doubtful = [box(0.9)], [box(0.4), box(0.4), box(0.3, 1)]
    assert drop_reason(sure, Rules(0.3, NAMES)) is None
    assert drop_reason(sure, Rules(0.95, NAMES)) == "no box scores 0.95"
    assert drop_reason(sure, Rules({"a": 0.95, "b": 0.3}, NAMES)) == "no box scores what its class needs"
    assert drop_reason(sure, Rules(0.95, NAMES, keep_empty=True)) is None
    for keep_empty in (False, True):
        strict = Rules(0.3, NAMES, min_quality=0.5, keep_empty=keep_empty)
        assert drop_reason(doubtful, strict) == "doubtful labels: quality below 0.5"
        assert drop_reason(sure, strict) is None
    assert drop_reason([], Rules(0.3, NAMES, min_quality=0.5, keep_empty=True)) is None


def test_reasons_of_rules_are_told_from_images_that_could_not_be_painted() -> None:
    assert is_rule("no box scores 0.3")
    assert is_rule("doubtful labels: quality below 0.5")
    assert not is_rule("broken reference: 1.png is no image")
    assert not is_rule("/data/1.png is a broken image")
