"""The contact sheet: boxes where they are, in the colour of their class, and a legend that fits."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from engines.labels.boxes import Instances
from engines.runs.preview import Sample, class_colour, write_preview


def grey_image(path: Path, size: tuple[int, int] = (60, 40)) -> Path:
    Image.new("RGB", size, (128, 128, 128)).save(path)
    return path


def sheet(path: Path, samples: list[Sample], names: tuple[str, ...] = ("rbc", "wbc")) -> npt.NDArray[np.uint8]:
    write_preview(path, samples, names)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def coloured(pixels: npt.NDArray[np.uint8], label: int) -> npt.NDArray[np.int64]:
    return np.argwhere((pixels == class_colour(label)).all(axis=2))


def test_boxes_are_drawn_in_their_class_colour_at_their_place(tmp_path: Path) -> None:
    image = grey_image(tmp_path / "a.png", (400, 300))  # drawn at its own size
    pixels = sheet(tmp_path / "p.png", [Sample(image, Instances.from_rows([[100, 150, 220, 280, 0.9, 1]]))])
    grey = np.argwhere((pixels == 128).all(axis=2))
    top, left = grey.min(axis=0)
    found = coloured(pixels, 1)
    found = found[found[:, 0] > top + 100] - (top, left)  # below the legend and above the score's patch
    assert tuple(found.max(axis=0)) == (279, 219)
    assert found[:, 1].min() == 100


def test_a_class_without_a_box_has_its_colour_in_the_legend_only(tmp_path: Path) -> None:
    image = grey_image(tmp_path / "a.png", (400, 300))
    pixels = sheet(tmp_path / "p.png", [Sample(image, Instances.from_rows([[100, 150, 220, 280, 0.9, 1]]))])
    assert len(coloured(pixels, 0)) == 17 * 17


@pytest.mark.parametrize("count", [1, 2, 5, 32])
def test_sheets_are_large_enough_to_see_and_no_larger(tmp_path: Path, count: int) -> None:
    samples = [Sample(grey_image(tmp_path / f"{i}.png"), Instances.none()) for i in range(count)]
    height, width, _ = sheet(tmp_path / "p.png", samples).shape
    assert 480 <= width <= 1800
    assert width * height >= count * 400 * 266
    assert width * height <= max(count, 4) * 450 * 380


def test_small_and_tall_images_fill_their_cells(tmp_path: Path) -> None:
    samples = [Sample(grey_image(tmp_path / f"{i}.png", (16, 48)), Instances.none()) for i in range(3)]
    pixels = sheet(tmp_path / "p.png", samples)
    assert (pixels == 128).all(axis=2).sum() > 3 * 390 * 130


def test_boxes_at_the_very_edge_and_many_classes_are_drawn(tmp_path: Path) -> None:
    names = tuple(f"a class with a long name, number {i}" for i in range(80))
    rows = [[0, 0, 60, 40, 0.5, 79], [59.5, 39.5, 60, 40, 1.0, 3], [0, 39, 60, 40, 0.05, 14]]
    pixels = sheet(tmp_path / "p.png", [Sample(grey_image(tmp_path / "a.png"), Instances.from_rows(rows))], names)
    assert all(len(coloured(pixels, label)) for label in (79, 3, 14))


def test_the_same_dataset_gives_the_same_sheet(tmp_path: Path) -> None:
    sample = Sample(grey_image(tmp_path / "a.png"), Instances.from_rows([[1, 1, 30, 30, 0.5, 0]]))
    assert (sheet(tmp_path / "1.png", [sample]) == sheet(tmp_path / "2.png", [sample])).all()
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
