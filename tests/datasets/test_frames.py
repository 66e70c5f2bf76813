"""Whose pixels boxes are, where the stated size is not the image's or an EXIF turn was not applied."""

from pathlib import Path
from typing import Any

import pytest
from made_datasets import (
    CENTRAL,
    ONE,
    PICTURES,
    SIZE,
    Box,
    coco_content,
    make_coco,
    make_yolo,
    picture,
    read_whole,
    text,
    voc_xml,
    write_coco_file,
)
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError


def scaled(pictures: Any, factor: float) -> dict[str, list[tuple[str, Box]]]:
    return {
        name: [(label, tuple(side * factor for side in box)) for label, box in objects]
        for name, objects in pictures.items()
    }


def make_resized(root: Path, pictures: Any = PICTURES, by: float = 0.5, form: str = "coco") -> Path:
    """Annotated at SIZE, and then the images were scaled."""
    size = (round(SIZE[0] * by), round(SIZE[1] * by))
    for name in pictures:
        picture(root / "images" / name, size=size)
    if form == "coco":
        write_coco_file(root / "annotations" / "all.json", coco_content(pictures))
    else:
        for name, objects in pictures.items():
            text(root / "annotations" / f"{name[:-4]}.xml", voc_xml(name, objects))
    return root


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_boxes_of_the_size_before_scaling_are_scaled_where_they_leave_the_image(tmp_path: Path, form: str) -> None:
    dataset = read_whole(make_resized(tmp_path, form=form), scaled(PICTURES, 0.5))
    (remark,) = dataset.remarks
    assert "2 images are not as stated" in remark
    assert "`boxes=written`" in remark


def test_boxes_of_the_image_are_kept_where_they_leave_the_stated_size(tmp_path: Path) -> None:
    make_coco(tmp_path, coco_content(size=(32, 24)))
    assert "fit the image alone" in read_whole(tmp_path).remarks[0]


@pytest.mark.parametrize("form", ["coco", "voc"])
@pytest.mark.parametrize("by", [0.5, 2.0])
def test_boxes_that_fit_both_sizes_are_refused_naming_both_readings(tmp_path: Path, form: str, by: float) -> None:
    make_resized(tmp_path, CENTRAL, by, form)
    with refused(DatasetError, "boxes", "64x48 is stated", "`boxes=stated`", "`boxes=written`"):
        open_dataset(tmp_path)
    read_whole(tmp_path, scaled(CENTRAL, by), boxes="stated")
    read_whole(tmp_path, CENTRAL, boxes="written")
    with pytest.raises(DatasetError, match="All of it was bad"):
        open_dataset(tmp_path, skip_bad=True)


def test_many_boxes_that_keep_to_a_small_stated_size_are_of_it(tmp_path: Path) -> None:
    boxes = [("cat", (x, y, x + 9, y + 9)) for x in range(0, 50, 10) for y in range(0, 39, 9)]
    make_resized(tmp_path, {"a.png": boxes}, 2.0)
    read_whole(tmp_path, scaled({"a.png": boxes}, 2.0))


@pytest.mark.parametrize(("stated", "size"), [((0, 0), SIZE), ((641, 480), (640, 480)), (("", None), SIZE)])
def test_sizes_that_say_nothing_are_not_believed(tmp_path: Path, stated: Any, size: tuple[int, int]) -> None:
    for name in CENTRAL:
        picture(tmp_path / "images" / name, size=size)
    write_coco_file(tmp_path / "all.json", coco_content(CENTRAL, stated))
    assert read_whole(tmp_path, CENTRAL).remarks == ()


def test_images_of_another_shape_than_stated_are_refused_unless_said(tmp_path: Path) -> None:
    make_coco(tmp_path, coco_content(CENTRAL, (48, 64)), CENTRAL)
    with refused(DatasetError, "boxes", "48x64", "64x48"):
        open_dataset(tmp_path)
    read_whole(tmp_path, CENTRAL, boxes="written")


def turned(root: Path, orientation: int, objects: Any, stated: tuple[int, int] | None) -> Path:
    picture(root / "images" / "a.png", orientation=orientation)
    write_coco_file(root / "a.json", coco_content({"a.png": objects}, stated))
    return root


def test_boxes_of_the_stored_frame_are_turned_where_they_leave_the_upright_one(tmp_path: Path) -> None:
    turned(tmp_path, 6, ONE, SIZE)
    upright = [(label, (48.0 - y1, x0, 48.0 - y0, x1)) for label, (x0, y0, x1, y1) in ONE]
    dataset = read_whole(tmp_path, {"a.png": upright})
    assert "before its EXIF turn" in dataset.remarks[0]


def test_boxes_of_a_turned_image_that_fit_both_frames_are_refused(tmp_path: Path) -> None:
    turned(tmp_path, 8, CENTRAL["a.png"], SIZE)
    with refused(DatasetError, "boxes", "before its EXIF turn"):
        open_dataset(tmp_path)
    read_whole(tmp_path, CENTRAL, boxes="written")
    back = [(label, (y0, 64.0 - x1, y1, 64.0 - x0)) for label, (x0, y0, x1, y1) in CENTRAL["a.png"]]
    read_whole(tmp_path, {"a.png": back}, boxes="stored")
    read_whole(tmp_path, {"a.png": back}, boxes="stated")


def test_boxes_of_the_upright_frame_are_as_written(tmp_path: Path) -> None:
    turned(tmp_path, 6, CENTRAL["a.png"], SIZE[::-1])
    assert read_whole(tmp_path, CENTRAL).remarks == ()


def test_turned_images_without_a_stated_size_are_remarked(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    picture(tmp_path / "images" / "a.png", size=SIZE[::-1], orientation=6)
    dataset = read_whole(tmp_path)
    assert any("`boxes=stored`" in line for line in dataset.remarks)


def test_an_orientation_that_is_none_is_no_turn(tmp_path: Path) -> None:
    make_coco(tmp_path)
    for name in PICTURES:
        picture(tmp_path / "images" / name, orientation=0)
    assert read_whole(tmp_path).remarks == ()


def test_half_turned_images_whose_size_says_nothing_are_remarked(tmp_path: Path) -> None:
    turned(tmp_path, 3, ONE, SIZE)
    dataset = read_whole(tmp_path, {"a.png": ONE})
    assert "`boxes=stored`" in dataset.remarks[0]
