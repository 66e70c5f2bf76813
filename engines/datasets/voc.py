"""Reads Pascal VOC: one XML file an image, and ImageSets lists as splits.

Knows: `Annotations/*.xml` with `JPEGImages` (or `images`) and `ImageSets/Main/<split>.txt`, and XML files
beside their images, a folder a split. Classes are in alphabetical order, over all XML files of the dataset,
so that every split has the same indices. `difficult` objects are kept as any other.

Boxes: VOC counts pixels from 1 and `xmax`, `ymax` are inside the box, so the edges are
[xmin - 1, ymin - 1, xmax, ymax] (as detectron2 and supervision read them). A box with xmax <= xmin or
ymax <= ymin as written is degenerate: labelling tools write it for a click without a drag.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from engines.datasets.records import (
    Classes,
    Dataset,
    Findings,
    RawObject,
    Record,
    Size,
    build_record,
    is_image,
    locate,
    measured,
    parsed_number,
    read_text,
    split_names,
    visible_folders,
)
from engines.errors import DatasetError

_ANNOTATION_FOLDERS = ("Annotations", "annotations")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
_MEMBERSHIP = re.compile(r"\s+-?[01]$")  # "2008_000002 -1" in the lists of single classes


class _SafeBuilder(ElementTree.TreeBuilder):
    """A tree builder that refuses document types, and with them every entity that a file could define."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DatasetError("has a DOCTYPE, which annotations don't need and dengine doesn't read; remove it")


def find_voc(root: Path) -> list[Path]:
    """Folders with VOC annotations: `Annotations` where it holds XML, else `root` and its folders; sorted."""
    for folders in ([root / name for name in _ANNOTATION_FOLDERS], [root], visible_folders(root)):
        found = {folder.resolve(): folder for folder in folders if next(folder.glob("*.xml"), None)}
        if found:
            return list(found.values())
    return []


def read_voc(
    root: Path,
    folders: Sequence[Path],
    split: str | None,
    class_names: Sequence[str] | None,
    findings: Findings,
) -> Dataset:
    """The dataset, or the images of it that `split` lists; DatasetError naming file and field."""
    chosen = _chosen_files(root, folders, split, findings)
    trees: dict[Path, ElementTree.Element] = {}
    names: set[str] = set()
    for path in sorted({path for folder in folders for path in folder.glob("*.xml")} | set(chosen)):
        try:
            tree = _parse(path, root)
        except DatasetError as error:
            if path in chosen:
                with findings.item():
                    raise error
            continue  # a broken file of another split is that split's trouble
        names |= {(found.findtext("name") or "").strip() for found in tree.findall("object")}
        if path in chosen:
            trees[path] = tree
    classes = Classes(sorted(names - {""}), class_names)
    records: list[Record] = []
    seen: set[Path] = set()
    several = len({path.parent for path in trees}) > 1  # then names are relative to `root`, and so differ
    for path, tree in trees.items():
        with findings.item():
            where, image_folder = _shown(path, root), _image_folder(root, path.parent)
            file = _image_file(image_folder, path, tree, where)
            if file in seen:
                raise DatasetError(f"{where}, filename: {file.name} has another XML file already.")
            seen.add(file)
            name = file.relative_to(root if several else image_folder).as_posix()
            records.append(_read_image(file, name, tree, where, classes, findings))
    return Dataset(
        root=root,
        class_names=classes.names,
        records=records,
        dropped=tuple(findings.dropped),
        skipped=tuple(findings.skipped),
        source="Pascal VOC" + (f", split {split}" if split else ""),
    )


def _chosen_files(root: Path, folders: Sequence[Path], split: str | None, findings: Findings) -> set[Path]:
    """The XML files of the split (of all, when None): listed in ImageSets, else in the split's own folder."""
    if split is None:
        return {path for folder in folders for path in folder.glob("*.xml")}
    lists = {path.stem: path for where in ("ImageSets", "ImageSets/Main") for path in (root / where).glob("*.txt")}
    wanted = split_names(split)
    for name in sorted(wanted & lists.keys()):
        return _listed_files(root, folders[0], lists[name], findings)
    own = [folder for folder in folders if folder != root and folder.name in wanted]
    if own:
        return set(own[0].glob("*.xml"))
    known = sorted(lists) or [folder.name for folder in folders if folder.parent == root and not lists]
    raise DatasetError(f'{root} has no split "{split}"; it has {", ".join(known[:12]) or "none"}.')


def _listed_files(root: Path, folder: Path, listing: Path, findings: Findings) -> set[Path]:
    found: set[Path] = set()
    for index, line in enumerate(read_text(listing).splitlines(), start=1):
        name = _MEMBERSHIP.sub("", line.strip())
        if name:
            with findings.item():
                found.add(locate(folder, f"{name}.xml", f"{_shown(listing, root)}, line {index}"))
    return found


def _parse(path: Path, root: Path) -> ElementTree.Element:
    try:
        parser = ElementTree.XMLParser(target=_SafeBuilder())
        tree = ElementTree.fromstring(path.read_bytes(), parser=parser)
    except DatasetError as error:
        raise DatasetError(f"{_shown(path, root)} {error}.") from None
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as cause:
        raise DatasetError(f"{_shown(path, root)} is not readable as XML: {cause}.") from cause
    if tree.tag != "annotation":
        raise DatasetError(f"{_shown(path, root)} holds <{tree.tag}>; <annotation> was expected.")
    return tree


def _image_folder(root: Path, folder: Path) -> Path:
    """Where the images of the XML files in `folder` are."""
    if folder.name in _ANNOTATION_FOLDERS:
        return next((root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()), root)
    return folder


def _read_image(
    file: Path, name: str, tree: ElementTree.Element, where: str, classes: Classes, findings: Findings
) -> Record:
    size = measured(file, f"{where}, filename")
    objects: list[RawObject] = []
    for index, found in enumerate(tree.findall("object")):
        with findings.item():
            objects.append(_read_object(found, classes, f"{where}, object {index}"))
    return build_record(file, name, size, objects, findings, annotated_size=_annotated_size(tree, where))


def _image_file(folder: Path, path: Path, tree: ElementTree.Element, where: str) -> Path:
    """The image of an XML file: what `filename` says, else the image with the XML file's own name."""
    name = (tree.findtext("filename") or "").strip()
    if name:
        try:
            return locate(folder, name, f"{where}, filename")
        except DatasetError:
            if ".." in name or "/" in name or "\\" in name:
                raise
    for candidate in sorted(folder.glob(f"{_escaped(path.stem)}.*")):
        if is_image(candidate):
            return candidate
    raise DatasetError(f'{where}, filename: "{name or path.stem}" is missing from {folder}.')


def _read_object(found: ElementTree.Element, classes: Classes, where: str) -> RawObject:
    label = classes.label((found.findtext("name") or "").strip(), f"{where}, name")
    box = found.find("bndbox")
    if box is None:
        raise DatasetError(f"{where}, bndbox is missing.")
    x1, y1, x2, y2 = (
        parsed_number(box.findtext(side), f"{where}, bndbox.{side}") for side in ("xmin", "ymin", "xmax", "ymax")
    )
    if x2 <= x1 or y2 <= y1:
        return RawObject(where, (x1, y1, x2, y2), label)  # without area as written: left so
    return RawObject(where, (x1 - 1, y1 - 1, x2, y2), label)


def _annotated_size(tree: ElementTree.Element, where: str) -> Size | None:
    width, height = tree.findtext("size/width"), tree.findtext("size/height")
    if width is None or height is None:
        return None
    return int(parsed_number(width, f"{where}, size.width")), int(parsed_number(height, f"{where}, size.height"))


def _escaped(name: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", name)


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
