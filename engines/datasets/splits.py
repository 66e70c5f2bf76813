"""Which part of a dataset is meant: splits by the words in the names of files and folders.

Knows: the names that a split goes by, and how to choose among annotation files. Knows nothing about their content.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

from engines.common.quote import shorten
from engines.datasets.fields import listed
from engines.datasets.tree import Tree, fold
from engines.errors import DatasetError

_VALIDATION = ("val", "valid", "validation")
_TEST = ("test", "testing")
_FAMILIES = (("train", "training"), _VALIDATION, _TEST)
SPLITS = tuple(name for family in _FAMILIES for name in family)
_DARKNET = re.compile(r"obj_(.+)_data")  # CVAT's folders: obj_train_data


def split_names(split: str) -> set[str]:
    """The names that a split goes by: `val` is also `valid` and `validation`."""
    for names in _FAMILIES:
        if split in names:
            return set(names)
    return {split}


def words(name: str) -> set[str]:
    """The words of a path, also without the numbers at their ends: `instances_train2017.json` has train."""
    path = PurePosixPath(name)
    found = {word for part in path.with_suffix("").parts for word in re.split(r"[^A-Za-z0-9]+", part)}
    return {word for word in found | {word.rstrip("0123456789") for word in found} | {path.stem} if word}


@lru_cache(maxsize=1 << 12)
def is_split(folder: str, split: str | None = None) -> bool:
    """Whether a folder (its last name) is that of the split; None: of any split."""
    name = fold(folder.rpartition("/")[2])
    if match := _DARKNET.fullmatch(name):
        name = match[1]
    name = name.rstrip("0123456789")
    return name in (SPLITS if split is None else {fold(one) for one in split_names(split)})


@lru_cache(maxsize=1 << 12)
def is_part(folder: str) -> bool:
    """Whether a folder is named for a split, or for a kind of test: `test-dev` is one, `train_negatives` is none."""
    return is_split(folder) or bool(set(map(fold, words(folder))) & set(_TEST))


def families(folders: Iterable[str]) -> tuple[str, ...]:
    """Which of train, val and test folders are named for."""
    names = set(folders)
    return tuple(family[0] for family in _FAMILIES if any(is_split(name, family[0]) for name in names))


def mixed_splits(root: Path, files: Iterable[Path]) -> tuple[str, ...]:
    """The splits that the folders of `files` are named for, and the lists of ImageSets; none where it is but one."""
    folders = {folder for file in files if root in file.parents for folder in file.relative_to(root).parent.parts}
    found = families(folders | {path.stem for path in root.glob("ImageSets/**/*.txt")})
    return found if len(found) > 1 else ()


def split_folders(tree: Tree, split: str) -> list[str]:
    """The folders named like the split, outermost ones alone."""
    found: list[str] = []
    for folder in _surest({name: name for name in tree.folders if _is_named(name.rpartition("/")[2], split)}, split):
        if not any(folder.startswith(other + "/") for other in found):
            found.append(folder)
    return found


def in_split(files: Iterable[str], split: str) -> list[str]:
    """The files in folders that are named like the split."""
    return _surest({name: name.rpartition("/")[0] for name in files}, split)


def _is_named(folder: str, split: str) -> bool:
    return is_split(folder, split) or fold(folder) in {fold(one) for one in split_names(split)}


def _surest(folders: Mapping[str, str], split: str) -> list[str]:
    """The names whose folder is in the split; those below a folder of another split only where there are no others:
    the obj_train_data that CVAT writes for every task is not train in `val/obj_train_data`.
    """
    ranks: dict[str, int] = {}
    for name, folder in folders.items():
        parts = folder.split("/")
        first = next((index for index, part in enumerate(parts) if _is_named(part, split)), None)
        if first is not None:
            ranks[name] = 1 if any(is_split(part) for part in parts[:first]) else 2
    best = max(ranks.values(), default=0)
    return [name for name, rank in ranks.items() if rank == best]


def near_folders(file: str, split: str | None) -> frozenset[str]:
    """Folded names of the folders that belong to an annotation file or split: those that its words name."""
    named = {fold(word) for word in words(file)} | ({fold(name) for name in split_names(split)} if split else set())
    families = {fold(name) for word in named & set(SPLITS) for name in split_names(word)}
    return frozenset(
        (named | families) - {"annotations", "annotation", "instances", "images", "labels", "coco", "data"}
    )


def choose_file(tree: Tree, files: Sequence[str], split: str | None, kind: str, preferred: str = "") -> str:
    """The one file whose name or folder has the split as a word; DatasetError where none or several do.

    preferred: what the one to take among several begins with.
    """
    wanted = {fold(name) for name in split_names(split)} if split else set()
    parts = {fold(part) for part in re.split(r"[^A-Za-z0-9]+", split or "") if part}  # "test-dev" is test and dev
    named = [(name, set(map(fold, words(name)))) for name in files]
    fitting = [name for name, its in named if not split or wanted & its or (parts and parts <= its)]
    first = [name for name in fitting if preferred and name.rpartition("/")[2].startswith(preferred)]
    if len(fitting) > 1 and len(first) == 1:
        fitting = first
    if len(fitting) == 1:
        return fitting[0]
    shown = listed(files)
    if split is None:
        raise DatasetError(f"{tree.root} has several {kind} files ({shown}); name one with a split.", field="split")
    problem = f"no {kind} file" if not fitting else f"several {kind} files"
    raise DatasetError(f'{tree.root} has {problem} for split "{shorten(split)}"; found {shown}.', field="split")


def no_split(tree: Tree, split: str, known: Collection[str]) -> DatasetError:
    """What to say where a split is not there."""
    return DatasetError(f'{tree.root} has no split "{shorten(split)}"; it has {listed(sorted(known))}.', field="split")
