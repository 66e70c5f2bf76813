"""Thresholds that labels reach a wanted precision with, chosen on annotated images."""

import numpy as np
import pytest

from engines.labels.boxes import Instances, join
from engines.labels.thresholds import LEAST_BOXES, choose_thresholds, matched, precision_and_recall

WIDTH = 10.0


def at(places: list[int], shift: float = 0.0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    left = 20.0 * np.array(places, dtype=np.float32).reshape(-1, 1) + shift
    return np.concatenate([left, 0 * left, left + WIDTH, 0 * left + WIDTH], axis=1).astype(np.float32)


def annotated(places: list[int], labels: list[int] | None = None, crowds: list[bool] | None = None) -> Instances:
    """Boxes in a row, ten pixels wide, twenty apart."""
    return Instances.of(at(places), labels or [0] * len(places), crowd=crowds)


def found(places: list[int], scores: list[float], label: int = 0, shift: float = 0.0) -> Instances:
    return Instances.of(at(places, shift), np.full(len(places), label), scores)


def test_the_lowest_threshold_that_reaches_the_goal_is_taken() -> None:
    truth = annotated(list(range(20)))
    right = found(list(range(20)), [0.9] * 12 + [0.4] * 8)
    wrong = found([50, 51, 52, 53, 54, 55], [0.45, 0.41, 0.35, 0.3, 0.2, 0.1])
    both = join([right, wrong])
    choice = choose_thresholds([truth], [both], ("a",), 0.9)["a"]
    assert (choice.boxes, choice.score) == (20, 0.38)  # 20 of 22 are right from 0.36 to 0.40; at 0.35 20 of 23
    assert choice.precision == pytest.approx(20 / 22)
    assert choice.recall == 1.0
    strict = choose_thresholds([truth], [both], ("a",), 0.95)["a"]
    assert (strict.score, strict.recall) == (0.68, 12 / 20)  # in the middle of 0.46 to 0.90


def test_classes_are_chosen_apart_and_too_few_boxes_choose_nothing() -> None:
    few = LEAST_BOXES - 1
    truth = [annotated(list(range(20))), annotated(list(range(few)), [1] * few)]
    detections = [found(list(range(20)), [0.6] * 20), found(list(range(few)), [0.9] * few, label=1)]
    chosen = choose_thresholds(truth, detections, ("a", "b", "c"), 0.9)
    assert chosen["a"].score == 0.32  # in the middle of 0.05 to 0.60
    assert (chosen["b"].boxes, chosen["b"].score) == (few, None)
    assert (chosen["c"].boxes, chosen["c"].score) == (0, None)


def test_where_the_goal_is_out_of_reach_the_most_precise_threshold_with_enough_boxes_is_taken() -> None:
    truth = annotated(list(range(20)))
    places, scores = [*range(10), *range(50, 60)], [0.8] * 5 + [0.5] * 5 + [0.6] * 5 + [0.2] * 5
    choice = choose_thresholds([truth], [found(places, scores)], ("a",), 0.9)["a"]
    assert choice.score == 0.35  # 10 of 15 from 0.21 to 0.50; then 5 of 10, and above 0.6 too few to believe
    assert choice.precision == pytest.approx(10 / 15)
    assert choose_thresholds([truth], [found([], [])], ("a",), 0.9)["a"].score is None


def test_a_surer_threshold_within_a_standard_error_of_the_recall_is_taken() -> None:
    truth = annotated(list(range(100)))
    right = found(list(range(96)), [0.8] * 92 + [0.3] * 2 + [0.1] * 2)
    choice = choose_thresholds([truth], [right], ("a",), 0.9)["a"]
    assert (choice.score, choice.recall) == (0.2, 0.94)  # the error at 96 of 100 is 2.2 boxes; 0.92 would be four fewer
    wrong = found([150, 151, 152], [0.25, 0.25, 0.9])
    choice = choose_thresholds([truth], [join([right, wrong])], ("a",), 0.9)["a"]
    assert choice.precision == pytest.approx(94 / 95)


def test_no_images_choose_nothing() -> None:
    assert choose_thresholds([], [], ("a",), 0.9)["a"].score is None


def test_an_annotated_box_is_found_once_by_the_better_detection() -> None:
    scores, right = matched(annotated([0, 1]), found([0, 0, 1], [0.5, 0.9, 0.3], shift=1.0), 0)
    assert scores.tolist() == pytest.approx([0.9, 0.5, 0.3])
    assert right.tolist() == [True, False, True]


def test_boxes_that_overlap_too_little_or_have_another_class_are_wrong_and_crowds_are_neither() -> None:
    assert matched(annotated([0]), found([0], [0.9], shift=4.0), 0)[1].tolist() == [False]
    assert matched(annotated([0], [1]), found([0], [0.9]), 0)[1].tolist() == [False]
    assert matched(annotated([0], [0], [True]), found([0, 0, 5], [0.9, 0.8, 0.7]), 0)[1].tolist() == [False]


def test_precision_and_recall_are_of_each_class_and_leave_crowds_out() -> None:
    truth = annotated([0, 1, 2, 3], labels=[0, 0, 1, 0], crowds=[False, False, False, True])
    both = Instances.of(at([0, 9, 3, 2]), [0, 0, 0, 1], [0.9, 0.8, 0.7, 0.5])
    figures = precision_and_recall([truth], [both], ("a", "b", "c"))
    assert figures == {"precision/a": 0.5, "recall/a": 0.5, "precision/b": 1.0, "recall/b": 1.0}
    assert precision_and_recall([truth], [found([], [])], ("a",)) == {"recall/a": 0.0}
