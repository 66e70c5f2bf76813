"""A review that is going on: what is looked at, what was decided, and what is asked of both.

Knows: how index, decisions and thresholds come together, and how a question of the page becomes rows and items. Knows
nothing about HTTP (`app`) or how decisions lie on the disk (`log`). Several threads ask at once; decisions are taken
one at a time.

A row is an image's place in the index, N of them.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import UsageError
from engines.labels.boxes import Instances
from engines.labels.rules import Rules, without_doubles
from engines.review import filters
from engines.review.filters import KEEP, REJECT, UNDECIDED, Filter, Overlay
from engines.review.index import Index, View
from engines.review.log import ReviewLog
from engines.review.reasons import REASONS, reasons
from engines.review.sources import Item, Source, with_thresholds
from engines.runs.decision import Decision, Do
from engines.runs.decisions import edited

_QUERIES = 16  # results that are kept for the page to scroll in
_MOST_CHANGED = 200  # items that an answer to a decision shows again

Rows = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Look:
    """One image as it stands: what the page draws."""

    row: int
    item: Item
    instances: Instances  # after all edits, at any threshold
    sure: npt.NDArray[np.bool_]  # which a person vouches for
    verdict: int
    answered: dict[str, Do]  # findings of an audit

    def to_json(self) -> dict[str, Any]:
        """What the page is sent."""
        item = self.item
        rows = self.instances.to_rows()
        flags = [2 if crowd else int(sure) for crowd, sure in zip(self.instances.crowd, self.sure, strict=True)]
        boxes = [
            [round(one, 3) for one in row[:5]] + [int(row[5]), flag] for row, flag in zip(rows, flags, strict=True)
        ]
        return {
            "row": self.row, "name": item.name, "width": item.width, "height": item.height, "boxes": boxes,
            "verdict": self.verdict, "edited": bool(self.sure.any()) or len(boxes) != len(item.instances),
            "prompt": item.prompt, "reference": item.reference, "strength": item.strength, "reason": item.reason,
            "shown": item.file is not None,
        }  # fmt: skip


class Session:
    """A review of one source."""

    def __init__(self, source: Source, index: Index, log: ReviewLog, rules: Rules) -> None:
        self.source, self.index, self.log, self.rules = source, index, log, rules
        self._lock = threading.RLock()
        self._queries: OrderedDict[int, Rows] = OrderedDict()
        self._next_query = 1
        self._overlay: tuple[View, Overlay] | None = None

    # What there is

    def overlay(self) -> tuple[View, Overlay]:
        """The index so far, and what was decided about its images."""
        with self._lock:
            view = self.index.view()
            if self._overlay is None or self._overlay[0] is not view:
                fresh = Overlay(np.zeros(len(view), dtype=np.uint8), {})
                for name in self.log.decisions.images():
                    self._note(view, fresh, name)
                self._overlay = view, fresh
            return self._overlay

    def row_of(self, name: str) -> int | None:
        """The row of the image of that name, if it is known by now."""
        return _row(self.index.view(), self.source.number_of(name))

    def look(self, row: int) -> Look:
        """One image. Raises UsageError for a row that is none."""
        view = self.index.view()
        if not 0 <= row < len(view):
            raise UsageError(f"image {row} is none of the {len(view)}.")
        item = self.source.item(int(view.numbers[row]), int(view.places[row]))
        about = self.log.decisions.about(item.name)
        instances, sure = edited(item.instances, about.edits, self.source.class_names)
        verdict = UNDECIDED if about.kept is None else KEEP if about.kept else REJECT
        return Look(row, item, instances, sure, verdict, about.findings)

    def counts(self, thresholds: Sequence[float]) -> dict[str, Any]:
        """Labels and images that the dataset has at these thresholds."""
        view, overlay = self.overlay()
        with self._lock:
            inside = self._reasons(view, overlay, thresholds) == 0
            return {
                "boxes": filters.count(view, overlay, self.checked(thresholds), inside),
                "images": int(inside.sum()),
            }

    def histogram(self) -> list[list[int]]:
        """Boxes by class and score."""
        return filters.histogram(self.index.view(), len(self.source.class_names))

    def reasons(self, thresholds: Sequence[float]) -> npt.NDArray[np.uint8]:
        """Why each image is not in the dataset: places in REASONS, 0 for one that is in it."""
        view, overlay = self.overlay()
        with self._lock:
            return self._reasons(view, overlay, thresholds)

    # What is asked

    def query(self, asked: Filter, thresholds: Sequence[float]) -> tuple[int, int]:
        """Find images; gives the number under which `window` shows them, and how many there are."""
        view, overlay = self.overlay()
        thresholds = self.checked(thresholds)
        if asked.label is not None:
            self._check_label(asked.label)
        with self._lock:
            if asked.reason is not None:
                if asked.reason not in REASONS:
                    raise UsageError(f'"{asked.reason:.40}" is no reason.')
                shown = self.reasons(thresholds) == REASONS.index(asked.reason)
            else:
                shown = filters.select(view, overlay, thresholds, asked)
        rows = np.flatnonzero(shown)
        if asked.asks_of_words:
            rows = np.array([row for row in rows.tolist() if self._says(view, row, asked)], dtype=np.int64)
        return self.keep(filters.arrange(view, rows, asked.order))

    def crops(self, label: int, low: float, high: float, rising: bool) -> tuple[int, int]:
        """Find the boxes of a class by score; as `query`."""
        view, overlay = self.overlay()
        self._check_label(label)
        with self._lock:
            return self.keep(filters.boxes_of_class(view, overlay, label, low, high, rising))

    def keep(self, rows: Rows) -> tuple[int, int]:
        """Keep a result for the page to scroll in."""
        with self._lock:
            number, self._next_query = self._next_query, self._next_query + 1
            self._queries[number] = rows
            while len(self._queries) > _QUERIES:
                self._queries.popitem(last=False)
            return number, len(rows)

    def result(self, query: int) -> Rows:
        """A result that was kept. Raises UsageError for one that is gone."""
        with self._lock:
            if query not in self._queries:
                raise UsageError("this result is no longer kept: ask again.", field="query")
            self._queries.move_to_end(query)
            return self._queries[query]

    # What is decided

    def decide(self, decisions: Sequence[Decision]) -> list[int]:
        """Take decisions: they are on the disk when this returns. Gives the rows that changed.

        Raises UsageError for images, classes or boxes that are not there.
        """
        decisions = [self._fitting(one) for one in decisions]
        with self._lock:
            try:
                new = self.log.add(decisions)
            except ValueError as cause:
                raise UsageError(f"{cause}.") from cause
            touched = dict.fromkeys(name for one in new for name in self._touched(one))
            if self._overlay is not None:
                for name in touched:
                    self._note(*self._overlay, name)
            rows = (self.row_of(name) for name in touched)
            return [row for row in rows if row is not None]

    def decide_all(self, identity: str, do: Do, query: int) -> list[int]:
        """Keep or reject all images of a result, in one line."""
        view = self.index.view()
        rows = self.result(query).tolist()
        names = tuple(self.source.item(int(view.numbers[row]), int(view.places[row])).name for row in rows)
        return self.decide([Decision(identity, do, names)]) if names else []

    def undo(self, identity: str) -> list[int]:
        """Take back the last decision that stands; none, no rows."""
        with self._lock:
            known = self.log.decisions
            if identity in known.lines:
                return []
            standing = (one.id for one in reversed(known.lines.values()) if one.do is not Do.UNDO)
            last = next((key for key in standing if key not in known.undone), None)
            return [] if last is None else self.decide([Decision(identity, Do.UNDO, of=last)])

    def since(self, version: int) -> list[int]:
        """The rows of images that lines after the first `version` are about."""
        lines = list(self.log.decisions.lines.values())[version:]
        rows = (self.row_of(name) for name in dict.fromkeys(name for one in lines for name in self._touched(one)))
        return [row for row in rows if row is not None][:_MOST_CHANGED]

    @property
    def version(self) -> int:
        """How many lines there are."""
        return len(self.log.decisions.lines)

    def checked(self, thresholds: Sequence[float]) -> list[float]:
        """Thresholds, one for each class. Raises UsageError."""
        classes = len(self.source.class_names)
        if len(thresholds) != classes or not all(0.0 <= one <= 1.0 for one in thresholds):
            raise UsageError(f"{classes} thresholds from 0 to 1 were expected.", field="thresholds")
        return [float(one) for one in thresholds]

    def _reasons(self, view: View, overlay: Overlay, thresholds: Sequence[float]) -> npt.NDArray[np.uint8]:
        return reasons(view, overlay, self.source, with_thresholds(self.rules, self.checked(thresholds)))

    def _note(self, view: View, overlay: Overlay, name: str) -> None:
        """Bring the overlay up to date for an image."""
        row = _row(view, self.source.number_of(name))
        if row is None:
            return
        about = self.log.decisions.about(name)
        overlay.verdicts[row] = UNDECIDED if about.kept is None else KEEP if about.kept else REJECT
        changed = dict(overlay.edited)
        changed.pop(row, None)
        if about.edits:
            found = self.look(row)
            labels = found.sure | without_doubles(found.instances, self.rules.max_overlap)
            changed[row] = found.instances if self.rules.max_overlap >= 1.0 else found.instances.take(labels)
        if changed.keys() != overlay.edited.keys() or about.edits:
            overlay.edited = changed

    def _touched(self, decision: Decision) -> Sequence[str]:
        """The images that a line changes."""
        return self.log.decisions.lines[str(decision.of)].images if decision.do is Do.UNDO else decision.images

    def _fitting(self, one: Decision) -> Decision:
        """The decision with its box inside the image. Raises UsageError where it fits nothing."""
        try:
            one.check()
        except ValueError as cause:
            raise UsageError(f"no decision: {cause}.", field="decisions") from cause
        if one.label is not None and one.label not in self.source.class_names:
            raise UsageError(f'"{one.label:.60}" is no class here.', field="label")
        rows = [(name, self.row_of(name)) for name in one.images]
        if unknown := [name for name, row in rows if row is None]:
            raise UsageError(f'"{unknown[0]:.60}" is no image here.', field="images")
        if one.box is None:
            return one
        item = self.look(int(rows[0][1] or 0)).item
        x0, y0, x1, y1 = one.box
        box = max(x0, 0.0), max(y0, 0.0), min(x1, float(item.width)), min(y1, float(item.height))
        if box[2] - box[0] < 1.0 or box[3] - box[1] < 1.0:
            raise UsageError(f"a box of less than a pixel in {item.name:.60}.", field="box")
        return replace(one, box=box)

    def _check_label(self, label: int) -> None:
        if not 0 <= label < len(self.source.class_names):
            raise UsageError(f"class {label} is none of the {len(self.source.class_names)}.", field="label")

    def _says(self, view: View, row: int, asked: Filter) -> bool:
        item = self.source.item(int(view.numbers[row]), int(view.places[row]))
        words = ((asked.prompt, item.prompt), (asked.reference, item.reference))
        return all(not wanted or wanted.casefold() in (text or "").casefold() for wanted, text in words)


def _row(view: View, number: int | None) -> int | None:
    if number is None:
        return None
    row = int(np.searchsorted(view.numbers, number))
    return row if row < len(view) and view.numbers[row] == number else None
