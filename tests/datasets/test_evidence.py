"""What a whole file shows of its boxes: forms and units that are not the format's, and boxes of other images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_datasets import (
    CENTRAL,
    CLASSES,
    ONE,
    PICTURES,
    SIZE,
    Box,
    coco_content,
    make_coco,
    make_voc,
    make_yolo,
    picture,
    read_whole,
    text,
    voc_xml,
    write_coco_file,
)
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.datasets.readings import BOXES
from engines.errors import DatasetError, UsageError


def corners_for_sides(content: dict[str, Any]) -> dict[str, Any]:
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]
    return content


def fractions(content: dict[str, Any]) -> dict[str, Any]:
    for annotation in content["annotations"]:
        annotation["bbox"] = [side / full for side, full in zip(annotation["bbox"], SIZE * 2, strict=True)]
    return content


@pytest.mark.parametrize(
    ("change", "said"), [(corners_for_sides, "x0, y0, x1, y1"), (fractions, "fractions of the image")]
)
def test_coco_boxes_in_another_form_are_read_as_they_fit_with_a_remark(tmp_path: Path, change: Any, said: str) -> None:
    make_coco(tmp_path, change(coco_content()))
    dataset = read_whole(tmp_path)
    assert said in dataset.remarks[0]
    assert "`boxes=written`" in dataset.remarks[0]


def test_a_bad_box_among_many_does_not_hide_the_form(tmp_path: Path) -> None:
    many = {
        "a.png": [("cat", (float(x), float(y), x + 9.0, y + 8.0)) for x in range(0, 50, 9) for y in range(0, 39, 9)]
    }
    content = corners_for_sides(coco_content(many))
    content["annotations"].append({"id": 99, "image_id": 1, "category_id": 1, "bbox": [30, 30, 30, 30]})
    dataset = read_whole(make_coco(tmp_path, content, many), many)
    assert "x0, y0, x1, y1" in dataset.remarks[0]
    assert len(dataset.dropped) == 1


def test_coco_boxes_that_are_corners_in_fractions_are_read(tmp_path: Path) -> None:
    make_coco(tmp_path, fractions(corners_for_sides(coco_content())))
    assert "[x0, y0, x1, y1] in fractions" in read_whole(tmp_path).remarks[0]


@pytest.mark.parametrize("stray", [[0.9, 0.9, 1.002, 0.2], [30, 30, 20, 10], [0, 0, 0, 0]])
def test_a_number_above_one_does_not_make_fractions_boxes_of_a_pixel(tmp_path: Path, stray: list[float]) -> None:
    content = fractions(coco_content())
    content["annotations"].append({"id": 99, "image_id": 1, "category_id": 1, "bbox": stray})
    make_coco(tmp_path, content)
    dataset = open_dataset(tmp_path)
    areas = np.concatenate([record.instances.boxes for record in dataset.records])
    assert ((areas[:, 2:] - areas[:, :2]).prod(axis=1) > 10).all(), "no box is a pixel"
    assert len(areas) + len(dataset.dropped) == 1 + sum(map(len, PICTURES.values()))
    assert "fractions" in dataset.remarks[0]


def test_rows_of_zeros_do_not_make_pixels_fractions(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"][0] += 0.25
    content["annotations"] += [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 0]} for _ in range(9)]
    dataset = open_dataset(make_coco(tmp_path, content))
    assert (len(dataset.dropped), dataset.remarks) == (9, ())


def test_the_form_that_is_asked_for_is_taken(tmp_path: Path) -> None:
    make_coco(tmp_path, corners_for_sides(coco_content(CENTRAL)), CENTRAL)
    assert open_dataset(tmp_path).remarks == (), "these fit as width and height, too"
    read_whole(tmp_path, CENTRAL, boxes="corners")
    with refused(UsageError, "boxes", "xyxy", *BOXES):
        open_dataset(tmp_path, boxes="xyxy")


def test_voc_boxes_with_sides_for_far_corners_are_read_as_they_fit(tmp_path: Path) -> None:
    make_voc(tmp_path)
    for name, objects in PICTURES.items():
        rows = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1 - x0}</xmax>"
            f"<ymax>{y1 - y0}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in objects
        )
        text(
            tmp_path / "Annotations" / f"{name[:-4]}.xml", f"<annotation><filename>{name}</filename>{rows}</annotation>"
        )
    dataset = read_whole(tmp_path)
    assert "x, y, width, height" in dataset.remarks[0]


@pytest.mark.parametrize("form", ["corners", "sides"])
def test_yolo_boxes_in_another_form_are_read_as_they_fit(tmp_path: Path, form: str) -> None:
    make_yolo(tmp_path)
    for name, objects in PICTURES.items():
        lines = []
        for label, (x0, y0, x1, y1) in objects:
            far = (x1, y1) if form == "corners" else (x1 - x0, y1 - y0)
            values = (x0 / 64, y0 / 48, far[0] / 64, far[1] / 48)
            lines.append(f"{CLASSES.index(label)} {' '.join(f'{value:.6f}' for value in values)}")
        text(tmp_path / "labels" / f"{name[:-4]}.txt", "\n".join(lines))
    assert len(read_whole(tmp_path).remarks) == 1


def test_yolo_boxes_in_pixels_are_refused_saying_so(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    text(tmp_path / "labels" / "a.txt", "0 30 20 10 10\n1 20 12 8 8\n")
    text(tmp_path / "labels" / "b.txt", "0 30 20 10 10\n")
    with refused(DatasetError, None, "labels/a.txt, line 1", "pixels"):
        open_dataset(tmp_path)


def test_boxes_that_fit_several_other_forms_are_refused_naming_them(tmp_path: Path) -> None:
    make_coco(tmp_path)
    content = coco_content({"a.png": ()})
    content["annotations"] = [
        {"id": index, "image_id": 1, "category_id": 1, "bbox": [30, 22, 40 + index, 26]} for index in range(5)
    ]
    write_coco_file(tmp_path / "annotations" / "instances.json", content)
    with refused(DatasetError, "boxes", "`boxes=corners` or `boxes=centres`"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, boxes="corners").records[0].instances.boxes[0].tolist() == [30, 22, 40, 26]


def in_corner(count: int, far: float) -> dict[str, list[tuple[str, Box]]]:
    """So many boxes that fill a square in the corner of one image."""
    steps = [3.25 + (far - 3.25) * place / (count - 1) for place in range(count)]
    return {"a.png": [("cat", (side - 3.0, side / 2, side, side)) for side in steps]}


@pytest.mark.parametrize(
    ("count", "size", "far", "right"),
    [(24, (320, 240), 99.5, False), (8, (320, 240), 99.5, True), (24, (160, 120), 99.5, True),
     (24, (320, 240), 140.0, True), (24, (320, 240), 60.0, True)],
)  # fmt: skip
def test_boxes_in_percents_are_refused_and_others_are_not(
    tmp_path: Path, count: int, size: tuple[int, int], far: float, right: bool
) -> None:
    pictures = in_corner(count, far)
    picture(tmp_path / "images" / "a.png", size=size)
    write_coco_file(tmp_path / "annotations" / "all.json", coco_content(pictures, size=size))
    if right:
        read_whole(tmp_path, pictures)
        return
    with refused(DatasetError, "boxes", "all.json", "percents"):
        open_dataset(tmp_path)
    read_whole(tmp_path, pictures, boxes="written")


def test_boxes_that_lie_mostly_outside_are_refused(tmp_path: Path) -> None:
    far = {"a.png": tuple(("cat", (x, 40.0, x + 30.0, 90.0)) for x in (50.0, 55.0, 58.0, 60.0))}
    make_coco(tmp_path, coco_content(far, None), far)
    with refused(DatasetError, "boxes", "4 of 4"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, boxes="written").records[0].instances) == 4


def test_many_boxes_that_leave_their_images_are_remarked(tmp_path: Path) -> None:
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["bbox"][2:] = [side * 1.9 for side in annotation["bbox"][2:]]
    dataset = open_dataset(make_coco(tmp_path, content))
    assert any("leave their images" in line for line in dataset.remarks)


def test_swapped_corners_are_put_in_order_with_a_remark(tmp_path: Path) -> None:
    make_voc(tmp_path)
    swapped = [(label, (x1 - 1, y0, x0 + 1, y1)) for label, (x0, y0, x1, y1) in ONE[:2]]
    text(tmp_path / "Annotations" / "a.xml", voc_xml("a.png", [*swapped, ONE[2]]))
    dataset = read_whole(tmp_path)
    assert dataset.dropped == ()
    assert any(line.startswith("2 boxes have their corners swapped") for line in dataset.remarks)
