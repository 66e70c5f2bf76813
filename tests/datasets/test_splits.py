"""Splits and datasets in folders below: which images one that is named has, and what is said where none was."""

from pathlib import Path

import pytest
from made_data import make_data
from made_datasets import (
    ONE,
    PICTURES,
    TWO,
    coco_content,
    make_coco,
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

from engines.datasets.dataset import Dataset, open_dataset, remark_on_splits
from engines.datasets.splits import mixed_splits
from engines.errors import DatasetError


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["train/images/a.png", "valid/images/b.png"], ("train", "val")),
        (["images/train2017/a.png", "images/val2017/b.png", "images/test/c.png"], ("train", "val", "test")),
        (["train/a.png", "train/b.png"], ()),
        (["images/a.png", "other/b.png"], ()),
    ],
)
def test_folders_say_which_parts_there_are(tmp_path: Path, files: list[str], found: tuple[str, ...]) -> None:
    assert mixed_splits(tmp_path, [tmp_path / name for name in files]) == found


def test_what_lies_above_the_dataset_says_nothing(tmp_path: Path) -> None:
    root = tmp_path / "train" / "val"
    assert mixed_splits(root, [root / "images" / "a.png"]) == ()


def test_lists_of_image_sets_are_parts_and_a_named_split_is_not_remarked_on(tmp_path: Path) -> None:
    dataset: Dataset = make_data(tmp_path / "data")
    assert remark_on_splits(dataset, None) is None
    lists = tmp_path / "data" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in ("train", "val"):
        (lists / f"{name}.txt").write_text("1\n", "utf-8")
    said = remark_on_splits(dataset, None)
    assert said is not None
    assert "train, val" in said
    assert remark_on_splits(dataset, "train") is None


@pytest.mark.parametrize("form", ["images/{}", "{}/images"])
def test_a_split_that_nobody_labelled_is_no_split_of_empty_images(tmp_path: Path, form: str) -> None:
    make_yolo(tmp_path, form.format("train"), form.format("train").replace("images", "labels"))
    for name in ("c", "d"):
        picture(tmp_path / form.format("test") / f"{name}.png")
    assert any("test" in line for line in read_whole(tmp_path).remarks)
    alone = open_dataset(tmp_path, split="test", require_boxes=False)
    assert sorted(record.file.name for record in alone.records) == ["c.png", "d.png"]


@pytest.mark.parametrize("test", ["test-dev", "VisDrone2019-DET-test-challenge", "images_test"])
def test_kinds_of_tests_that_nobody_labelled_are_left_out_and_negatives_are_not(tmp_path: Path, test: str) -> None:
    make_yolo(tmp_path, "images/train", "labels/train")
    picture(tmp_path / "images" / test / "c.png")
    assert any(test in line for line in read_whole(tmp_path).remarks)
    picture(tmp_path / "images" / "train_negatives" / "d.png")
    assert len(open_dataset(tmp_path).records) == len(PICTURES) + 1


def test_a_split_of_two_words_is_the_file_that_has_both(tmp_path: Path) -> None:
    for split, name in (("train", "a.png"), ("test-dev", "b.png")):
        picture(tmp_path / "images" / split / name)
        content = coco_content({name: PICTURES[name]})
        write_coco_file(tmp_path / "annotations" / f"instances_{split}.json", content)
    read_whole(tmp_path, {"b.png": TWO}, split="test-dev")


def test_splits_of_settings_are_known_whatever_their_case(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("Validation", "b")):
        picture(tmp_path / f"obj_{split}_data" / f"{name}.png")
        text(tmp_path / f"obj_{split}_data" / f"{name}.txt", yolo_lines(PICTURES[f"{name}.png"]))
        text(tmp_path / f"{split}.txt", f"data/obj_{split}_data/{name}.png\n")
    text(tmp_path / "obj.names", "cat\ndog\n")
    text(tmp_path / "obj.data", "train = data/train.txt\nValidation = data/Validation.txt\nnames = data/obj.names\n")
    read_whole(tmp_path)
    read_whole(tmp_path, {"b.png": TWO}, split="val")


@pytest.mark.parametrize("form", ["yolo", "voc", "labelme"])
def test_a_split_is_the_outermost_folder_that_is_named_for_one(tmp_path: Path, form: str) -> None:
    for split, name in (("train", "a.png"), ("val", "b.png")):
        folder = tmp_path / split / "obj_train_data"
        picture(folder / name)
        if form == "yolo":
            text(folder / f"{name[:-4]}.txt", yolo_lines(PICTURES[name]))
            text(tmp_path / split / "obj.names", "cat\ndog\n")
        elif form == "voc":
            text(folder / f"{name[:-4]}.xml", voc_xml(name, PICTURES[name]))
        else:
            shapes = [
                {"label": label, "points": [box[:2], box[2:]], "shape_type": "rectangle"}
                for label, box in PICTURES[name]
            ]
            write_coco_file(folder / f"{name[:-4]}.json", {"shapes": shapes, "imagePath": name})
    read_whole(tmp_path, {"a.png": ONE}, split="train")
    read_whole(tmp_path, {"b.png": TWO}, split="val")
    (tmp_path / "train").rename(tmp_path / "test")
    read_whole(tmp_path / "test", {"a.png": ONE}, split="train")


def test_several_datasets_below_are_named(tmp_path: Path) -> None:
    make_coco(tmp_path / "first")
    make_voc(tmp_path / "second")
    make_yolo(tmp_path / "third")
    with refused(DatasetError, None, "first", "second", "third"):
        open_dataset(tmp_path, require_boxes=False)


def test_a_split_among_several_datasets_below_is_taken(tmp_path: Path) -> None:
    for split in ("train", "val"):
        make_voc(tmp_path / "sets" / split, "Annotations", "JPEGImages")
    for split in ("train", "val"):
        records = read_whole(tmp_path, split=split).records
        assert {record.file.parent for record in records} == {tmp_path / "sets" / split / "JPEGImages"}


@pytest.mark.parametrize("folders", ["train val", "set/train set/valid", "train2017 val2017"])
def test_a_split_that_is_a_dataset_below_is_taken_beside_those_of_the_others(tmp_path: Path, folders: str) -> None:
    for folder in folders.split():
        make_coco(tmp_path / folder)
    for split, folder in zip(("train", "val"), folders.split(), strict=True):
        assert read_whole(tmp_path, split=split).root == tmp_path / folder


def test_images_beside_a_dataset_below_are_not_read_without_it(tmp_path: Path) -> None:
    make_coco(tmp_path / "set")
    picture(tmp_path / "other" / "c.png")
    with refused(DatasetError, None, "/set"):
        open_dataset(tmp_path, require_boxes=False)


def test_imagesets_name_images_with_suffixes_folders_and_memberships(tmp_path: Path) -> None:
    make_voc(tmp_path)
    main = tmp_path / "ImageSets" / "Main"
    lists = {"train": "a.png\n", "val": "JPEGImages/b.png\n", "cats": "a  1\nb -1\n", "test": "D:\\x\\b.jpg\r\n"}
    for name, lines in lists.items():
        text(main / f"{name}.txt", lines)
    read_whole(tmp_path, {"a.png": ONE}, split="train")
    read_whole(tmp_path, {"b.png": TWO}, split="val")
    read_whole(tmp_path, {"b.png": TWO}, split="test")
    read_whole(tmp_path, split="cats")


def test_the_split_is_the_list_of_detection_where_other_tasks_have_shorter_ones(tmp_path: Path) -> None:
    make_voc(tmp_path)
    for task, lines in (("Action", "a 1\n"), ("Main", "a\nb\n"), ("Segmentation", "a\n")):
        text(tmp_path / "ImageSets" / task / "train.txt", lines)
    read_whole(tmp_path, split="train")


def test_splits_are_known_whatever_their_case(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc")
    text(tmp_path / "voc" / "ImageSets" / "Main" / "Train.txt", "a\n")
    read_whole(tmp_path / "voc", {"a.png": ONE}, split="train")
    for split, name in (("Train", "a.png"), ("Val", "b.png")):
        picture(tmp_path / "coco" / "images" / name)
        content = coco_content({name: PICTURES[name]})
        write_coco_file(tmp_path / "coco" / "annotations" / f"instances_{split}.json", content)
    read_whole(tmp_path / "coco", {"b.png": TWO}, split="val")


def test_a_number_at_the_end_of_a_listed_name_is_part_of_it_where_such_a_file_is_there(tmp_path: Path) -> None:
    named = {"photo.png": ONE, "photo 1.png": TWO}
    for name, objects in named.items():
        picture(tmp_path / "JPEGImages" / name)
        text(tmp_path / "Annotations" / f"{name[:-4]}.xml", voc_xml(name, objects))
    text(tmp_path / "ImageSets" / "Main" / "train.txt", "photo\nphoto 1\n")
    read_whole(tmp_path, named, split="train")
