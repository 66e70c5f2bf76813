"""COCO JSON: where it is found, what is read, and what is refused by file and field."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_datasets import BOXES, coco_content, make_coco
from PIL import Image
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError

Content = dict[str, Any]


def _content() -> Content:
    return {
        "info": {},
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4.5], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1},
            {"id": 3, "image_id": 3, "category_id": 2, "bbox": [10, 10, 5, 5]},
        ],
    }


def _write(root: Path, content: Content, name: str = "annotations.json", images: str = "images") -> Path:
    for file_name in ("a.png", "b.png"):
        path = root / images / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))
    return root


def test_classes_are_in_the_order_of_their_ids_and_crowds_are_marked(tmp_path: Path) -> None:
    dataset = open_dataset(_write(tmp_path, _content()))
    assert dataset.class_names == ("cat", "dog")
    first, second = dataset.records
    assert (first.name, second.name) == ("a.png", "b.png")
    np.testing.assert_array_equal(first.instances.boxes, np.array([[1, 2, 4, 6.5], [0, 0, 40, 30]], dtype=np.float32))
    assert first.instances.labels.tolist() == [1, 0]
    assert first.instances.crowd.tolist() == [False, True]
    assert second.instances.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("annotations.json", "images"),
        ("annotations.json", "."),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("train/_annotations.coco.json", "train"),
        ("data/labels.json", "data"),
    ],
)
def test_usual_layouts_are_found(tmp_path: Path, name: str, images: str) -> None:
    dataset = open_dataset(_write(tmp_path, _content(), name, images))
    assert [len(record.instances.boxes) for record in dataset.records] == [2, 1]


def test_a_split_is_a_word_in_the_name_of_the_file_or_its_folder(tmp_path: Path) -> None:
    _write(tmp_path, _content(), "annotations/instances_train2017.json", "train2017")
    other = _content() | {"images": _content()["images"][:1], "annotations": []}
    _write(tmp_path, other, "annotations/instances_val2017.json", "val2017")
    assert len(open_dataset(tmp_path, split="train").records) == 2
    assert len(open_dataset(tmp_path, split="val2017", require_boxes=False).records) == 1
    with refused(DatasetError, "split", "instances_train2017", "instances_val2017"):
        open_dataset(tmp_path)
    with refused(DatasetError, "split", '"test"'):
        open_dataset(tmp_path, split="test")


def test_other_json_files_are_passed_over(tmp_path: Path) -> None:
    _write(tmp_path, _content())
    (tmp_path / "run.json").write_text('{"images": 3}')
    assert open_dataset(tmp_path).source == "COCO, annotations.json"


def test_captions_come_from_the_image_or_from_the_captions_file(tmp_path: Path) -> None:
    content = _content()
    content["images"][0]["caption"] = "two cats"
    _write(tmp_path, content, "annotations/instances_train.json")
    captions = [{"id": 1, "image_id": 7, "caption": "no"}, {"id": 2, "image_id": 3, "caption": "a dog"}]
    (tmp_path / "annotations" / "captions_train.json").write_text(json.dumps({"annotations": captions}))
    assert [record.caption for record in open_dataset(tmp_path).records] == ["two cats", "a dog"]


def test_boxes_are_clipped_to_the_image(tmp_path: Path) -> None:
    content = _content()
    content["annotations"][0]["bbox"] = [30, 20, 100, 100]
    record = open_dataset(_write(tmp_path, content)).records[0]
    assert (record.width, record.height) == (40, 30)
    assert record.instances.boxes[0].tolist() == [30, 20, 40, 30]


def test_boxes_are_in_pixels_of_the_upright_image(tmp_path: Path) -> None:
    _write(tmp_path, _content())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png", exif=exif)
    content = _content()
    content["images"][0] |= {"width": 30, "height": 40}
    content["annotations"][0]["bbox"] = [0, 30, 30, 10]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    record = open_dataset(tmp_path).records[0]
    assert (record.width, record.height) == (30, 40)
    assert record.instances.boxes[0].tolist() == [0, 30, 30, 40]


@pytest.mark.parametrize(
    ("bbox", "why"),
    [
        ([], "not four finite numbers"),
        ([1, 2, 3], "not four finite numbers"),
        ([1, 2, 3, None], "not four finite numbers"),
        ([1, 2, 3, float("nan")], "not four finite numbers"),
        ([1, 2, 3, float("inf")], "not four finite numbers"),
        ([1, 2, 3, 10**400], "not four finite numbers"),
        ([5, 5, 0, 4], "no area"),
        ([5, 5, 4, -1], "no area"),
        ([50, 5, 4, 4], "outside the 40x30 image"),
        ([-9, 5, 9, 4], "outside the 40x30 image"),
    ],
)
def test_degenerate_boxes_are_dropped_and_reported_with_file_and_index(
    tmp_path: Path, bbox: list[Any], why: str
) -> None:
    content = _content()
    content["annotations"][0]["bbox"] = bbox
    dataset = open_dataset(_write(tmp_path, content))
    assert dataset.records[0].instances.labels.tolist() == [0]
    assert len(dataset.records[0].instances.boxes) == len(dataset.records[0].instances.crowd) == 1
    assert len(dataset.dropped) == 1
    assert re.match(r"annotations\.json, annotations\[0\](\.bbox)?: box \[", dataset.dropped[0])
    assert why in dataset.dropped[0]
    assert dataset.skipped == ()


def _set(section: str, index: int, **values: Any) -> Callable[[Content], None]:
    return lambda content: content[section][index].update(values)


def _drop(section: str, index: int, key: str) -> Callable[[Content], None]:
    return lambda content: content[section][index].pop(key)


@pytest.mark.parametrize(
    ("change", "message", "kept"),
    [
        (_set("annotations", 0, category_id=5), r"annotations\[0\].category_id 5 is not the id", (1, 1)),
        (_set("annotations", 0, category_id=""), r'annotations\[0\].category_id is ""; a whole', (1, 1)),
        (_set("annotations", 0, category_id=True), r"annotations\[0\].category_id is True", (1, 1)),
        (_set("annotations", 0, image_id=99), r"annotations\[0\].image_id 99 is not the id of any", (1, 1)),
        (_drop("annotations", 0, "bbox"), r"annotations\[0\].bbox is missing", (1, 1)),
        (_set("annotations", 0, iscrowd=2), r"annotations\[0\].iscrowd is 2", (1, 1)),
        (_set("images", 1, file_name="../c.png"), r'images\[1\].file_name: "../c.png" is missing', (2,)),
        (_set("images", 1, file_name="/etc/passwd"), r'images\[1\].file_name: "/etc/passwd" is missing', (2,)),
        (_set("images", 1, file_name="C:\\c.png"), r"images\[1\].file_name: .* is missing", (2,)),
        (_set("images", 1, file_name=""), r"images\[1\].file_name", (2,)),
        (_set("images", 1, file_name="b\0.png"), r"images\[1\].file_name: .* is not a file name", (2,)),
        (_set("images", 1, file_name="b" * 300), r"images\[1\].file_name: ", (2,)),
        (_set("images", 1, file_name=4), r"images\[1\].file_name is 4; a text", (2,)),
        (_set("images", 1, file_name="c.png"), r'images\[1\].file_name: "c.png" is missing from', (2,)),
        (_set("images", 1, file_name="a.png"), r'images\[1\].file_name "a.png" occurs twice', (2,)),
        (_set("images", 1, id=7), r'images\[1\].id 7 was given to "a.png" already', (2,)),
        (_set("images", 1, id=[3]), r"images\[1\].id is \[3\]; a whole number", (2,)),
        (_set("categories", 1, id=9, name="cow"), r'categories\[1\].id 9 was given to "dog" already', (1,)),
        (_set("categories", 1, name=None), r"categories\[1\].name is None", (1,)),
        (lambda content: content["images"].append(5), r"images\[2\] is a int; an object", (2, 1)),
        (lambda content: content["annotations"].append(None), r"annotations\[3\] is a NoneType", (2, 1)),
    ],
)
def test_a_bad_item_is_an_error_with_its_field_or_is_left_out_and_listed(
    tmp_path: Path, change: Callable[[Content], None], message: str, kept: tuple[int, ...]
) -> None:
    content = _content()
    change(content)
    _write(tmp_path, content)
    with pytest.raises(DatasetError, match=r"^annotations\.json, " + message) as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)
    dataset = open_dataset(tmp_path, skip_bad=True)
    assert str(caught.value).startswith(dataset.skipped[0]), "and how to leave it out"
    assert "`skip_bad=True`" in str(caught.value)
    assert tuple(len(record.instances.boxes) for record in dataset.records if len(record.instances.boxes)) == kept


def test_every_bad_item_is_listed(tmp_path: Path) -> None:
    content = _content()
    content["annotations"][0]["category_id"] = 5
    content["annotations"][1]["iscrowd"] = 2
    _write(tmp_path, content)
    (tmp_path / "images" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    dataset = open_dataset(tmp_path, skip_bad=True, require_boxes=False)
    assert [line.split(":")[0].split(".json, ")[1].split(" ")[0] for line in dataset.skipped] == [
        "annotations[0].category_id",
        "annotations[1].iscrowd",
        "images[1]",
    ]


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_a_section_of_the_wrong_type_is_an_error_even_when_items_may_be_skipped(tmp_path: Path, section: str) -> None:
    _write(tmp_path, _content() | {section: {}})
    with pytest.raises(DatasetError, match=rf"annotations\.json\.{section} is {{}}; a list was expected"):
        open_dataset(tmp_path, skip_bad=True)


def test_json_that_cannot_be_parsed_is_an_error_with_the_file(tmp_path: Path) -> None:
    _write(tmp_path, _content())
    text = (tmp_path / "annotations.json").read_text()
    (tmp_path / "annotations.json").write_text(text[:-9])
    with refused(DatasetError, None, "annotations.json"):
        open_dataset(tmp_path, skip_bad=True)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    content = _content()
    root = _write(tmp_path / "data", content)
    (root / "images" / "b.png").rename(tmp_path / "b.png")
    (root / "images" / "b.png").symlink_to(tmp_path / "b.png")
    with refused(DatasetError, None, "images[1].file_name", "`follow_links`"):
        open_dataset(root)


def test_annotations_that_are_there_twice_are_remarked_on(tmp_path: Path) -> None:
    content = coco_content()
    again = [dict(one) for one in content["annotations"]]
    content["annotations"] += [*again, {**again[0], "category_id": 2}]  # of another class it is another label
    dataset = open_dataset(make_coco(tmp_path, content))
    assert sum(len(record.instances) for record in dataset.records) == 2 * BOXES + 1
    assert len(dataset.remarks) == 1
    assert str(BOXES) in dataset.remarks[0]
