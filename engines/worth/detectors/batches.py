"""What detectors are trained on: frames of real images, some of the time replaced by frames of generated ones.

Knows: how the two kinds are mixed, how both come to one scale, and how they are augmented (both alike).
Knows nothing about networks. Every batch is a pure function of (seed, step).

Scale: each image is scaled by a factor of its own before the common augmentation, so that an object of a real image
is as large as its likeness in a generated one: see `Sample.short_side`.

B batch, N boxes, C crowds, H/W pixels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from engines.adapter.inference import resized_size
from engines.common.rng import Stream, generator
from engines.datasets.dataset import Record
from engines.training.augment import FrameOptions, draw_frame
from engines.training.views import ImageStore
from engines.worth.detectors.config import MULTIPLE


@dataclass(frozen=True, eq=False)
class Sample:
    """An image to train on."""

    record: Record
    short_side: int  # pixels of its short side where the augmentation's factor is 1


class MixedBatches:
    """Training batches by step: real images, and generated ones with a probability that goes evenly from `mix`[0] at
    the first draw to `mix`[1] at the last.

    Either kind is gone through in passes, each in an order of its own. Without generated images every draw is real.
    """

    def __init__(
        self,
        real: Sequence[Sample],
        generated: Sequence[Sample],
        *,
        mix: tuple[float, float],
        frame: FrameOptions,
        batch: int,
        steps: int,
        seed: int,
    ) -> None:
        self._kinds = (real, generated)
        self._stores = tuple(ImageStore([sample.record for sample in samples]) for samples in self._kinds)
        self._frame, self._batch, self._seed = frame, batch, seed
        share = np.linspace(*(mix if generated else (0.0, 0.0)), steps * batch)
        self._is_generated = generator(seed, Stream.DETECTOR_MIX).random(steps * batch) < share
        # How many images of the same kind were drawn before each draw.
        drawn = np.cumsum(self._is_generated)
        self._before = np.where(self._is_generated, drawn - 1, np.arange(steps * batch) - drawn)

    def at(self, step: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Frames float32 [B, 3, H, W] in 0..1, and for each `boxes` [N, 4], `labels` int64 [N], `crowds` [C, 4] and
        `crowd_labels` [C]. Boxes and crowds are corners in its pixels.
        """
        pixels, targets = [], []
        for draw in range(step * self._batch, (step + 1) * self._batch):
            kind, place = self.drawn(draw)
            sample = self._kinds[kind][place]
            rng = generator(self._seed, Stream.DETECTOR_VIEWS, draw, kind)
            view = draw_frame(
                self._stores[kind][place],
                sample.record.instances,
                replace(self._frame, short_side=sample.short_side),
                rng,
            )
            pixels.append(torch.from_numpy(view.pixels))
            single, crowds = view.instances.single, view.instances.crowds
            arrays = {
                "boxes": single.boxes, "labels": single.labels, "crowds": crowds.boxes, "crowd_labels": crowds.labels
            }  # fmt: skip
            targets.append({name: torch.from_numpy(array) for name, array in arrays.items()})
        return torch.stack(pixels).permute(0, 3, 1, 2).float() / 255.0, targets

    def drawn(self, draw: int) -> tuple[int, int]:
        """(0 for real or 1 for generated, index in its list) of draw number `draw`, counted over all steps."""
        kind = int(self._is_generated[draw])
        epoch, place = divmod(int(self._before[draw]), len(self._kinds[kind]))
        return kind, _order(self._seed, kind, epoch, len(self._kinds[kind]))[place]


def mix_value(mix: tuple[float, float]) -> float | list[float]:
    """The probability of drawing a generated image, as files have it: a number where it stays the same."""
    first, last = mix
    return first if first == last else [first, last]


@lru_cache(maxsize=8)
def _order(seed: int, kind: int, epoch: int, images: int) -> tuple[int, ...]:
    return tuple(generator(seed, Stream.DETECTOR_ORDER, epoch, kind + 1).permutation(images).tolist())


def frame_size(records: Sequence[Record], short_side: int) -> tuple[int, int]:
    """(width, height) of training frames: the most common image at that scale, cut to what networks can divide."""
    shapes = Counter((record.width, record.height) for record in records)
    width, height, _ = resized_size(*max(shapes, key=lambda shape: (shapes[shape], shape)), short_side)
    return max(MULTIPLE, width // MULTIPLE * MULTIPLE), max(MULTIPLE, height // MULTIPLE * MULTIPLE)
