"""Small datasets on disk, as tools write them: pictures without content, and the same few boxes in every format."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engines.datasets.dataset import Dataset, open_dataset

Box = tuple[float, float, float, float]  # corners in pixels
Objects = Sequence[tuple[str, Box]]

SIZE = (64, 48)
CLASSES = ("cat", "dog")
ONE: Objects = (("cat", (4, 6, 20, 30)), ("dog", (40, 20, 62, 46)), ("cat", (30, 2, 50, 12)))
TWO: Objects = (("dog", (2, 2, 30, 40)), ("cat", (36, 30, 60, 44)), ("dog", (20, 10, 63, 20)))
PICTURES: Mapping[str, Objects] = {"a.png": ONE, "b.png": TWO}
BOXES = len(ONE) + len(TWO)
# Inside half an image.
CENTRAL: Mapping[str, Objects] = {"a.png": (("cat", (4.0, 6.0, 20.0, 20.0)), ("dog", (10.0, 10.0, 24.0, 22.0)))}


def picture(path: Path, size: tuple[int, int] = SIZE, orientation: int | None = None, shade: int = 90) -> Path:
    """A grey picture; `orientation` is an EXIF one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (shade, 90, 90))
    if orientation is None:
        image.save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)
    return path


def text(path: Path, content: str) -> Path:
    """A text file, with the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def coco_content(pictures: Mapping[str, Objects] = PICTURES, size: tuple[int, int] | None = SIZE) -> dict[str, Any]:
    """A COCO file's content; `size` is the stated one."""
    stated = {} if size is None else {"width": size[0], "height": size[1]}
    found: dict[str, Any] = {"images": [], "annotations": []}
    for image_id, (name, objects) in enumerate(pictures.items(), start=1):
        found["images"].append({"id": image_id, "file_name": name, **stated})
        for label, (x0, y0, x1, y1) in objects:
            bbox = [x0, y0, x1 - x0, y1 - y0]
            entry = {"image_id": image_id, "category_id": CLASSES.index(label) + 1, "bbox": bbox, "iscrowd": 0}
            found["annotations"].append({"id": len(found["annotations"]) + 1, **entry})
    found["categories"] = [{"id": index, "name": name} for index, name in enumerate(CLASSES, start=1)]
    return found


def write_coco_file(path: Path, content: Any) -> Path:
    """The content as a JSON file."""
    return text(path, json.dumps(content, ensure_ascii=False))


def make_coco(root: Path, content: Any = None, pictures: Mapping[str, Objects] = PICTURES) -> Path:
    """`images/`, `annotations/instances.json`; gives the root."""
    for name in pictures:
        picture(root / "images" / name)
    write_coco_file(root / "annotations" / "instances.json", coco_content(pictures) if content is None else content)
    return root


def voc_xml(filename: str, objects: Objects, size: tuple[int, int] | None = SIZE, extra: str = "") -> str:
    """An XML file's content."""
    stated = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    parts = [
        f"<object><name>{name}</name>{extra}<bndbox><xmin>{x0 + 1:g}</xmin><ymin>{y0 + 1:g}</ymin><xmax>{x1:g}</xmax>"
        f"<ymax>{y1:g}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in objects
    ]
    return f"<annotation><filename>{filename}</filename>{stated}{''.join(parts)}</annotation>"


def make_voc(root: Path, annotations: str = "Annotations", images: str = "JPEGImages") -> Path:
    """XML files and pictures in those folders."""
    for name, objects in PICTURES.items():
        picture(root / images / name)
        text(root / annotations / f"{name[:-4]}.xml", voc_xml(name, objects))
    return root


def yolo_lines(objects: Objects, size: tuple[int, int] = SIZE) -> str:
    """A label file's content."""
    lines = []
    for name, (x0, y0, x1, y1) in objects:
        values = ((x0 + x1) / 2 / size[0], (y0 + y1) / 2 / size[1], (x1 - x0) / size[0], (y1 - y0) / size[1])
        lines.append(f"{CLASSES.index(name)} " + " ".join(f"{value:.6f}" for value in values) + "\n")
    return "".join(lines)


def make_yolo(root: Path, images: str = "images", labels: str = "labels", names: str | None = "classes.txt") -> Path:
    """Label files and pictures in those folders, and a list of names."""
    for name, objects in PICTURES.items():
        picture(root / images / name)
        text(root / labels / f"{name[:-4]}.txt", yolo_lines(objects))
    if names is not None:
        text(root / names, "cat\ndog\n")
    return root


def boxes_of(dataset: Dataset) -> dict[str, list[tuple[str, Box]]]:
    """Class and rounded corners of every box, by the images' base names."""
    found: dict[str, list[tuple[str, Box]]] = {}
    for record in dataset.records:
        rows = record.instances.boxes.round(1).tolist()
        labels = [dataset.class_names[label] for label in record.instances.labels]
        corners: list[Box] = [(x0, y0, x1, y1) for x0, y0, x1, y1 in rows]
        found[record.name.rpartition("/")[2]] = list(zip(labels, corners, strict=True))
    return found


def read_whole(root: Path, pictures: Mapping[str, Objects] = PICTURES, **options: Any) -> Dataset:
    """Open a dataset, and see that it holds just these boxes, to a tenth of a pixel."""
    dataset = open_dataset(root, **options)
    found = boxes_of(dataset)
    assert sorted(found) == sorted(pictures)
    for name, objects in pictures.items():
        labels, boxes = zip(*sorted(objects), strict=True)
        found_labels, found_boxes = zip(*sorted(found[name]), strict=True)
        assert found_labels == labels
        assert [list(box) for box in found_boxes] == [pytest.approx(box, abs=0.11) for box in boxes]
    return dataset
