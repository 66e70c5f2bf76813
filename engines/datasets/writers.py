"""Writes datasets: COCO JSON, YOLO and Hugging Face imagefolder.

Knows: each format's files and fields. Knows nothing about where the labels came from. Images are never
copied: they stay in `folder/images/`, and every `file_name` is relative to it.

Each writer takes one pass over its images, holds one of them at a time, and ends with a rename, so that a
writer that is stopped leaves the old files in place. (YOLO's folder of labels takes two renames: killed
between them, it leaves no labels at all.) Nothing depends on the clock.

Boxes: xyxy in pixels, N an image. They are written on a grid of 1/1024 pixel, which JSON numbers and float32
hold exactly (up to 16384 pixels), so that x + width is exact and never leaves the image.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from engines.common.files import safe_join, sync_folder, write_atomic
from engines.errors import DatasetError

IMAGES, LABELS, DATA_YAML, METADATA = "images", "labels", "data.yaml", "metadata.jsonl"
_GRID = 1024  # parts of a pixel
_SLACK = 0.5  # by how many pixels a box may leave its image before it is a mistake; within, it is clipped


@dataclass(frozen=True, eq=False)
class Annotated:
    """What is written about one image."""

    file_name: str  # POSIX path relative to the images folder
    width: int  # pixels of the upright image
    height: int
    boxes: npt.NDArray[np.float32]  # [N, 4] xyxy pixels
    labels: npt.NDArray[np.int64]  # [N], index into the class names
    scores: npt.NDArray[np.float32] | None = None  # [N], 0 to 1
    iscrowd: npt.NDArray[np.bool_] | None = None  # [N]; None is all False
    prompt: str | None = None  # what the image was painted from


@dataclass(frozen=True)
class _Object:
    x: float
    y: float
    width: float
    height: float
    label: int
    score: float | None
    iscrowd: bool


def write_coco(path: Path, images: Iterable[Annotated], class_names: Sequence[str], info: Mapping[str, Any]) -> None:
    """Write one COCO JSON file.

    Image and annotation ids count from 1 in the order given, category ids in the order of `class_names`.
    An annotation has `bbox` [x, y, width, height], `area`, `iscrowd`, and `score` where the image has scores.
    Raises DatasetError naming the image for a box without area or outside it, or a label without a name.
    """
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)]
    head = {"info": dict(info), "licenses": [], "categories": categories}
    annotation_count = 0
    with _replacing(path) as file, _spool(path) as annotations:
        file.write(_json(head)[:-1] + ',\n"images": [')
        for image_count, image in enumerate(images, start=1):
            entry = {"id": image_count, "file_name": image.file_name}
            entry |= {"width": image.width, "height": image.height}
            if image.prompt is not None:
                entry["prompt"] = image.prompt
            file.write((",\n" if image_count > 1 else "\n") + _json(entry))
            for found in _objects(image, len(class_names)):
                annotation_count += 1
                text = _json(_coco_annotation(annotation_count, image_count, found))
                annotations.write((",\n" if annotation_count > 1 else "\n") + text)
        file.write('\n],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write("\n]}\n")


def write_yolo(folder: Path, images: Iterable[Annotated], class_names: Sequence[str]) -> None:
    """Write `labels/*.txt` and `data.yaml` beside `images/`.

    A line is `class x_centre y_centre width height` in fractions of the image. YOLO has no scores and
    no crowds: the first are not written, boxes of the second left out. An image without boxes has an empty
    file. Raises DatasetError as `write_coco`, and for two images whose label files would be the same.
    """
    temporary = _emptied(folder / f".{LABELS}.tmp")
    try:
        for image in images:
            objects = _objects(image, len(class_names))
            lines = [_yolo_line(found, image) for found in objects if not found.iscrowd]
            name = PurePosixPath(image.file_name).with_suffix(".txt").as_posix()
            target = safe_join(temporary, name, DatasetError, "file_name")
            if target.exists():
                raise DatasetError(f"{image.file_name} differs from another image by its suffix alone.")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("".join(lines), encoding="utf-8")
        os.sync()  # one flush for all label files, in place of one for each
        _swap(temporary, folder / LABELS)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    names = "".join(f"  {index}: {_json(name)}\n" for index, name in enumerate(class_names))
    settings = f"train: {IMAGES}\nval: {IMAGES}\nnc: {len(class_names)}\nnames:\n{names}"
    write_atomic(folder / DATA_YAML, settings.encode())


def write_imagefolder(folder: Path, images: Iterable[Annotated], class_names: Sequence[str]) -> None:
    """Write `images/metadata.jsonl`, for Hugging Face `load_dataset("imagefolder", data_dir=folder/images)`.

    A line has `file_name`, `width`, `height`, `prompt` where there is one, and `objects` with the lists
    `bbox` ([x, y, width, height]), `category` (index into the class names), `category_name`, `area`,
    `iscrowd`, and `score` where the image has scores.
    """
    with _replacing(folder / IMAGES / METADATA) as file:
        for image in images:
            found = list(_objects(image, len(class_names)))
            objects: dict[str, list[Any]] = {
                "bbox": [[one.x, one.y, one.width, one.height] for one in found],
                "category": [one.label for one in found],
                "category_name": [class_names[one.label] for one in found],
                "area": [one.width * one.height for one in found],
                "iscrowd": [int(one.iscrowd) for one in found],
            }
            if image.scores is not None:
                objects["score"] = [one.score for one in found]
            entry: dict[str, Any] = {
                "file_name": image.file_name,
                "width": image.width,
                "height": image.height,
            }
            if image.prompt is not None:
                entry["prompt"] = image.prompt
            file.write(_json(entry | {"objects": objects}) + "\n")


def _objects(image: Annotated, classes: int) -> Iterator[_Object]:
    """The image's boxes, checked, clipped to it and put on the grid."""
    count = len(image.boxes)
    limits = np.array([image.width, image.height] * 2, dtype=np.float64)
    raw = image.boxes.astype(np.float64).reshape(-1, 4)
    boxes = np.clip(np.rint(raw * _GRID) / _GRID, 0.0, limits) + 0.0  # no -0.0
    near = np.abs(boxes - raw) <= _SLACK  # NaN is not
    good: list[bool] = np.all(near & (boxes[:, [2, 3, 2, 3]] > boxes[:, [0, 1, 0, 1]]), axis=1).tolist()
    scores = [None] * count if image.scores is None else [round(float(score), 6) for score in image.scores]
    crowds = [False] * count if image.iscrowd is None else [bool(crowd) for crowd in image.iscrowd]
    rows = zip(boxes.tolist(), good, image.labels.tolist(), scores, crowds, strict=True)
    for index, ((x1, y1, x2, y2), inside, label, score, iscrowd) in enumerate(rows):
        where = f"{image.file_name}, box {index}"
        if not inside:
            box, size = image.boxes[index].tolist(), f"{image.width}x{image.height}"
            raise DatasetError(f"{where}: {box} is no box with positive area inside the {size} image.")
        if not 0 <= label < classes:
            raise DatasetError(f"{where}: label {label} is not one of 0 to {classes - 1}.")
        yield _Object(x1, y1, x2 - x1, y2 - y1, label, score, iscrowd)


def _coco_annotation(annotation_id: int, image_id: int, found: _Object) -> dict[str, Any]:
    annotation: dict[str, Any] = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": found.label + 1,
        "bbox": [found.x, found.y, found.width, found.height],
        "area": found.width * found.height,
        "iscrowd": int(found.iscrowd),
    }
    return annotation if found.score is None else annotation | {"score": found.score}


def _yolo_line(found: _Object, image: Annotated) -> str:
    x, y = (found.x + found.width / 2) / image.width, (found.y + found.height / 2) / image.height
    return f"{found.label} {x:.8f} {y:.8f} {found.width / image.width:.8f} {found.height / image.height:.8f}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """A text file that takes the place of `path` when the block ends well, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def _spool(path: Path) -> Iterator[IO[str]]:
    """A scratch text file beside `path`, on the same disk, so that a full disk is met before the rename."""
    scratch = path.with_name(f".{path.name}.spool")
    try:
        with scratch.open("w+", encoding="utf-8", newline="\n") as file:
            yield file
    finally:
        scratch.unlink(missing_ok=True)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _swap(temporary: Path, folder: Path) -> None:
    """Put a finished folder in the place of an older one of the same name."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
