"""Names that may mean several files: settled by the split, the folder or the stated size, else refused with both."""

from pathlib import Path

import pytest
from made_datasets import (
    ONE,
    PICTURES,
    SIZE,
    TWO,
    coco_content,
    make_voc,
    make_yolo,
    picture,
    read_whole,
    text,
    voc_xml,
    write_coco_file,
    yolo_lines,
)
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError


@pytest.mark.parametrize("folders", [("images/train", "images/val"), ("train", "valid"), ("train2017", "val2017")])
def test_one_frame_name_in_two_splits_is_read_from_the_folder_of_the_split(
    tmp_path: Path, folders: tuple[str, str]
) -> None:
    for shade, (split, folder, objects) in enumerate(zip(("train", "val"), folders, (ONE, TWO), strict=True)):
        picture(tmp_path / folder / "frame_000000.png", shade=shade)
        content = coco_content({"frame_000000.png": objects})
        write_coco_file(tmp_path / "annotations" / f"instances_{split}.json", content)
    for split, folder, objects in zip(("train", "val"), folders, (ONE, TWO), strict=True):
        dataset = read_whole(tmp_path, {"frame_000000.png": objects}, split=split)
        assert dataset.records[0].file.parent == tmp_path / folder


def test_folders_of_equal_right_are_settled_by_the_stated_size_or_equal_files(tmp_path: Path) -> None:
    write_coco_file(tmp_path / "labels.json", coco_content({"a.png": ONE}))
    picture(tmp_path / "cam1" / "a.png", size=(99, 99))
    picture(tmp_path / "cam2" / "a.png")
    assert read_whole(tmp_path, {"a.png": ONE}).records[0].file.parent.name == "cam2"
    picture(tmp_path / "cam1" / "a.png")
    read_whole(tmp_path, {"a.png": ONE})


def test_folders_of_equal_right_are_refused_naming_both(tmp_path: Path) -> None:
    write_coco_file(tmp_path / "labels.json", coco_content({"a.png": ONE}))
    for shade, folder in enumerate(("cam1", "cam2")):
        picture(tmp_path / folder / "a.png", shade=shade)
    with refused(DatasetError, None, '"a.png"', "cam1/a.png", "cam2/a.png"):
        open_dataset(tmp_path)


def test_names_that_only_a_search_finds_are_refused_where_they_are_several(tmp_path: Path) -> None:
    write_coco_file(tmp_path / "labels.json", coco_content({"/data/x/a.png": ONE, "/data/x/b.png": TWO}))
    picture(tmp_path / "cam1" / "b.png")
    for shade, folder in enumerate(("cam1", "cam2")):
        picture(tmp_path / folder / "a.png", shade=shade)
    with refused(DatasetError, None, "cam1/a.png", "cam2/a.png", "`skip_bad=True`"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, skip_bad=True).records) == 1


def test_a_filename_that_is_another_files_image_gives_way_to_the_files_own_name(tmp_path: Path) -> None:
    make_voc(tmp_path)
    text(tmp_path / "Annotations" / "b.xml", voc_xml("a.png", TWO))
    dataset = read_whole(tmp_path)
    assert any("name the image of another file" in line for line in dataset.remarks)


def test_filenames_that_are_mixed_up_are_read_by_the_files_names(tmp_path: Path) -> None:
    make_voc(tmp_path)
    for name, other in (("a", "b"), ("b", "a")):
        text(tmp_path / "Annotations" / f"{name}.xml", voc_xml(f"{other}.png", PICTURES[f"{name}.png"]))
    read_whole(tmp_path)


def test_a_filename_against_the_files_own_name_is_refused_where_nothing_decides(tmp_path: Path) -> None:
    make_voc(tmp_path)
    picture(tmp_path / "JPEGImages" / "c.png", shade=1)
    text(tmp_path / "Annotations" / "b.xml", voc_xml("c.png", TWO))
    with refused(DatasetError, None, "Annotations/b.xml", '"c.png"', "JPEGImages/b.png"):
        open_dataset(tmp_path)


def test_one_name_in_several_folders_is_that_of_the_annotations_folder(tmp_path: Path) -> None:
    for shade, (folder, objects) in enumerate((("day", ONE), ("night", TWO))):
        picture(tmp_path / "JPEGImages" / folder / "1.png", shade=shade)
        text(tmp_path / "Annotations" / folder / "1.xml", voc_xml("1.png", objects))
    dataset = open_dataset(tmp_path)
    found = {record.name: record.instances.boxes.tolist() for record in dataset.records}
    assert found == {"day/1.png": [list(box) for _, box in ONE], "night/1.png": [list(box) for _, box in TWO]}


def test_one_name_in_several_folders_without_help_is_refused(tmp_path: Path) -> None:
    for shade, folder in enumerate(("x", "y")):
        picture(tmp_path / "JPEGImages" / folder / "1.png", shade=shade)
    text(tmp_path / "Annotations" / "1.xml", voc_xml("1.png", ONE))
    with refused(DatasetError, None, "JPEGImages/x/1.png", "JPEGImages/y/1.png"):
        open_dataset(tmp_path)
    text(tmp_path / "Annotations" / "1.xml", f"<annotation><folder>y</folder>{voc_xml('1.png', ONE)[12:]}")
    assert open_dataset(tmp_path).records[0].file.parent.name == "y"


@pytest.mark.parametrize("make", [make_voc, make_yolo])
def test_two_images_of_one_stem_are_refused_naming_both(tmp_path: Path, make: object) -> None:
    (make_voc if make is make_voc else make_yolo)(tmp_path)
    folder = "JPEGImages" if make is make_voc else "images"
    if make is make_voc:
        text(tmp_path / "Annotations" / "a.xml", voc_xml("missing.png", ONE))
    picture(tmp_path / folder / "a.bmp", shade=3)
    with refused(DatasetError, None, f"{folder}/a.bmp", f"{folder}/a.png"):
        open_dataset(tmp_path)


def test_two_images_of_one_stem_are_settled_by_the_stated_size(tmp_path: Path) -> None:
    make_voc(tmp_path)
    text(tmp_path / "Annotations" / "a.xml", voc_xml("missing.png", ONE, SIZE))
    picture(tmp_path / "JPEGImages" / "a.bmp", size=(9, 9))
    assert open_dataset(tmp_path).records[0].name == "a.png"


def test_a_list_of_images_prefers_the_folder_of_its_split(tmp_path: Path) -> None:
    for shade, (split, objects) in enumerate((("train", ONE), ("val", TWO))):
        picture(tmp_path / "images" / split / "1.png", shade=shade)
        text(tmp_path / "labels" / split / "1.txt", yolo_lines(objects))
        text(tmp_path / f"{split}.txt", "/home/me/1.png\n")
    text(tmp_path / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    read_whole(tmp_path, {"1.png": ONE}, split="train")
    read_whole(tmp_path, {"1.png": TWO}, split="val")


def test_two_splits_whose_foreign_paths_end_in_one_folder_are_refused(tmp_path: Path) -> None:
    make_yolo(tmp_path, names=None)
    text(tmp_path / "data.yaml", "train: /x/train/images\nval: /x/val/images\nnames: [cat, dog]\n")
    for split in (None, "train"):
        with refused(DatasetError, "val", "data.yaml", '"/x/val/images"', '"/x/train/images"'):
            open_dataset(tmp_path, split=split)


def test_a_name_that_says_its_split_is_not_the_file_of_another_split(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "val" / "1.png")
    content = coco_content({"train/1.png": ONE})
    write_coco_file(tmp_path / "annotations" / "instances_train.json", content)
    with refused(DatasetError, None, '"train/1.png"', "images/val/1.png"):
        open_dataset(tmp_path)
    foreign = coco_content({"D:\\train\\images\\1.png": ONE})
    write_coco_file(tmp_path / "annotations" / "instances_train.json", foreign)
    read_whole(tmp_path, {"1.png": ONE})  # a folder of another machine, as there is no split of that name here
    picture(tmp_path / "images" / "train" / "2.png")
    with refused(DatasetError, None, "images/val/1.png"):
        open_dataset(tmp_path)


def test_a_frame_that_is_missing_from_its_split_is_not_that_of_another(tmp_path: Path) -> None:
    for shade, name in enumerate(("train/1.png", "val/2.png")):
        picture(tmp_path / "images" / name, shade=shade)
    content = coco_content({"1.png": ONE, "2.png": TWO})
    write_coco_file(tmp_path / "annotations" / "instances_train.json", content)
    read_whole(tmp_path, {"1.png": ONE, "2.png": TWO})  # names are of one image each, wherever it lies
    picture(tmp_path / "images" / "val" / "1.png", shade=2)
    with refused(DatasetError, None, "images[1]", '"2.png"', "images/val/2.png"):
        open_dataset(tmp_path)


def test_an_xml_file_of_one_split_is_not_of_an_image_of_another(tmp_path: Path) -> None:
    make_voc(tmp_path, "Annotations/train", "JPEGImages/train")
    picture(tmp_path / "JPEGImages" / "val" / "c.png")
    text(tmp_path / "Annotations" / "train" / "c.xml", voc_xml("c.png", ONE))
    with refused(DatasetError, None, "Annotations/train/c.xml", "JPEGImages/val/c.png"):
        open_dataset(tmp_path)


def test_frames_of_two_splits_have_the_label_files_of_their_own(tmp_path: Path) -> None:
    for shade, (split, objects) in enumerate((("train", ONE), ("val", TWO))):
        picture(tmp_path / split / "1.png", shade=shade)
        text(tmp_path / "labels" / split / "1.txt", yolo_lines(objects))
    text(tmp_path / "classes.txt", "cat\ndog\n")
    read_whole(tmp_path, {"1.png": ONE}, split="train")
    read_whole(tmp_path, {"1.png": TWO}, split="val")


def test_a_label_file_of_one_split_is_not_of_an_image_of_another(tmp_path: Path) -> None:
    make_yolo(tmp_path, "images/train", "labels/train")
    picture(tmp_path / "images" / "train" / "empty.png")
    text(tmp_path / "labels" / "val" / "empty.txt", yolo_lines(ONE))
    found = {record.name: len(record.instances) for record in open_dataset(tmp_path).records}
    assert found["train/empty.png"] == 0
