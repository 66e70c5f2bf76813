"""Which images of one set are known from another: the same, nearly the same, or a part of it.

Knows: the ways in which an image is known, and their words. Knows nothing about what the sets are for.
N images looked at, M images known.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engines.common.events import Event, EventKind, Report, silent
from engines.datasets.crops import cut_from
from engines.datasets.duplicates import NEAR, Fingerprints, fingerprint, joined, near_pairs
from engines.datasets.learned import Learned, short_hash
from engines.datasets.records import Record

COPIES = "looking for copies"  # in events
_BLOCK = 256  # images that are held at once against all that was learned from


def known_from(
    records: Sequence[Record],
    prints: Fingerprints,
    others: Sequence[Record],
    known: Fingerprints,
    *,
    crops: bool,
    report: Report = silent,
) -> dict[int, str]:
    """The images of `records` that `others` hold, nearly hold, or, with `crops`, hold a part of or are a part of:
    index -> in words. `prints` and `known` are theirs. Raises DatasetError for an image that cannot be read.

    Looking for parts takes up to a tenth of a second an image, of both; `report` is told of it.
    """
    owner = dict(zip(known.hashes, others, strict=True))
    found = {row: f"is {owner[own].name}" for row, own in enumerate(prints.hashes) if own in owner}
    for pair in near_pairs(prints.thumbnails, known.thumbnails, NEAR):
        found.setdefault(pair.first, f"nearly repeats {others[pair.second].name} ({pair.correlation:.3f})")
    if crops:
        rest = _rest(records, found)
        total = len(rest) + len(others)
        for number, row in enumerate(rest):
            report(Event(EventKind.PROGRESS, COPIES, done=number, total=total))
            for place in cut_from(records[row].pixels(), known.thumbnails, aspects_of(others)):
                found.setdefault(row, f"has the part that is {others[place].name}")
        left = _rest(records, found)
        for number, other in enumerate(others if left else (), start=len(rest)):
            report(Event(EventKind.PROGRESS, COPIES, done=number, total=total))
            cuts = cut_from(other.pixels(), prints.thumbnails[left], aspects_of([records[row] for row in left]))
            for place in cuts:
                found.setdefault(left[place], f"is a part of {other.name}")
        report(Event(EventKind.PROGRESS, COPIES, done=total, total=total))
    return found


def known_to(
    records: Sequence[Record], prints: Fingerprints, learned: Learned, *, crops: bool, report: Report = silent
) -> dict[int, str]:
    """The images of `records` that a model learned from, the same way: index -> in words. A part of an image that it
    learned from is not seen: for that its thumbnail is too small.
    """
    found = {row: "was learned from" for row, own in enumerate(prints.hashes) if short_hash(own) in learned.hashes}
    for pair in near_pairs(prints.thumbnails, learned.thumbnails, NEAR):
        found.setdefault(pair.first, f"nearly repeats an image that was learned from ({pair.correlation:.3f})")
    rest = _rest(records, found) if crops else []
    for number, row in enumerate(rest, start=1):
        if cut_from(records[row].pixels(), learned.thumbnails, learned.aspects):
            found[row] = "has a part that was learned from"
        report(Event(EventKind.PROGRESS, COPIES, done=number, total=len(rest)))
    return found


class Seen:
    """Which images a model learned from, or that nearly repeat such: each is looked at while it is at hand anyway, and
    a few numbers of it are kept until there are enough to be compared together.
    """

    def __init__(self, learned: Learned | None) -> None:
        """`learned`: None where the model does not say; then no image is known."""
        self._learned, self._names = learned, set[str]()
        self._waiting: list[tuple[str, Fingerprints]] = []

    def look(self, record: Record, pixels: npt.NDArray[np.uint8]) -> None:
        """Take an image, uint8 [H, W, 3]."""
        if self._learned is None:
            return
        self._waiting.append((record.name, fingerprint(pixels)))
        if len(self._waiting) == _BLOCK:
            self._compare(self._learned)

    def among(self, records: Sequence[Record]) -> tuple[str, ...]:
        """The names of those that are known, in the order of `records`."""
        if self._learned is not None:
            self._compare(self._learned)
        return tuple(record.name for record in records if record.name in self._names)

    def _compare(self, learned: Learned) -> None:
        prints = joined([one for _, one in self._waiting])
        self._names |= {self._waiting[row][0] for row in known_to((), prints, learned, crops=False)}
        self._waiting.clear()


def aspects_of(records: Sequence[Record]) -> npt.NDArray[np.float64]:
    """Width / height of each."""
    return np.array([record.width / record.height for record in records], dtype=np.float64)


def _rest(records: Sequence[Record], found: dict[int, str]) -> list[int]:
    return [row for row in range(len(records)) if row not in found]
