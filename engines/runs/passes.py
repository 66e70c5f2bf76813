"""How far the writing of a dataset is: its passes over the lines of the journal.

Knows nothing about what is done with them.
"""

from collections.abc import Iterator
from typing import TypeVar

from engines.common.events import Event, EventKind, Report

STAGE = "writing"  # in events
_EVERY = 500  # lines between events: a small dataset is written before it could be shown

Item = TypeVar("Item")


class Passes:
    """Counts lines over so many passes."""

    def __init__(self, report: Report, passes: int, lines: int) -> None:
        """`lines`: of each pass."""
        self._report, self._total, self._lines = report, passes * lines, lines
        self._begun = 0

    def through(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items of a pass, as they are."""
        before, self._begun = self._begun * self._lines, self._begun + 1
        seen = 0
        for seen, item in enumerate(items, start=1):
            if not seen % _EVERY:
                self._tell(before + seen)
            yield item
        if seen >= _EVERY:
            self._tell(before + seen)

    def _tell(self, done: int) -> None:
        self._report(Event(EventKind.PROGRESS, STAGE, done=min(done, self._total), total=self._total))
