"""Reads labelme: one JSON file an image, with shapes.

Knows: `shapes` with `label`, `points` and `shape_type`, of which what has an extent becomes a box, `group_id`, by which
polygons and masks of one label are parts of one object (as labelme's own converters read it), and `imagePath`.
Classes are in alphabetical order. The image inside the JSON (`imageData`) is never read. An image without a file of its
own is left out.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from engines.common.quote import shorten
from engines.datasets.assemble import finish
from engines.datasets.classes import Classes
from engines.datasets.fields import entry, number, read_json, size_of, typed
from engines.datasets.paths import Finder
from engines.datasets.readings import CORNERS, Row, hull
from engines.datasets.records import Dataset, Draft, Findings, ReadOptions
from engines.datasets.splits import in_split, no_split
from engines.datasets.tree import Tree, fold
from engines.errors import DatasetError

LOOKS = "labelme's .json files"
_PROBED = 20  # files that are looked at before a folder counts as labelme's
_NO_EXTENT = ("point", "line", "points", "linestrip")
_PARTS = ("polygon", "mask")  # shapes that may be one part of an object


def find(tree: Tree) -> list[str]:
    """All JSON files, where some of them have labelme's fields."""
    files = tree.with_suffix(".json")
    likely = sorted(files, key=lambda name: fold(PurePosixPath(name).stem) not in tree.image_stems)
    return (
        [name for name in files if _is_labelme(tree, name)]
        if any(_is_labelme(tree, name) for name in likely[:_PROBED])
        else []
    )


def read(tree: Tree, files: Sequence[str], options: ReadOptions, findings: Findings) -> Dataset:
    """The dataset, or the part of it in the split's folder; DatasetError naming file and field."""
    if options.split:
        known = {name.rpartition("/")[0] for name in files if "/" in name}
        if not (files := in_split(files, options.split)):
            raise no_split(tree, options.split, known)
    contents: dict[str, Mapping[str, Any]] = {}
    for name in files:
        with findings.item():
            contents[name] = entry(read_json(tree.path(name)), name)
    labels = {
        _label(shape) for content in contents.values() for shape in _shapes(content) if _kind(shape) not in _NO_EXTENT
    }
    classes = Classes(sorted(labels - {""}), options.class_names, findings, "shapes, label")
    drafts: dict[str, Draft] = {}
    own_names = frozenset(fold(PurePosixPath(name).stem) for name in contents)
    for name, content in contents.items():
        with findings.item():
            near = frozenset(fold(part) for part in name.split("/")[:-1])
            stated = size_of(content.get("imageWidth"), content.get("imageHeight"))
            finder = Finder(tree, findings, name.rpartition("/")[0], near, name)
            image = finder.of_file(name, typed(content, "imagePath", str, name), f"{name}.imagePath", stated, own_names)
            if image in drafts:
                raise DatasetError(f"{name}.imagePath: {shorten(image)} is that of {drafts[image].where}, too.")
            draft = drafts[image] = Draft(tree.path(image), image, name, stated)
            _read_shapes(typed(content, "shapes", list, name), draft, classes, findings)
    without = len(tree.images) - len(drafts)
    if options.split is None and without > 0:
        findings.remark(f"{without} images have no .json file and are left out.")
    return finish(tree, list(drafts.values()), CORNERS, classes.names, options, findings, "labelme")


def _is_labelme(tree: Tree, name: str) -> bool:
    """Whether the file has labelme's fields; `imageData` between them may be megabytes."""
    try:
        data = tree.path(name).read_bytes()
    except OSError:
        return False
    return b'"shapes"' in data and b'"imagePath"' in data


def _shapes(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    shapes = content.get("shapes")
    return [shape for shape in shapes if isinstance(shape, Mapping)] if isinstance(shapes, list) else []


def _label(shape: Mapping[str, Any]) -> str:
    return "" if shape.get("label") is None else str(shape["label"])


def _kind(shape: Mapping[str, Any]) -> str:
    return str(shape.get("shape_type") or "polygon")


def _read_shapes(shapes: Sequence[Any], draft: Draft, classes: Classes, findings: Findings) -> None:
    """Add the boxes of an image's shapes; those of the parts of an object are one."""
    places: dict[tuple[int, str], int] = {}
    for index, value in enumerate(shapes):
        with findings.item():
            where = f"{draft.where}, shapes[{index}]"
            shape = entry(value, where)
            if (row := _row(shape, where, findings)) is None:
                continue
            label, group = classes.label(_label(shape), f"{where}.label"), shape.get("group_id")
            if group is not None and _kind(shape) in _PARTS:
                place = places.setdefault((label, str(group)), len(draft.rows))
                if place < len(draft.rows):
                    draft.rows[place] = hull([*draft.rows[place], *row])
                    findings.count(
                        "shapes are further parts of an object (`group_id`), and one box goes round all", where
                    )
                    continue
            draft.add(where, row, label)


def _row(shape: Mapping[str, Any], where: str, findings: Findings) -> Row | None:
    """The corners round a shape; None, with a note, for one that has none."""
    kind = _kind(shape)
    if kind in _NO_EXTENT:
        findings.count("shapes have no box (points, lines), and are passed over", where)
        return None
    pairs = typed(shape, "points", list, where)
    try:
        points = [number(value, f"{where}.points") for pair in pairs for value in pair]
    except TypeError:
        raise DatasetError(f"{where}.points: pairs [x, y] were expected.") from None
    if len(points) < 4 or len(points) % 2:
        findings.degenerate(f"{where}.points", pairs)
        return None
    if kind == "circle":
        return _circle(points)
    x0, y0, x1, y1 = hull(points)
    past = int(kind == "mask")  # its points are its first and last pixel
    return x0, y0, x1 + past, y1 + past


def _circle(points: Sequence[float]) -> Row:
    """Round a circle, given by its centre and a point on it."""
    x, y, edge_x, edge_y = points[:4]
    radius = math.hypot(edge_x - x, edge_y - y)
    return x - radius, y - radius, x + radius, y + radius
