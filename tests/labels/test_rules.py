"""What the numbers of one image make of it: labels, ignore regions, and reasons to drop it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engines.errors import UsageError
from engines.labels.boxes import Instances
from engines.labels.rules import (
    Drop,
    DropReason,
    Rules,
    chosen,
    drop,
    is_ignored,
    is_label,
    label_rules,
    quality,
)
from engines.labels.scores import FALLBACK

NAMES = ("a", "b")
Row = list[float]


def box(score: float, label: int = 0, left: float = 0.0) -> Row:
    return [left, 0.0, left + 10.0, 10.0, score, label]


def of(*boxes: Row) -> Instances:
    return Instances.from_rows(boxes)


def rules_from(score: float, **changes: Any) -> Rules:
    """Rules with one threshold for both classes."""
    return Rules(dict.fromkeys(NAMES, score), **changes)


def labels_of(boxes: Sequence[Row], rules: Rules) -> list[Row]:
    return of(*boxes).take(is_label(of(*boxes), rules)).to_rows()


def ignored_of(boxes: Sequence[Row], rules: Rules) -> list[Row]:
    return of(*boxes).take(is_ignored(of(*boxes), rules)).to_rows()


def test_each_class_has_its_own_threshold() -> None:
    boxes = [box(0.5), box(0.5, 1), box(0.35), box(0.35, 1)]
    assert labels_of(boxes, Rules({"a": 0.3, "b": 0.4})) == [boxes[0], boxes[1], boxes[2]]
    assert labels_of(boxes, rules_from(0.4)) == boxes[:2]
    assert labels_of([], rules_from(0.4)) == labels_of([], rules_from(0.4, max_overlap=0.5)) == []


def test_of_two_labels_of_a_class_that_overlap_too_much_the_surer_stays() -> None:
    weak, sure, other, beside = box(0.6), box(0.9, 0, 2.0), box(0.5, 1, 2.0), box(0.7, 0, 8.0)  # IoU 0.67, 1 and 0.25
    boxes = [weak, sure, other, beside]
    assert labels_of(boxes, rules_from(0.3)) == boxes
    assert labels_of(boxes, rules_from(0.3, max_overlap=0.5)) == [sure, other, beside]
    assert labels_of(boxes, rules_from(0.3, max_overlap=0.2)) == [sure, other]
    assert labels_of(boxes, rules_from(0.3, max_overlap=0.7)) == boxes
    assert labels_of(boxes[:1], rules_from(0.3, max_overlap=0.5)) == [weak]


def test_boxes_between_the_low_and_the_accepting_threshold_are_ignored() -> None:
    boxes = [box(0.9), box(0.35, 0, 20), box(0.35, 1, 40), box(0.2, 1, 60), box(0.19, 1, 80)]
    rules = Rules({"a": 0.3, "b": 0.4}, ignore_score=0.2)
    assert ignored_of(boxes, rules) == [boxes[2], boxes[3]]
    assert ignored_of(boxes, Rules({"a": 0.3, "b": 0.4})) == []
    assert ignored_of(boxes[3:4], rules) == boxes[3:4], "without a label beside it, too"


def test_another_try_at_a_labelled_object_is_not_ignored() -> None:
    rules = rules_from(0.5, ignore_score=0.1)
    sure, again, beside = box(0.9), box(0.3, 1, left=3.0), box(0.3, 0, left=4.0)  # IoU 0.54 and 0.43
    assert ignored_of([sure, again, beside], rules) == [beside]


def test_a_file_holds_the_labels_and_then_as_crowds_what_is_ignored() -> None:
    rules = rules_from(0.5, ignore_score=0.1, max_overlap=0.5)
    doubt, sure, double, nothing, other = box(0.3, 1, 40), box(0.9), box(0.6, 0, 2.0), box(0.05, 0, 60), box(0.5, 1, 80)
    kept = chosen(of(doubt, sure, double, nothing, other), rules)
    assert kept.to_rows() == [sure, other, doubt]
    assert kept.crowd.tolist() == [False, False, True]
    assert chosen(Instances.none(), rules) == Instances.none()
    every = replace(of(doubt, sure), crowd=np.array([False, True]))
    assert chosen(every, None) is every


def test_boxes_of_a_network_and_of_a_file_are_chosen_alike() -> None:
    rules = Rules({"a": 0.5, "b": 0.7}, ignore_score=0.1, max_overlap=0.5)
    rng = np.random.default_rng(4)
    corners = rng.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 30, (200, 2))], axis=1).astype(np.float32)
    network = Instances.of(boxes, rng.integers(0, 2, 200), rng.uniform(0, 1, 200).astype(np.float32))
    file = Instances.from_rows(network.to_rows())
    assert network.boxes.dtype == np.float32
    assert file.boxes.dtype == np.float64
    assert 0 < is_label(network, rules).sum() < (network.scores >= np.array([0.5, 0.7])[network.labels]).sum()
    assert is_ignored(network, rules).any()
    assert np.array_equal(is_label(network, rules), is_label(file, rules))
    assert np.array_equal(is_ignored(network, rules), is_ignored(file, rules))


def test_classes_without_a_score_of_their_own_take_the_adapters() -> None:
    rules = label_rules({"b": 0.4}, 0.2, 0.5, {"a": 0.6, "b": 0.9}, NAMES)
    assert rules == Rules({"a": 0.6, "b": 0.4}, 0.2, max_overlap=0.5)
    assert label_rules("adapter", 0.0, 1.0, {"a": 0.6}, NAMES) == Rules({"a": 0.6, "b": FALLBACK})
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
    assert drop(sure, rules_from(0.3)) is None
    assert drop(sure, rules_from(0.95)) == Drop(DropReason.NO_BOX, "no box scores 0.95")
    of_class = Rules({"a": 0.95, "b": 0.3})
    assert drop(sure, of_class) == Drop(DropReason.NO_BOX, "no box scores what its class needs")
    assert drop(sure, rules_from(0.95, keep_empty=True)) is None
    for keep_empty in (False, True):
        strict = rules_from(0.3, min_quality=0.5, keep_empty=keep_empty)
        assert drop(doubtful, strict) == Drop(DropReason.DOUBTFUL, "doubtful labels: quality below 0.5")
        assert drop(sure, strict) is None
    assert drop(Instances.none(), rules_from(0.3, min_quality=0.5, keep_empty=True)) is None
    assert drop(doubtful, rules_from(0.5, min_quality=0.5)) == Drop(DropReason.NO_BOX, "no box scores 0.5"), "first"


def test_reasons_of_rules_are_told_from_those_that_no_rule_takes_back() -> None:
    assert {reason for reason in DropReason if reason.by_rule} == {DropReason.NO_BOX, DropReason.DOUBTFUL}


def test_thresholds_are_in_the_order_of_the_labels() -> None:
    rules = Rules({"b": 0.25, "a": 0.5})
    assert rules.class_names == ("b", "a")
    assert rules.least(np.array([1, 0, 1])).tolist() == [0.5, 0.25, 0.5]
    assert rules.least(np.zeros(0, np.int64)).tolist() == []


GIVEN = Instances.of(
    np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10.0]]), [0, 1, 0], np.ones(3), [False, False, True]
)
SEEN = Instances.of(
    # On the first, weak and of another class; on nothing, sure; on the second, too little; on the crowd, sure.
    np.array([[0, 0, 10, 9], [60, 0, 70, 10], [20, 0, 24, 10], [41, 1, 49, 9.0]]), [1, 0, 1, 0],
    np.array([0.12, 0.9, 0.9, 0.8]),
)  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("adapter", [(60, False), (20, False), (41, False)]),
        ("reference", [(0, False), (20, False), (40, True)]),
        ("both", [(0, False), (20, True), (40, True), (60, False)]),
    ],
)
def test_labels_are_the_adapters_the_references_or_both(labels: str, expected: list[tuple[int, bool]]) -> None:
    rules = Rules({"a": 0.3, "b": 0.3}, labels=labels)
    found = chosen(SEEN, rules, GIVEN)
    assert [
        (round(box[0]), bool(crowd)) for box, crowd in zip(found.boxes.tolist(), found.crowd, strict=True)
    ] == expected


def test_an_image_whose_given_labels_are_all_vetoed_is_dropped() -> None:
    nothing = Instances.of(np.zeros((0, 4)), [], np.zeros(0))
    vetoed = drop(nothing, Rules({"a": 0.3, "b": 0.3}, labels="both"), GIVEN)
    assert vetoed is not None
    assert vetoed.reason is DropReason.NO_BOX
    assert drop(nothing, Rules({"a": 0.3, "b": 0.3}, labels="reference"), GIVEN) is None
