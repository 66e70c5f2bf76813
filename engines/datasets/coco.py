"""Reads COCO detection JSON.

Knows: where COCO files and their images usually lie, and the fields `images`, `annotations`, `categories`.
Boxes are `bbox` [x, y, width, height] in pixels of the upright image; classes are in the order of their ids.
Captions: an image's own `caption` (or `prompt`, which dengine writes), else the first one of a
`captions_*.json` beside an `instances_*.json`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.common.files import read_json
from engines.datasets.records import (
    Classes,
    Dataset,
    Findings,
    RawObject,
    Record,
    Size,
    build_record,
    locate,
    measured,
    number,
    split_names,
    typed,
    visible_folders,
)
from engines.errors import DatasetError

_SECTIONS = (b'"images"', b'"annotations"', b'"categories"')
_PROBED_IMAGES = 20  # how many file names are tried to find the folder that holds the images


def find_coco(root: Path) -> list[Path]:
    """COCO JSON files in `root`, in `annotations` or `Annotations`, else in any folder of `root`; sorted."""
    for folders in ([root, root / "annotations", root / "Annotations"], visible_folders(root)):
        found = {path.resolve(): path for folder in folders for path in sorted(folder.glob("*.json")) if _is_coco(path)}
        if found:
            return list(found.values())
    return []


def read_coco(
    root: Path,
    files: Sequence[Path],
    split: str | None,
    class_names: Sequence[str] | None,
    findings: Findings,
) -> Dataset:
    """The dataset of the one COCO file that `split` names; DatasetError naming file and field."""
    file = _choose(root, files, split)
    source = file.relative_to(root).as_posix()
    content = read_json(file, DatasetError)
    categories, classes = _read_categories(content, class_names, source, findings)
    objects, captions = _read_annotations(content, categories, classes, source, findings)
    for image_id, sibling in _sibling_captions(file):
        captions.setdefault(image_id, sibling)
    images = typed(content, "images", list, source)
    image_root = _image_root(root, file, images)
    records: list[Record] = []
    names: dict[int, str] = {}
    taken: set[Path] = set()
    for index, image in enumerate(images):
        with findings.item():
            where = f"{source}, images[{index}]"
            image_id, name = _image_key(image, names, where)
            names[image_id] = name
            objects_here, caption = objects.pop(image_id, []), captions.get(image_id)
            record = _read_image(image, image_root, name, objects_here, caption, where, findings)
            if record.file in taken:
                raise DatasetError(f'{where}.file_name "{name}" occurs twice.')
            taken.add(record.file)
            records.append(record)
    for image_id in sorted(objects.keys() - names.keys()):
        for found in objects[image_id]:
            with findings.item():
                raise DatasetError(f"{found.where}.image_id {image_id} is not the id of any image.")
    return Dataset(
        root=root,
        class_names=classes.names,
        records=records,
        dropped=tuple(findings.dropped),
        skipped=tuple(findings.skipped),
        source=f"COCO, {source}",
    )


def _is_coco(path: Path) -> bool:
    """Whether the file holds the three section names; a large file is not worth parsing twice."""
    missing = set(_SECTIONS)
    tail = b""
    try:
        with path.open("rb") as file:
            while missing and (block := file.read(1 << 20)):
                missing -= {name for name in missing if name in tail + block}
                tail = block[-32:]
    except OSError:
        return False
    return not missing


def _choose(root: Path, files: Sequence[Path], split: str | None) -> Path:
    """The one file whose name or folder has the split as a word ("train" fits instances_train2017.json)."""
    wanted = split_names(split) if split else set()
    fitting = [path for path in files if not split or wanted & _words(path.relative_to(root))]
    instances = [path for path in fitting if path.name.startswith("instances")]
    if len(fitting) > 1 and len(instances) == 1:
        fitting = instances
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(path.relative_to(root).as_posix() for path in files[:8])
    if split is None:
        raise DatasetError(f"{root} has several COCO files ({shown}); name one with a split.")
    problem = "no COCO file" if not fitting else "several COCO files"
    raise DatasetError(f'{root} has {problem} for split "{split}"; found {shown}.')


def _words(path: Path) -> set[str]:
    words = {word for part in path.with_suffix("").parts for word in re.split(r"[^A-Za-z0-9]+", part)}
    return words | {word.rstrip("0123456789") for word in words} | {path.stem}


def _read_categories(
    content: Mapping[str, Any], class_names: Sequence[str] | None, source: str, findings: Findings
) -> tuple[dict[int, str], Classes]:
    """Category names by id, and the classes in the order of the ids."""
    categories: dict[int, str] = {}
    for index, category in enumerate(typed(content, "categories", list, source)):
        with findings.item():
            where = f"{source}, categories[{index}]"
            key, name = typed(_object(category, where), "id", int, where), typed(category, "name", str, where)
            if key in categories or name in categories.values() or not name:
                raise DatasetError(f'{where}: id {key} or name "{name}" is empty or occurs twice.')
            categories[key] = name
    return categories, Classes([categories[key] for key in sorted(categories)], class_names)


def _read_annotations(
    content: Mapping[str, Any],
    categories: Mapping[int, str],
    classes: Classes,
    source: str,
    findings: Findings,
) -> tuple[dict[int, list[RawObject]], dict[int, str]]:
    """Objects and captions by image id."""
    objects: dict[int, list[RawObject]] = defaultdict(list)
    captions: dict[int, str] = {}
    seen: set[int] = set()
    for index, annotation in enumerate(typed(content, "annotations", list, source)):
        with findings.item():
            where = f"{source}, annotations[{index}]"
            image_id = typed(_object(annotation, where), "image_id", int, where)
            if isinstance(annotation.get("caption"), str) and "bbox" not in annotation:
                captions.setdefault(image_id, annotation["caption"])
                continue
            key = typed(annotation, "id", int, where)
            if key in seen:
                raise DatasetError(f"{where}.id {key} occurs twice.")
            seen.add(key)
            objects[image_id].append(_read_object(annotation, categories, classes, where))
    return objects, captions


def _read_object(
    annotation: Mapping[str, Any], categories: Mapping[int, str], classes: Classes, where: str
) -> RawObject:
    category = typed(annotation, "category_id", int, where)
    if category not in categories:
        raise DatasetError(f"{where}.category_id {category} is not the id of any category.")
    bbox = typed(annotation, "bbox", list, where)
    if len(bbox) != 4:
        raise DatasetError(f"{where}.bbox has {len(bbox)} values; [x, y, width, height] was expected.")
    x, y, width, height = (number(value, f"{where}.bbox[{index}]") for index, value in enumerate(bbox))
    iscrowd = annotation.get("iscrowd", 0)
    if iscrowd not in (0, 1):
        raise DatasetError(f"{where}.iscrowd is {iscrowd!r}; 0 or 1 was expected.")
    label = classes.label(categories[category], f"{where}.category_id")
    return RawObject(where, (x, y, x + width, y + height), label, bool(iscrowd))


def _image_key(image: object, names: Mapping[int, str], where: str) -> tuple[int, str]:
    """Id and file name of an entry of `images`; `names` are those read so far."""
    entry = _object(image, where)
    image_id, name = typed(entry, "id", int, where), typed(entry, "file_name", str, where)
    if image_id in names:
        raise DatasetError(f'{where}.id {image_id} was given to "{names[image_id]}" already.')
    return image_id, name


def _read_image(
    image: Mapping[str, Any],
    image_root: Path,
    name: str,
    objects: Sequence[RawObject],
    caption: str | None,
    where: str,
    findings: Findings,
) -> Record:
    file = locate(image_root, name, f"{where}.file_name")
    own_caption = image.get("caption") or image.get("prompt") or caption
    return build_record(
        file,
        file.relative_to(image_root).as_posix(),
        measured(file, f"{where}.file_name"),
        objects,
        findings,
        annotated_size=_annotated_size(image, where),
        caption=own_caption if isinstance(own_caption, str) else None,
    )


def _annotated_size(image: Mapping[str, Any], where: str) -> Size | None:
    if image.get("width") is None or image.get("height") is None:
        return None
    return int(number(image["width"], f"{where}.width")), int(number(image["height"], f"{where}.height"))


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DatasetError(f"{where} is a {type(value).__name__}; an object was expected.")
    return value


def _image_root(root: Path, file: Path, images: Sequence[Any]) -> Path:
    """The folder in which most of the first file names exist; `images`, where there is one, if none do."""
    deeper = [*visible_folders(root), *visible_folders(root / "images")]
    candidates = [folder for folder in (root / "images", file.parent, root, *deeper) if folder.is_dir()]
    names = [image.get("file_name") for image in images[:_PROBED_IMAGES] if isinstance(image, Mapping)]

    def hits(folder: Path) -> int:
        return sum(_exists(folder, name) for name in names if isinstance(name, str))

    return max(candidates, key=hits)  # the first of equals


def _exists(folder: Path, name: str) -> bool:
    try:
        return locate(folder, name, "").is_file()
    except DatasetError:
        return False


def _sibling_captions(file: Path) -> Iterator[tuple[int, str]]:
    """(image id, caption) pairs of `captions_x.json` beside `instances_x.json`, where it is there."""
    captions = file.with_name(file.name.replace("instances_", "captions_", 1))
    if captions == file or not captions.is_file():
        return
    content = read_json(captions, DatasetError)
    for index, annotation in enumerate(typed(content, "annotations", list, captions.name)):
        where = f"{captions.name}, annotations[{index}]"
        yield (
            typed(_object(annotation, where), "image_id", int, where),
            typed(annotation, "caption", str, where),
        )
