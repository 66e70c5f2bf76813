"""The files of a dataset folder, listed once, for every format alike.

Knows: which files count (no hidden ones, none that systems and tools leave behind), and where a link may lead: inside
the folder, or into the store that the folder itself lies in, such as the blobs of a Hugging Face cache. A link that
leads elsewhere is not followed unless that was asked for. Knows nothing about annotations.
"""

import os
import unicodedata
from collections import Counter
from functools import cached_property
from pathlib import Path, PurePosixPath

from engines.datasets.images import IMAGE_SUFFIXES
from engines.errors import DatasetError

_JUNK_FOLDERS = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
_JUNK_FILES = {"thumbs.db", "desktop.ini", "icon\r"}
_LONGEST_LINK = 400  # bytes
_STORES = ("blobs", ".git/annex/objects", ".dvc/cache")  # where tools keep the files that a folder's links mean


def fold(text: str) -> str:
    """A name without what systems disagree on: composed or decomposed accents, and case."""
    return unicodedata.normalize("NFC", text).casefold()


def folders_of(name: str) -> set[str]:
    """The folded names of the folders that a file lies in, also without numbers at their ends: train2017 is train."""
    folded = {fold(part) for part in name.split("/")[:-1]}
    return folded | {part.rstrip("0123456789") for part in folded}


class Tree:
    """A dataset folder. Paths are POSIX text relative to it; raises DatasetError for what is no folder."""

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        if not root.exists():
            raise DatasetError(f"{root} does not exist; give the folder of a dataset.")
        if not root.is_dir():
            raise DatasetError(f"{root} is a file; give the folder that holds the dataset.")
        self.root = root
        self.outside: list[str] = []  # links that are not followed
        self.files: list[str] = []  # sorted by their parts
        self.folders: list[str] = []
        self._follow = follow_links
        self._aliases: list[str] = []  # links to folders that are listed at their own place, too
        self._home = root.resolve()
        self._stores = _stores(self._home)
        self._texts: dict[str, Path] = {}  # links that were copied as text, and what they mean
        waiting: list[tuple[str, tuple[Path, ...]]] = [("", (self._home,))]
        while waiting:
            waiting += self._list(*waiting.pop())
        self.files.sort(key=lambda name: name.split("/"))
        self.folders.sort(key=lambda name: name.split("/"))

    def path(self, name: str) -> Path:
        """The path of one of its files or folders."""
        return self._texts.get(name) or (self.root / name if name else self.root)

    @cached_property
    def images(self) -> list[str]:
        """Files that are named like images."""
        return [name for name in self.files if is_image(name)]

    @cached_property
    def known(self) -> frozenset[str]:
        """All files, to ask whether one is there."""
        return frozenset(self.files)

    @cached_property
    def folded(self) -> dict[str, list[str]]:
        """The files by their folded base names."""
        found: dict[str, list[str]] = {}
        for name in self.files:
            found.setdefault(fold(name.rpartition("/")[2]), []).append(name)
        return found

    @cached_property
    def image_stems(self) -> dict[str, list[str]]:
        """The images by their folded base names without suffix."""
        found: dict[str, list[str]] = {}
        for name in self.images:
            found.setdefault(fold(PurePosixPath(name).stem), []).append(name)
        return found

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The files with one of these suffixes, in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def inside(self, folder: str) -> list[str]:
        """The images below a folder, each once."""
        again = tuple(alias + "/" for alias in self._aliases if not (folder + "/").startswith(alias + "/"))
        within = folder + "/" if folder else ""
        return [name for name in self.images if name.startswith(within) and not name.startswith(again)]

    def counts(self) -> str:
        """What is there besides images, in a few words: "12 .json, 3 .csv"."""
        images = set(self.images)
        kinds = Counter(PurePosixPath(name).suffix.lower() or "others" for name in self.files if name not in images)
        return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))

    def refusal(self, name: str) -> str | None:
        """What to say of a file that is behind a link out of the folder; None for any other."""
        for link in self.outside:
            if name == link or name.startswith(link + "/"):
                return f'"{link}" is a link that leads outside {self.root}; `follow_links` reads such files'
        return None

    def _list(self, folder: str, above: tuple[Path, ...]) -> list[tuple[str, tuple[Path, ...]]]:
        """Note what a folder holds; gives the folders in it, each with those it lies in, to stop at loops."""
        deeper = []
        with os.scandir(self.path(folder)) as entries:
            for entry in entries:
                if is_junk(entry.name):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                real = above[-1] / entry.name
                if entry.is_symlink():
                    try:
                        real = Path(entry.path).resolve(strict=True)
                    except (OSError, RuntimeError):  # leads nowhere, or to itself
                        continue
                    if not self._allowed(real):
                        self.outside.append(name)
                        continue
                if entry.is_file():
                    self.files.append(name)
                    if self._stores and entry.stat().st_size < _LONGEST_LINK:
                        self._note_text(name)
                elif entry.is_dir() and real not in above:
                    self.folders.append(name)
                    if entry.is_symlink() and real.is_relative_to(self._home):
                        self._aliases.append(name)
                    deeper.append((name, (*above, real)))
        return deeper

    def _note_text(self, name: str) -> None:
        """See whether a small file is a link into a store that a system without links left as text."""
        path = self.root / name
        text = path.read_bytes().decode("utf-8", "replace").strip()
        if text.startswith("../") and text.isprintable():
            target = (path.parent / text).resolve()
            if target.is_file() and any(target.is_relative_to(store) for store in self._stores):
                self._texts[name] = target

    def _allowed(self, target: Path) -> bool:
        return self._follow or any(target.is_relative_to(base) for base in (self._home, *self._stores))


def is_image(name: str) -> bool:
    """Whether a file is named like an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def is_junk(name: str) -> bool:
    """Whether a file or folder of that base name is hidden, or left behind by a system or a tool."""
    lower = name.lower()
    return name.startswith(".") or lower in _JUNK_FOLDERS or lower in _JUNK_FILES or lower.endswith(".cache")


def _stores(home: Path) -> list[Path]:
    """The stores that a folder's own links may lead into: of the nearest folder above that has one."""
    for parent in home.parents:
        found = [parent / store for store in _STORES if (parent / store).is_dir()]
        if parent / "blobs" in found and not home.is_relative_to(parent / "snapshots"):
            found.remove(parent / "blobs")
        if found:
            return found
    return []


def list_images(folder: Path | str, follow_links: bool = False) -> list[Path]:
    """All image files under `folder`, by suffix, sorted; hidden files and what tools leave behind are passed over.

    Raises DatasetError for what is no folder, and for links out of it unless `follow_links`.
    """
    root = Path(folder)
    if not root.exists():
        raise DatasetError(f"{root} does not exist; give a folder of images.")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file; give the folder that holds the images.")
    tree = Tree(root, follow_links)
    if tree.outside:
        raise DatasetError(f"{root}: {tree.refusal(tree.outside[0])}.", field="follow_links")
    return [tree.path(name) for name in tree.inside("")]
