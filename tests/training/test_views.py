"""Views of training images: the boxes stay on what they mark."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.common.rng import generator
from engines.datasets.dataset import Record
from engines.labels.boxes import Instances
from engines.training.views import ImageStore, ViewOptions, draw_view

BOX = (60.0, 40.0, 110.0, 70.0)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    pixels = np.zeros((150, 200, 3), np.uint8)
    pixels[40:70, 60:110] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    record = Record(
        file=tmp_path / "a.png",
        name="a.png",
        width=200,
        height=150,
        instances=Instances.of([BOX], [2]),
        caption=None,
    )
    return ImageStore([record])


@pytest.mark.parametrize(("width", "height"), [(96, 96), (128, 96)])
def test_the_box_follows_the_red_square_through_every_view(store: ImageStore, width: int, height: int) -> None:
    options = ViewOptions(width, height, short_side=96, scale=(0.8, 1.3), rotate=True)
    found = 0
    for i in range(60):
        view = draw_view(store, 0, options, generator(i))
        assert view.pixels.shape == (height, width, 3)
        red = np.argwhere(view.pixels[..., 0] > 127)
        if not len(view.instances):
            continue
        found += 1
        (top, left), (bottom, right) = red.min(axis=0), red.max(axis=0) + 1
        assert np.allclose(view.instances.boxes[0], [left, top, right, bottom], atol=1.6)
        assert view.instances.labels.tolist() == [2]
    assert found > 20


def test_a_view_is_a_function_of_its_stream(store: ImageStore) -> None:
    options = ViewOptions(64, 64, short_side=96)
    first, again, other = (draw_view(store, 0, options, generator(key)) for key in (1, 1, 2))
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)


def test_an_image_smaller_than_the_view_is_enlarged(store: ImageStore) -> None:
    view = draw_view(store, 0, ViewOptions(512, 512, short_side=96), generator(0))
    assert view.pixels.shape == (512, 512, 3)


def test_a_box_mostly_outside_is_dropped(store: ImageStore) -> None:
    options = ViewOptions(40, 40, short_side=150, scale=(1.0, 1.0), flip=False, min_visible=0.95)
    kept = [len(draw_view(store, 0, options, generator(i)).instances) for i in range(30)]
    assert kept == [0] * 30  # the square is 50 pixels wide: 40 of them are never 95% of it


def test_images_beyond_the_memory_limit_are_read_again(store: ImageStore) -> None:
    small = ImageStore(store.records, limit_bytes=10)
    assert np.array_equal(small[0], store[0])
    assert small[0] is not small[0]
    assert store[0] is store[0]
