"""Pixels as networks read them."""

import numpy as np
import torch

from engines.common.pixels import padded, scaled


def test_every_value_is_scaled_as_diffusers_does() -> None:
    values = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(values).float().div(255.0).mul(2.0).sub(1.0).numpy()
    assert (scaled(values) == expected).all()
    assert (scaled(values)[0], scaled(values)[-1]) == (-1.0, 1.0)


def test_padding_repeats_the_edges_on_the_right_and_below() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    larger = padded(image, 3, 4)
    assert larger.shape == (4, 3, 3)
    assert (larger[:2, :2] == image).all()
    assert (larger[3, 2] == image[1, 1]).all()
