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
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from engines.common.files import safe_join, sync_folder, write_atomic
from engines.errors import DatasetError
from engines.labels.boxes import Instances

IMAGES, LABELS, DATA_YAML, METADATA = "images", "labels", "data.yaml", "metadata.jsonl"
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


def write_coco(
    path: Path, images: Iterable[AnnotatedImage], class_names: Sequence[str], info: Mapping[str, Any]
) -> None:
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
            for annotation in _coco_annotations(image, len(class_names)):
                annotation_count += 1
                text = _json({"id": annotation_count, "image_id": image_count, **annotation})
                annotations.write((",\n" if annotation_count > 1 else "\n") + text)
        file.write('\n],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, file)
        file.write("\n]}\n")


def write_yolo(folder: Path, images: Iterable[AnnotatedImage], class_names: Sequence[str]) -> None:
    """Write `labels/*.txt` and `data.yaml` beside `images/`.

    A line is `class x_centre y_centre width height` in fractions of the image. YOLO has no scores and
    no crowds: the first are not written, boxes of the second left out. An image without boxes has an empty
    file. Raises DatasetError as `write_coco`, and for two images whose label files would be the same.
    """
    temporary = _emptied(folder / f".{LABELS}.tmp")
    try:
        for image in images:
            found = on_grid(image, len(class_names)).single
            lines = _yolo_lines(found, image)
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


def write_imagefolder(folder: Path, images: Iterable[AnnotatedImage], class_names: Sequence[str]) -> None:
    """Write `images/metadata.jsonl`, for Hugging Face `load_dataset("imagefolder", data_dir=folder/images)`.

    A line has `file_name`, `width`, `height`, `prompt` where there is one, and `objects` with the lists
    `bbox` ([x, y, width, height]), `category` (index into the class names), `category_name`, `area`,
    `iscrowd`, and `score` where the image has scores.
    """
    with _replacing(folder / IMAGES / METADATA) as file:
        for image in images:
            found = on_grid(image, len(class_names))
            bboxes = _bboxes(found)
            objects: dict[str, list[Any]] = {
                "bbox": bboxes,
                "category": found.labels.tolist(),
                "category_name": [class_names[label] for label in found.labels.tolist()],
                "area": [width * height for _, _, width, height in bboxes],
                "iscrowd": found.crowd.astype(int).tolist(),
            }
            if image.scored:
                objects["score"] = _scores(found)
            entry: dict[str, Any] = {
                "file_name": image.file_name,
                "width": image.width,
                "height": image.height,
            }
            if image.prompt is not None:
                entry["prompt"] = image.prompt
            file.write(_json(entry | {"objects": objects}) + "\n")


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


def _bboxes(found: Instances) -> list[list[float]]:
    """[x, y, width, height] of each box."""
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    rows: list[list[float]] = np.concatenate([found.boxes[:, :2], sides], axis=1).tolist()
    return rows


def _scores(found: Instances) -> list[float]:
    return [round(float(score), 6) for score in found.scores.astype(np.float32)]


def _coco_annotations(image: AnnotatedImage, classes: int) -> Iterator[dict[str, Any]]:
    """The image's annotations, without their ids."""
    found = on_grid(image, classes)
    rows = zip(_bboxes(found), found.labels.tolist(), found.crowd.tolist(), _scores(found), strict=True)
    for bbox, label, crowd, score in rows:
        entry = {"category_id": label + 1, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": int(crowd)}
        yield entry | {"score": score} if image.scored else entry


def _yolo_lines(found: Instances, image: AnnotatedImage) -> list[str]:
    lines = []
    for (x, y, width, height), label in zip(_bboxes(found), found.labels.tolist(), strict=True):
        centre = f"{(x + width / 2) / image.width:.8f} {(y + height / 2) / image.height:.8f}"
        lines.append(f"{label} {centre} {width / image.width:.8f} {height / image.height:.8f}\n")
    return lines


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
