"""Reads Pascal VOC: one XML file an image, and ImageSets lists as splits.

Knows: `Annotations` (or `labels`, `xmls`, ...) with XML files, in folders of it, too, beside any folder of images; XML
files beside their images, a folder a split; `ImageSets/Main/<split>.txt`. Classes are in alphabetical order, over all
XML files of the dataset, so that every split has the same indices. `difficult` objects are kept as any other.

Boxes: VOC counts pixels from 1 and `xmax`, `ymax` are inside the box, so the edges are
[xmin - 1, ymin - 1, xmax, ymax] (as detectron2 and supervision read them). A box with xmax = xmin or ymax = ymin as
written is degenerate: labelling tools write it for a click without a drag.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree import ElementTree

from engines.common.quote import shorten
from engines.datasets.assemble import finish
from engines.datasets.classes import Classes
from engines.datasets.fields import number, parsed_number, read_text, size_of
from engines.datasets.paths import Finder, parts_of
from engines.datasets.readings import CORNERS, VOC, Row, hull, turned_hull
from engines.datasets.records import Dataset, Draft, Findings, ReadOptions, Size
from engines.datasets.splits import in_split, is_split, no_split, split_names
from engines.datasets.tree import Tree, fold
from engines.datasets.xml_files import parse, root_tag
from engines.errors import DatasetError

LOOKS = "Pascal VOC Annotations/*.xml"
_ANNOTATION_FOLDERS = {"annotations", "annotation", "xml", "xmls", "labels", "label", "anns", "gt"}
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "data")
_PROBED = 50  # files that are looked at before a folder counts as one of VOC's
_MAIN = "imagesets/main"  # the lists of detection
_MEMBERSHIP = re.compile(r"\s+-?[01]$")  # "2008_000002 -1" in the lists of single classes


def find(tree: Tree) -> list[str]:
    """VOC's XML files: those of annotation folders, else beside the images, in the folder or in folders of it."""
    files = tree.with_suffix(".xml")
    tops = [fold(name.partition("/")[0]) if "/" in name else "" for name in files]
    in_folders = [name for name, top in zip(files, tops, strict=True) if top in _ANNOTATION_FOLDERS]
    near = [name for name in files if name.count("/") < 2]
    in_splits = [name for name in files if "/" in name and is_split(name.partition("/")[0])]
    for chosen in (in_folders, [name for name in near if "/" not in name], in_splits, near):
        if any(root_tag(tree, name) == "annotation" for name in chosen[:_PROBED]):
            return chosen
    return []


def read(tree: Tree, files: Sequence[str], options: ReadOptions, findings: Findings) -> Dataset:
    """The dataset, or the images of it that the split lists; DatasetError naming file and field."""
    chosen = _chosen_files(tree, files, options.split, findings)
    found: list[_File] = []
    names: set[str] = set()
    for name in files:
        try:
            root = parse(tree, name)
            if root.tag != "annotation":
                raise DatasetError(f"{name} holds <{shorten(root.tag)}>; <annotation> was expected.")
        except DatasetError as error:
            if name in chosen:
                with findings.item():
                    raise error
            continue  # a broken file of another split is that split's trouble
        names |= {_name(object_) for object_ in root.findall("object")}
        if name in chosen:
            found.append(_File(name, root))
    classes = Classes(sorted(names - {""}), options.class_names, findings, "object, name")
    drafts = _read_files(tree, found, classes, options.split, findings)
    _remark_passed_over(tree, files, drafts, options.split, findings)
    source = "Pascal VOC" + (f", split {options.split}" if options.split else "")
    return finish(tree, drafts, VOC, classes.names, options, findings, source)


@dataclass(frozen=True)
class _File:
    """An XML file."""

    name: str  # as the tree has it
    root: ElementTree.Element

    @property
    def filename(self) -> str:
        """What it says its image is called."""
        return (self.root.findtext("filename") or "").strip()

    @property
    def stated(self) -> Size | None:
        """What it says its image's size is."""
        return size_of(self.root.findtext("size/width"), self.root.findtext("size/height"))

    @property
    def folders(self) -> frozenset[str]:
        """Folded names of the folders that its image may be in: its own, and the one that it names."""
        named = parts_of(self.root.findtext("folder") or "")[0][-1:]
        return frozenset(fold(part) for part in [*self.name.split("/")[:-1], *named])


def _name(found: ElementTree.Element) -> str:
    return (found.findtext("name") or "").strip()


def _chosen_files(tree: Tree, files: Sequence[str], split: str | None, findings: Findings) -> set[str]:
    """The XML files of the split (of all, when None): listed in ImageSets, else in the split's own folder."""
    if split is None:
        return set(files)
    listings = [
        name
        for name in tree.with_suffix(".txt")
        if fold(name.partition("/")[0]) == "imagesets" or ("/" not in name and is_split(PurePosixPath(name).stem))
    ]
    listings.sort(key=lambda name: fold(name.rpartition("/")[0]) != _MAIN)  # those of other tasks have fewer images
    lists = {PurePosixPath(name).stem: name for name in reversed(listings)}
    wanted = split_names(split)
    named = [name for name in sorted(lists) if name in wanted or fold(name) in map(fold, wanted)]
    if named:
        return _listed_files(tree, files, lists[max(named, key=wanted.__contains__)], findings)
    if own := set(in_split(files, split)):
        return own
    raise no_split(tree, split, list(lists) or {name.partition("/")[0] for name in files if "/" in name})


def _listed_files(tree: Tree, files: Sequence[str], listing: str, findings: Findings) -> set[str]:
    """The XML files that a list names: by stem, with any suffix and any folders before it."""
    by_stem: dict[str, list[str]] = {}
    for name in files:
        by_stem.setdefault(fold(PurePosixPath(name).stem), []).append(name)
    found: set[str] = set()
    for index, line in enumerate(read_text(tree.path(listing)).splitlines(), start=1):
        parts, mine = _listed_name(line.strip(), by_stem)
        if not parts:
            continue
        with findings.item():
            where, text = f"{listing}, line {index}", "/".join(parts)
            if len(mine) > 1 and len(parts) > 1:
                mine = [name for name in mine if fold(parts[-2]) in map(fold, name.split("/")[:-1])] or mine
            if not mine:
                raise DatasetError(f'{where}: "{shorten(text)}.xml" is missing from {tree.root}.')
            if len(mine) > 1:
                raise DatasetError(
                    f'{where}: "{shorten(text)}" may be {shorten(mine[0])} and {shorten(mine[1])}; name its folder.'
                )
            found.add(mine[0])
    return found


def _listed_name(line: str, by_stem: Mapping[str, list[str]]) -> tuple[list[str], list[str]]:
    """A line of a list as parts of a name, and the XML files it may mean: as it stands, else without a membership."""
    parts: list[str] = []
    for text in dict.fromkeys((line, _MEMBERSHIP.sub("", line))):
        parts, _ = parts_of(text)
        if parts and (mine := by_stem.get(fold(parts[-1])) or by_stem.get(fold(PurePosixPath(parts[-1]).stem), [])):
            return parts, mine
    return parts, []


def _read_files(
    tree: Tree, files: Sequence[_File], classes: Classes, split: str | None, findings: Findings
) -> list[Draft]:
    drafts: list[Draft] = []
    seen: dict[str, str] = {}
    own_names = frozenset(fold(PurePosixPath(file.name).stem) for file in files)
    near = frozenset(map(fold, split_names(split))) if split else frozenset()
    for file in files:
        with findings.item():
            finder = Finder(tree, findings, _image_folder(tree, file.name), file.folders | near, file.name)
            image = finder.of_file(file.name, file.filename, f"{file.name}, filename", file.stated, own_names)
            if image in seen:
                raise DatasetError(
                    f"{file.name}, filename: {shorten(image)} has another XML file already, {seen[image]}."
                )
            seen[image] = file.name
            draft = Draft(tree.path(image), image, file.name, file.stated)
            for index, found in enumerate(file.root.findall("object")):
                with findings.item():
                    _read_object(found, classes, draft, findings, f"{file.name}, object {index}")
            drafts.append(draft)
    common = os.path.commonpath([str(PurePosixPath(draft.name).parent) for draft in drafts]) if drafts else ""
    for draft in drafts:
        draft.name = PurePosixPath(draft.name).relative_to(common or ".").as_posix()
    return drafts


def _image_folder(tree: Tree, name: str) -> str:
    """Where the image of an XML file usually is."""
    parts = name.split("/")[:-1]
    for depth, part in enumerate(parts):
        if fold(part) in _ANNOTATION_FOLDERS:
            above = "/".join(parts[:depth])
            usual = ("/".join(filter(None, [above, folder])) for folder in _IMAGE_FOLDERS)
            return next((folder for folder in usual if folder in tree.folders), above)
    return "/".join(parts)


def _read_object(found: ElementTree.Element, classes: Classes, draft: Draft, findings: Findings, where: str) -> None:
    label = classes.label(_name(found), f"{where}, name")
    box, turned = found.find("bndbox"), found.find("robndbox")
    if turned is not None and box is None:
        x, y, width, height, angle = (
            parsed_number(turned.findtext(side), f"{where}, robndbox.{side}")
            for side in ("cx", "cy", "w", "h", "angle")
        )
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        findings.count("boxes are turned by a rotation, and become the upright boxes round them", where)
        draft.add(where, turned_hull(corners, math.degrees(angle)), label, reading=CORNERS)
        return
    row = _row(found, box, where)
    if row is None:
        findings.degenerate(
            f"{where}, bndbox",
            [box.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")] if box is not None else None,
        )
        return
    for attribute in found.iterfind("attributes/attribute"):
        if attribute.findtext("name") == "rotation":
            degrees = parsed_number(attribute.findtext("value"), f"{where}, rotation")
            if degrees % 360.0:
                findings.count("boxes are turned by a rotation, and become the upright boxes round them", where)
                edges = (row[0] - 1, row[1] - 1, row[2], row[3])
                draft.add(where, turned_hull(edges, degrees), label, reading=CORNERS)
                return
    draft.add(where, row, label)


def _row(found: ElementTree.Element, box: ElementTree.Element | None, where: str) -> Row | None:
    """The four numbers; those round a polygon that has no box; None where they are not numbers."""
    if box is None:
        points = [
            number(point.text, f"{where}, polygon") for point in found.iterfind("polygon/*") if point.tag[:1] in "xy"
        ]
        if len(points) < 4:
            raise DatasetError(f"{where}, bndbox is missing.")
        return hull(points)
    sides = [box.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = (parsed_number(side, where) for side in sides)
    except DatasetError:
        return None
    return x0, y0, x1, y1


def _remark_passed_over(
    tree: Tree, files: Sequence[str], drafts: Sequence[Draft], split: str | None, findings: Findings
) -> None:
    """Say how many images have no XML file, and what XML was not read."""
    others = len(tree.with_suffix(".xml")) - len(files)
    if others:
        findings.remark(f"{others} .xml files lie elsewhere in {tree.root} and are not read.")
    without = len(tree.images) - len(drafts) - len(findings.skipped)
    if split is None and without > 0:
        findings.remark(f"{without} images have no XML file and are left out.")
