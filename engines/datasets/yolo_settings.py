"""What YOLO's settings files say: names of classes, splits, keypoints.

Knows: `data.yaml`, any other .yaml in the dataset's folder, or one folder down, that has names, Darknet's `.data`
files, and lists of names. Knows nothing about label files.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from engines.common.quote import quote, shorten
from engines.datasets.fields import read_json, read_text
from engines.datasets.paths import find_in
from engines.datasets.records import Findings
from engines.datasets.splits import SPLITS
from engines.datasets.tree import Tree, fold
from engines.errors import DatasetError

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "names.txt", "predefined_classes.txt")
_NOTES = "notes.json"  # Label Studio's list of names
_LARGEST = 1 << 17  # bytes of a settings file, which take the parser seconds
_DEEPEST = 200  # brackets in one, which take it minutes when they are nested


class _AliasError(Exception):
    """A settings file repeats a part of itself, which may grow without bound."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # untyped
    """A safe loader that refuses aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _AliasError
        return super().compose_node(parent, index)


@dataclass(frozen=True)
class Settings:
    """A settings file's content."""

    file: str  # as the tree has it; "" where there is none
    values: Mapping[str, Any]

    @property
    def keypoints(self) -> tuple[int, int] | None:
        """(points, values a point) of a dataset of poses."""
        shape = self.values.get("kpt_shape")
        if isinstance(shape, list) and len(shape) == 2 and all(isinstance(side, int) for side in shape):
            return shape[0], shape[1]
        return None

    def sources(self, tree: Tree, splits: Sequence[str], findings: Findings) -> list[str]:
        """Folders and lists of images that it names for these splits, by the end of each path that is there.

        DatasetError where one of them is known by the end of its path alone, and that is another split's end, too.
        """
        found: dict[str, str] = {}
        for key in [*splits, *(one for one in SPLITS if one not in splits)]:
            for entry in self._entries(key):
                name, cut = self._located(tree, entry)
                if name is None:
                    if key in splits:
                        where = f'{self.file}, {key}: "{shorten(entry)}"'
                        findings.count("folders or lists of the settings are not there", where)
                    continue
                if cut and found.get(name, entry) != entry:
                    raise DatasetError(
                        f'{self.file}, {key}: "{shorten(entry)}" and "{shorten(found[name])}" both seem to be '
                        f"{shorten(name) or tree.root} here; write the paths as they are in this folder.",
                        field=key,
                    )
                if key in splits:
                    found.setdefault(name, entry)
        return list(found)

    def _entries(self, key: str) -> list[str]:
        by_name = {fold(str(name)): value for name, value in self.values.items()} | dict(self.values)
        entries = by_name.get(key) or []
        entries = entries if isinstance(entries, list) else [entries]
        for entry in entries:
            if not isinstance(entry, str):
                raise DatasetError(
                    f"{self.file}, {key} is {quote(entry)}; a folder or a list of images was expected.", field=key
                )
        return [entry for entry in entries if entry.strip()]

    def _located(self, tree: Tree, entry: str) -> tuple[str | None, bool]:
        base = self.values.get("path")
        folders = set(tree.folders)

        def accept(name: str) -> bool:
            return name in folders or not name or (name in tree.known and name.lower().endswith(".txt"))

        bases = [base] if isinstance(base, str) and base.strip() else []
        if within := self.file.rpartition("/")[0]:
            bases = [f"{within}/{one}" for one in bases] + [within, *bases]
        for above in bases:
            name, cut = find_in(tree, f"{above}/{entry}", accept)
            if name is not None:
                return name, cut
        return find_in(tree, entry, accept)


def settings_files(tree: Tree) -> list[str]:
    """The file that settings are read from, in a list; empty where there is none."""
    usual = [name for name in _YAML_NAMES if name in tree.known]
    if usual:
        return usual[:1]
    root = [name for name in tree.files if "/" not in name]
    return (
        _naming(tree, root)
        or [name for name in root if name.lower().endswith(".data") and "names" in _read_darknet(tree, name)][:1]
    )


def _naming(tree: Tree, files: Sequence[str]) -> list[str]:
    """Those of the files that are YAML and name classes."""
    return [name for name in files if name.lower().endswith((".yaml", ".yml")) and _has_names(tree, name)]


def _below(tree: Tree) -> list[str]:
    """Settings files one folder down, for a folder that has neither its own nor a list of names."""
    return [] if _lists(tree) else _naming(tree, [name for name in tree.files if name.count("/") == 1])


def read_settings(tree: Tree, findings: Findings) -> Settings:
    """What the settings file holds; DatasetError for one that can't be read, and for two that disagree on names."""
    files = settings_files(tree) or _below(tree)
    if not files:
        return Settings("", {})
    if files[0].lower().endswith(".data"):
        return Settings(files[0], _read_darknet(tree, files[0]))
    every = {name: _read_yaml(tree, name) for name in files}
    first = files[0]
    for name, values in every.items():
        if values.get("names") != every[first].get("names"):
            raise DatasetError(
                f"{tree.root} has several settings files, and {shorten(first)} and {shorten(name)} name "
                f"different classes; call the right one {_YAML_NAMES[0]}.",
                field="names",
            )
    if first not in _YAML_NAMES:
        findings.remark(f"Names of classes are read from {shorten(first)}.")
    return Settings(first, every[first])


def _has_names(tree: Tree, name: str) -> bool:
    try:
        return "names" in _read_yaml(tree, name)
    except DatasetError:
        return False


def _read_yaml(tree: Tree, name: str) -> Mapping[str, Any]:
    path = tree.path(name)
    if path.stat().st_size > _LARGEST:
        raise DatasetError(f"{path} has more than {_LARGEST >> 10} KiB; a settings file was expected.")
    text = read_text(path)
    if sum(map(text.count, "[{")) > _DEEPEST:
        raise DatasetError(f"{path} has more than {_DEEPEST} brackets; a settings file was expected.")
    try:
        settings = yaml.load(text, Loader=_Loader)
    except _AliasError:
        raise DatasetError(f"{path} has aliases (*name), which settings don't need; write the values out.") from None
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as cause:
        raise DatasetError(f"{path} is not readable as YAML: {shorten(' '.join(str(cause).split()))}.") from cause
    if not isinstance(settings, Mapping):
        raise DatasetError(f"{path} holds a {type(settings).__name__}; a mapping with names was expected.")
    return settings


def _read_darknet(tree: Tree, name: str) -> dict[str, Any]:
    """`key = value` lines, with the names that the file they point to has."""
    values: dict[str, Any] = {}
    for line in read_text(tree.path(name)).splitlines():
        key, sign, value = line.partition("=")
        if sign and value.strip() and not key.strip().startswith("#"):
            values[key.strip()] = value.strip()
    if isinstance(values.get("names"), str):
        file, _ = find_in(tree, values["names"], lambda end: end in tree.known)
        values.pop("names")
        if file is not None:
            values["names"] = _listed(tree, file)
    return values


def class_names(
    tree: Tree, settings: Settings, wanted: Sequence[str] | None, findings: Findings
) -> Sequence[str] | None:
    """Names by index: the settings', a list's, else those that were asked for; None where nobody gave any."""
    if settings.values.get("names") is not None:
        names = _names(settings)
        _remark_other_lists(tree, settings, names, findings)
        return names
    found = {tuple(_listed(tree, name)): name for name in sorted(_lists(tree), key=lambda name: name.count("/"))}
    if len(found) > 1:
        one, other = list(found.values())[:2]
        raise DatasetError(
            f"{shorten(one)} and {shorten(other)} name different classes; take the wrong one away.", field="names"
        )
    if found:
        return next(iter(found))
    notes = [name for name in tree.files if name.rpartition("/")[2] == _NOTES]
    return _from_notes(tree, notes[0]) if notes else wanted


def _remark_other_lists(tree: Tree, settings: Settings, names: Sequence[str], findings: Findings) -> None:
    """Say where a list gives an index another name than the settings, which count."""
    for file in _lists(tree):
        with contextlib.suppress(DatasetError):  # a list that is not needed may be broken
            for index, (name, other) in enumerate(zip(names, _listed(tree, file), strict=False)):
                if fold(name) != fold(other):
                    findings.remark(
                        f'Class {index} is "{shorten(name)}", as in {shorten(settings.file)}; {shorten(file)} has '
                        f'"{shorten(other)}" there and is not read: see which is right.'
                    )
                    break


def _lists(tree: Tree) -> list[str]:
    """Files of names, a name a line."""
    return [name for name in tree.files if fold(name.rpartition("/")[2]) in NAME_FILES or name.endswith(".names")]


def _listed(tree: Tree, file: str) -> list[str]:
    """The lines of a file of names; DatasetError for an empty one between others, which would move their indices."""
    names = [line.strip() for line in read_text(tree.path(file)).rstrip().splitlines()]
    if "" in names:
        raise DatasetError(f"{file}, line {names.index('') + 1} is empty; a name a line was expected.", field="names")
    return names


def _from_notes(tree: Tree, file: str) -> list[str] | None:
    content = read_json(tree.path(file))
    entries = content.get("categories") if isinstance(content, Mapping) else None
    listed = entries if isinstance(entries, list) else []
    pairs = [(one.get("id"), one.get("name")) for one in listed if isinstance(one, Mapping)]
    if pairs and sorted(key for key, _ in pairs if isinstance(key, int)) == list(range(len(pairs))):
        return [str(name) for _, name in sorted(pairs)]
    return None


def _names(settings: Settings) -> list[str]:
    names, file = settings.values["names"], settings.file
    if isinstance(names, Mapping):
        keys = list(names)
        if sorted(map(str, keys)) != sorted(map(str, range(len(keys)))):
            raise DatasetError(f"{file}, names: keys are {quote(keys[:8])}; 0, 1, 2, ... were expected.", field="names")
        names = [names[key] for key in sorted(keys, key=int)]
    if not isinstance(names, list):
        raise DatasetError(f"{file}, names is a {type(names).__name__}; a list was expected.", field="names")
    for index, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            raise DatasetError(
                f"{file}, names[{index}] is {quote(name)}; text was expected (put it in quotes).", field="names"
            )
    return [str(name) for name in names]
