"""File names as other machines wrote them, and the files here that they mean.

Knows: that names come with backslashes, drives, `..`, absolute paths, web addresses, decomposed accents and suffixes of
another case; that the end of such a path still says which file is meant; and that a name which fits several files is a
tie, to be settled by evidence or refused. Knows nothing about formats. Nothing outside the dataset's folder is ever
looked at: a name's end is looked for in the `Tree`.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from engines.common.quote import quote, shorten
from engines.datasets.images import image_size
from engines.datasets.records import Findings, Size
from engines.datasets.splits import families
from engines.datasets.tree import Tree, fold, folders_of, is_image
from engines.errors import DatasetError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]*")
_LOCAL_FILES = re.compile(r"^.*/local-files/\?d=")  # how Label Studio serves a folder
_DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])")
_SAME_SIZE = 1 << 20  # bytes that are compared at once


def parts_of(name: str) -> tuple[list[str], bool]:
    """The folders and the file of a name, and whether it was written for another place than its own folder.

    >>> parts_of("D:\\\\data\\\\images\\\\a.jpg")
    (['data', 'images', 'a.jpg'], True)
    >>> parts_of("/data/local-files/?d=images%5Ca.jpg")
    (['images', 'a.jpg'], True)
    """
    text = name.strip()
    if served := _LOCAL_FILES.match(text):
        return parts_of(unquote(text[served.end() :]))[0], True
    bare = _DRIVE.sub("", _ADDRESS.sub("", text, count=1), count=1).replace("\\", "/")
    if bare != text and "://" in text:
        bare = unquote(bare.partition("?")[0])
    found: list[str] = []
    foreign = bare != text or bare.startswith("/")
    for part in bare.split("/"):
        if part == "..":
            foreign = foreign or not found
            found = found[:-1]
        elif part not in ("", "."):
            found.append(part)
    return found, foreign


@dataclass
class Finder:
    """Finds the files of a dataset by the names that its annotations have for them."""

    tree: Tree
    findings: Findings
    home: str = ""  # the folder that names are relative to; others are searched after it
    near: frozenset[str] = frozenset()  # folded names of folders to prefer, such as the split's
    beside: str = ""  # the file that annotates one image: where its folders name a split, the image is of no other

    def __call__(self, name: str, where: str, stated: Size | None = None) -> str:
        """The image that `name` means, as `Tree` names it; DatasetError prefixed with `where` for none, or a tie.

        Looked for: the very name; the name with other accents or case; the longest end of it that is anywhere in the
        dataset; the same base name with another image suffix. All but the first are remarked.
        """
        if "\0" in name or len(name) > 4096:
            raise DatasetError(f"{where}: {quote(name)} is not a file name.")
        exact = f"{self.home}/{name}" if self.home else name
        if exact in self.tree.known:
            return exact
        parts, foreign = parts_of(name)
        every = self._candidates(parts) or self._candidates(parts_of(unquote(name))[0])
        said = families(parts[-3:-1] if foreign else parts[:-1])  # a foreign path begins with another machine's folders
        said = tuple(split for split in said if not foreign or split in _splits(self.tree))
        if not said and _names_repeat(self.tree):
            said = families(self.near)
        if not (candidates := self._of_its_split(every, said)):
            raise DatasetError(f"{where}: {self._missing(name, parts, every)}")
        found = self.settle(candidates, f'{where}: "{shorten(name)}"', stated)
        self._remark(name, parts, foreign, found, where)
        return found

    def named(self, name: str) -> list[str]:
        """The images that a name may mean, as `Tree` names them."""
        exact = f"{self.home}/{name}" if self.home else name
        return [exact] if exact in self.tree.known else self._of_its_split(self._candidates(parts_of(name)[0]))

    def with_stem(self, stem: str) -> list[str]:
        """The images with a base name, whatever their suffix: those of the home folder, else all."""
        found = self.tree.image_stems.get(fold(stem), [])
        return self._preferred(self._of_its_split(found))

    def of_file(self, file: str, name: str, where: str, stated: Size | None, own_names: Collection[str]) -> str:
        """The image of a file that annotates one: what it says, unless that is another's and one has its own name.

        name: what the file says, "" where it says none. own_names: folded names, without suffix, of all such files.
        Raises DatasetError where both are there, and nothing says which is meant.
        """
        stem = PurePosixPath(file).stem
        named = self.named(name) if name else []
        own = self.with_stem(stem)
        if not named or set(named) & set(own):
            if named and len(set(named) & set(own)) == 1:
                own = sorted(set(named) & set(own))
            if not own:
                return self(name or stem, where, stated)
            if name and not named:
                self.findings.count(
                    "files name an image that is not there; the one of the file's own name is taken", where
                )
            return self.settle(own, f'{where}: "{shorten(name or stem)}"', stated)
        if not own:
            return self(name, where, stated)
        own_image, named_image = (self.settle(one, f"{where}:", stated) for one in (own, named))
        if fold(PurePosixPath(named_image).stem) not in own_names:
            raise DatasetError(
                f'{where}: "{shorten(name)}" is an image without a file of its own, and {shorten(own_image)} has '
                "the name of this one; correct the field or rename the file."
            )
        self.findings.count(
            "files name the image of another file; the one of the file's own name is taken",
            f"{where}: {shorten(name)}, read as {shorten(own_image)}",
        )
        return own_image

    def settle(self, candidates: Sequence[str], what: str, stated: Size | None = None) -> str:
        """The one of several files that is meant: by folder, by stated size, or because all are the same file.

        Raises DatasetError, which begins with `what`, where that leaves a tie.
        """
        left = self._preferred(candidates)
        if len(left) > 1 and stated is not None:
            left = [name for name in left if _has_size(self.tree.path(name), stated)] or left
        if len(left) > 1 and not _all_equal([self.tree.path(name) for name in left]):
            shown = " and ".join(shorten(name) for name in left[:2])
            more = f" ({len(left)} files in all)" if len(left) > 2 else ""
            raise DatasetError(f"{what} may be {shown}{more}: name the folder in it, or take one of them away.")
        return left[0]

    def _preferred(self, candidates: Sequence[str]) -> list[str]:
        """Those that lie in the most of the folders to prefer; among these, those at home."""
        if len(candidates) < 2:
            return list(candidates)

        def rank(name: str) -> tuple[int, bool]:
            return len(folders_of(name) & self.near), bool(self.home) and name.startswith(self.home + "/")

        best = max(map(rank, candidates))
        return [name for name in candidates if rank(name) == best]

    def _of_its_split(self, candidates: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
        """Those that lie in no folder of another split than a name's own `folders`, or the annotating file's, name."""
        mine = families([*folders, *self.beside.split("/")[:-1]])
        others = [families(name.split("/")[:-1]) if mine else () for name in candidates]
        return [name for name, its in zip(candidates, others, strict=True) if not its or set(its) & set(mine)]

    def _candidates(self, parts: Sequence[str]) -> list[str]:
        if not parts:
            return []
        same_base = [name for name in self.tree.folded.get(fold(parts[-1]), []) if is_image(name)]
        for start in range(len(parts)):
            end = "/" + fold("/".join(parts[start:]))
            found = [name for name in same_base if ("/" + fold(name)).endswith(end)]
            if found:
                return found
        stems = self.tree.image_stems
        return stems.get(fold(parts[-1])) or stems.get(fold(PurePosixPath(parts[-1]).stem), [])

    def _missing(self, name: str, parts: Sequence[str], others: Sequence[str]) -> str:
        """What to say of a name that is not there; `others`: files of that name in folders of other splits."""
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        folders = dict.fromkeys((self.home, ""))
        for end in ends:
            for folder in folders:
                if refusal := self.tree.refusal(f"{folder}/{end}" if folder else end):
                    return f'"{shorten(name)}": {refusal}.'
        links = f" ({self.tree.refusal(self.tree.outside[0])})" if self.tree.outside else ""
        links += f" ({shorten(others[0])} is of another split)" if others else ""
        return f'"{shorten(name)}" is missing from {self.tree.path(self.home)}{links}.'

    def _remark(self, name: str, parts: Sequence[str], foreign: bool, found: str, where: str) -> None:
        base = found.rpartition("/")[2]
        if fold(PurePosixPath(base).stem) == fold(parts[-1]):
            return  # named without a suffix, as Open Images does
        if fold(base) != fold(parts[-1]):
            what = "file names are found with another suffix"
        elif foreign:
            what = "file names are paths of another machine, of which the end was looked for here"
        elif self.home and not found.startswith(self.home + "/"):
            what = f"file names are found outside {self.home}, by their end"
        elif base != parts[-1]:
            what = "file names are found with other accents or case"
        else:
            return
        self.findings.count(what, f'{where} "{shorten(name)}" is {shorten(found)}')


@lru_cache(maxsize=1)
def _splits(tree: Tree) -> tuple[str, ...]:
    """The splits that a dataset has folders of."""
    return families(folder.rpartition("/")[2] for folder in tree.folders)


@lru_cache(maxsize=1)
def _names_repeat(tree: Tree) -> bool:
    """Whether images of different splits have one name, as the frames of videos do: a name alone then says nothing."""
    found = (
        {families(name.split("/")[:-1]) for name in names} for names in tree.image_stems.values() if len(names) > 1
    )
    return any(len(splits - {()}) > 1 for splits in found)


def find_in(tree: Tree, name: str, accept: Callable[[str], bool]) -> tuple[str | None, bool]:
    """The file or folder that a settings file names, by the longest end of the name; whether the name was cut for it.

    `accept` says of a path relative to the tree whether it will do.
    """
    parts, foreign = parts_of(name)
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        if accept(end):
            return end, foreign or start > 0
    return ("", foreign) if not parts and accept("") else (None, foreign)


def _has_size(path: Path, stated: Size) -> bool:
    try:
        return image_size(path) in (stated, stated[::-1])
    except DatasetError:
        return False


def _all_equal(paths: Sequence[Path]) -> bool:
    """Whether all files hold the same bytes."""
    first = paths[0]
    if len({path.stat().st_size for path in paths}) > 1:
        return False
    return all(_same_bytes(first, other) for other in paths[1:])


def _same_bytes(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while True:
            block = first.read(_SAME_SIZE)
            if block != second.read(_SAME_SIZE):
                return False
            if not block:
                return True
