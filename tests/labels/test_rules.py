"""What the numbers of one image make of it: labels, uncertain regions, and reasons to drop it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from engines.errors import UsageError
from engines.labels.boxes import Instances
from engines.labels.rules import Rules, chosen, drop_reason, is_label, is_rule, is_uncertain, label_rules, quality

NAMES = ("a", "b")
Row = list[float]


def box(score: float, label: int = 0, left: float = 0.0) -> Row:
    return [left, 0.0, left + 10.0, 10.0, score, label]


def of(*boxes: Row) -> Instances:
    return Instances.from_rows(boxes)


def labels_of(boxes: Sequence[Row], rules: Rules) -> list[Row]:
    return of(*boxes).take(is_label(of(*boxes), rules)).to_rows()


def uncertain_of(boxes: Sequence[Row], rules: Rules) -> list[Row]:
    return of(*boxes).take(is_uncertain(of(*boxes), rules)).to_rows()


def test_each_class_has_its_own_threshold() -> None:
    boxes = [box(0.5), box(0.5, 1), box(0.35), box(0.35, 1)]
    assert labels_of(boxes, Rules({"a": 0.3, "b": 0.4}, NAMES)) == [boxes[0], boxes[1], boxes[2]]
    assert labels_of(boxes, Rules(0.4, NAMES)) == boxes[:2]
    assert labels_of([], Rules(0.4, NAMES)) == labels_of([], Rules(0.4, NAMES, max_overlap=0.5)) == []


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


def test_a_file_holds_the_labels_and_then_as_crowds_what_is_uncertain() -> None:
    rules = Rules(0.5, NAMES, uncertain=0.1, max_overlap=0.5)
    doubt, sure, double, nothing, other = box(0.3, 1, 40), box(0.9), box(0.6, 0, 2.0), box(0.05, 0, 60), box(0.5, 1, 80)
    kept = chosen(of(doubt, sure, double, nothing, other), rules)
    assert kept.to_rows() == [sure, other, doubt]
    assert kept.crowd.tolist() == [False, False, True]
    assert chosen(Instances.none(), rules) == Instances.none()
    every = replace(of(doubt, sure), crowd=np.array([False, True]))
    assert chosen(every, None) is every


def test_boxes_of_a_network_and_of_a_file_are_chosen_alike() -> None:
    rules = Rules({"a": 0.5, "b": 0.7}, NAMES, uncertain=0.1, max_overlap=0.5)
    rng = np.random.default_rng(4)
    corners = rng.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 30, (200, 2))], axis=1).astype(np.float32)
    network = Instances.of(boxes, rng.integers(0, 2, 200), rng.uniform(0, 1, 200).astype(np.float32))
    file = Instances.from_rows(network.to_rows())
    assert network.boxes.dtype == np.float32
    assert file.boxes.dtype == np.float64
    assert 0 < is_label(network, rules).sum() < (network.scores >= np.array([0.5, 0.7])[network.labels]).sum()
    assert is_uncertain(network, rules).any()
    assert np.array_equal(is_label(network, rules), is_label(file, rules))
    assert np.array_equal(is_uncertain(network, rules), is_uncertain(file, rules))


def test_classes_without_a_score_of_their_own_take_the_adapters() -> None:
    rules = label_rules({"b": 0.4}, 0.2, 0.5, {"a": 0.6, "b": 0.9}, NAMES)
    assert (rules.scores, rules.uncertain, rules.max_overlap) == ((0.6, 0.4), 0.2, 0.5)
    with pytest.raises(UsageError):
        label_rules({"c": 0.4}, 0.0, 1.0, {}, NAMES)
    with pytest.raises(UsageError):
        label_rules(0.4, 0.5, 1.0, {}, NAMES)


def test_quality_is_the_mean_score_weighted_by_itself_and_knows_no_threshold() -> None:
    assert quality(of(box(0.9), box(0.9))) == pytest.approx(0.9)
    assert quality(of(box(0.8), box(0.2))) == pytest.approx((0.64 + 0.04) / 1.0)
    assert quality(Instances.none()) == 1.0
    assert quality(of(box(0.8), *[box(0.05)] * 4)) > quality(of(box(0.8), *[box(0.2)] * 4)), "a hint less, a doubt more"


def test_reasons_to_drop_an_image() -> None:
    sure, doubtful = of(box(0.9)), of(box(0.4), box(0.4), box(0.3, 1))
    assert drop_reason(sure, Rules(0.3, NAMES)) is None
    assert drop_reason(sure, Rules(0.95, NAMES)) == "no box scores 0.95"
    assert drop_reason(sure, Rules({"a": 0.95, "b": 0.3}, NAMES)) == "no box scores what its class needs"
    assert drop_reason(sure, Rules(0.95, NAMES, keep_empty=True)) is None
    for keep_empty in (False, True):
        strict = Rules(0.3, NAMES, min_quality=0.5, keep_empty=keep_empty)
        assert drop_reason(doubtful, strict) == "doubtful labels: quality below 0.5"
        assert drop_reason(sure, strict) is None
    assert drop_reason(Instances.none(), Rules(0.3, NAMES, min_quality=0.5, keep_empty=True)) is None


def test_reasons_of_rules_are_told_from_images_that_could_not_be_painted() -> None:
    assert is_rule("no box scores 0.3")
    assert is_rule("doubtful labels: quality below 0.5")
    assert not is_rule("broken reference: 1.png is no image")
    assert not is_rule("/data/1.png is a broken image")
