"""Reads CVAT's own XML for images.

Knows: `<annotations>` with an `<image>` for each file and in it `<box>`, `<polygon>`, `<ellipse>`, `<mask>` and others,
of which what has an extent becomes a box. Classes are in alphabetical order. Videos (`<track>`) are refused by name.

Boxes: corners in pixels of the upright image, `rotation` in degrees clockwise.
"""

from collections.abc import Sequence
from xml.etree import ElementTree

from engines.common.quote import shorten
from engines.datasets.assemble import finish
from engines.datasets.classes import Classes
from engines.datasets.fields import parsed_number, size_of
from engines.datasets.paths import Finder
from engines.datasets.readings import CORNERS, Row, hull, turned_hull
from engines.datasets.records import Dataset, Draft, Findings, ReadOptions
from engines.datasets.splits import choose_file, near_folders, no_split, split_names
from engines.datasets.tree import Tree, fold
from engines.datasets.xml_files import parse, root_tag
from engines.errors import DatasetError

LOOKS = "CVAT's annotations.xml"
_SHAPES = ("box", "polygon", "polyline", "ellipse", "mask", "cuboid")
_CUBOID = tuple(f"{corner}{side}" for side in "12" for corner in ("tl", "bl", "tr", "br"))  # of the near and far side


def find(tree: Tree) -> list[str]:
    """CVAT's XML files, at most one folder down."""
    near = [name for name in tree.with_suffix(".xml") if name.count("/") < 2]
    return [name for name in near[:50] if root_tag(tree, name) == "annotations"]


def read(tree: Tree, files: Sequence[str], options: ReadOptions, findings: Findings) -> Dataset:
    """The dataset, or the images whose subset is the split; DatasetError naming file and field."""
    source = files[0] if len(files) == 1 else choose_file(tree, files, options.split, "CVAT")
    root = parse(tree, source)
    if root.find("track") is not None:
        raise DatasetError(
            f"{source} holds the tracks of a video; export the frames as images, such as in COCO's format."
        )
    images = root.findall("image")
    subsets = {fold(image.get("subset", "")) for image in images}
    if options.split and len(files) == 1:
        wanted = {fold(name) for name in split_names(options.split)}
        images = [image for image in images if fold(image.get("subset", "")) in wanted]
        if not images:
            raise no_split(tree, options.split, subsets - {""})
    labels = {shape.get("label", "") for image in root.findall("image") for shape in image if shape.tag in _SHAPES}
    classes = Classes(sorted(labels - {""}), options.class_names, findings, f"{source}, label")
    drafts: dict[str, Draft] = {}
    for index, image in enumerate(images):
        with findings.item():
            where = f"{source}, image {index}"
            near = near_folders(source, options.split) | {fold(image.get("subset", ""))} - {""}
            stated = size_of(image.get("width"), image.get("height"))
            finder = Finder(tree, findings, "images" if "images" in tree.folders else "", frozenset(near))
            name = finder(image.get("name", ""), f"{where}, name", stated)
            if name in drafts:
                raise DatasetError(f"{where}, name: {shorten(name)} has an entry already, {drafts[name].where}.")
            draft = drafts[name] = Draft(tree.path(name), name.removeprefix("images/"), where, stated)
            for place, shape in enumerate(image):
                with findings.item():
                    _read_shape(shape, draft, classes, f"{where}, {shorten(shape.tag)} {place}", findings)
    return finish(tree, list(drafts.values()), CORNERS, classes.names, options, findings, f"CVAT, {source}")


def _read_shape(shape: ElementTree.Element, draft: Draft, classes: Classes, where: str, findings: Findings) -> None:
    if shape.tag not in _SHAPES:
        findings.count("shapes have no box (points, skeletons, tags), and are passed over", where)
        return
    row = _row(shape, where)
    degrees = parsed_number(shape.get("rotation", "0"), f"{where}, rotation")
    if degrees % 360.0:
        findings.count("boxes are turned by a rotation, and become the upright boxes round them", where)
        row = turned_hull(row, degrees)
    draft.add(where, row, classes.label(shape.get("label", ""), f"{where}, label"), reading=CORNERS)


def _row(shape: ElementTree.Element, where: str) -> Row:
    def side(name: str) -> float:
        return parsed_number(shape.get(name), f"{where}, {name}")

    if shape.tag == "box":
        return side("xtl"), side("ytl"), side("xbr"), side("ybr")
    if shape.tag == "ellipse":
        x, y, rx, ry = side("cx"), side("cy"), side("rx"), side("ry")
        return x - rx, y - ry, x + rx, y + ry
    if shape.tag == "mask":
        left, top = side("left"), side("top")
        return left, top, left + side("width"), top + side("height")
    if shape.tag == "cuboid":
        return hull([side(axis + corner) for corner in _CUBOID for axis in "xy"])
    points = [
        parsed_number(value, f"{where}, points")
        for pair in shape.get("points", "").split(";")
        for value in pair.split(",")
    ]
    if len(points) % 2 or len(points) < 4:
        raise DatasetError(f"{where}, points: pairs x,y;x,y were expected.")
    return hull(points)
