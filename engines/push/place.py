"""Where datasets are pushed to: what all such places have in common, and which of their files a push changes.

Knows: that only what is no other dataset's is touched, and in which order files change. Knows nothing about any one
kind of place: `folder`, `bucket`, `hub`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from engines.common.quote import list_mistakes, shorten
from engines.datasets.imagefolder_writer import CARD
from engines.errors import DengineError, RunError
from engines.painting.run_settings import RunSettings, differences
from engines.push.dataset import FILES, FOLDERS, MANIFEST
from engines.push.items import Item
from engines.runs.dataset_files import ANNOTATIONS
from engines.runs.run_folder import RUN

FIRST = (RUN,)  # what says whose a half-pushed dataset is
LAST = (CARD, ANNOTATIONS, MANIFEST)  # in this order; the last one says that all is there
WHOLE = (ANNOTATIONS, MANIFEST)  # what is not there while other files change
LEFTOVERS = ".push.tmp"  # folder of a place that is a folder, for files while they are written
_NOT_OURS = (".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt")  # that may lie beside a dataset
Told = Callable[[int], None]  # of how many bytes more are there


@dataclass(frozen=True, slots=True)
class There:
    """A file that a place has."""

    name: str
    size: int
    tag: str | None = None  # the place's own word for its content


@dataclass(frozen=True)
class Changes:
    """What makes a place hold a dataset."""

    send: Sequence[Item]  # in order
    remove: Sequence[str]  # what an earlier push left, and is in the dataset no more
    clear: Sequence[str]  # those of WHOLE that are there: they go first, and come again


class Place(Protocol):
    """A place. What it refuses is a RunError about `to`."""

    where: str

    @property
    def most_in_folder(self) -> int | None:
        """How many files a folder may have; None: any number."""
        ...

    def listed(self) -> Iterator[There]:
        """All files; none where the place is yet to be made."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None where it is not there."""
        ...

    def same(self, item: Item, there: There) -> bool:
        """Whether a file of the same name and size is the same."""
        ...

    def change(self, changes: Changes, told: Told) -> None:
        """Make it so; interrupted, what was sent is there for the next push."""
        ...


def changes_for(place: Place, items: Mapping[str, Item], run: RunSettings) -> Changes:
    """What is to be done, with nothing done yet. Raises RunError where another dataset, or something else, lies."""
    missing, stale, clear = dict(items), list[str](), list[str]()
    whose = place.read(RUN)
    for one in place.listed():
        root, inside, _ = one.name.partition("/")
        if one.name in _NOT_OURS or (whose is None and one.name == CARD):
            continue
        if root == LEFTOVERS:
            stale.append(one.name)
            continue
        if whose is None or root not in (FOLDERS if inside else FILES):
            raise _refused(place, f"it holds {shorten(one.name)}, which is of no such dataset: give an empty place")
        clear += [one.name] if one.name in WHOLE else []
        item = items.get(one.name)
        if item is None:
            stale.append(one.name)
        elif item.size == one.size and place.same(item, one):
            del missing[one.name]
    if whose is not None:
        _check_run(place, whose, run)
    if not missing and not stale:
        return Changes((), (), ())
    missing |= {name: items[name] for name in clear}
    order = {name: number for number, name in enumerate((*FIRST, "", *LAST))}
    send = sorted(missing.values(), key=lambda item: (order.get(item.name, order[""]), item.name))
    return Changes(send, stale, clear)


def _check_run(place: Place, data: bytes, run: RunSettings) -> None:
    """Raise RunError unless the dataset that lies there is an earlier push of this run."""
    where = f"{place.where}, {RUN}"
    try:
        value = json.loads(data)
        stored = RunSettings.from_json(value, where)
    except (ValueError, AttributeError, RecursionError, DengineError):
        raise _refused(place, f"its {RUN} is not one of dengine: give an empty place") from None
    if found := differences(stored, run):
        text = list_mistakes([text for _, text in found])
        raise _refused(place, f"a dataset of another run is there ({text}): give another place")


def _refused(place: Place, text: str) -> RunError:
    return RunError(f"{place.where}: {text}.", field="to")


def manifest_hashes(data: bytes | None) -> dict[str, str]:
    """What a place's `push.json` says of its files: names and SHA-256; nothing where it is not to be read."""
    try:
        files = json.loads(data or b"{}")["files"]
        return {str(name): str(one["sha256"]) for name, one in files.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


@contextmanager
def about_to() -> Iterator[None]:
    """Errors that come out of this are about `to`."""
    try:
        yield
    except DengineError as error:
        error.field = "to"
        raise
