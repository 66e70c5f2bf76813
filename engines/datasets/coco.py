"""Reads COCO detection JSON.

Knows: where COCO files and their images usually lie, and the fields `images`, `annotations`, `categories`.
Boxes are `bbox` [x, y, width, height] in pixels of the upright image, or what goes round a polygon that has none;
classes are in the order of their ids. CVAT's `attributes.rotation` turns a box about its centre.
Captions: an image's own `caption` (or `prompt`, which dengine writes), else the first one of a
`captions_*.json` beside an `instances_*.json`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engines.common.quote import quote, shorten
from engines.datasets.assemble import finish
from engines.datasets.classes import Classes, without_groups
from engines.datasets.coco_boxes import read_bbox
from engines.datasets.fields import entry, identity, read_json, size_of, typed
from engines.datasets.paths import Finder, parts_of
from engines.datasets.readings import SIDES, Reading, Row
from engines.datasets.records import Dataset, Draft, Findings, ReadOptions
from engines.datasets.splits import choose_file, families, near_folders
from engines.datasets.tree import Tree, fold, folders_of
from engines.errors import DatasetError

LOOKS = "a COCO .json (with images, annotations, categories) in it or in annotations/"
_SECTIONS = ("images", "annotations", "categories")
_PROBED_IMAGES = 20  # how many file names are tried to find the folder that holds the images
_Object = tuple[str, Row, Reading | None, int, bool]  # where, four numbers, their reading, label, crowd


def find(tree: Tree) -> list[str]:
    """COCO JSON files in the folder or in `annotations`, else in any folder of it."""
    files = tree.with_suffix(".json")
    near = [name for name in files if "/" not in name or fold(name.rpartition("/")[0]) == "annotations"]
    return _coco(tree, near) or _coco(tree, [name for name in files if name.count("/") == 1])


def read(tree: Tree, files: Sequence[str], options: ReadOptions, findings: Findings) -> Dataset:
    """The dataset of the one COCO file that the split names; DatasetError naming file and field."""
    source = choose_file(tree, files, options.split, "COCO", "instances")
    content = entry(read_json(tree.path(source)), source)
    categories, used = _read_categories(content, source, findings), _used(content, source)
    groups = {name for key, (_, group) in categories.items() for name in [group] if name != categories[key][0]}
    names = without_groups({key: name for key, (name, _) in categories.items()}, groups, used, findings)
    classes = Classes(
        [names[key] for key in sorted(names, key=_by_number)], options.class_names, findings, f"{source}, categories"
    )
    objects, captions = _read_annotations(content, names, classes, source, findings)
    for image_id, sibling in _sibling_captions(tree, source):
        captions.setdefault(image_id, sibling)
    images = typed(content, "images", list, source)
    finder = _finder(tree, source, images, options.split, findings)
    drafts = _read_images(images, objects, captions, finder, source)
    without = len(tree.inside("")) - len(drafts) - len(findings.skipped)
    if options.split is None and without > 0:
        findings.remark(f"{without} images are not in {shorten(source)} and are left out.")
    return finish(tree, drafts, SIDES, classes.names, options, findings, f"COCO, {source}")


def sections(tree: Tree, name: str) -> set[str]:
    """Which of the three section names a file holds; a large file is not worth parsing twice."""
    missing = {section: f'"{section}"'.encode() for section in _SECTIONS}
    tail = b""
    try:
        with tree.path(name).open("rb") as file:
            while missing and (block := file.read(1 << 20)):
                text = (tail + block).replace(b"\0", b"")  # of UTF-16, too
                missing = {section: sign for section, sign in missing.items() if sign not in text}
                tail = block[-64:]
    except OSError:
        return set()
    return set(_SECTIONS) - missing.keys()


def _coco(tree: Tree, files: Sequence[str]) -> list[str]:
    return [name for name in files if len(sections(tree, name)) == len(_SECTIONS)]


def _by_number(key: str) -> tuple[int, float, str]:
    """Ids that are numbers in their order, then the others by the alphabet."""
    try:
        return 0, float(int(key)), ""
    except (ValueError, OverflowError):
        return 1, 0.0, key


def _read_categories(content: Mapping[str, Any], source: str, findings: Findings) -> dict[str, tuple[str, str]]:
    """Id -> (name, supercategory)."""
    categories: dict[str, tuple[str, str]] = {}
    for index, category in enumerate(typed(content, "categories", list, source)):
        with findings.item():
            where = f"{source}, categories[{index}]"
            key, name = identity(entry(category, where), "id", where), category.get("name")
            name = (
                str(name)
                if isinstance(name, int) and not isinstance(name, bool)
                else typed(category, "name", str, where)
            )
            if not name.strip():
                raise DatasetError(f"{where}.name is empty.")
            if key in categories and categories[key][0] != name:
                raise DatasetError(f'{where}.id {shorten(key)} was given to "{shorten(categories[key][0])}" already.')
            categories[key] = name, str(category.get("supercategory"))
    return categories


def _used(content: Mapping[str, Any], source: str) -> set[str]:
    """The ids of categories that annotations have."""
    found = set()
    for annotation in typed(content, "annotations", list, source):
        if isinstance(annotation, Mapping) and "category_id" in annotation:
            try:
                found.add(identity(annotation, "category_id", ""))
            except DatasetError:
                continue
    return found


def _read_annotations(
    content: Mapping[str, Any], names: Mapping[str, str], classes: Classes, source: str, findings: Findings
) -> tuple[dict[str, list[_Object]], dict[str, str]]:
    """Objects and captions by image id. The annotations' own ids are not needed, and so not looked at."""
    objects: dict[str, list[_Object]] = defaultdict(list)
    captions: dict[str, str] = {}
    for index, annotation in enumerate(typed(content, "annotations", list, source)):
        with findings.item():
            where = f"{source}, annotations[{index}]"
            image_id = identity(entry(annotation, where), "image_id", where)
            if isinstance(annotation.get("caption"), str) and "bbox" not in annotation:
                captions.setdefault(image_id, annotation["caption"])
            elif (found := _read_object(annotation, names, classes, where, findings)) is not None:
                objects[image_id].append(found)
    return objects, captions


def _read_object(
    annotation: Mapping[str, Any], names: Mapping[str, str], classes: Classes, where: str, findings: Findings
) -> _Object | None:
    """None for a box that is noted as degenerate."""
    category = identity(annotation, "category_id", where)
    if category not in names:
        raise DatasetError(f"{where}.category_id {shorten(category)} is not the id of any category.")
    label = classes.label(names[category], f"{where}.category_id")
    iscrowd = annotation.get("iscrowd") or 0
    if iscrowd not in (0, 1, "0", "1"):
        raise DatasetError(f"{where}.iscrowd is {quote(iscrowd)}; 0 or 1 was expected.")
    row, reading = read_bbox(annotation, findings, where)
    return None if row is None else (where, row, reading, label, iscrowd in (1, "1"))


def _read_images(
    images: Sequence[Any],
    objects: dict[str, list[_Object]],
    captions: Mapping[str, str],
    finder: Finder,
    source: str,
) -> list[Draft]:
    drafts: list[Draft] = []
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for index, image in enumerate(images):
        with finder.findings.item():
            where = f"{source}, images[{index}]"
            image_id, name = identity(entry(image, where), "id", where), _file_name(image, where)
            if names.get(image_id) == name:
                finder.findings.count("images are listed again, and count once", where)
                continue
            if image_id in names:
                raise DatasetError(f'{where}.id {shorten(image_id)} was given to "{shorten(names[image_id])}" already.')
            names[image_id] = name
            mine = objects.pop(image_id, [])
            stated = size_of(image.get("width"), image.get("height"))
            found = finder(name, f"{where}.file_name", stated)
            if found in taken:
                raise DatasetError(
                    f'{where}.file_name "{shorten(name)}" occurs twice: it is that of {taken[found]}, too.'
                )
            taken[found] = f"images[{index}]"
            caption = _text(image.get("caption") or image.get("prompt") or captions.get(image_id))
            within = finder.home + "/" if finder.home and found.startswith(finder.home + "/") else ""
            draft = Draft(
                finder.tree.path(found),
                found.removeprefix(within),
                where,
                stated,
                caption,
            )
            for place, row, reading, label, crowd in mine:
                draft.add(place, row, label, crowd, reading)
            drafts.append(draft)
    for image_id in sorted(objects.keys() - names.keys()):
        for place, *_ in objects[image_id]:
            with finder.findings.item():
                raise DatasetError(f"{place}.image_id {shorten(image_id)} is not the id of any image.")
    return drafts


def _text(value: object) -> str | None:
    """Text that can be written again; None for anything else."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _file_name(image: Mapping[str, Any], where: str) -> str:
    """`file_name`, or the end of the address that LVIS gives in its place."""
    if "file_name" not in image and isinstance(image.get("coco_url"), str):
        return "/".join(parts_of(image["coco_url"])[0][-2:])
    name = typed(image, "file_name", str, where)
    if not name.strip():
        raise DatasetError(f"{where}.file_name is empty.")
    return str(name)


def _finder(tree: Tree, source: str, images: Sequence[Any], split: str | None, findings: Findings) -> Finder:
    """Looks first in the folder where most names exist: the split's own, the file's, `images`, the root, any other."""
    near = near_folders(source, split)
    step = max(1, len(images) // _PROBED_IMAGES)
    probed = [
        (image["file_name"], size_of(image.get("width"), image.get("height")))
        for image in images[::step][:_PROBED_IMAGES]
        if isinstance(image, Mapping) and isinstance(image.get("file_name"), str)
    ]
    beside = source.rpartition("/")[0]
    usual = ["images", beside, "", f"{beside}/images" if beside else "images"]
    usual = list(dict.fromkeys(name for name in usual if not name or name in tree.folders))
    own = set(families(near)) & set(families(part for name in tree.folders for part in name.split("/")))
    parts = {name: set(families(name.split("/"))) for name in tree.folders if name not in usual}
    others = [name for name, its in parts.items() if not own or not its or its & own]  # no folders of another split

    def hits(folder: str) -> int:
        return sum((f"{folder}/{name}" if folder else name) in tree.known for name, _ in probed)

    def rank(folder: str) -> tuple[int, int]:
        named = bool(folders_of(f"{folder}/") & near)
        return hits(folder), 2 if named else int(folder in usual)

    ranked = {folder: rank(folder) for folder in [*usual, *others]}
    best = max(ranked.values())
    ties = [folder for folder, its in ranked.items() if its == best] if best[0] else usual[:1]
    finder = Finder(tree, findings, "", near)
    if best[0] and best[1] != 1 and len(ties) > 1:  # folders of equal right: which is it?
        name, stated = next((name, stated) for name, stated in probed if f"{ties[0]}/{name}" in tree.known)
        chosen = finder.settle([f"{folder}/{name}" for folder in ties], f'{source}: "{shorten(name)}"', stated)
        ties = [chosen.removesuffix(f"/{name}")]
    finder.home = ties[0]
    return finder


def _sibling_captions(tree: Tree, source: str) -> Iterator[tuple[str, str]]:
    """(image id, caption) pairs of `captions_x.json` beside `instances_x.json`, where it is there."""
    folder, _, name = source.rpartition("/")
    sibling = "/".join(filter(None, [folder, name.replace("instances_", "captions_", 1)]))
    if sibling == source or sibling not in tree.known:
        return
    content = entry(read_json(tree.path(sibling)), sibling)
    for index, annotation in enumerate(typed(content, "annotations", list, sibling)):
        where = f"{sibling}, annotations[{index}]"
        yield identity(entry(annotation, where), "image_id", where), typed(annotation, "caption", str, where)
