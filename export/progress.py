"""How far an export is.

Knows: that it is made of steps, counted from the start. Knows nothing about what a step does, or how it is shown.
"""

from engines.common.events import Event, EventKind, Report


class Steps:
    """Counts steps off: call it with a line of text as each begins."""

    def __init__(self, total: int, report: Report) -> None:
        self._total, self._report, self._done = total, report, -1

    def __call__(self, text: str) -> None:
        self._done += 1
        self._report(Event(EventKind.STEP, "export", text, self._done, self._total))
