"""A reference's own boxes, moved with its picture."""

import numpy as np

from engines.composing.given import moved
from engines.labels.boxes import Instances

FOUND = Instances.of([[10, 10, 30, 20], [0, 0, 8, 8], [40, 5, 60, 25]], [0, 1, 0])


def test_boxes_move_with_crop_scale_and_mirror() -> None:
    crop, frame = (10.0, 0.0, 60.0, 25.0), (100, 50)
    there = moved(FOUND, crop, False, frame, (2, 1))
    assert there.boxes.tolist() == [[0, 20, 40, 40], [60, 10, 100, 50]]
    assert there.labels.tolist() == [2, 2]
    assert there.boxes.dtype == np.float64
    mirrored = moved(FOUND, crop, True, frame, (2, 1))
    assert mirrored.boxes.tolist() == [[60, 20, 100, 40], [0, 10, 40, 50]]


def test_an_object_of_which_little_is_left_is_a_region_to_ignore() -> None:
    there = moved(FOUND, (25.0, 0.0, 54.0, 25.0), False, (58, 50), (0, 1))
    assert there.crowd.tolist() == [True, False]  # a quarter of one is there, 14 of 20 pixels of the other
    assert there.boxes.tolist() == [[0, 20, 10, 40], [30, 10, 58, 50]]


def test_crowds_stay_crowds_and_slivers_go() -> None:
    boxes = np.array([[0.0, 0.0, 20.0, 20.0], [19.7, 0.0, 40.0, 20.0]])
    found = Instances.of(boxes, [0, 0], crowd=[True, False])
    there = moved(found, (0.0, 0.0, 20.0, 20.0), False, (20, 20), (0,))
    assert there.crowd.tolist() == [True]
    assert there.boxes.tolist() == [[0, 0, 20, 20]]


def test_an_image_without_boxes_has_none() -> None:
    assert len(moved(Instances.none(), (0.0, 0.0, 5.0, 5.0), True, (10, 10), ())) == 0
