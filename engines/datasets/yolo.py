"""Reads YOLO: a text file of normalised boxes beside every image, with or without a `data.yaml`.

Knows: `images/...` with `labels/...`, `<split>/images` with `<split>/labels`, and what `data.yaml` says of
splits (folders, or lists of images) and names. Each line is `class x_centre y_centre width height`, or
`class` and the points of a polygon, in fractions of the upright image. An image without a label file has no
boxes. Classes are by index: of `data.yaml`, else of `classes.txt`, else the names asked for, else `class0`,
`class1`...
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from engines.common.files import safe_join
from engines.datasets.images import list_images
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
    parsed_number,
    read_text,
    split_names,
    visible_folders,
)
from engines.errors import DatasetError

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAME_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
_SPLITS = ("train", "val", "valid", "validation", "test")
_MAX_CLASSES = 10_000
_OVERSHOOT = 0.01  # by how much a fraction may leave 0..1 before it is no fraction


def find_yolo(root: Path) -> bool:
    """Whether `root` has a `data.yaml`, or a `labels` folder with text files beside an `images` folder."""
    if any((root / name).is_file() for name in _YAML_NAMES):
        return True
    parents = [root, *visible_folders(root)]
    return any((parent / "images").is_dir() and next((parent / "labels").rglob("*.txt"), None) for parent in parents)


def read_yolo(root: Path, split: str | None, class_names: Sequence[str] | None, findings: Findings) -> Dataset:
    """The dataset, or one split of it; DatasetError naming file and line."""
    settings = _read_settings(root)
    sources = _sources(root, settings, split)
    image_root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in sources]))
    files = sorted({file for source in sources for file in _images_of(root, source, findings)})
    found_names = _class_names(root, settings, class_names)
    classes = None if found_names is None else Classes(found_names, class_names)
    records: list[Record] = []
    labelled: dict[Path, Path] = {}
    for file in files:
        with findings.item():
            label_file = _label_file(root, file)
            if label_file in labelled:
                raise DatasetError(f"{_shown(label_file, root)} has two images, {labelled[label_file]} and {file}.")
            labelled[label_file] = file
            size = measured(file, _shown(file, root))
            objects = _read_objects(root, label_file, size, found_names, classes, findings)
            records.append(build_record(file, file.relative_to(image_root).as_posix(), size, objects, findings))
    _report_orphans(root, sources, labelled, findings)
    if classes is None:
        count = 1 + max((int(label) for record in records for label in record.instances.labels), default=-1)
        classes = Classes([f"class{index}" for index in range(count)], None)
    return Dataset(
        root=root,
        class_names=classes.names,
        records=records,
        dropped=tuple(findings.dropped),
        skipped=tuple(findings.skipped),
        source="YOLO" + (f", split {split}" if split else ""),
    )


def _read_objects(
    root: Path,
    label_file: Path,
    size: Size,
    names: Sequence[str] | None,
    classes: Classes | None,
    findings: Findings,
) -> list[RawObject]:
    """The boxes of one label file, in pixels; labels are the file's own indices where there are no classes."""
    width, height = size
    objects: list[RawObject] = []
    for index, line in enumerate(_lines(label_file), start=1):
        if not line.strip():
            continue
        with findings.item():
            where = f"{_shown(label_file, root)}, line {index}"
            label, (x1, y1, x2, y2) = _parse_line(line, where)
            if names is not None and classes is not None:
                label = classes.label(_name(names, label, where), where)
            objects.append(RawObject(where, (x1 * width, y1 * height, x2 * width, y2 * height), label))
    return objects


def _read_settings(root: Path) -> Mapping[str, Any]:
    """What `data.yaml` holds; empty where there is none."""
    file = next((root / name for name in _YAML_NAMES if (root / name).is_file()), None)
    if file is None:
        return {}
    try:
        settings = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, ValueError, RecursionError) as cause:
        raise DatasetError(f"{file} is not readable as YAML: {' '.join(str(cause).split())}.") from cause
    if not isinstance(settings, Mapping):
        raise DatasetError(f"{file} holds a {type(settings).__name__}; a mapping with names was expected.")
    return settings


def _class_names(root: Path, settings: Mapping[str, Any], wanted: Sequence[str] | None) -> Sequence[str] | None:
    """Names by index; None where nobody gave any."""
    if "names" not in settings:
        file = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
        return wanted if file is None else [line.strip() for line in _lines(file) if line.strip()]
    names = settings["names"]
    if isinstance(names, Mapping):
        keys = list(names)
        if sorted(map(str, keys)) != sorted(map(str, range(len(keys)))):
            raise DatasetError(f"data.yaml, names: keys are {keys[:8]}; 0, 1, 2, ... were expected.")
        names = [names[key] for key in sorted(keys, key=int)]
    if not isinstance(names, list):
        raise DatasetError(f"data.yaml, names is a {type(names).__name__}; a list was expected.")
    for index, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            raise DatasetError(f"data.yaml, names[{index}] is {name!r}; text was expected (put it in quotes).")
    return [str(name) for name in names]


def _name(names: Sequence[str], index: int, where: str) -> str:
    if not 0 <= index < len(names):
        raise DatasetError(f"{where}: class {index} is not one of 0 to {len(names) - 1}.")
    return names[index]


def _sources(root: Path, settings: Mapping[str, Any], split: str | None) -> list[Path]:
    """Folders of images and lists of images, as `data.yaml` names them, else where they usually are."""
    wanted = sorted(split_names(split)) if split else _SPLITS
    sources = [path for key in wanted for path in _listed_sources(root, settings, key)]
    if split is None:
        usual = [root / "images", *(folder / "images" for folder in visible_folders(root))]
    else:
        usual = [folder for key in wanted for folder in (root / "images" / key, root / key / "images")]
    found = list(dict.fromkeys(path for path in sources if path.exists()))
    found = found or [folder for folder in usual if folder.is_dir()]
    if not found:
        tried = ", ".join(_shown(path, root) for path in dict.fromkeys([*sources, *usual]))
        problem = f'no split "{split}"' if split else "no images"
        raise DatasetError(f"{root} is a YOLO dataset with {problem}; tried {tried}.")
    return found


def _listed_sources(root: Path, settings: Mapping[str, Any], key: str) -> list[Path]:
    """What `data.yaml` says of one split. `path` is followed inside `root` only; a leading `../` is not."""
    entries = settings.get(key) or []
    base = settings.get("path")
    inside = root
    if isinstance(base, str) and not base.startswith(("/", "~")) and ".." not in base and (root / base).is_dir():
        inside = safe_join(root, base, DatasetError, "data.yaml, path")
    paths: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, str):
            raise DatasetError(f"data.yaml, {key} is {entry!r}; a folder or a list of images was expected.")
        while entry.startswith(("./", "../")):  # exporters write ../train/images and mean train/images
            entry = entry.partition("/")[2]
        paths.append(safe_join(inside, entry, DatasetError, f"data.yaml, {key}"))
    return paths


def _images_of(root: Path, source: Path, findings: Findings) -> list[Path]:
    if source.is_dir():
        return list_images(source)
    files: list[Path] = []
    for index, line in enumerate(_lines(source), start=1):
        if line.strip():
            with findings.item():
                name = line.strip().removeprefix("./")
                files.append(locate(source.parent, name, f"{_shown(source, root)}, line {index}"))
    return files


def _label_file(root: Path, image: Path) -> Path:
    """`images/a/b.jpg` has `labels/a/b.txt` (the last `images` counts); elsewhere the text is beside it."""
    parts = list(image.relative_to(root).with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return root.joinpath(*parts)


def _lines(file: Path) -> list[str]:
    return read_text(file).splitlines() if file.exists() else []


def _parse_line(line: str, where: str) -> tuple[int, tuple[float, float, float, float]]:
    """Class index and xyxy box, in fractions of the image."""
    words = line.split()
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise DatasetError(f"{where} has {len(words)} values; class, x, y, width, height were expected.")
    index, *values = (parsed_number(word, where) for word in words)
    if index != int(index) or not 0 <= index < _MAX_CLASSES:
        raise DatasetError(f"{where}: class {words[0]} is not a whole number from 0 to {_MAX_CLASSES - 1}.")
    if not all(-_OVERSHOOT <= value <= 1 + _OVERSHOOT for value in values):
        raise DatasetError(f"{where}: values must be fractions of the image, 0 to 1; got {' '.join(words[1:])}.")
    if len(values) == 4:
        x, y, width, height = values
        return int(index), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return int(index), (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))


def _report_orphans(root: Path, sources: Sequence[Path], labelled: Mapping[Path, Path], findings: Findings) -> None:
    """A label file without its image is a bad item."""
    for source in sources:
        if not source.is_dir() or "images" not in source.relative_to(root).parts:
            continue
        for label_file in sorted(_label_file(root, source / "x").parent.rglob("*.txt")):
            if label_file not in labelled and label_file.name != "classes.txt":
                with findings.item():
                    raise DatasetError(f"{_shown(label_file, root)}: its image is missing from {source}.")


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
