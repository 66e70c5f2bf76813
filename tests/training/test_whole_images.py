"""The dev split: what an adapter finds on whole images, in several looks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engines.adapter.looks import TTA_LOOKS
from engines.datasets.dataset import open_dataset
from engines.training.augment import FrameOptions
from engines.training.pyramids import SourceOptions
from engines.training.whole_images import DevSplit

BOX = (4, 6, 12, 26)  # of what is bright, in a picture of 48 x 32


class Pixels:
    """In a base's place: its pyramid is the picture itself."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, pixels: torch.Tensor, noise: torch.Tensor, _: Any) -> tuple[torch.Tensor, ...]:
        assert pixels.shape[-2:] == noise.shape[-2:]
        self.seen.append((int(pixels.shape[-2]), int(pixels.shape[-1])))
        return (pixels,)

    def noise(self, height: int, width: int, *_: int) -> torch.Tensor:
        """None."""
        return torch.zeros(1, height, width)


class Bright(torch.nn.Module):
    """In an adapter's place: one query, round what is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of two classes and the box."""
        rows, columns = (torch.where((pixels[0].mean(0) > 0).any(axis))[0] for axis in (1, 0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        height, width = pixels.shape[-2:]
        box = torch.stack([(left + right) / 2 / width, (top + bottom) / 2 / height])
        size = torch.stack([(right - left) / width, (bottom - top) / height])
        boxes = torch.cat([box, size])[None, None]
        return torch.tensor([[[-3.0, 3.0]]]), boxes, boxes, boxes


@pytest.mark.parametrize("looks", TTA_LOOKS)
def test_every_look_finds_the_object_in_its_place_and_the_first_alone_is_kept(tmp_path: Path, looks: int) -> None:
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    records = open_dataset(tmp_path, require_boxes=False).records
    frozen = Pixels()
    options = SourceOptions(FrameOptions(width=48, height=32, short_side=32), "", {}, batch=1, seed=0)
    split = DevSplit(records, ("dark", "bright"), frozen, options, 16)  # type: ignore[arg-type]
    for _ in range(2):
        (found,) = split.detect(Bright(), looks=looks)  # type: ignore[arg-type]
        assert found.labels.tolist() == [1]
        np.testing.assert_allclose(found.boxes, [BOX], atol=1e-3)
        np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-3)), atol=1e-5)
    shapes = [(32, 48)] * min(looks, 4) + [(48, 32)] * (looks - min(looks, 4))
    assert frozen.seen == shapes + shapes[1:]
