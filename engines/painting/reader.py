"""Real images to detections: vae_encoder, label pass and adapter, at the scale that the adapter was trained at.

Knows: how images of any size become frames of one padded size, and the noise of their label pass. Knows nothing about
files, datasets, or which detections are labels.

H/W pixels of a padded frame, h/w its latents.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from engines.adapter.inference import look_detections, prepare_frame, resized_size
from engines.backends.registry import backend_info
from engines.errors import DatasetError
from engines.labels.boxes import Instances
from engines.painting.label_pass import Labeller
from engines.painting.networks import LARGEST_BATCH, check_finite

if TYPE_CHECKING:
    from engines.backends.base import Backend
    from engines.bundle.bundle import Bundle

_LONGEST = 16  # of a picture's short side


def padded_size(width: int, height: int, bundle: "Bundle", name: str = "the picture") -> tuple[int, int]:
    """(width, height) of the frame that `prepare_frame` makes of an image. DatasetError for a strip of one."""
    multiple = bundle.size_multiple
    if max(width, height) > _LONGEST * min(width, height):
        raise DatasetError(
            f"{name} has {width}x{height} pixels: more than {_LONGEST} times as long as wide, it would be scaled to a "
            f"short side of {bundle.short_side}. Cut it into parts."
        )
    width, height, _ = resized_size(width, height, bundle.short_side)
    return math.ceil(width / multiple) * multiple, math.ceil(height / multiple) * multiple


def batch_for(backend: "Backend", images: int) -> int:
    """Images in one call, where there are so many of a size."""
    return LARGEST_BATCH if backend_info(backend.name).built_ahead else min(LARGEST_BATCH, images)


class Reader:
    """Images of one padded size to detections, at a fixed batch."""

    def __init__(self, bundle: "Bundle", backend: "Backend", size: tuple[int, int], batch: int, looks: int) -> None:
        self._bundle, self._size, self.batch = bundle, size, batch
        w, h = (side // bundle.vae_stride for side in size)
        self._labeller = Labeller(bundle, backend, batch, h, w, looks, encodes=True)

    def __call__(
        self, images: Sequence[npt.NDArray[np.uint8]], states: Sequence[torch.Tensor], names: Sequence[str]
    ) -> list[Instances]:
        """What is found on each of n <= batch images, uint8 [H_i, W_i, 3] each, in their own pixels."""
        frames = [prepare_frame(image, self._bundle.short_side, self._bundle.size_multiple) for image in images]
        seen = torch.stack([torch.from_numpy(pixels) for pixels, _, _ in frames])
        latents = self._labeller.encode(seen)
        check_finite("vae_encoder", torch.stack(latents), names)
        keys = [(0, noise_key(name)) for name in names]
        logits, boxes = self._labeller(latents, states, keys, names, seen)
        found = []
        for i, (image, (_, scale, padded)) in enumerate(zip(images, frames, strict=True)):
            height, width = image.shape[:2]
            found.append(look_detections(logits[:, i], boxes[:, i], padded, scale, (width, height)))
        return found


def noise_key(name: str) -> int:
    """A number that depends on an image's name alone, for the noise of its label pass."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
