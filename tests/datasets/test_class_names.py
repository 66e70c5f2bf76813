"""Class names: those that only group others go, those that a prompt can't tell apart are refused."""

from pathlib import Path
from typing import Any

import pytest
from made_datasets import (
    ONE,
    PICTURES,
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
from engines.errors import DatasetError, UsageError


@pytest.mark.parametrize(
    ("extra", "group"),
    [
        ({"id": 0, "name": "pets", "supercategory": "none"}, "pets"),
        ({"id": 0, "name": "cat"}, None),
        ({"id": 0, "name": "_background_"}, None),
        ({"id": 7, "name": "background"}, None),
    ],
)
def test_categories_without_a_box_that_group_others_are_no_classes(
    tmp_path: Path, extra: dict[str, Any], group: str | None
) -> None:
    content = coco_content()
    for category in content["categories"]:
        category["supercategory"] = group or "none"
    content["categories"].insert(0, extra)
    dataset = read_whole(make_coco(tmp_path, content))
    assert dataset.class_names == ("cat", "dog")
    assert any("only group others" in line for line in dataset.remarks)


def test_categories_that_have_boxes_or_group_nothing_stay(tmp_path: Path) -> None:
    content = coco_content()
    content["categories"] += [{"id": 5, "name": "cow", "supercategory": "cow"}]
    content["categories"][1]["supercategory"] = "cat"
    assert read_whole(make_coco(tmp_path, content)).class_names == ("cat", "dog", "cow")


def test_a_list_that_names_other_classes_than_the_settings_is_remarked_on(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    text(tmp_path / "data.yaml", "train: images\nnames: [cat, dog]\n")
    assert read_whole(tmp_path).remarks == ()
    text(tmp_path / "labels" / "classes.txt", "dog\nperson\ncat\n")
    (remark,) = read_whole(tmp_path).remarks
    assert "labels/classes.txt" in remark


ALIKE = [("RBC", "rbc"), ("traffic light", "traffic_light"), ("T-Cell", "t cell"), ("a\nb", "a b"), ("cat", "cat")]


@pytest.mark.parametrize("names", ALIKE)
@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_names_that_prompts_cannot_tell_apart_are_refused_naming_both(
    tmp_path: Path, names: tuple[str, str], form: str
) -> None:
    if form == "coco":
        content = coco_content()
        for category, name in zip(content["categories"], names, strict=True):
            category["name"] = name
        make_coco(tmp_path, content)
    elif form == "voc":
        if names[0] == names[1]:
            return  # one class, written in every object
        for name, (label, _) in zip(PICTURES, zip(names, names, strict=True), strict=True):
            picture(tmp_path / name)
            text(tmp_path / f"{name[:-4]}.xml", voc_xml(name, [(label, ONE[0][1])]))
    else:
        make_yolo(tmp_path, names=None)
        text(
            tmp_path / "data.yaml",
            "names:\n" + "".join(f"- {name!r}\n".replace("'a\\nb'", '"a\\nb"') for name in names),
        )
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path, require_boxes=False)
    assert caught.value.field == "class_names"
    assert len(str(caught.value)) < 300


def test_names_asked_for_that_are_alike_are_a_mistake_of_the_user(tmp_path: Path) -> None:
    with refused(UsageError, "class_names", '"RBC"', '"rbc"'):
        open_dataset(make_coco(tmp_path), class_names=["RBC", "rbc"])


def test_line_breaks_in_names_are_spaces(tmp_path: Path) -> None:
    for name in PICTURES:
        picture(tmp_path / name)
        text(tmp_path / f"{name[:-4]}.xml", voc_xml(name, [("red\n   cell ", ONE[0][1])]))
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("red cell",)
    assert sum(len(record.instances) for record in dataset.records) == 2
    assert "line breaks" in dataset.remarks[0]


@pytest.mark.parametrize("name", ["blood.yaml", "custom_data.yml", "data.yaml"])
def test_names_come_from_any_yaml_in_the_folder_that_has_them(tmp_path: Path, name: str) -> None:
    make_yolo(tmp_path, "images/train", "labels/train", None)
    text(
        tmp_path / name, "path: ../datasets/blood\ntrain: images/train\nval: images/train\nnames:\n  0: cat\n  1: dog\n"
    )
    text(tmp_path / "hyp.yaml", "lr0: 0.01\n")
    assert read_whole(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("name", ["data/data.yaml", "labels/data.yaml", "config/cells.yml"])
def test_names_and_folders_come_from_a_yaml_one_folder_down(tmp_path: Path, name: str) -> None:
    make_yolo(tmp_path, "data/images/train", "data/labels/train", None)
    text(tmp_path / name, "train: images/train\nnames: [cat, dog]\n")
    assert name in read_whole(tmp_path).remarks[0]
    read_whole(tmp_path, split="train")


def test_a_list_of_names_goes_before_a_yaml_one_folder_down(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    text(tmp_path / "config" / "other.yaml", "names: [person, car]\n")
    assert read_whole(tmp_path).remarks == ()


def test_two_settings_files_that_name_different_classes_are_refused(tmp_path: Path) -> None:
    make_yolo(tmp_path, names=None)
    text(tmp_path / "a.yaml", "names: [cat, dog]\n")
    text(tmp_path / "b.yaml", "names: [dog, cat]\n")
    with pytest.raises(DatasetError, match=r"a\.yaml and b\.yaml name different classes") as caught:
        open_dataset(tmp_path)
    assert caught.value.field == "names"
    text(tmp_path / "b.yaml", "names: [cat, dog]\n")
    read_whole(tmp_path)


def test_two_lists_of_names_that_differ_are_refused(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    text(tmp_path / "labels" / "classes.txt", "dog\ncat\n")
    with refused(DatasetError, "names", "classes.txt", "labels/classes.txt"):
        open_dataset(tmp_path)


def test_an_empty_line_among_names_is_refused(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    text(tmp_path / "classes.txt", "cat\n\ndog\n")
    with refused(DatasetError, "names", "classes.txt", "line 2"):
        open_dataset(tmp_path)
    text(tmp_path / "classes.txt", "cat\ndog\n\n\n")
    read_whole(tmp_path)


def test_classes_without_names_are_remarked(tmp_path: Path) -> None:
    make_yolo(tmp_path, names=None)
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("class0", "class1")
    assert any("class0" in line for line in dataset.remarks)


def test_names_that_are_numbers_are_names(tmp_path: Path) -> None:
    content = coco_content()
    content["categories"][0]["name"] = 7
    assert open_dataset(make_coco(tmp_path, content)).class_names == ("7", "dog")


def test_the_classes_of_voc_are_those_of_all_splits(tmp_path: Path) -> None:
    make_voc(tmp_path)
    text(tmp_path / "ImageSets" / "Main" / "train.txt", "a\n")
    text(tmp_path / "Annotations" / "b.xml", voc_xml("b.png", [("ant", ONE[0][1])]))
    assert open_dataset(tmp_path, split="train").class_names == ("ant", "cat", "dog")


def test_a_name_of_unbounded_length_does_not_fill_a_message(tmp_path: Path) -> None:
    content = coco_content()
    for category, letter in zip(content["categories"], "Aa", strict=True):
        category["name"] = letter * 100_000
    make_coco(tmp_path)
    write_coco_file(tmp_path / "annotations" / "instances.json", content)
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path)
    assert len(str(caught.value)) < 400
