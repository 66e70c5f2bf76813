"""Reads boxes from csv tables: Open Images', and the ones of TensorFlow's object detection tools.

Knows: their columns, and that spreadsheets put semicolons or tabs between them. Open Images has ImageID, LabelName and
XMin, XMax, YMin, YMax in fractions of the image, IsGroupOf for crowds, and a table of the labels' names; TensorFlow has
filename, width, height, class, xmin, ymin, xmax, ymax in pixels. Classes are in alphabetical order. An image without a
row is left out; a row of an image alone, without class and box, says that it has no objects.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from engines.common.quote import shorten
from engines.datasets.assemble import finish
from engines.datasets.classes import Classes
from engines.datasets.fields import number, read_text, size_of
from engines.datasets.paths import Finder, parts_of
from engines.datasets.readings import CORNERS, FRACTIONS, Reading
from engines.datasets.records import Dataset, Draft, Findings, ReadOptions, Size
from engines.datasets.splits import choose_file, near_folders
from engines.datasets.tree import Tree, fold
from engines.errors import DatasetError

LOOKS = "a .csv with Open Images' or TensorFlow's columns"
_BETWEEN = ",;\t"  # what may stand between cells; the first counts where none does
_YES = ("1", "1.0", "true")  # as Open Images and as pandas write it
_CODE = "/m/"  # what Open Images' names of classes begin with before its table is asked
_HEAD = 4096  # bytes in which a table's header ends


@dataclass(frozen=True)
class _Columns:
    """What a kind of table calls its columns; folded names."""

    image: str
    label: str
    corners: tuple[str, str, str, str]  # x0, y0, x1, y1
    reading: Reading
    crowd: str = ""
    size: tuple[str, str] = ("", "")


_KINDS = (
    _Columns("imageid", "labelname", ("xmin", "ymin", "xmax", "ymax"), FRACTIONS, crowd="isgroupof"),
    _Columns("filename", "class", ("xmin", "ymin", "xmax", "ymax"), CORNERS, size=("width", "height")),
)


def find(tree: Tree) -> list[str]:
    """Tables with the columns of a kind, at most two folders down."""
    return [name for name in tree.with_suffix(".csv") if name.count("/") <= 2 and _kind(tree, name) is not None]


def read(tree: Tree, files: Sequence[str], options: ReadOptions, findings: Findings) -> Dataset:
    """The dataset of the one table that the split names; DatasetError naming file, row and column."""
    source = choose_file(tree, files, options.split, "csv")
    kind = _kind(tree, source)
    assert kind is not None  # `find` saw it
    names = _label_names(tree, source)
    rows = list(_rows(read_text(tree.path(source)), source))
    classes = Classes(sorted({_label(row, kind, names) for row in rows} - {""}), options.class_names, findings, source)
    if codes := [name for name in classes.names if name.startswith(_CODE)]:
        findings.remark(
            f"{len(codes)} classes are called by Open Images' codes, such as {shorten(codes[0])}: put its table of "
            "names, class-descriptions-boxable.csv, beside the annotations."
        )
    finder = Finder(tree, findings, "", near_folders(source, options.split))
    drafts = _Drafts(finder)
    for index, row in enumerate(rows, start=2):
        where = f"{source}, line {index}"
        with findings.item():
            stated = size_of(row.get(kind.size[0]), row.get(kind.size[1]))
            draft = drafts.of(row.get(kind.image, ""), where, stated)
            if not any(row.get(column) for column in (kind.label, *kind.corners)):
                continue
            label = classes.label(_label(row, kind, names), f"{where}, {kind.label}")
            try:
                x0, y0, x1, y1 = (number(row.get(side), "") for side in kind.corners)
            except DatasetError:
                findings.degenerate(where, [row.get(side) for side in kind.corners])
                continue
            draft.add(where, (x0, y0, x1, y1), label, row.get(kind.crowd, "").lower() in _YES)
    found = sorted(drafts.by_image.values(), key=lambda draft: draft.name.split("/"))
    without = len(tree.images) - len(found)
    if options.split is None and without > 0:
        findings.remark(f"{without} images have no row in {shorten(source)} and are left out.")
    return finish(tree, found, kind.reading, classes.names, options, findings, f"csv, {source}")


@dataclass
class _Drafts:
    """The images of a table's rows."""

    finder: Finder
    by_image: dict[str, Draft] = field(default_factory=dict)  # as the tree names it
    _images: dict[str, str] = field(default_factory=dict)  # what a row calls an image -> the image
    _first: dict[str, str] = field(default_factory=dict)  # the image -> what the first of its rows calls it

    def of(self, name: str, where: str, stated: Size | None) -> Draft:
        """The image of a row; DatasetError for one that earlier rows have by a name of another folder."""
        if not name:
            raise DatasetError(f"{where} names no image.")
        if name not in self._images:
            image = self.finder(name, where, stated)
            first = self._first.setdefault(image, name)
            if not _may_be_one(name, first):
                raise DatasetError(f'{where}: "{shorten(name)}" is {shorten(image)} here, as "{shorten(first)}" is.')
            self._images[name] = image
            self.by_image.setdefault(image, Draft(self.finder.tree.path(image), image, where, stated))
        return self.by_image[self._images[name]]


def _may_be_one(name: str, other: str) -> bool:
    """Whether one name is the end of the other, whatever their suffixes: `a`, `a.jpg` and `images/a.jpg` are one."""
    one, two = (
        [*map(fold, parts[:-1]), fold(PurePosixPath(parts[-1]).stem)]
        for parts in (parts_of(name)[0], parts_of(other)[0])
    )
    shorter = min(len(one), len(two))
    return one[-shorter:] == two[-shorter:]


def _kind(tree: Tree, name: str) -> _Columns | None:
    try:
        with tree.path(name).open("rb") as file:
            head = file.read(_HEAD).replace(b"\0", b"").lstrip(b"\xff\xfe").decode("utf-8-sig", "replace")
        lines = head.splitlines()
        columns = {fold(cell.strip()) for cell in _cells(lines[0], name)[0]} if lines and lines[0] else set()
    except (OSError, DatasetError):
        return None
    return next((kind for kind in _KINDS if {kind.image, kind.label, *kind.corners} <= columns), None)


def _rows(text: str, source: str) -> list[Mapping[str, str]]:
    """The rows by folded column names."""
    lines = [row for row in _cells(text, source) if any(cell.strip() for cell in row)]
    header = [fold(cell.strip()) for cell in lines[0]] if lines else []
    return [dict(zip(header, (cell.strip() for cell in row), strict=False)) for row in lines[1:]]


def _cells(text: str, source: str) -> list[list[str]]:
    head = text.partition("\n")[0]
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=max(_BETWEEN, key=head.count)))
    except csv.Error as cause:
        raise DatasetError(f"{source} is not readable as csv: {shorten(str(cause))}.") from cause


def _label(row: Mapping[str, str], kind: _Columns, names: Mapping[str, str]) -> str:
    label = row.get(kind.label, "")
    return names.get(label, label)


def _label_names(tree: Tree, source: str) -> dict[str, str]:
    """Open Images' table of (label, name), with or without a header; empty where there is none."""
    for name in tree.with_suffix(".csv"):
        base = fold(PurePosixPath(name).name)
        if name != source and ("class-descriptions" in base or base == "classes.csv"):
            rows = _cells(read_text(tree.path(name)), name)
            return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2 and row[1].strip()}
    return {}
