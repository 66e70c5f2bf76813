"""labelme's JSON, a file an image: shapes of one object are one box, and the files are known among others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_datasets import read_whole, text, write_coco_file
from made_layouts import make_labelme
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError


def _change_labelme(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    for file in root.glob("*.json"):
        content = json.loads(file.read_text())
        change(content)
        write_coco_file(file, content)


def _as_masks(content: dict[str, Any]) -> None:
    for shape in content["shapes"][:-1]:
        (x0, y0), (x1, y1) = shape["points"]
        shape.update(points=[[x0, y0], [x1 - 1, y1 - 1]], shape_type="mask", mask="iVBORw0K")


def _in_parts(content: dict[str, Any]) -> None:
    shapes = []
    for group, shape in enumerate(content["shapes"][:-1]):
        (x0, y0), (x1, y1) = shape["points"]
        for points in ([[x0, y0], [x0 + 2, y0], [x0 + 2, y1]], [[x1 - 2, y0], [x1, y0], [x1, y1]]):
            shapes.append({**shape, "points": points, "shape_type": "polygon", "group_id": group})
    content["shapes"] = shapes


def _renamed(content: dict[str, Any]) -> None:
    content["imagePath"] = "IMG_0001.png"


def test_labels_of_points_alone_are_no_classes(tmp_path: Path) -> None:
    make_labelme(tmp_path)
    _change_labelme(tmp_path, lambda content: content["shapes"][-1].update(label="eye"))
    assert read_whole(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("change", [_as_masks, _in_parts, _renamed])
def test_shapes_of_labelme_are_one_box_an_object(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    make_labelme(tmp_path)
    _change_labelme(tmp_path, change)
    read_whole(tmp_path)


def test_labelme_is_known_behind_many_other_json_files(tmp_path: Path) -> None:
    make_labelme(tmp_path)
    for index in range(30):
        text(tmp_path / f"0{index}.json", "{}")
    read_whole(tmp_path)


def test_a_shape_of_labelme_without_a_label_is_no_class(tmp_path: Path) -> None:
    make_labelme(tmp_path)
    _change_labelme(tmp_path, lambda content: content["shapes"][0].update(label=None))
    with refused(DatasetError, None, "a.json, shapes[0].label"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, skip_bad=True).class_names == ("cat", "dog")
