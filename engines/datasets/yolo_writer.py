"""Writes datasets as YOLO: a label file an image, `data.yaml`, and the lists of a train and a validation part.

Knows: the format's files, and which part an image goes to: by a hash of its group, so that what was painted from one
photograph is on one side, whatever else is in the dataset. Knows nothing about where the labels came from.

Label files take the place of older ones by two renames: killed between them, a writer leaves no labels at all.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from engines.common.files import safe_join, sync_folder, write_atomic
from engines.datasets.writers import IMAGES, Add, AnnotatedImage, bboxes, on_grid, one_line, replacing_text
from engines.errors import DatasetError
from engines.labels.boxes import Instances

LABELS, DATA_YAML, TRAIN_LIST, VAL_LIST = "labels", "data.yaml", "train.txt", "val.txt"
VAL_FRACTION = 0.1  # about what share of the images is for validation, where nothing else is asked for


def write_yolo(
    folder: Path, images: Iterable[AnnotatedImage], class_names: Sequence[str], val_fraction: float = VAL_FRACTION
) -> None:
    """Write `labels/*.txt`, `data.yaml`, `train.txt` and `val.txt` beside `images/`: see `writing_yolo`."""
    with writing_yolo(folder, class_names, val_fraction) as add:
        for image in images:
            add(image)


@contextmanager
def writing_yolo(folder: Path, class_names: Sequence[str], val_fraction: float = VAL_FRACTION) -> Iterator[Add]:
    """`labels/*.txt`, `data.yaml`, `train.txt` and `val.txt` beside `images/`, to which each image is added.

    A line is `class x_centre y_centre width height` in fractions of the image. YOLO has no scores and
    no crowds: the first are not written, boxes of the second left out. An image without boxes has an empty
    file. Groups of images (an image without one is its own) go to `val.txt` with a probability of `val_fraction`; one
    does at least, and one to `train.txt`, where there are two. Raises DatasetError as `writing_coco`, and for two
    images whose label files would be the same.
    """
    temporary = _emptied(folder / f".{LABELS}.tmp")
    try:
        with replacing_text(folder / TRAIN_LIST) as train, replacing_text(folder / VAL_LIST) as val:
            split = _Split(_Side(train), _Side(val), val_fraction)

            def add(image: AnnotatedImage) -> None:
                _write_labels(temporary, image, len(class_names))
                split.add(image)

            yield add
            split.end()
        os.sync()  # one flush for all label files, in place of one for each
        _swap(temporary, folder / LABELS)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    names = "".join(f"  {index}: {one_line(name)}\n" for index, name in enumerate(class_names))
    settings = f"train: {TRAIN_LIST}\nval: {VAL_LIST}\nnc: {len(class_names)}\nnames:\n{names}"
    write_atomic(folder / DATA_YAML, settings.encode())


@dataclass
class _Side:
    """One of the two lists, while it is written."""

    file: IO[str]
    first: str | None = None  # the group that came first
    lines: list[str] = field(default_factory=list)  # of that group
    several: bool = False  # whether there are others

    def add(self, group: str, line: str) -> None:
        self.first = group if self.first is None else self.first
        if group == self.first:
            self.lines.append(line)
        else:
            self.several = True
        self.file.write(line)


@dataclass
class _Split:
    """Both lists: which image goes to which, and that neither stays empty."""

    train: _Side
    val: _Side
    val_fraction: float

    def add(self, image: AnnotatedImage) -> None:
        """Write an image into the list of its group."""
        group = image.file_name if image.group is None else image.group
        share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2.0**64
        side = self.val if share < self.val_fraction else self.train
        side.add(group, f"./{IMAGES}/{image.file_name}\n")

    def end(self) -> None:
        """Where few groups all fell to one side, give the other the first of them (a single one is on both)."""
        for empty, full in ((self.val, self.train), (self.train, self.val)):
            if empty.first is None and full.first is not None:
                empty.file.writelines(full.lines)
                if full.several:
                    full.file.seek(0)
                    moved = set(full.lines)
                    kept = [line for line in full.file if line not in moved]
                    full.file.seek(0)
                    full.file.truncate()
                    full.file.writelines(kept)
                return


def _write_labels(folder: Path, image: AnnotatedImage, classes: int) -> None:
    name = PurePosixPath(image.file_name).with_suffix(".txt").as_posix()
    target = safe_join(folder, name, DatasetError, "file_name")
    if target.exists():
        raise DatasetError(f"{image.file_name} differs from another image by its suffix alone.")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(_lines(on_grid(image, classes).single, image)), encoding="utf-8")


def _lines(found: Instances, image: AnnotatedImage) -> list[str]:
    lines = []
    for (x, y, width, height), label in zip(bboxes(found), found.labels.tolist(), strict=True):
        centre = f"{(x + width / 2) / image.width:.8f} {(y + height / 2) / image.height:.8f}"
        lines.append(f"{label} {centre} {width / image.width:.8f} {height / image.height:.8f}\n")
    return lines


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
