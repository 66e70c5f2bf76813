"""YOLO folders: layouts, data.yaml, and what is refused by file and line."""

from pathlib import Path

import numpy as np
import pytest
import supervision as sv
from PIL import Image
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError

_LABELS = "1 0.5 0.5 1 1\n0 0.25 0.5 0.1 0.2\n"


def _add(root: Path, image: str, label: str | None = None, text: str = _LABELS) -> None:
    (root / image).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / image)
    if label is not None:
        (root / label).parent.mkdir(parents=True, exist_ok=True)
        (root / label).write_text(text)


def _simple(root: Path, text: str = _LABELS, settings: str = "names: [cat, dog]\n") -> Path:
    _add(root, "images/a.png", "labels/a.txt", text)
    _add(root, "images/b.png", "labels/b.txt")
    (root / "data.yaml").write_text(settings)
    return root


def test_boxes_are_fractions_of_the_image(tmp_path: Path) -> None:
    dataset = open_dataset(_simple(tmp_path))
    assert dataset.class_names == ("cat", "dog")
    np.testing.assert_allclose(dataset.records[0].instances.boxes, [[0, 0, 40, 30], [8, 12, 12, 18]], rtol=1e-6)
    assert dataset.records[0].instances.labels.tolist() == [1, 0]


def test_boxes_agree_with_supervision(tmp_path: Path) -> None:
    _simple(tmp_path)
    theirs = sv.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml")
    )
    ours = open_dataset(tmp_path)
    for record, (path, _, detections) in zip(ours.records, theirs, strict=True):
        assert Path(path).name == record.name
        np.testing.assert_allclose(detections.xyxy, record.instances.boxes, atol=1e-4)
        assert detections.class_id.tolist() == record.instances.labels.tolist()


def test_boxes_are_in_pixels_of_the_upright_image(tmp_path: Path) -> None:
    _simple(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png", exif=exif)
    assert open_dataset(tmp_path).records[0].instances.boxes[0].tolist() == [0, 0, 30, 40]


@pytest.mark.parametrize(
    ("image", "label", "settings"),
    [
        ("images/train/a.png", "labels/train/a.txt", None),
        ("train/images/a.png", "train/labels/a.txt", None),
        ("train/images/a.png", "train/labels/a.txt", "train: ../train/images\nval: ../valid/images\n"),
        ("pics/images/a.png", "pics/labels/a.txt", "path: pics\ntrain: images\n"),
        ("pics/images/a.png", "pics/labels/a.txt", "path: /home/someone/else\ntrain: [pics/images]\n"),
        ("darknet/a.png", "darknet/a.txt", "train: darknet\n"),
    ],
)
def test_usual_layouts_and_splits_are_found(tmp_path: Path, image: str, label: str, settings: str | None) -> None:
    _add(tmp_path, image, label)
    if settings is not None:
        (tmp_path / "data.yaml").write_text(settings + "names: {0: cat, 1: dog}\n")
    for split in ("train", None):
        dataset = open_dataset(tmp_path, split=split)
        assert [record.file for record in dataset.records] == [tmp_path / image]
        assert dataset.records[0].instances.labels.tolist() == [1, 0]


def test_splits_are_kept_apart_and_joined_without_one(tmp_path: Path) -> None:
    _add(tmp_path, "train/images/a.png", "train/labels/a.txt")
    _add(tmp_path, "valid/images/a.png", "valid/labels/a.txt")
    (tmp_path / "data.yaml").write_text("train: train/images\nval: valid/images\nnames: [cat, dog]\n")
    assert open_dataset(tmp_path, split="val").records[0].file.parent.parent.name == "valid"
    joined = open_dataset(tmp_path)
    assert [record.name for record in joined.records] == ["train/images/a.png", "valid/images/a.png"]
    with refused(DatasetError, "split", '"test"', "train, valid"):
        open_dataset(tmp_path, split="test")


def test_a_split_may_be_a_list_of_images(tmp_path: Path) -> None:
    _simple(tmp_path, settings="train: train.txt\nnames: [cat, dog]\n")
    (tmp_path / "train.txt").write_text("./images/b.png\n\n")
    assert [record.name for record in open_dataset(tmp_path, split="train").records] == ["images/b.png"]
    (tmp_path / "train.txt").write_text("images/b.png\n/data/images/c.png\nimages/d.png\n")
    with refused(DatasetError, None, "train.txt, line 2"):
        open_dataset(tmp_path, split="train")
    assert len(open_dataset(tmp_path, split="train", skip_bad=True).skipped) == 2


def test_names_come_from_a_list_a_file_the_caller_or_the_numbers(tmp_path: Path) -> None:
    _simple(tmp_path)
    (tmp_path / "data.yaml").unlink()
    assert open_dataset(tmp_path).class_names == ("class0", "class1")
    assert open_dataset(tmp_path, class_names=["x", "y"]).records[0].instances.labels.tolist() == [1, 0]
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog\n")
    assert open_dataset(tmp_path).class_names == ("cat", "dog")
    assert open_dataset(tmp_path, class_names=["dog", "cat"]).records[0].instances.labels.tolist() == [0, 1]


def test_an_image_without_a_label_file_has_no_boxes(tmp_path: Path) -> None:
    _simple(tmp_path)
    (tmp_path / "labels" / "a.txt").unlink()
    assert [len(record.instances.boxes) for record in open_dataset(tmp_path).records] == [0, 2]


def test_a_polygon_becomes_the_box_round_it(tmp_path: Path) -> None:
    dataset = open_dataset(_simple(tmp_path, "0 0.1 0.2 0.5 0.1 0.3 0.9\n"))
    np.testing.assert_allclose(dataset.records[0].instances.boxes, [[4, 3, 20, 27]], rtol=1e-6)


def test_boxes_without_area_are_dropped_and_reported_and_others_are_clipped(tmp_path: Path) -> None:
    dataset = open_dataset(_simple(tmp_path, "0 0.5 0.5 0 0.1\n1 0 0.5 0.5 1.005\n"))
    assert dataset.records[0].instances.boxes.tolist() == [[0, 0, 10, 30]]
    assert dataset.dropped == ("labels/a.txt, line 1: box [20, 13.5, 20, 16.5] has no area.",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", " has 4 values; class, x, y, width, height"),
        ("0 0.5 0.5 0.1 0.1 0.9", " has 6 values"),
        ("2 0.5 0.5 0.1 0.1", ": class 2 is not one of 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", ": class -1 is not a whole number"),
        ("0.5 0.5 0.5 0.1 0.1", ": class 0.5 is not a whole number"),
        ("cat 0.5 0.5 0.1 0.1", ' is "cat"; a finite number'),
        ("0 nan 0.5 0.1 0.1", ' is "nan"; a finite number'),
        ("0 20 15 4 4", ": values must be fractions of the image, 0 to 1; got 20 15 4 4"),
    ],
)
def test_a_bad_line_is_an_error_with_file_and_line_or_is_left_out_and_listed(
    tmp_path: Path, line: str, message: str
) -> None:
    _simple(tmp_path, f"0 0.5 0.5 0.1 0.1\n{line}\n1 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DatasetError, match=rf"^labels/a\.txt, line 2{message}") as caught:
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, skip_bad=True)
    assert [str(caught.value).startswith(line) for line in dataset.skipped] == [True]
    assert dataset.records[0].instances.labels.tolist() == [0, 1]


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    dataset = open_dataset(_simple(tmp_path, "\n0 0.5 0.5 0.1 0.1\n  \n1 0.5 0.5 0.1 0.1\n\n"))
    assert dataset.records[0].instances.labels.tolist() == [0, 1]


def test_a_label_without_its_image_and_an_image_that_is_broken_are_bad(tmp_path: Path) -> None:
    _simple(tmp_path)
    (tmp_path / "labels" / "c.txt").write_text(_LABELS)
    with refused(DatasetError, None, "labels/c.txt"):
        open_dataset(tmp_path)
    (tmp_path / "labels" / "c.txt").unlink()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    with refused(DatasetError, None, "images/a.png"):
        open_dataset(tmp_path)
    (tmp_path / "labels" / "c.txt").write_text(_LABELS)
    dataset = open_dataset(tmp_path, skip_bad=True)
    assert [record.name for record in dataset.records] == ["b.png"]
    assert len(dataset.skipped) == 2


def test_two_images_of_one_label_file_are_refused(tmp_path: Path) -> None:
    _simple(tmp_path)
    _add(tmp_path, "images/a.jpg")
    with refused(DatasetError, None, "labels/a.txt", "images/a.jpg", "images/a.png"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("names: [cat\n", r"data\.yaml is not readable as YAML"),
        ("!!python/object/apply:os.getcwd []", r"data\.yaml is not readable as YAML"),
        ("- cat\n", r"data\.yaml holds a list; a mapping"),
        ("names: cat\n", r"data\.yaml, names is a str; a list"),
        ("names: [cat, no]\n", r"data\.yaml, names\[1\] is False; text was expected"),
        ("names: {1: cat, 2: dog}\n", r"data\.yaml, names: keys are \[1, 2\]"),
        ("names: [cat, cat]\n", "must differ"),
        ("names: [cat, &a dog, *a]\n", r"data\.yaml has aliases"),
        ("names: [cat, dog]\ntrain: 5\n", r"data\.yaml, train is 5; a folder"),
    ],
)
def test_a_bad_data_yaml_is_an_error_with_its_field(tmp_path: Path, settings: str, message: str) -> None:
    _simple(tmp_path, settings=settings)
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(tmp_path, skip_bad=True)
    assert "\n" not in str(caught.value)


def test_a_label_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    _simple(tmp_path)
    (tmp_path / "labels" / "a.txt").write_bytes(b"\xff\xfe\x00")
    with refused(DatasetError, None, "a.txt"):
        open_dataset(tmp_path)
