"""Augmented frames: the boxes stay on the pixels."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from engines.common.rng import generator
from engines.labels.boxes import Instances
from engines.training.augment import FrameOptions, draw_frame, shift_colours

RED = (255, 0, 0)
BOX = np.array([[40, 60, 72, 80]], dtype=np.float32)
FOUND = Instances.of(BOX, [0])
PLAIN = FrameOptions(width=64, height=48, short_side=96, scale=(1.0, 1.0), flips=False, colour=0.0)


def _painted(width: int = 128, height: int = 96) -> npt.NDArray[np.uint8]:
    image = np.full((height, width, 3), 30, dtype=np.uint8)
    x0, y0, x1, y1 = BOX[0].astype(int)
    image[y0:y1, x0:x1] = RED
    return image


def _red_box(pixels: npt.NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    rows, columns = np.nonzero(pixels[:, :, 0] > 140)
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (80, 80), (160, 128)])
def test_a_box_follows_its_pixels_through_every_augmentation(size: tuple[int, int], rotate: bool) -> None:
    options = FrameOptions(*size, short_side=90, scale=(0.7, 1.4), rotate=rotate, colour=0.0, min_visible=0.3)
    seen = 0
    for number in range(40):
        view = draw_frame(_painted(), Instances.of(BOX, [2]), options, generator(5, number))
        assert view.pixels.shape == (size[1], size[0], 3)
        assert len(view.instances.boxes) == len(view.instances.labels) == len(view.instances)
        if len(view.instances) == 0:
            continue
        seen += 1
        found = _red_box(view.pixels)
        assert found is not None
        # Edge padding may carry the red on; it then touches the frame's right or lower side.
        inside = [i for i in range(4) if i < 2 or found[i] < (size[0], size[1])[i - 2]]
        assert np.abs(view.instances.boxes[0] - found)[inside].max() <= 1.5, f"draw {number}"
        assert view.instances.labels.tolist() == [2]
    assert seen >= 8


def test_a_frame_larger_than_the_image_is_padded_right_and_below_with_its_edge() -> None:
    options = replace(PLAIN, width=160, height=128)
    image = _painted()
    image[:, -1] = (0, 200, 0)
    view = draw_frame(image, FOUND, options, generator(0))
    assert np.array_equal(view.pixels[:96, :128], image)
    assert (view.pixels[:96, 128:] == (0, 200, 0)).all()
    assert np.array_equal(view.pixels[96:, :128], np.repeat(image[-1:], 32, axis=0))
    assert np.allclose(view.instances.boxes, BOX)


def test_boxes_mostly_cut_away_are_dropped() -> None:
    options = replace(PLAIN, width=32, height=32, min_visible=0.9)
    kept = [len(draw_frame(_painted(), FOUND, options, generator(1, i)).instances) for i in range(30)]
    everything = replace(options, min_visible=0.01)
    loose = [len(draw_frame(_painted(), FOUND, everything, generator(1, i)).instances) for i in range(30)]
    assert sum(kept) < sum(loose)


def test_crowds_go_with_the_pixels_as_boxes_do() -> None:
    options = FrameOptions(64, 48, short_side=90, rotate=True, colour=0.0)
    twice = Instances.of(np.concatenate([BOX, BOX]), [1, 2], crowd=[True, False])
    seen = 0
    for number in range(20):
        view = draw_frame(_painted(), twice, options, generator(7, number))
        single, crowds = view.instances.single, view.instances.crowds
        if len(single):
            seen += 1
            assert crowds.boxes.tolist() == single.boxes.tolist()
            assert (crowds.labels.tolist(), single.labels.tolist()) == ([1], [2])
    assert seen > 5
    large = Instances.of([[-1000.0, -1000.0, 2000.0, 2000.0]], [1], crowd=[True])
    view = draw_frame(_painted(), large, options, generator(8))
    assert view.instances.crowds.boxes.tolist() == [[0, 0, 64, 48]], (
        "what is seen of a crowd stays one, however small a part of it"
    )


def test_turns_of_a_frame_that_is_not_square_are_half_turns() -> None:
    options = replace(PLAIN, width=128, height=96, rotate=True)
    found = {tuple(draw_frame(_painted(), FOUND, options, generator(2, i)).instances.boxes[0]) for i in range(20)}
    assert found == {(40, 60, 72, 80), (56, 16, 88, 36)}


def test_a_frame_is_a_function_of_its_stream_alone() -> None:
    options = FrameOptions(64, 48, short_side=90, rotate=True)
    first, second, other = (draw_frame(_painted(), FOUND, options, generator(*key)) for key in ((3, 4), (3, 4), (3, 5)))
    assert np.array_equal(first.pixels, second.pixels)
    assert first.instances == second.instances
    assert not np.array_equal(first.pixels, other.pixels)


def test_an_image_without_boxes_gives_a_frame_without_boxes() -> None:
    view = draw_frame(_painted(), Instances.none(), PLAIN, generator(0))
    assert view.instances.boxes.shape == (0, 4)
    assert view.instances.labels.shape == (0,)


def test_colours_shift_a_little_and_grey_stays_grey() -> None:
    grey = np.full((8, 8, 3), 128, dtype=np.uint8)
    shifted = shift_colours(grey, 1.0, generator(1))
    assert np.ptp(shifted) <= 1
    image = _painted()
    moved = shift_colours(image, 1.0, generator(2)).astype(int) - image
    assert 0 < np.abs(moved).mean() < 25
    assert np.array_equal(shift_colours(image, 1.0, generator(2)), shift_colours(image, 1.0, generator(2)))
