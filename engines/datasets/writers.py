"""Writes datasets as COCO JSON, and what the writers of other formats share.

Knows: COCO's fields, what an image is to a writer, and how a file takes the place of an older one. Knows nothing about
where the labels came from. Images are never copied: they stay in `folder/images/`, and every `file_name` is relative to
it. YOLO is in `yolo_writer`, Hugging Face imagefolder in `imagefolder_writer`, large files in
`shard_writers`.

Each writer takes its images one at a time, holds one of them, and ends with a rename, so that a writer that is stopped
leaves the old files in place. Several may be given the same images in one pass. Nothing depends on the clock.

Boxes: xyxy in pixels, N an image. They are written on a grid of 1/1024 pixel, which JSON numbers and float32
hold exactly (up to 16384 pixels), so that x + width is exact and never leaves the image.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np

from engines.common.files import replacing
from engines.errors import DatasetError
from engines.labels.boxes import Instances

IMAGES = "images"
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # to make one for each line takes as long as the line
_GRID = 1024  # parts of a pixel
_SLACK = 0.5  # by how many pixels a box may leave its image before it is a mistake; within, it is clipped


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """What is written about one image."""

    file_name: str  # POSIX path relative to the images folder
    width: int  # pixels of the upright image
    height: int
    instances: Instances  # in pixels; labels index the class names
    scored: bool = True  # whether scores are written
    prompt: str | None = None  # what the image was painted from
    marks: Sequence[Mapping[str, Any]] = ()  # of each box, further fields that COCO files have; empty: none
    group: str | None = None  # images of one group are of one photograph, and stay together in a split


Add = Callable[[AnnotatedImage], None]  # what a writer is given its images by, one after another


def write_coco(
    path: Path, images: Iterable[AnnotatedImage], class_names: Sequence[str], info: Mapping[str, Any]
) -> None:
    """Write one COCO JSON file: see `writing_coco`."""
    with writing_coco(path, class_names, info) as add:
        for image in images:
            add(image)


@contextmanager
def writing_coco(path: Path, class_names: Sequence[str], info: Mapping[str, Any]) -> Iterator[Add]:
    """A COCO JSON file, to which each image is added.

    Image and annotation ids count from 1 in the order given, category ids in the order of `class_names`.
    An annotation has `bbox` [x, y, width, height], `area`, `iscrowd`, `score` where the image has scores, and the
    fields of its mark.
    Raises DatasetError naming the image for a box without area or outside it, or a label without a name.
    """
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)]
    head = {"info": dict(info), "licenses": [], "categories": categories}
    images, written = count(1), count(1)
    with replacing_text(path) as file, _spool(path) as annotations:
        file.write(one_line(head)[:-1] + ',\n"images": [')

        def add(image: AnnotatedImage) -> None:
            number = next(images)
            entry = {"id": number, "file_name": image.file_name, "width": image.width, "height": image.height}
            if image.prompt is not None:
                entry["prompt"] = image.prompt
            file.write((",\n" if number > 1 else "\n") + one_line(entry))
            for annotation in _coco_annotations(image, len(class_names)):
                place = next(written)
                text = one_line({"id": place, "image_id": number, **annotation})
                annotations.write((",\n" if place > 1 else "\n") + text)

        yield add
        file.write('\n],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write("\n]}\n")


def on_grid(image: AnnotatedImage, classes: int) -> Instances:
    """The image's boxes, checked, clipped to it and put on the grid of 1/1024 pixel, float64.

    Raises DatasetError naming the image for a box without area or outside it, or a label that is no class.
    """
    found = image.instances
    limits = np.array([image.width, image.height] * 2, dtype=np.float64)
    raw = found.boxes.astype(np.float32).astype(np.float64)
    boxes = np.clip(np.rint(raw * _GRID) / _GRID, 0.0, limits) + 0.0  # no -0.0
    near = np.abs(boxes - raw) <= _SLACK  # NaN is not
    good = np.all(near & (boxes[:, [2, 3, 2, 3]] > boxes[:, [0, 1, 0, 1]]), axis=1)
    known = (found.labels >= 0) & (found.labels < classes)
    for index in np.flatnonzero(~(good & known)).tolist():
        where = f"{image.file_name}, box {index}"
        if known[index]:
            box, size = found.boxes[index].tolist(), f"{image.width}x{image.height}"
            raise DatasetError(f"{where}: {box} is no box with positive area inside the {size} image.")
        raise DatasetError(f"{where}: label {int(found.labels[index])} is not one of 0 to {classes - 1}.")
    return replace(found, boxes=boxes, masks=None)


def bboxes(found: Instances) -> list[list[float]]:
    """[x, y, width, height] of each box."""
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    rows: list[list[float]] = np.concatenate([found.boxes[:, :2], sides], axis=1).tolist()
    return rows


def scores(found: Instances) -> list[float]:
    """The scores as files hold them."""
    return [round(float(score), 6) for score in found.scores.astype(np.float32)]


def _coco_annotations(image: AnnotatedImage, classes: int) -> Iterator[dict[str, Any]]:
    """The image's annotations, without their ids."""
    found = on_grid(image, classes)
    rows = zip(bboxes(found), found.labels.tolist(), found.crowd.tolist(), scores(found), strict=True)
    for place, (bbox, label, crowd, score) in enumerate(rows):
        entry = {"category_id": label + 1, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": int(crowd)}
        entry |= {"score": score} if image.scored else {}
        yield entry | dict(image.marks[place] if image.marks else {})


def one_line(value: Any) -> str:
    """JSON, with every letter as it is."""
    return _ENCODER.encode(value)


@contextmanager
def replacing_text(path: Path) -> Iterator[IO[str]]:
    """A text file that takes the place of `path` when the block ends well, and vanishes otherwise."""
    with replacing(path) as temporary, temporary.open("w+", encoding="utf-8", newline="\n") as file:
        yield file


@contextmanager
def _spool(path: Path) -> Iterator[IO[str]]:
    """A scratch text file beside `path`, on the same disk, so that a full disk is met before the rename."""
    scratch = path.with_name(f".{path.name}.spool")
    try:
        with scratch.open("w+", encoding="utf-8", newline="\n") as file:
            yield file
    finally:
        scratch.unlink(missing_ok=True)
