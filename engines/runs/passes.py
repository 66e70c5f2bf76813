"""How far the writing of a dataset is: its passes over the lines of the journal.

Knows: that every pass goes through as many lines as the first. Knows nothing about what is done with them.
"""

from collections.abc import Iterator
from typing import TypeVar

from engines.common.events import Event, EventKind, Report

STAGE = "writing"  # in events
_EVERY = 500  # lines between events: a small dataset is written before it could be shown

Item = TypeVar("Item")


class Passes:
    """Counts lines over so many passes."""

    def __init__(self, report: Report, passes: int, lines: int | None = None) -> None:
        """`lines`: of each pass, where that is known before the first is over."""
        self._report, self._passes, self._lines = report, passes, lines
        self._begun = self._seen = 0

    def through(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items of a pass, as they are."""
        number, self._begun = self._begun, self._begun + 1
        seen = 0
        for seen, item in enumerate(items, start=1):
            if not seen % _EVERY:
                self._tell(number, seen)
            yield item
        if self._lines is None:
            self._lines = seen
        if seen >= _EVERY:
            self._tell(number, seen)

    def _tell(self, number: int, seen: int) -> None:
        total = None if self._lines is None else self._lines * self._passes
        done = number * (self._lines or 0) + seen
        self._report(Event(EventKind.PROGRESS, STAGE, done=done if total is None else min(done, total), total=total))
