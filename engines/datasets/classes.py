"""Class names: which a dataset has, and that prompts can tell them apart.

Knows: what makes two names the same to a prompt, and that categories which only group others are no classes. Knows
nothing about files.
"""

from collections.abc import Collection, Mapping, Sequence

from engines.common.names import class_words
from engines.common.quote import shorten
from engines.datasets.fields import listed
from engines.datasets.records import Findings
from engines.errors import DatasetError, UsageError

_BACKGROUND = {"background", "_background_", "__background__", "__ignore__", "_ignore_"}  # written by tools as class 0


class Classes:
    """Class names and their indices: those that were asked for, else those that the dataset has.

    Raises UsageError for names asked for that are empty or alike, DatasetError for such names of a dataset.
    """

    def __init__(
        self, found: Sequence[str], wanted: Sequence[str] | None, findings: Findings | None = None, where: str = ""
    ) -> None:
        clean = [_clean(name) for name in found]
        self._spelt = dict(zip(found, clean, strict=True))
        if wanted is None and clean != list(found) and findings is not None:
            findings.remark(
                "Class names have line breaks, double spaces or unprintable signs, which are read as one space."
            )
        self.names = tuple(wanted) if wanted is not None else tuple(clean)
        self._index = {name: index for index, name in enumerate(self.names)}
        kind, place = (DatasetError, f"{where}: " if where else "") if wanted is None else (UsageError, "")
        if len(self._index) < len(self.names) or "" in self._index:
            raise kind(
                f"{place}Class names must differ and not be empty; got {listed(self.names)}.", field="class_names"
            )
        words: dict[str, str] = {}
        for name in self.names:
            if (other := words.setdefault(class_words(name), name)) != name:
                raise kind(
                    f'{place}The classes "{shorten(other)}" and "{shorten(name)}" are one to a prompt, which knows '
                    "neither case nor underscores: rename one of them, or join them.",
                    field="class_names",
                )

    def label(self, name: str, where: str) -> int:
        """Index of a class; raises DatasetError, prefixed with `where`, for one that is not known."""
        found = self._index.get(self._spelt.get(name, name))
        if found is None:
            raise DatasetError(f'{where}: class "{shorten(name)}" is not one of {listed(self.names)}.')
        return found


def _clean(name: str) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())


def without_groups(
    names: Mapping[str, str], groups: Collection[str], used: Collection[str], findings: Findings
) -> dict[str, str]:
    """Categories (id -> name) without those that are no classes: unused, and a group of others, or a background.

    groups: names that other categories state as their supercategory. Of two categories of one name, an unused one goes.
    """
    kept: dict[str, str] = {}
    for key, name in names.items():
        twins = [
            other for other, its in names.items() if other != key and its == name and (other in used or other < key)
        ]
        if key not in used and (name in groups or class_words(name) in _BACKGROUND or name in _BACKGROUND or twins):
            findings.count("categories without a box only group others, and are no classes", f'"{shorten(name)}"')
        else:
            kept[key] = name
    return kept
