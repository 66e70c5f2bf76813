"""What is written is what others read: COCO, YOLO and imagefolder, judged by their own libraries and by ours."""

import json
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from PIL import Image
from refusals import refused

from engines.datasets.dataset import Dataset, open_dataset
from engines.datasets.imagefolder_writer import write_imagefolder
from engines.datasets.writers import AnnotatedImage, write_coco
from engines.datasets.yolo_writer import write_yolo
from engines.errors import DatasetError
from engines.labels.boxes import Instances

CLASSES = ("red cell", "Blutplättchen", 'a "quoted": name')


def _annotated(index: int, count: int, **changes: Any) -> AnnotatedImage:
    """An image with `count` boxes; changes are of it or of its instances."""
    rng = np.random.default_rng(index)
    corners = rng.uniform(0, [31, 23], (count, 2))
    sizes = rng.uniform(0.5, 9, (count, 2))
    boxes = np.concatenate([corners, np.minimum(corners + sizes, [32, 24])], axis=1)
    arrays = {
        "boxes": boxes.astype(np.float32),
        "labels": rng.integers(0, len(CLASSES), count),
        "scores": rng.uniform(0, 1, count).astype(np.float32),
        "crowd": None,
    }
    found = Instances.of(**{name: changes.pop(name, array) for name, array in arrays.items()})
    values: dict[str, Any] = {"file_name": f"{index:06d}.png", "prompt": f"a photo, {index}"}
    return AnnotatedImage(width=32, height=24, instances=found, **(values | changes))


@pytest.fixture
def images(tmp_path: Path) -> list[AnnotatedImage]:
    """Six images with 3, 0, 4, 1, 0 and 7 boxes; their files are in `images/`."""
    annotated = [_annotated(index, count) for index, count in enumerate((3, 0, 4, 1, 0, 7))]
    (tmp_path / "images").mkdir()
    for index, image in enumerate(annotated):
        Image.new("RGB", (image.width, image.height), (index, 0, 0)).save(tmp_path / "images" / image.file_name)
    return annotated


def _same(dataset: Dataset, images: Sequence[AnnotatedImage], tolerance: float, folder: str = "") -> None:
    assert dataset.class_names == CLASSES
    assert (dataset.dropped, dataset.skipped) == ((), ())
    for record, image in zip(dataset.records, images, strict=True):
        assert (record.name, record.width, record.height) == (folder + image.file_name, image.width, image.height)
        assert record.instances.labels.tolist() == image.instances.labels.tolist()
        np.testing.assert_allclose(record.instances.boxes, image.instances.boxes, atol=tolerance)


def test_coco_comes_back_through_our_reader(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    write_coco(tmp_path / "annotations.json", images, CLASSES, {"description": "test"})
    dataset = open_dataset(tmp_path)
    _same(dataset, images, tolerance=1 / 1024)
    assert [record.caption for record in dataset.records] == [image.prompt for image in images]


def test_what_was_read_and_written_again_is_the_same_file(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    path = tmp_path / "annotations.json"
    write_coco(path, images, CLASSES, {})
    first = path.read_bytes()
    records = open_dataset(tmp_path).records
    again = [
        AnnotatedImage(r.name, r.width, r.height, replace(r.instances, scores=image.instances.scores), prompt=r.caption)
        for r, image in zip(records, images, strict=True)
    ]
    write_coco(path, again, CLASSES, {})
    assert path.read_bytes() == first


def test_coco_has_every_field_and_ids_count_from_one(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    write_coco(tmp_path / "a.json", images, CLASSES, {"description": "x", "version": "1"})
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert content["info"] == {"description": "x", "version": "1"}
    assert content["categories"] == [{"id": i, "name": n} for i, n in enumerate(CLASSES, start=1)]
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4, 5, 6]
    assert [a["id"] for a in content["annotations"]] == list(range(1, 16))
    assert [a["image_id"] for a in content["annotations"]] == [1] * 3 + [3] * 4 + [4] + [6] * 7
    scores = np.concatenate([image.instances.scores for image in images])
    np.testing.assert_allclose([a["score"] for a in content["annotations"]], scores, atol=1e-6)
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert annotation["area"] == width * height > 0
        assert annotation["iscrowd"] == 0
        assert min(x, y) >= 0
        assert x + width <= 32
        assert y + height <= 24


def test_a_score_and_a_prompt_are_written_only_where_there_are_some(tmp_path: Path) -> None:
    plain = _annotated(0, 2, scored=False, prompt=None, crowd=[True, False])
    write_coco(tmp_path / "a.json", [plain], CLASSES, {})
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert "prompt" not in content["images"][0]
    assert all("score" not in annotation for annotation in content["annotations"])
    assert [annotation["iscrowd"] for annotation in content["annotations"]] == [1, 0]


def test_pycocotools_loads_and_scores_what_was_written(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path = tmp_path / "annotations.json"
    write_coco(path, images, CLASSES, {"description": "test"})
    truth = COCO(str(path))
    assert len(truth.getImgIds()) == 6
    assert [category["name"] for category in truth.loadCats(truth.getCatIds())] == list(CLASSES)
    content = json.loads(path.read_text(encoding="utf-8"))
    evaluation = COCOeval(truth, truth.loadRes(content["annotations"]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_supervision_loads_coco(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    write_coco(tmp_path / "annotations.json", images, CLASSES, {})
    theirs = sv.DetectionDataset.from_coco(str(tmp_path / "images"), str(tmp_path / "annotations.json"))
    _judge(theirs, images, 1 / 1024)


def test_supervision_loads_yolo(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    write_yolo(tmp_path, images, CLASSES)
    theirs = sv.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml")
    )
    _judge(theirs, images, 1 / 512)


def _judge(theirs: Any, images: Sequence[AnnotatedImage], tolerance: float) -> None:
    assert list(theirs.classes) == list(CLASSES)
    by_name = {image.file_name: image for image in images}
    assert len(theirs) == len(images)
    for path, _, detections in theirs:
        image = by_name.pop(Path(path).name)
        assert len(detections) == len(image.instances)
        if len(detections):
            np.testing.assert_allclose(detections.xyxy, image.instances.boxes, atol=tolerance)
            assert detections.class_id.tolist() == image.instances.labels.tolist()


def test_yolo_comes_back_through_our_reader(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    write_yolo(tmp_path, images, CLASSES)
    _same(open_dataset(tmp_path), images, tolerance=1 / 512, folder="images/")
    files = ["data.yaml", "images", "labels", "train.txt", "val.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def _listed(folder: Path, split: str) -> list[str]:
    return (folder / f"{split}.txt").read_text().splitlines()


def test_yolo_holds_images_out_by_what_they_were_painted_from(tmp_path: Path) -> None:
    many = [_annotated(index, 1, group=f"photo{index % 40}") for index in range(400)]
    write_yolo(tmp_path, many, CLASSES, val_fraction=0.3)
    train, val = _listed(tmp_path, "train"), _listed(tmp_path, "val")
    assert sorted(train + val) == [f"./images/{image.file_name}" for image in many]
    of = {f"./images/{image.file_name}": image.group for image in many}
    assert not {of[line] for line in train} & {of[line] for line in val}
    assert 0.15 < len(val) / len(many) < 0.45
    more = [*many, _annotated(400, 1, group="photo40")]
    write_yolo(tmp_path, more, CLASSES, val_fraction=0.3)
    assert set(val) <= set(_listed(tmp_path, "val")), "an image stays on its side when others come"


@pytest.mark.parametrize(("groups", "train", "val"), [(["a", "a"], 2, 2), (["a", "b", "a"], 1, 2), ([], 0, 0)])
@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_yolo_leaves_no_part_empty_where_there_are_two_groups(
    tmp_path: Path, groups: list[str], train: int, val: int, fraction: float
) -> None:
    few = [_annotated(index, 1, group=group) for index, group in enumerate(groups)]
    write_yolo(tmp_path, few, CLASSES, val_fraction=fraction)
    lengths = (len(_listed(tmp_path, "train")), len(_listed(tmp_path, "val")))
    assert lengths == ((train, val) if fraction < 0.5 else (val, train))


def test_yolo_leaves_crowds_out_and_replaces_older_labels(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    write_yolo(tmp_path, images, CLASSES)
    crowd = _annotated(0, 2, crowd=[True, False])
    write_yolo(tmp_path, [crowd], CLASSES)
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["000000.txt"]
    assert len((tmp_path / "labels" / "000000.txt").read_text().splitlines()) == 1


@pytest.mark.slow
def test_datasets_loads_the_imagefolder(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    from datasets import ClassLabel, load_dataset

    write_imagefolder(tmp_path, images, CLASSES)
    (tmp_path / "spare").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "spare" / "000009.png")
    cache = str(tmp_path / "cache")
    plain = load_dataset("imagefolder", data_dir=str(tmp_path / "images"), split="train", cache_dir=cache)
    carded = load_dataset(str(tmp_path), split="train", cache_dir=cache)
    assert carded.features["objects"]["category"].feature == ClassLabel(names=list(CLASSES))
    for loaded in (plain, carded):
        assert len(loaded) == len(images)
        ids = []
        for row, image in zip(sorted(loaded, key=lambda row: row["prompt"]), images, strict=True):
            assert row["image"].size == (image.width, image.height)
            assert row["prompt"] == image.prompt
            assert row["objects"]["category"] == image.instances.labels.tolist()
            assert row["objects"]["category_name"] == [CLASSES[label] for label in image.instances.labels]
            boxes = np.array(row["objects"]["bbox"]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            np.testing.assert_allclose(boxes, image.instances.boxes, atol=1 / 1024)
            ids += row["objects"]["id"]
        assert ids == list(range(1, 1 + sum(len(image.instances) for image in images)))


def _failing(images: Sequence[AnnotatedImage]) -> Iterator[AnnotatedImage]:
    yield from images
    raise RuntimeError("stopped")


def test_a_writer_that_is_stopped_leaves_the_old_files(tmp_path: Path, images: list[AnnotatedImage]) -> None:
    def write(source: Any) -> None:
        with suppress(RuntimeError):
            write_coco(tmp_path / "annotations.json", source(), CLASSES, {})
        with suppress(RuntimeError):
            write_yolo(tmp_path, source(), CLASSES)
        with suppress(RuntimeError):
            write_imagefolder(tmp_path, source(), CLASSES)

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}

    write(lambda: images)
    before = files()
    write(lambda: _failing(images[:2]))
    assert files() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.array([[1, 1, 1, 5]], dtype=np.float32)}, "box 0: .* is no box with positive area"),
        ({"boxes": np.array([[1, 1, 40, 5]], dtype=np.float32)}, "inside the 32x24 image"),
        ({"boxes": np.array([[1, 1, np.nan, 5]], dtype=np.float32)}, "inside the 32x24 image"),
        ({"labels": np.array([3])}, "label 3 is not one of 0 to 2"),
        ({"labels": np.array([-1])}, "label -1 is not one of 0 to 2"),
    ],
)
def test_a_box_that_no_reader_would_take_is_never_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "images").mkdir()
    bad = [_annotated(0, 1, **changes)]
    for write in (write_yolo, write_imagefolder):
        with pytest.raises(DatasetError, match=rf"^000000\.png, box 0: .*{message.split(': ')[-1]}"):
            write(tmp_path, bad, CLASSES)
    with pytest.raises(DatasetError, match=message):
        write_coco(tmp_path / "a.json", bad, CLASSES, {})
    assert [path.name for path in tmp_path.rglob("*")] == ["images"]


def test_a_box_over_the_edge_by_rounding_is_clipped(tmp_path: Path) -> None:
    boxes = np.array([[-0.0001, -1e-9, 32.0001, 24]], dtype=np.float32)
    write_coco(tmp_path / "a.json", [_annotated(0, 1, boxes=boxes)], CLASSES, {})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert '"bbox": [0.0, 0.0, 32.0, 24.0]' in text


def test_yolo_refuses_images_whose_labels_would_clash_or_lie_elsewhere(tmp_path: Path) -> None:
    same = [_annotated(0, 1, file_name="a.png"), _annotated(1, 1, file_name="a.jpg")]
    with refused(DatasetError, None, "a.jpg"):
        write_yolo(tmp_path, same, CLASSES)
    with refused(DatasetError, None, '"../a.txt"'):
        write_yolo(tmp_path, [_annotated(0, 1, file_name="../a.png")], CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_images_is_valid_too(tmp_path: Path) -> None:
    write_coco(tmp_path / "a.json", [], CLASSES, {})
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert (content["images"], content["annotations"]) == ([], [])


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    image = _annotated(0, 4)

    def peak(count: int) -> int:
        tracemalloc.start()
        write_coco(tmp_path / "a.json", (image for _ in range(count)), CLASSES, {})
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(10)
    assert peak(600) < peak(150) + 60_000  # the file grows by 400,000 bytes
