"""CVAT's XML for images: its shapes as boxes, its subsets as splits, and no videos."""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_datasets import PICTURES, picture, read_whole, text
from made_layouts import make_cvat_images
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError


def _mask(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<mask label="{{}}" rle="1, 2" left="{x0}" top="{y0}" width="{x1 - x0}" height="{y1 - y0}"/>'


def _cuboid(x0: float, y0: float, x1: float, y1: float) -> str:
    sides = [
        f'x{name}{side}="{x if side == 1 else x1}" y{name}{side}="{y}"'
        for side in (1, 2)
        for name, x, y in (("tl", x0, y0), ("bl", x0, y1), ("tr", x0 + 3, y0), ("br", x0 + 3, y1))
    ]
    return f'<cuboid label="{{}}" {" ".join(sides)}/>'


@pytest.mark.parametrize("shape", [_mask, _cuboid])
def test_masks_and_cuboids_of_cvat_become_the_boxes_round_them(tmp_path: Path, shape: Callable[..., str]) -> None:
    make_cvat_images(tmp_path)
    images = (
        f'<image name="{name}">{"".join(shape(*box).format(label) for label, box in objects)}</image>'
        for name, objects in PICTURES.items()
    )
    text(tmp_path / "annotations.xml", f"<annotations>{''.join(images)}</annotations>")
    read_whole(tmp_path)


def test_labels_of_tags_and_points_alone_are_no_classes(tmp_path: Path) -> None:
    make_cvat_images(tmp_path)
    file = tmp_path / "annotations.xml"
    text(file, file.read_text().replace("</image>", '<tag label="blurry"/><points label="eye" points="1,2"/></image>'))
    assert read_whole(tmp_path).class_names == ("cat", "dog")


def test_cvat_subsets_are_splits_and_videos_are_refused(tmp_path: Path) -> None:
    for name in PICTURES:
        picture(tmp_path / "images" / name)
    text(
        tmp_path / "annotations.xml",
        '<annotations><image name="a.png" subset="Train"><box label="cat" xtl="1" ytl="2" xbr="9" ybr="9"/></image>'
        '<image name="b.png" subset="Val"/></annotations>',
    )
    assert [record.name for record in open_dataset(tmp_path, split="train").records] == ["a.png"]
    text(tmp_path / "annotations.xml", "<annotations><track id='0' label='cat'/></annotations>")
    with refused(DatasetError, None, "annotations.xml"):
        open_dataset(tmp_path)
