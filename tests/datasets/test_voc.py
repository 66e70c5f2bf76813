"""Pascal VOC: splits, boxes, and what is refused by file and field."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
from PIL import Image
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError

Named = tuple[str, Sequence[object]]  # class and xmin, ymin, xmax, ymax as written


def _xml(name: str, objects: Sequence[Named], size: str = "") -> str:
    parts = "".join(
        f"<object><name>{label}</name><part><name>head</name></part><bndbox>"
        + "".join(
            f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        + "</bndbox></object>"
        for label, box in objects
    )
    return f"<annotation><filename>{name}</filename>{size}{parts}</annotation>"


def _make(root: Path, images: dict[str, Sequence[Named]], splits: dict[str, str] | None = None) -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, objects in images.items():
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(_xml(f"{stem}.jpg", objects))
    for split, lines in (splits or {}).items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
    return root


_TWO: dict[str, Sequence[Named]] = {
    "a": [("dog", (1, 1, 40, 30)), ("cat", (11, 6, 20, 15))],
    "b": [("cat", (2.5, 3, 10, 12))],
}


def test_boxes_become_continuous_edges_and_classes_are_alphabetical(tmp_path: Path) -> None:
    dataset = open_dataset(_make(tmp_path, _TWO))
    assert dataset.class_names == ("cat", "dog")
    first, second = dataset.records
    assert first.instances.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 15]]
    assert first.instances.labels.tolist() == [1, 0]
    assert second.instances.boxes.tolist() == [[1.5, 2, 10, 12]]
    assert [record.name for record in dataset.records] == ["a.jpg", "b.jpg"]


def test_boxes_agree_with_supervision(tmp_path: Path) -> None:
    _make(tmp_path, _TWO)
    ours = open_dataset(tmp_path)
    theirs = sv.DetectionDataset.from_pascal_voc(str(tmp_path / "JPEGImages"), str(tmp_path / "Annotations"))
    assert len(theirs) == 2
    for record, (path, _, detections) in zip(ours.records, theirs, strict=True):
        assert Path(path).name == record.name
        np.testing.assert_allclose(detections.xyxy, record.instances.boxes)
        names = [theirs.classes[index] for index in detections.class_id]
        assert names == [ours.class_names[label] for label in record.instances.labels]


def test_a_split_lists_its_images_and_keeps_the_indices_of_the_whole(tmp_path: Path) -> None:
    _make(tmp_path, _TWO, {"train": "a\n", "val": "b\n\n", "cat_train": "a  1\nb -1\n"})
    assert [record.name for record in open_dataset(tmp_path, split="train").records] == ["a.jpg"]
    validation = open_dataset(tmp_path, split="valid")
    assert [record.name for record in validation.records] == ["b.jpg"]
    assert validation.class_names == ("cat", "dog")
    assert len(open_dataset(tmp_path, split="cat_train").records) == 2
    with refused(DatasetError, "split", '"test"', "cat_train, train, val"):
        open_dataset(tmp_path, split="test")


@pytest.mark.parametrize("line", ["c", "../Annotations/c", "/etc/passwd"])
def test_a_bad_line_of_a_split_is_named(tmp_path: Path, line: str) -> None:
    _make(tmp_path, _TWO, {"train": f"a\n{line}\n"})
    with refused(DatasetError, None, "ImageSets/Main/train.txt, line 2"):
        open_dataset(tmp_path, split="train")
    dataset = open_dataset(tmp_path, split="train", skip_bad=True)
    assert (len(dataset.records), len(dataset.skipped)) == (1, 1)


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    _make(tmp_path, _TWO, {"train": "\n"})
    with refused(DatasetError, None, "split train"):
        open_dataset(tmp_path, split="train")


def test_xml_beside_the_images_in_a_folder_a_split_is_read(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / split / "a.jpg")
        (tmp_path / split / "a.xml").write_text(_xml("a.jpg", _TWO["a"]))
    assert [record.name for record in open_dataset(tmp_path, split="val").records] == ["a.jpg"]
    assert [record.name for record in open_dataset(tmp_path).records] == ["train/a.jpg", "valid/a.jpg"]


def test_the_image_with_the_name_of_the_xml_file_stands_in_for_a_wrong_filename(tmp_path: Path) -> None:
    _make(tmp_path, {"a": _TWO["a"]})
    (tmp_path / "Annotations" / "a.xml").write_text(_xml("a_from_my_camera", _TWO["a"]))
    assert open_dataset(tmp_path).records[0].name == "a.jpg"


def test_boxes_without_area_are_dropped_and_reported_and_others_are_clipped(tmp_path: Path) -> None:
    objects = [("cat", (5, 5, 5, 9)), ("cat", (9, "x", 5, 9)), ("dog", (0, -3, 90, 10)), ("cat", (60, 1, 70, 9))]
    dataset = open_dataset(_make(tmp_path, {"a": objects}))
    (record,) = dataset.records
    assert record.instances.boxes.tolist() == [[0, 0, 40, 10]]
    assert dataset.class_names == ("cat", "dog")
    assert dataset.dropped == (
        "Annotations/a.xml, object 1, bndbox: box ['9', 'x', '5', '9'] is not four finite numbers.",
        "Annotations/a.xml, object 0: box [5, 5, 5, 9] has no area.",
        "Annotations/a.xml, object 3: box [59, 0, 70, 9] lies outside the 40x30 image.",
    )


def _rewrite(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "Annotations" / "a.xml").write_text(text)


_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]>'
    "<annotation><filename>&y;</filename></annotation>"
)
_STATED = "<size><width>80</width><height>60</height></size>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rewrite("<annotation><object>"), " is not readable as XML"),
        (_rewrite(""), " is not readable as XML"),
        (_rewrite("<html/>"), " holds <html>; <annotation> was expected"),
        (_rewrite(_BOMB), " has a DOCTYPE"),
        (lambda root: (root / "Annotations/a.xml").write_bytes(_BOMB.encode("utf-16")), " has a DOCTYPE"),
        (_rewrite(_xml("a.jpg", [("", (1, 2, 3, 4))])), r', object 0, name: class "" is not one of'),
        (
            _rewrite("<annotation><filename>a.jpg</filename><object><name>cat</name></object></annotation>"),
            ", object 0, bndbox is missing",
        ),
        (_rewrite(_xml("a.jpg", [("cat", (3, 4, 9, 9))], _STATED)), ": 80x60 is stated and the image is 40x30"),
        (lambda root: (root / "JPEGImages/a.jpg").unlink(), r', filename: "a\.jpg" is missing from'),
        (lambda root: (root / "JPEGImages/a.jpg").write_bytes(b"\xff\xd8"), ": .*a.jpg"),
    ],
)
def test_a_bad_item_is_an_error_with_its_field_or_is_left_out_and_listed(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    _make(tmp_path, _TWO)
    change(tmp_path)
    with pytest.raises(DatasetError, match=rf"^Annotations/[ab]\.xml{message}") as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)
    dataset = open_dataset(tmp_path, skip_bad=True, require_boxes=False)
    assert [str(caught.value).startswith(line) for line in dataset.skipped] == [True]
    assert "b.jpg" in [record.name for record in dataset.records]


def test_a_broken_file_of_another_split_does_no_harm(tmp_path: Path) -> None:
    _make(tmp_path, _TWO, {"train": "a\n"})
    (tmp_path / "Annotations" / "b.xml").write_text("broken")
    dataset = open_dataset(tmp_path, split="train")
    assert len(dataset.records) == 1
    assert dataset.skipped == ()
