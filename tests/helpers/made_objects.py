"""Annotated pictures of discs, whose pixels are known: what is cut out of them, and pasted, can be told."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZE = (96, 80)
NAMES = ("rbc", "wbc", "platelets")
COLOURS = ((190, 60, 70), (90, 50, 140), (60, 20, 90))
RADII = (9, 11, 5)
GROUND = (226, 214, 202)

Disc = tuple[int, int, int]  # x and y of the centre, class


def draw(discs: Sequence[Disc], seed: int = 0, ground: tuple[int, int, int] = GROUND) -> npt.NDArray[np.uint8]:
    """Pixels [H, W, 3] of discs on a ground with a little noise."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    pixels = np.array(ground) + np.random.default_rng(seed).normal(0, 2, (SIZE[1], SIZE[0], 3))
    for x, y, label in discs:
        pixels[(columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= RADII[label] ** 2] = COLOURS[label]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def box(disc: Disc) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 round a disc."""
    x, y, label = disc
    return x - RADII[label], y - RADII[label], x + RADII[label], y + RADII[label]


USUAL: tuple[tuple[Disc, ...], ...] = (
    ((20, 20, 0), (60, 50, 1)),
    ((30, 50, 0), (70, 20, 0), (60, 60, 2)),
    ((20, 60, 1), (50, 20, 0), (80, 60, 2), (3, 8, 0)),
)


def make_objects(
    folder: Path, pictures: Sequence[Sequence[Disc]] = USUAL, names: Sequence[str] = NAMES, crowds: int = 0
) -> Path:
    """A COCO dataset of such pictures; the first `crowds` boxes are crowds."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, discs in enumerate(pictures):
        Image.fromarray(draw(discs, number)).save(folder / "images" / f"{number}.png")
        images.append({"id": number + 1, "file_name": f"{number}.png", "width": SIZE[0], "height": SIZE[1]})
        for disc in discs:
            x0, y0, x1, y1 = np.clip(box(disc), 0, [*SIZE, *SIZE]).tolist()
            found = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": disc[2] + 1}
            crowd = int(len(annotations) < crowds)
            annotations.append(found | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": 1, "iscrowd": crowd})
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), "utf-8")
    return folder
