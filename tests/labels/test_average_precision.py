"""COCO's average precision."""

import numpy as np
import pytest

from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances

NAMES = ("rbc", "wbc", "platelets")


def _truth(rows: list[tuple[float, float, float, float, int]], crowd: tuple[int, ...] = ()) -> Instances:
    table = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return Instances.of(table[:, :4], table[:, 4], crowd=[i in crowd for i in range(len(rows))])


def _found(rows: list[tuple[float, float, float, float, int, float]]) -> Instances:
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return Instances.of(table[:, :4], table[:, 4], table[:, 5])


def test_perfect_detections_score_one() -> None:
    truth = [_truth([(0, 0, 10, 10, 0), (20, 20, 60, 60, 1)]), _truth([(5, 5, 30, 30, 0)])]
    found = [_found([(0, 0, 10, 10, 0, 0.9), (20, 20, 60, 60, 1, 0.8)]), _found([(5, 5, 30, 30, 0, 0.7)])]
    figures = mean_average_precision(truth, found, NAMES)
    assert figures["AP"] == figures["AP50"] == figures["AP75"] == pytest.approx(1.0)
    assert figures["AP50/rbc"] == pytest.approx(1.0)
    assert "AP/platelets" not in figures, "a class without annotations has no AP"


def test_a_box_off_by_a_fifth_counts_at_50_but_not_at_75() -> None:
    # IoU = 8 / 12 = 0.667: right at 0.50, 0.55, 0.60 and 0.65.
    figures = mean_average_precision([_truth([(0, 0, 10, 10, 0)])], [_found([(2, 0, 12, 10, 0, 0.9)])], NAMES)
    assert figures["AP50"] == pytest.approx(1.0)
    assert figures["AP75"] == pytest.approx(0.0)
    assert figures["AP"] == pytest.approx(0.4)


def test_a_wrong_class_and_a_missed_box_cost() -> None:
    truth = [_truth([(0, 0, 10, 10, 0), (20, 20, 60, 60, 1)])]
    figures = mean_average_precision(truth, [_found([(0, 0, 10, 10, 1, 0.9), (20, 20, 60, 60, 1, 0.8)])], NAMES)
    assert figures["AP50/rbc"] == pytest.approx(0.0)
    assert figures["AP50/wbc"] == pytest.approx(0.5, abs=0.01)
    assert figures["AP50"] == pytest.approx(0.25, abs=0.01)


def test_crowds_are_neither_missed_nor_wrong() -> None:
    truth = [_truth([(0, 0, 10, 10, 0), (50, 50, 90, 90, 0)], crowd=(1,))]
    found = [_found([(0, 0, 10, 10, 0, 0.9), (55, 55, 80, 80, 0, 0.95)])]
    assert mean_average_precision(truth, found, NAMES)["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("rows", [[], [(0, 0, 10, 10, 0)]])
def test_no_detections_at_all_score_zero(rows: list[tuple[float, float, float, float, int]]) -> None:
    figures = mean_average_precision([_truth(rows)], [_found([])], NAMES)
    assert figures["AP"] == figures["AP50"] == 0.0
