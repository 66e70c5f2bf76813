"""Datasets, runs and figures that `evaluate` is tested on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from made_runs import run_settings
from PIL import Image

from engines.common.rng import generator
from engines.datasets.writers import AnnotatedImage, write_coco
from engines.labels.boxes import Instances
from engines.runs.dataset_files import ANNOTATIONS
from engines.runs.journal import IMAGES, JOURNAL
from engines.runs.run_folder import start_run
from engines.worth.figures import Arm, Difference, Spread

NAMES = ("a", "b")


TINY: dict[str, Any] = {
    "network": {
        "kind": "rt_detr", "backbone_width": 16, "depths": [1, 1, 1, 1], "bottleneck": False, "width": 32, "heads": 2,
        "decoder_layers": 2, "queries": 8, "denoising": 4, "expansion": 0.5, "anchor_cells": 2.0,
    },
    "steps": 3, "batch": 2, "precision": "f32",
}  # fmt: skip


def picture(number: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    small = generator(13, number).integers(0, 256, size=(6, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def make_dataset(
    folder: Path, numbers: Sequence[int], size: tuple[int, int] = (64, 48), names: Sequence[str] = NAMES, boxes: int = 2
) -> Path:
    """A COCO dataset of pictures with a few boxes each."""
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    images = []
    for number in numbers:
        Image.fromarray(picture(number, size)).save(folder / IMAGES / f"{number}.png")
        found = Instances.of([[4, 4, 20, 24], [30, 10, 60, 40]][:boxes], np.arange(boxes) % len(names))
        images.append(AnnotatedImage(f"{number}.png", *size, found, scored=False))
    write_coco(folder / ANNOTATIONS, images, names, {})
    return folder


def make_run(folder: Path, numbers: Sequence[int], names: Sequence[str] = NAMES, **changes: Any) -> Path:
    """The folder of a run, with its dataset."""
    folder.mkdir()
    settings = run_settings(**{"class_names": tuple(names), "frame": (64, 48), "short_side": 48} | changes)
    start_run(folder, settings, None)
    (folder / JOURNAL).touch()
    return make_dataset(folder, numbers, settings.frame, names, boxes=changes.pop("boxes", 2))


def make_arms(sd: float | None = 0.01) -> list[Arm]:
    spread = {name: Spread(0.5, sd, (0.5,)) for name in ("AP", "AP50", "AP75", "AP/a")}
    change = {name: Difference(0.021, sd, (0.021,), -0.01, 0.05) for name in spread}
    return [Arm(0, spread, {}), Arm(20, spread, change), Arm(40, spread, change)]
