"""What is unambiguous is read, in whatever dress; a single bad box is a degenerate one; the rest is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
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
)
from PIL import Image
from pycocotools import mask as encoder
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError


def ids_as(kind: type) -> Any:
    def change(content: dict[str, Any]) -> None:
        for section, keys in (("images", ["id"]), ("categories", ["id"]), ("annotations", ["image_id", "category_id"])):
            for entry in content[section]:
                entry.update({key: kind(entry[key]) for key in keys})

    return change


def half_ids_as_text(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["id"] = f"{image['id']}"


def each_annotation(**changes: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            for key, value in changes.items():
                annotation[key] = value(annotation) if callable(value) else value

    return change


def without(key: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation.pop(key)

    return change


def polygon(annotation: dict[str, Any]) -> list[list[float]]:
    x, y, width, height = annotation["bbox"]
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def mask(annotation: dict[str, Any]) -> dict[str, Any]:
    x, y, width, height = (int(side) for side in annotation["bbox"])
    pixels = np.zeros((48, 64), dtype=bool)
    pixels[y : y + height, x : x + width] = True
    column = pixels.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], column, [False]]).astype(int)))
    return {"counts": np.diff([0, *edges.tolist(), 64 * 48]).tolist(), "size": [48, 64]}


def polygons_alone(content: dict[str, Any]) -> None:
    each_annotation(segmentation=polygon)(content)
    without("bbox")(content)


def masks_alone(content: dict[str, Any]) -> None:
    each_annotation(segmentation=mask)(content)
    without("bbox")(content)


def masks_as_text(content: dict[str, Any]) -> None:
    masks_alone(content)
    for annotation in content["annotations"]:
        found = annotation["segmentation"]
        annotation["segmentation"]["counts"] = encoder.frPyObjects(found, *found["size"])["counts"].decode()


def images_twice(content: dict[str, Any]) -> None:
    content["images"] += [dict(image) for image in content["images"]]


DRESSES = {
    "ids as text": ids_as(str),
    "ids as floats": ids_as(float),
    "ids as text in one place": half_ids_as_text,
    "annotation ids missing": without("id"),
    "annotation ids twice": each_annotation(id=1),
    "annotation ids as uuid": each_annotation(id=lambda one: f"c33c3539-8bd1-48e0-8065-{one['id']:012}"),
    "iscrowd null": each_annotation(iscrowd=None),
    "iscrowd missing": without("iscrowd"),
    "iscrowd as text": each_annotation(iscrowd="0"),
    "iscrowd as bool": each_annotation(iscrowd=False),
    "bbox as text": each_annotation(bbox=lambda one: json.dumps(one["bbox"])),
    "bbox as bare text": each_annotation(bbox=lambda one: " ".join(map(str, one["bbox"]))),
    "bbox of texts": each_annotation(bbox=lambda one: list(map(str, one["bbox"]))),
    "polygons alone": polygons_alone,
    "masks alone": masks_alone,
    "masks as text alone": masks_as_text,
    "polygons with empty boxes": each_annotation(segmentation=polygon, bbox=[]),
    "polygons with boxes of zeros": each_annotation(segmentation=polygon, bbox=[0, 0, 0, 0]),
    "images twice": images_twice,
    "unknown fields": lambda content: content.update(info=None, licenses=None, videos=[{}]),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_coco_in_any_unambiguous_dress_is_read(tmp_path: Path, dress: str) -> None:
    content = coco_content()
    DRESSES[dress](content)
    dataset = read_whole(make_coco(tmp_path, content))
    assert (dataset.dropped, dataset.skipped) == ((), ())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_json_in_other_encodings_is_read(tmp_path: Path, encoding: str) -> None:
    make_coco(tmp_path)
    file = tmp_path / "annotations" / "instances.json"
    file.write_text(file.read_text("utf-8"), encoding=encoding)
    read_whole(tmp_path)


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "shift_jis", "iso-8859-1", "utf-16"])
def test_xml_in_other_encodings_is_read(tmp_path: Path, encoding: str) -> None:
    make_voc(tmp_path)
    name = "chaîne" if encoding == "iso-8859-1" else "中国"
    declared = f'<?xml version="1.0" encoding="{encoding}"?>\n'
    content = declared + voc_xml("a.png", [(name, ONE[0][1])])
    (tmp_path / "Annotations" / "a.xml").write_bytes(content.encode(encoding))
    assert name in open_dataset(tmp_path).class_names


@pytest.mark.parametrize("encoding", ["nonsense", "rot13", "zlib"])
def test_xml_in_encodings_of_no_text_is_refused(tmp_path: Path, encoding: str) -> None:
    make_voc(tmp_path)
    content = f'<?xml version="1.0" encoding="{encoding}"?>' + voc_xml("a.png", ONE)
    text(tmp_path / "Annotations" / "a.xml", content)
    with refused(DatasetError, None, "Annotations/a.xml", "`skip_bad=True`"):
        open_dataset(tmp_path)


def test_text_files_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    for number, file in enumerate(tmp_path.rglob("*.txt")):
        file.write_text(file.read_text("utf-8").replace("\n", "\r\n"), encoding=("utf-8-sig", "utf-16")[number % 2])
    read_whole(tmp_path)


@pytest.mark.parametrize("bbox", [[], [1, 2, 3], None, "", "x", [1, 2, 3, "w"], {}, 5, [float("nan")] * 4, [[1]] * 4])
def test_one_bad_box_is_a_degenerate_one(tmp_path: Path, bbox: Any) -> None:
    content = coco_content()
    content["annotations"].append({"image_id": 1, "category_id": 1, "bbox": bbox, "segmentation": [[1, 1, 9, 1, 9, 9]]})
    make_coco(tmp_path, content)
    if bbox in (None, [], ""):  # the polygon says it
        assert len(open_dataset(tmp_path).records[0].instances) == len(ONE) + 1
        return
    dataset = read_whole(tmp_path)
    (dropped,) = dataset.dropped
    assert dropped.startswith("annotations/instances.json, annotations[6].bbox")
    assert len(dropped) < 200


@pytest.mark.parametrize("counts", ["o" * 300_000, "\x00", "", "52203" * 1000])
def test_masks_of_nonsense_are_refused_or_dropped(tmp_path: Path, counts: str) -> None:
    content = coco_content()
    content["annotations"].append(
        {"image_id": 1, "category_id": 1, "segmentation": {"counts": counts, "size": [48, 64]}}
    )
    make_coco(tmp_path, content)
    dataset = open_dataset(tmp_path, skip_bad=True)
    assert sum(len(record.instances) for record in dataset.records) in (6, 7)
    assert len(dataset.dropped) + len(dataset.skipped) + sum(len(one.instances) for one in dataset.records) == 7


def test_bad_boxes_alone_are_no_dataset_and_the_first_is_named(tmp_path: Path) -> None:
    content = coco_content()
    each_annotation(bbox=[])(content)
    make_coco(tmp_path, content)
    with pytest.raises(DatasetError, match=r"has no boxes; .*annotations\[0\]\.bbox"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_crowds_alone_are_no_boxes(tmp_path: Path, form: str) -> None:
    content = coco_content()
    each_annotation(iscrowd=1)(content)
    make_coco(tmp_path, content)
    with pytest.raises(DatasetError, match="has no boxes but 6 crowds"):
        open_dataset(tmp_path)
    assert sum(len(record.instances.crowds) for record in open_dataset(tmp_path, require_boxes=False).records) == 6


def test_refusals_of_single_items_say_how_to_leave_them_out(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["category_id"] = 9
    make_coco(tmp_path, content)
    with refused(DatasetError, None, "annotations[0].category_id", "`skip_bad=True`"):
        open_dataset(tmp_path)
    (line,) = open_dataset(tmp_path, skip_bad=True).skipped
    assert "skip_bad" not in line


DEEP = {
    "12 bits in 16": (np.uint16, 4095, 12),
    "10 bits in 16": (np.uint16, 1000, 10),
    "14 bits in 16": (np.uint16, 9000, 14),
    "8 bits in 16": (np.uint16, 200, 8),
    "20 bits in 32": (np.int32, 900_000, 20),
    "floats of 12 bits": (np.float32, 4000.0, 12),
}


@pytest.mark.parametrize("kind", DEEP)
def test_files_of_more_than_eight_bits_are_scaled_by_the_sets_own_range(tmp_path: Path, kind: str) -> None:
    dtype, highest, bits = DEEP[kind]
    white = 2**bits - 1
    for number, name in enumerate(PICTURES):
        values = np.zeros((48, 64), dtype=dtype)
        values[:, 32:] = highest if number == 0 else highest / 4
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "images" / f"{name[:-4]}.tif")
    make_coco(tmp_path, coco_content({f"{name[:-4]}.tif": its for name, its in PICTURES.items()}), {})
    dataset = open_dataset(tmp_path)
    bright = [int(record.pixels()[0, -1, 0]) for record in dataset.records]
    assert bright == pytest.approx([255 * highest / white, 255 * highest / 4 / white], abs=1)
    assert any(f"data of {bits} bits" in line for line in dataset.remarks)


def test_files_that_use_their_bits_are_read_as_ever(tmp_path: Path) -> None:
    for number, highest in enumerate((65535, 900)):
        values = np.full((48, 64), highest, dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    dataset = open_dataset(tmp_path, require_boxes=False)
    assert [record.pixels()[0, 0, 0] for record in dataset.records] == [255, 4]
    assert dataset.remarks == ()


def test_dark_floats_beside_bright_ones_stay_dark(tmp_path: Path) -> None:
    for number, highest in enumerate((250.0, 0.9)):
        Image.fromarray(np.full((48, 64), highest, dtype=np.float32)).save(tmp_path / f"{number}.tif")
    dataset = open_dataset(tmp_path, require_boxes=False)
    assert [record.pixels()[0, 0, 0] for record in dataset.records] == [250, 1]


def test_colour_files_of_sixteen_bits_that_use_twelve_are_brightened_with_a_remark(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + np.full((8, 3), 4095, dtype=">u2").tobytes() for _ in range(6))
    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    dataset = open_dataset(tmp_path, require_boxes=False)
    assert dataset.records[0].pixels().min() == 255
    assert "12 bits" in dataset.remarks[0]


def test_ordinary_pictures_are_not_decoded(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert open_dataset(tmp_path, require_boxes=False).records[0].white is None
