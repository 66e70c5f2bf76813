"""How far a verb is, drawn: bars with the time left on a terminal, the same as plain lines anywhere else.

Knows: how both look, and how often a line is due. Knows nothing about what is being counted.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from dengine_cli.wrapped import wrapped
from engines.common.events import duration

PLAIN_SECONDS = 10.0  # between plain lines of one stage
_BARS = ((120, 24), (100, 10))  # columns of a terminal from which on a bar has so many; narrower ones have none


@dataclass(frozen=True)
class Position:
    """How far a stage is."""

    stage: str
    done: float
    total: float | None
    text: str  # what there is to say of it
    seconds_left: float | None  # as it was said, else by the speed so far
    said: bool  # whether it was said
    reached: float | None  # how long the bar is, where that is known more finely than `done`
    now: float  # by the monotonic clock
    again: bool  # the stage begins anew

    @property
    def count(self) -> str:
        """Of how many how many are done."""
        return f"{self.done:g}" if self.total is None else f"{self.done:g}/{self.total:g}"

    @property
    def ended(self) -> bool:
        """Whether all is done."""
        return self.total is not None and self.done >= self.total

    @property
    def left(self) -> float | None:
        """Seconds left, where there is something left."""
        return self.seconds_left if self.seconds_left and self.total and not self.ended else None


def can_draw(stream: TextIO) -> bool:
    """Whether bars can be drawn there: on a terminal that can go back to a line."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


class View(Protocol):
    """What shows how far stages are."""

    def begin(self) -> None:
        """Something is being prepared."""

    def end(self, whole: bool) -> None:
        """Nothing more comes; `whole`: all went well."""

    def line(self, text: str) -> None:
        """A line that stays."""

    def show(self, at: Position) -> None:
        """How far a stage is."""

    def step(self, at: Position) -> None:
        """The next of a few long steps begins; `done` are over."""


class Lines:
    """Plain lines: one when a stage begins, one every few seconds, one at its end.

    A stage that comes again, and is over again within that time, gets none.
    """

    def __init__(self, write: Callable[[str], None], seconds: float = PLAIN_SECONDS) -> None:
        self._write, self._seconds = write, seconds
        self._last: dict[str, float] = {}  # stage -> when it had its last line
        self._told: set[str] = set()  # stages that had a line since they began
        self._over: set[str] = set()

    def begin(self) -> None:
        """Nothing is said of what is being prepared."""

    def end(self, whole: bool) -> None:
        """Every line is written already."""

    def line(self, text: str) -> None:
        """A line."""
        self._write(text)

    def show(self, at: Position) -> None:
        """A line, where one is due."""
        if self._is_due(at):
            left = f"{duration(at.left)} left" if at.left else ""
            self._write(", ".join(part for part in (f"{at.stage}: {at.count}", at.text, left) if part))

    def step(self, at: Position) -> None:
        """A line."""
        left = f", {duration(at.seconds_left)} left" if at.seconds_left and at.said else ""
        self._write(f"{at.stage}: {at.done + 1:g}/{at.total or 0:g}, {at.text}{left}")

    def _is_due(self, at: Position) -> bool:
        if at.again:
            self._told.discard(at.stage)
            self._over.discard(at.stage)
        waited = at.now - self._last.get(at.stage, -math.inf) >= self._seconds
        due = at.stage not in self._over and (waited or (at.ended and at.stage in self._told))
        if due:
            self._last[at.stage] = at.now
            self._told.add(at.stage)
        if at.ended:
            self._over.add(at.stage)
        return due


class Bars:
    """One bar a stage on a terminal, each with its time left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._bars = stream, _rich_bars(stream)
        self._tasks: dict[str, Any] = {}
        self._steps: dict[str, float] = {}  # stages of a few long steps -> how many these are
        self._waiting: Any = None  # the bar that says that something is being prepared

    def begin(self) -> None:
        """A bar says that something is being prepared."""
        self._bars.start()
        self._waiting = self._bars.add_task("preparing", total=None, count="", text="", until=None)

    def end(self, whole: bool) -> None:
        """The bars stay as they are, but that the last of long steps is over, where all went well."""
        self._ready()
        for stage, total in self._steps.items() if whole else ():
            count = f"{total:g}/{total:g}"
            self._bars.update(self._tasks[stage], completed=total, count=count, text="", until=None)
        self._bars.stop()

    def _ready(self) -> None:
        """Nothing is being prepared any more."""
        if self._waiting is not None:
            self._bars.remove_task(self._waiting)
            self._waiting = None

    def line(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(wrapped(text, self._stream), markup=False, highlight=False, soft_wrap=True)

    def show(self, at: Position) -> None:
        """A stage's bar."""
        self._ready()
        if at.stage not in self._tasks:
            self._tasks[at.stage] = self._bars.add_task(at.stage, total=at.total, count="", text="", until=None)
        until = at.now + at.left if at.left else None
        position = at.done if at.reached is None else at.reached
        self._bars.update(
            self._tasks[at.stage], completed=position, total=at.total, count=at.count, text=at.text, until=until
        )

    def step(self, at: Position) -> None:
        """A stage's bar."""
        self._steps[at.stage] = at.total or 0.0
        self.show(at)


def _rich_bars(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.table import Column
    from rich.text import Text

    class Left(ProgressColumn):
        """The time left, which falls between two events, too."""

        def render(self, task: Task) -> Text:
            until = task.fields["until"]
            seconds = 0.0 if until is None else until - time.monotonic()
            return Text(f"{duration(seconds)} left" if seconds > 0 else "")  # what takes longer than was said: nothing

    console = Console(file=stream)
    columns = ("{task.description}", "{task.fields[count]}", "{task.fields[text]}")
    name, count, text = (TextColumn(column, markup=False) for column in columns)
    left = Left(table_column=Column(no_wrap=True))
    if (bar := next((bar for width, bar in _BARS if console.width >= width), None)) is None:
        return Progress(name, count, text, left, console=console)
    return Progress(name, BarColumn(bar_width=bar), count, text, TimeElapsedColumn(), left, console=console)
