"""Masks by colour, and what becomes of those that fail."""

import numpy as np
from made_objects import GROUND, box, draw

from engines.composing.masks import background, mask_of, outside

NONE = np.zeros((0, 4))
BOX = np.array(box((40, 40, 1)), dtype=np.float64)


def test_a_disc_is_told_from_its_ground() -> None:
    pixels = draw([(40, 40, 1)])
    found = mask_of(pixels, BOX, NONE, np.array(GROUND, dtype=np.float64))
    assert found is not None
    mask, told = found
    disc = (pixels.astype(int) - np.array(GROUND)).sum(axis=2) < -100
    assert told
    assert (mask & disc).sum() / (mask | disc).sum() > 0.95


def test_a_pale_middle_belongs_to_the_object() -> None:
    pixels = draw([(40, 40, 1)])
    pixels[36:44, 36:44] = GROUND
    found = mask_of(pixels, BOX, NONE, np.array(GROUND, dtype=np.float64))
    assert found is not None
    assert found[0][36:44, 36:44].all()


def test_a_mask_that_is_empty_or_of_something_else_gives_way_to_an_ellipse() -> None:
    ground = np.array(GROUND, dtype=np.float64)
    for pixels in (draw([]), draw([(32, 32, 2)])):  # nothing is there; a corner of the box holds a small thing
        found = mask_of(pixels, BOX, NONE, ground)
        assert found is not None
        mask, told = found
        assert not told
        assert abs(mask.sum() / (np.pi * 11**2) - 1) < 0.1
        assert not mask[29:31, 29:31].any()


def test_a_box_without_a_pixel_has_no_mask() -> None:
    tiny = np.array([10.6, 10.6, 10.9, 10.9])
    assert mask_of(draw([]), tiny, NONE, np.array(GROUND, dtype=np.float64)) is None


def test_a_background_is_what_most_pixels_have() -> None:
    pixels = draw([(40, 40, 1)])
    found = background(pixels, outside(pixels.shape[:2], BOX[None]))
    assert found is not None
    assert np.abs(found - GROUND).max() <= 2
    assert background(pixels, outside(pixels.shape[:2], np.array([[0.0, 0.0, 96.0, 80.0]]))) is None
