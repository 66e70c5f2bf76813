"""How far an export is.

Knows: that it is made of steps, counted from the start. Knows nothing about what a step does, or how it is shown.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A step began."""

    done: int  # steps finished
    total: int  # steps in all
    text: str  # what is being done now, such as "exporting unet"


Report = Callable[[Progress], None]


class Steps:
    """Counts steps off: call it with a line of text as each begins."""

    def __init__(self, total: int, report: Report) -> None:
        self._total, self._report, self._done = total, report, -1

    def __call__(self, text: str) -> None:
        self._done += 1
        self._report(Progress(self._done, self._total, text))
