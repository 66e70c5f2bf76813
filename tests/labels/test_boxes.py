"""Instances: what stays with its box through cutting, mirroring, turning, choosing and writing."""

import doctest
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import supervision as sv

from engines.labels import boxes as module
from engines.labels.boxes import Instances, join

WIDTH, HEIGHT = 12, 8
CORNERS = ((1, 2, 4, 6), (5, 0, 12, 3), (0, 0, 12, 8))


def some(**changes: object) -> Instances:
    """Three objects in an image of WIDTH x HEIGHT, the last of which is a crowd."""
    found = Instances.of(CORNERS, [2, 0, 1], [0.9, 0.5, 0.25], [False, False, True])
    return replace(found, **changes)  # type: ignore[arg-type]


def masked() -> Instances:
    """The same with masks that fill their boxes."""
    masks = np.zeros((len(CORNERS), HEIGHT, WIDTH), dtype=np.bool_)
    for mask, (x0, y0, x1, y1) in zip(masks, CORNERS, strict=True):
        mask[y0:y1, x0:x1] = True
    return some(masks=masks)


def masks_of(found: Instances) -> npt.NDArray[np.bool_]:
    assert found.masks is not None
    return found.masks


def boxes_round(masks: npt.NDArray[np.bool_]) -> list[list[int]]:
    places = [np.argwhere(mask) for mask in masks]
    return [[*place.min(axis=0)[::-1].tolist(), *(place.max(axis=0)[::-1] + 1).tolist()] for place in places]


def test_what_is_left_out_is_filled_in_and_lists_become_float32() -> None:
    found = Instances.of([[0, 0, 10, 20], [1, 2, 3, 4]], [1, 0])
    assert len(found) == 2
    assert found.scores.tolist() == [1, 1]
    assert found.crowd.tolist() == [False, False]
    assert found.masks is None
    assert [array.dtype for array in (found.boxes, found.labels, found.scores, found.crowd)] == [
        np.float32, np.int64, np.float32, np.bool_
    ]  # fmt: skip
    assert found.boxes.shape == (2, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_numbers_keep_their_precision(dtype: type) -> None:
    found = Instances.of(np.array([[0.1, 0.2, 0.3, 0.4]], dtype), [0], np.array([0.7], dtype))
    assert found.boxes.dtype == found.scores.dtype == dtype
    assert Instances.of(np.array([[1, 2, 3, 4]]), np.array([0], dtype=np.int32)).boxes.dtype == np.float32


@pytest.mark.parametrize("found", [Instances.none(), Instances.of([], []), Instances.from_rows([])])
def test_an_image_without_objects(found: Instances) -> None:
    assert len(found) == 0
    assert found == Instances.none()
    assert (found.boxes.shape, found.labels.shape, found.scores.shape, found.crowd.shape) == ((0, 4), (0,), (0,), (0,))
    assert found.clip((4, 4)) == found.mirror(4) == found.rotate(4) == found.moved((1, 1), 2.0) == found
    assert found.single == found.crowds == found.take([]) == join([found, found]) == found
    assert found.to_rows() == []


@pytest.mark.parametrize(
    ("labels", "scores", "crowd"),
    [([0], None, None), ([0, 0, 0], None, None), ([0, 0], [0.5], None), ([0, 0], None, [True, False, True])],
)
def test_lengths_that_differ_are_refused(
    labels: list[int], scores: list[float] | None, crowd: list[bool] | None
) -> None:
    with pytest.raises(ValueError, match="2 boxes"):
        Instances.of([[0, 0, 1, 1], [0, 0, 2, 2]], labels, scores, crowd)


def test_rows_come_back_with_every_digit() -> None:
    rows = [[0.1, 1.25, 10.5, 20.0, 0.9876, 2], [1 / 3, 3.0, 4.0, 4.0, 0.05, 0]]
    found = Instances.from_rows(rows)
    assert found.to_rows() == rows
    assert [type(value) for value in found.to_rows()[0]] == [float] * 5 + [int]
    assert found.boxes.dtype == found.scores.dtype == np.float64
    single = some().single
    assert Instances.from_rows(single.to_rows()) == single, "float32 is held exactly, too"
    assert not Instances.from_rows(some().to_rows()).crowd.any(), "which are crowds is not in rows"


@pytest.mark.parametrize(
    "rows",
    [
        [[]],
        [[0, 0, 1, 1, 0.5]],
        [[0, 0, 1, 1, 0.5, 0, 0]],
        [[0, 0, 1, 1, 0.5, 0], [0, 0, 1]],
        [[0, 0, 1, 1, 0.5, float("nan")]],
        [[0, 0, float("inf"), 1, 0.5, 0]],
    ],
)
def test_rows_that_are_not_six_numbers_are_refused(rows: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"not rows|inhomogeneous"):
        Instances.from_rows(rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"boxes": some().boxes + 1},
        {"labels": np.array([2, 0, 2])},
        {"scores": np.array([0.9, 0.5, 0.26])},
        {"crowd": np.zeros(3, dtype=np.bool_)},
        {"masks": masked().masks},
    ],
)
def test_instances_are_equal_where_all_arrays_are(changes: dict[str, object]) -> None:
    assert some() == some() == some(boxes=some().boxes.astype(np.float64))
    assert masked() == masked()
    assert some() != some(**changes)
    assert some() != some().take([0, 1])
    assert some() != CORNERS


def test_instances_have_no_hash_because_arrays_can_change() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(some())


@pytest.mark.parametrize(
    "rows", [[2, 0], np.array([2, 0]), [True, False, True], np.array([True, False, True]), [0, 0, 1], []]
)
def test_what_is_taken_keeps_its_label_score_crowd_and_mask(
    rows: list[int] | list[bool] | npt.NDArray[np.int64] | npt.NDArray[np.bool_],
) -> None:
    numbers = np.arange(3)[np.array(rows, dtype=None if len(rows) else np.int64)].tolist()
    taken = masked().take(rows)
    assert len(taken) == len(numbers)
    for place, number in enumerate(numbers):
        assert taken.boxes[place].tolist() == list(CORNERS[number])
        assert taken.labels[place] == (2, 0, 1)[number]
        assert taken.scores[place] == np.float32((0.9, 0.5, 0.25)[number])
        assert taken.crowd[place] == (number == 2)
        assert np.array_equal(masks_of(taken)[place], masks_of(masked())[number])


def test_crowds_and_the_others_are_told_apart() -> None:
    assert some().single == some().take([0, 1])
    assert some().crowds == some().take([2])
    assert join([some().single, some().crowds]) == some()


def test_boxes_are_moved_and_then_scaled() -> None:
    moved = masked().moved((1, 2), [2, 10, 2, 10])
    assert moved.boxes.tolist() == [[0, 0, 6, 40], [8, -20, 22, 10], [-2, -20, 22, 60]]
    assert moved.masks is None, "they are of another picture"
    assert replace(moved, boxes=some().boxes) == some(), "all else stays"
    assert some().moved((0.5, 0), 4).boxes[0].tolist() == [2, 8, 14, 24]
    assert some().moved((-1, -1)).boxes.tolist() == (some().boxes + 1).tolist()
    assert some().moved((0.1, 0.1), 0.3).boxes.dtype == np.float32


def test_what_lies_outside_is_cut_and_what_is_hardly_seen_is_gone() -> None:
    rows: list[list[float]] = [
        [-2, -2, 2, 2],
        [1, 1, 3, 3],
        [3, 3, 9, 9],
        [4.5, 0, 5, 5],
        [-9, -9, -1, -1],
        [9, 9, 12, 12],
    ]
    found = Instances.of(rows, range(6), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [False, True] * 3)
    cut = found.clip((5, 4))
    assert cut.labels.tolist() == [0, 1, 2, 3]
    assert cut.boxes.tolist() == [[0, 0, 2, 2], [1, 1, 3, 3], [3, 3, 5, 4], [4.5, 0, 5, 4]]
    assert cut.crowd.tolist() == [False, True, False, True]
    assert np.allclose(cut.scores, [0.9, 0.8, 0.7, 0.6])
    assert found.clip((5, 4), 0.25).labels.tolist() == [0, 1, 3], "a quarter, all and four fifths; not 2 of 36 pixels"
    assert found.clip((5, 4), 0.9).labels.tolist() == [1]
    assert len(Instances.of([[0, 0, 1, 1]], [0]).clip((5, 4))) == 0, "one pixel is nothing to see"
    assert masked().clip((12, 8)).masks is None
    assert some().clip((12, 8), 1.0) == some()


def test_boxes_and_masks_are_mirrored_with_their_picture() -> None:
    mirrored = masked().mirror(WIDTH)
    assert mirrored.boxes.tolist() == [[8, 2, 11, 6], [0, 0, 7, 3], [0, 0, 12, 8]]
    assert np.array_equal(masks_of(mirrored)[0], np.fliplr(masks_of(masked())[0]))
    assert boxes_round(masks_of(mirrored)) == mirrored.boxes.tolist()
    assert mirrored.mirror(WIDTH) == masked()
    assert some().mirror(WIDTH).masks is None


def test_boxes_and_masks_are_turned_with_their_picture() -> None:
    turned = masked().rotate(WIDTH)
    assert turned.boxes.tolist() == [[2, 8, 6, 11], [0, 0, 3, 7], [0, 0, 8, 12]]
    assert np.array_equal(masks_of(turned)[0], np.rot90(masks_of(masked())[0]))
    assert masks_of(turned).shape == (3, WIDTH, HEIGHT)
    assert boxes_round(masks_of(turned)) == turned.boxes.tolist()
    assert turned.rotate(HEIGHT).rotate(WIDTH).rotate(HEIGHT) == masked()
    assert some().rotate(WIDTH).masks is None


def test_joined_they_are_in_order_and_without_masks() -> None:
    both = join([masked().take([1]), some().crowds, Instances.from_rows([[0.1, 0, 1, 1, 0.3, 5]])])
    assert both.boxes.tolist() == [[5, 0, 12, 3], [0, 0, 12, 8], [0.1, 0, 1, 1]]
    assert both.labels.tolist() == [0, 1, 5]
    assert both.scores.tolist() == [0.5, 0.25, 0.3]
    assert both.crowd.tolist() == [False, True, False]
    assert both.masks is None
    assert join([]) == Instances.none()


def test_every_class_is_counted_by_name() -> None:
    found = join([some(), some().take([0])])
    assert found.count(("a", "b", "c", "d")) == {"a": 1, "b": 1, "c": 2, "d": 0}


def test_supervision_has_the_same() -> None:
    theirs = masked().to_supervision()
    assert isinstance(theirs, sv.Detections)
    assert len(theirs) == 3
    assert theirs.xyxy.tolist() == [list(corners) for corners in CORNERS]
    assert theirs.class_id.tolist() == [2, 0, 1]
    assert np.allclose(theirs.confidence, [0.9, 0.5, 0.25])
    assert np.array_equal(theirs.mask, masks_of(masked()))
    assert theirs.data["iscrowd"].tolist() == [False, False, True]
    assert theirs.box_area.tolist() == module.areas(some().boxes).tolist()
    assert len(theirs[~theirs.data["iscrowd"]]) == len(some().single)
    assert len(some().to_supervision().with_nms(threshold=0.1)) == 3, "of different classes"
    assert len(Instances.none().to_supervision()) == 0


def test_overlaps_are_those_of_supervision() -> None:
    rng = np.random.default_rng(0)
    first, second = (
        Instances.of(np.concatenate([corners, corners + sides], axis=1), np.zeros(len(corners)))
        for corners, sides in ((rng.uniform(0, 9, (n, 2)), rng.uniform(1, 9, (n, 2))) for n in (5, 7))
    )
    expected = sv.box_iou_batch(first.to_supervision().xyxy, second.to_supervision().xyxy)
    assert 0 < expected.max() < 1
    np.testing.assert_allclose(module.iou_matrix(first.boxes, second.boxes), expected, atol=1e-5)


def test_the_examples_in_the_docstrings_hold() -> None:
    results = doctest.testmod(module)
    assert (results.failed, results.attempted > 0) == (0, True)
