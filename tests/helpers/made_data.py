"""A small dataset on disk."""

from pathlib import Path

import numpy as np
from fakes import CLASS_NAMES
from PIL import Image

from engines.datasets.dataset import Dataset, open_dataset
from engines.datasets.writers import AnnotatedImage, write_coco
from engines.labels.boxes import Instances

SIZES = ((64, 48), (48, 64), (64, 48), (100, 50), (24, 20))  # the fake bundle's short side is 32, its multiple 8


BOX = (0.25, 0.5, 0.5, 1.0)  # corners as shares of an image


def make_data(folder: Path, names: tuple[str, ...] = CLASS_NAMES, label_of_boxes: int | None = 0) -> Dataset:
    """Five images, each with one box where a label is given."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / "images" / f"{i}.png")
        box = [BOX[0] * width, BOX[1] * height, BOX[2] * width, BOX[3] * height]
        rows.append(AnnotatedImage(f"{i}.png", width, height, Instances.of([box], [label_of_boxes or 0]), scored=False))
    if label_of_boxes is not None:
        write_coco(folder / "annotations.json", rows, names, {})
    return open_dataset(folder, require_boxes=False)
