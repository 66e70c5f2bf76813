"""Opening a dataset folder: which format it is, what comes in, and what is said when it is no dataset."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from engines.datasets.dataset import Dataset, open_dataset
from engines.errors import DatasetError, UsageError

BCCD = Path(__file__).parents[3] / "shared" / "bccd"


def _picture(path: Path, width: int = 40, height: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "grey").save(path)
    return path


def _coco(root: Path, name: str = "annotations.json") -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    _picture(root / "images" / "a.png")
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))


def _voc(root: Path) -> None:
    _picture(root / "JPEGImages" / "a.png")
    (root / "Annotations").mkdir()
    (root / "Annotations" / "a.xml").write_text(
        "<annotation><filename>a.png</filename><object><name>cat</name><bndbox><xmin>2</xmin><ymin>3</ymin>"
        "<xmax>4</xmax><ymax>6</ymax></bndbox></object></annotation>"
    )


def _two_folders_down(root: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        (root / "VOCdevkit" / year / "Annotations").mkdir(parents=True)
        (root / "VOCdevkit" / year / "Annotations" / "a.xml").write_text("<annotation/>")


def _yolo(root: Path) -> None:
    _picture(root / "images" / "a.png")
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text("0 0.0625 0.133333333 0.075 0.133333333\n")
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")


def _only(dataset: Dataset) -> tuple[list[list[float]], list[int]]:
    (record,) = dataset.records
    return record.instances.boxes.round(3).tolist(), record.instances.labels.tolist()


@pytest.mark.parametrize(("make", "source"), [(_coco, "COCO"), (_voc, "Pascal VOC"), (_yolo, "YOLO")])
def test_the_format_is_found_by_looking_at_the_folder(
    tmp_path: Path, make: Callable[[Path], object], source: str
) -> None:
    make(tmp_path)
    dataset = open_dataset(tmp_path)
    assert dataset.source.startswith(source)
    assert dataset.root == tmp_path
    assert dataset.class_names == ("cat",)
    assert (dataset.dropped, dataset.skipped) == ((), ())
    (record,) = dataset.records
    assert (record.name, record.width, record.height) == ("a.png", 40, 30)
    assert record.file.is_file()
    assert record.caption is None
    assert record.instances.boxes.dtype == np.float32
    assert record.instances.labels.dtype == np.int64
    assert record.instances.crowd.tolist() == [False]
    assert _only(dataset) == ([[1.0, 2.0, 4.0, 6.0]], [0])


def test_a_folder_of_several_formats_is_read_as_coco_first(tmp_path: Path) -> None:
    _yolo(tmp_path)
    _coco(tmp_path)
    assert open_dataset(tmp_path).source == "COCO, annotations.json"


def test_a_folder_of_images_alone_needs_leave(tmp_path: Path) -> None:
    _picture(tmp_path / "x" / "a.png", 20, 10)
    with pytest.raises(DatasetError, match="no boxes; a labelled dataset is needed"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, require_boxes=False, class_names=["cat"])
    assert dataset.class_names == ("cat",)
    assert dataset.records[0].name == "x/a.png"
    assert dataset.records[0].instances.boxes.shape == (0, 4)
    assert dataset.records[0].instances.labels.shape == (0,)


def test_annotations_without_a_box_need_leave_too(tmp_path: Path) -> None:
    _yolo(tmp_path)
    (tmp_path / "labels" / "a.txt").write_text("")
    with pytest.raises(DatasetError, match="has no boxes"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, require_boxes=False).records) == 1


def test_a_broken_image_in_a_plain_folder_is_an_error_or_is_listed(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with refused(DatasetError, None, "b.png"):
        open_dataset(tmp_path, require_boxes=False)
    dataset = open_dataset(tmp_path, require_boxes=False, skip_bad=True)
    assert [record.name for record in dataset.records] == ["a.png"]
    assert len(dataset.skipped) == 1
    assert "b.png" in dataset.skipped[0]


def test_a_dataset_of_bad_items_alone_is_an_error_even_when_they_may_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no image")
    with refused(DatasetError, None, "b.png"):
        open_dataset(tmp_path, require_boxes=False, skip_bad=True)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "does not exist; give the folder of a dataset"),
        (lambda path: path.touch(), "is a file; give the folder"),
        (lambda path: path.mkdir(), "holds no dataset: it is empty; expected a COCO"),
        (_two_folders_down, r"holds 2: did you mean .*VOC2007 or .*VOC2012\?"),
    ],
)
def test_a_wrong_path_is_one_sentence_that_says_what_is_expected(
    tmp_path: Path, prepare: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "data"
    prepare(path)
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "table.csv").touch()
    with pytest.raises(DatasetError, match=r"it has 1 \.csv, 1 folders"):
        open_dataset(tmp_path)


def test_a_split_of_a_plain_folder_is_a_folder_in_it(tmp_path: Path) -> None:
    _picture(tmp_path / "train" / "a.png")
    _picture(tmp_path / "val" / "b.png")
    assert [r.name for r in open_dataset(tmp_path, split="train", require_boxes=False).records] == ["a.png"]
    with refused(DatasetError, None, '"test"', "train, val"):
        open_dataset(tmp_path, split="test", require_boxes=False)


@pytest.mark.parametrize("make", [_coco, _voc, _yolo])
def test_given_class_names_set_the_indices(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path)
    dataset = open_dataset(tmp_path, class_names=["dog", "cat"])
    assert dataset.class_names == ("dog", "cat")
    assert _only(dataset)[1] == [1]


@pytest.mark.parametrize("make", [_coco, _voc, _yolo])
def test_a_class_that_was_not_given_is_a_bad_annotation(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path)
    with refused(DatasetError, None, '"cat"', "dog"):
        open_dataset(tmp_path, class_names=["dog"])
    dataset = open_dataset(tmp_path, class_names=["dog"], skip_bad=True, require_boxes=False)
    assert _only(dataset) == ([], [])
    assert len(dataset.skipped) == 1


@pytest.mark.parametrize("names", [["cat", "cat"], ["cat", ""]])
def test_class_names_that_clash_are_a_mistake_of_the_user(tmp_path: Path, names: list[str]) -> None:
    _coco(tmp_path)
    with refused(UsageError, "class_names"):
        open_dataset(tmp_path, class_names=names)


@pytest.mark.skipif(not BCCD.is_dir(), reason="the blood-cell images are not beside this checkout")
def test_the_blood_cell_dataset_comes_in_by_its_splits() -> None:
    train = open_dataset(BCCD, split="train")
    assert len(train.records) == 205
    assert train.class_names == ("Platelets", "RBC", "WBC")
    everything = open_dataset(BCCD)
    assert len(everything.records) == 292
    assert everything.skipped == ()
    assert len(everything.dropped) == 2
    assert set(train.dropped) < set(everything.dropped)
    shape = r"Annotations/BloodImage_00(338|343)\.xml, object \d+: box \[.*\] has no area\."
    assert all(re.fullmatch(shape, line) for line in everything.dropped)
    counts = np.bincount(np.concatenate([record.instances.labels for record in everything.records]))
    assert counts.sum() == 3943 - 2
    for record in everything.records:
        assert (record.width, record.height) == (640, 480)
        assert (record.instances.boxes >= 0).all()
        assert (record.instances.boxes <= [640, 480, 640, 480]).all()
        assert (record.instances.boxes[:, 2:] > record.instances.boxes[:, :2]).all()
