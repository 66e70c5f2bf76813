"""The one in-memory form of a dataset, and the rules that every reader shares.

Knows: what a record is, when a box is degenerate, and what happens to bad items. Knows nothing about formats.

Boxes: xyxy in pixels of the upright image (EXIF applied), as continuous edges: a box over the whole image is
[0, 0, width, height]. N boxes of an image.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.common.files import safe_join
from engines.datasets.images import IMAGE_SUFFIXES, checked_image_size
from engines.errors import DatasetError, UsageError
from engines.labels.boxes import Instances, join

Size = tuple[int, int]  # width, height


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its boxes; the pixels stay on disk."""

    file: Path  # the image
    name: str  # POSIX path relative to the image folder
    width: int  # of the upright image, read from the file
    height: int
    instances: Instances  # float32, inside the image, with positive area; labels index the dataset's class names
    caption: str | None  # the image's own caption, where the dataset has one


@dataclass(frozen=True, eq=False)
class Dataset:
    """A whole dataset (one split of it, where a split was named)."""

    root: Path  # the folder that was opened
    class_names: tuple[str, ...]
    records: Sequence[Record]
    dropped: tuple[str, ...]  # degenerate boxes: file, index and why
    skipped: tuple[str, ...]  # bad items that `skip_bad` left out: file, field and why
    source: str = ""  # what was found, in words: "Pascal VOC, split train"

    def objects(self) -> dict[str, int]:
        """How many boxes each class has, crowds aside."""
        return join([found.single for found in instances_of(self.records)]).count(self.class_names)


def instances_of(records: Iterable[Record]) -> list[Instances]:
    """The objects of each record, in order."""
    return [record.instances for record in records]


@dataclass(frozen=True)
class RawObject:
    """A box as its annotation file has it, before it is held against the image."""

    where: str  # file and index, for messages
    box: tuple[float, float, float, float]  # xyxy pixels, finite
    label: int
    iscrowd: bool = False


@dataclass
class Findings:
    """What a reader met on the way: degenerate boxes, and bad items where these may be left out."""

    skip_bad: bool
    dropped: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @contextmanager
    def item(self) -> Iterator[None]:
        """Run the block for one item; with `skip_bad` a DatasetError in it is noted and the item left out."""
        try:
            yield
        except DatasetError as error:
            if not self.skip_bad:
                raise
            self.skipped.append(str(error))


class Classes:
    """Class names and their indices: those that were asked for, else those that the dataset has."""

    def __init__(self, found: Sequence[str], wanted: Sequence[str] | None) -> None:
        self.names = tuple(wanted) if wanted is not None else tuple(found)
        self._index = {name: index for index, name in enumerate(self.names)}
        if len(self._index) < len(self.names) or "" in self._index:
            kind = DatasetError if wanted is None else UsageError
            raise kind(f"Class names must differ and not be empty; got {', '.join(map(repr, self.names))}.")

    def label(self, name: str, where: str) -> int:
        """Index of a class; raises DatasetError, prefixed with `where`, for one that is not known."""
        if name not in self._index:
            raise DatasetError(f'{where}: class "{name}" is not one of {", ".join(self.names) or "(none)"}.')
        return self._index[name]


def build_record(
    file: Path,
    name: str,
    size: Size,
    objects: Sequence[RawObject],
    findings: Findings,
    *,
    annotated_size: Size | None = None,
    caption: str | None = None,
) -> Record:
    """Hold an image's objects against its real size: clip the boxes to it, drop and note degenerate ones.

    A box wholly outside the image is degenerate too, unless the annotation states another size than the file
    has (`annotated_size`): then it is a DatasetError, because the boxes belong to some other image.
    """
    boxes: list[npt.NDArray[np.float32]] = []
    kept: list[RawObject] = []
    limits = np.array([*size, *size], dtype=np.float64)
    for found in objects:
        raw = np.array(found.box, dtype=np.float64)
        clipped = np.clip(raw, 0.0, limits).astype(np.float32)
        if not _has_area(raw):
            findings.dropped.append(f"{found.where}: box {_shown(found.box)} has no area.")
        elif _has_area(clipped):
            boxes.append(clipped)
            kept.append(found)
        elif annotated_size not in (None, size):
            with findings.item():
                raise DatasetError(
                    f"{found.where}: box {_shown(found.box)} lies outside {file}, which is {_by(size)}; "
                    f"the annotation says {_by(annotated_size)}, so correct it."
                )
        else:
            findings.dropped.append(f"{found.where}: box {_shown(found.box)} lies outside the {_by(size)} image.")
    return Record(
        file=file,
        name=name,
        width=size[0],
        height=size[1],
        instances=Instances.of(
            np.array(boxes, dtype=np.float32),
            [found.label for found in kept],
            crowd=[found.iscrowd for found in kept],
        ),
        caption=caption,
    )


def _has_area(box: npt.NDArray[np.floating[Any]]) -> bool:
    return bool(box[2] > box[0] and box[3] > box[1])


def _shown(box: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def _by(size: Size | None) -> str:
    return "unknown" if size is None else f"{size[0]}x{size[1]}"


def locate(root: Path, name: str, where: str) -> Path:
    """The file `name`, which must lie inside `root` and exist; DatasetError prefixed with `where`."""
    if "\0" in name:
        raise DatasetError(f"{where}: {name!r} is not a file name.")
    try:
        path = safe_join(root, name, DatasetError, where)
        if path.is_file():
            return path
    except OSError as cause:
        raise DatasetError(f"{where}: {cause}.") from cause
    raise DatasetError(f'{where}: "{name}" is missing from {root}.')


def measured(file: Path, where: str) -> Size:
    """Upright (width, height) of an image file; a broken one raises DatasetError prefixed with `where`."""
    try:
        return checked_image_size(file)
    except DatasetError as error:
        raise DatasetError(f"{where}: {error}") from error


def is_image(path: Path) -> bool:
    """Whether a path is named like an image and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def visible_folders(folder: Path) -> list[Path]:
    """The folders in `folder` whose names don't begin with a dot, sorted; none where it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def split_names(split: str) -> set[str]:
    """The names that a split goes by: `val` is also `valid` and `validation`."""
    validation = {"val", "valid", "validation"}
    return validation if split in validation else {split}


def read_text(path: Path) -> str:
    """A UTF-8 text file (a byte-order mark is allowed); DatasetError naming it when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing.") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise DatasetError(f"{path} cannot be read as text: {cause}.") from cause


def number(value: object, where: str) -> float:
    """A finite number out of JSON (bool is none); DatasetError prefixed with `where` for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            if math.isfinite(result := float(value)):
                return result
        except OverflowError:
            pass
    raise DatasetError(f"{where} is {_brief(value)}; a finite number was expected.")


def parsed_number(text: str | None, where: str) -> float:
    """A finite number spelt as text; DatasetError prefixed with `where` for anything else."""
    try:
        return number(float(text or ""), where)
    except ValueError:
        raise DatasetError(f"{where} is {_brief(text)}; a finite number was expected.") from None


def typed(mapping: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """`mapping[key]`, which must be there, of `kind` (bool is no int); DatasetError naming the field."""
    if key not in mapping:
        raise DatasetError(f"{where}.{key} is missing.")
    value = mapping[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {int: "whole number", str: "text", list: "list", dict: "object"}
        raise DatasetError(f"{where}.{key} is {_brief(value)}; a {names.get(kind, kind.__name__)} was expected.")
    return value


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
