"""Folders as tools leave them: which are read, and what is said of the rest."""

from pathlib import Path

import numpy as np
import pytest
from made_datasets import (
    BOXES,
    ONE,
    coco_content,
    make_coco,
    make_voc,
    make_yolo,
    picture,
    read_whole,
    text,
    write_coco_file,
    yolo_lines,
)
from made_layouts import LAYOUTS, Make, make_flat_yolo, make_partly_nested_voc
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_common_tools_are_read_whole(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path)
    dataset = read_whole(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert (dataset.dropped, dataset.skipped) == ((), ())


JUNK = (
    "Annotations/._a.xml", "labels/._a.txt", "images/._a.png", ".DS_Store", "__MACOSX/images/a.png",
    "images/.ipynb_checkpoints/a-checkpoint.png", "labels/.ipynb_checkpoints/a-checkpoint.txt",
    "labels/README.txt", "labels/classes.txt.bak", "images/Thumbs.db", "labels.cache", "README.roboflow.txt",
    "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "desktop.ini",
)  # fmt: skip


@pytest.mark.parametrize("make", [make_coco, make_voc, make_yolo])
def test_what_systems_and_tools_leave_behind_is_passed_over(tmp_path: Path, make: Make) -> None:
    make(tmp_path)
    for name in JUNK:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7Mac OS X: no labels in this one")
    read_whole(tmp_path)


def test_part_of_the_annotations_in_a_folder_is_not_lost_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    make_partly_nested_voc(tmp_path)
    picture(tmp_path / "JPEGImages" / "c.png")
    dataset = open_dataset(tmp_path)
    assert sum(len(record.instances) for record in dataset.records) == BOXES
    assert any(line.startswith("1 images have no XML file") for line in dataset.remarks)


def test_images_without_a_label_file_are_counted(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    picture(tmp_path / "images" / "c.png")
    assert any(line.startswith("1 of 3 images have no label file") for line in open_dataset(tmp_path).remarks)


def test_images_that_a_coco_file_does_not_list_are_said_to_be_left_out(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    write_coco_file(tmp_path / "result.json", coco_content({"a.png": ONE}))
    assert any(
        line.startswith("1 images are not in result.json") for line in read_whole(tmp_path, {"a.png": ONE}).remarks
    )


def test_images_beside_the_folders_that_settings_name_are_said_to_be_left_out(tmp_path: Path) -> None:
    make_yolo(tmp_path, "images/train", "labels/train", None)
    text(tmp_path / "data.yaml", "train: images/train\nnames: [cat, dog]\n")
    picture(tmp_path / "more" / "z.png")
    assert any("more/z.png" in line for line in read_whole(tmp_path).remarks)


def test_label_files_are_known_behind_many_empty_ones(tmp_path: Path) -> None:
    make_flat_yolo(tmp_path)
    for index in range(30):
        picture(tmp_path / f"0{index}.png")
        text(tmp_path / f"0{index}.txt", "")
    dataset = open_dataset(tmp_path)
    assert (len(dataset.records), dataset.class_names) == (32, ("cat", "dog"))


def test_label_files_that_numpy_wrote_are_known(tmp_path: Path) -> None:
    make_flat_yolo(tmp_path)
    for name in ("a.txt", "b.txt"):
        np.savetxt(tmp_path / name, np.loadtxt(tmp_path / name))
    read_whole(tmp_path)


def test_a_comment_before_the_first_element_hides_no_xml(tmp_path: Path) -> None:
    make_voc(tmp_path)
    for file in (tmp_path / "Annotations").iterdir():
        text(file, f"<?xml version='1.0'?>\n<!-- <image> by a tool -->\n{file.read_text()}")
    read_whole(tmp_path)


def test_other_suffixes_of_images_are_images(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    for suffix in (".jfif", ".gif", ".jpe", ".JPG", ".webp", ".ppm"):
        name = f"x{suffix[1:]}"
        made = picture(tmp_path / "tmp" / f"x{'.jpg' if suffix in ('.jfif', '.jpe') else suffix.lower()}")
        made.rename(tmp_path / "images" / f"{name}{suffix}")
        text(tmp_path / "labels" / f"{name}.txt", yolo_lines(ONE))
    (tmp_path / "tmp").rmdir()
    assert len(open_dataset(tmp_path).records) == 8


def test_a_coco_file_beside_a_folder_of_labels_is_read_first(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    write_coco_file(tmp_path / "result.json", coco_content())
    assert open_dataset(tmp_path).source == "COCO, result.json"


UNKNOWN = {
    "via.json": ('{"_via_settings": {}}', "1 .json"),
    "createml.json": ('[{"image": "a.png", "annotations": []}]', "1 .json"),
    "annotations.json": ('{"images": [], "annotations": []}', "COCO but for categories"),
    "boxes.csv": ("path,x1,y1,x2,y2,label\na.png,1,2,3,4,cat\n", "whose columns are path,x1"),
    "a.txt": ("a photo of a cat\n", "whose lines are not YOLO's"),
    "boxes.xml": ("<dataset><images/></dataset>", "<dataset>"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_layout_that_is_not_known_is_counted_and_the_nearest_is_named(tmp_path: Path, name: str) -> None:
    content, said = UNKNOWN[name]
    picture(tmp_path / "a.png")
    text(tmp_path / name, content)
    dataset = open_dataset(tmp_path, require_boxes=False)
    assert len(dataset.records) == 1
    (remark,) = dataset.remarks
    assert said in remark
    assert "passed over" in remark
    with pytest.raises(DatasetError, match="passed over"):
        open_dataset(tmp_path)


def test_annotations_of_another_format_that_are_there_too_are_remarked_on(tmp_path: Path) -> None:
    make_voc(tmp_path)
    assert read_whole(tmp_path).remarks == ()
    write_coco_file(tmp_path / "old.json", coco_content({"a.png": ONE[:1], "b.png": ()}))
    assert any("Pascal VOC" in line for line in open_dataset(tmp_path).remarks)
    (tmp_path / ".dengine").mkdir()  # of a verb, which wrote both
    assert open_dataset(tmp_path).remarks == ()


def test_a_coco_file_that_lies_too_deep_is_named_and_no_folder_without_images(tmp_path: Path) -> None:
    picture(tmp_path / "val2017" / "a.png")
    write_coco_file(tmp_path / "annotations_trainval2017" / "annotations" / "val.json", coco_content({"a.png": ONE}))
    with refused(DatasetError, None, "annotations_trainval2017/annotations/val.json"):
        open_dataset(tmp_path)


def test_label_files_in_a_folder_of_another_name_are_named(tmp_path: Path) -> None:
    make_yolo(tmp_path, "images", "bbox_labels")
    with refused(DatasetError, None, "bbox_labels/a.txt"):
        open_dataset(tmp_path)
    text(tmp_path / "data.yaml", "train: images\nnames: [cat, dog]\n")
    with refused(DatasetError, None, "label file"):
        open_dataset(tmp_path)


def test_images_alone_are_no_remark(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    text(tmp_path / "README.md", "pictures")
    text(tmp_path / "LICENSE.txt", "yours")
    assert open_dataset(tmp_path, require_boxes=False).remarks == ()
