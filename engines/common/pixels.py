"""Pixels as networks read them.

Knows: the range that VAEs read, and how a picture is made larger. Knows nothing about networks.
"""

from typing import Any

import numpy as np
import numpy.typing as npt


def scaled(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """uint8 of any shape to float32 in [-1, 1]; bit for bit what diffusers' VaeImageProcessor makes of it."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def padded(image: npt.NDArray[Any], width: int, height: int) -> npt.NDArray[Any]:
    """An image [H, W, C] with its edges repeated on the right and below, to height x width."""
    missing = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
    return np.pad(image, missing, mode="edge")
