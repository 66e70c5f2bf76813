"""What a verb shows while it works and when it is done.

Knows: progress bars with time left on a terminal, the same as plain lines anywhere else, tables, sizes and times in
words; settings that a text of the library marks are shown as the flags of the verb at work. Knows nothing about what is
being counted. Progress goes to stderr, results to stdout.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TextIO

from dengine_cli.flags import with_flags
from dengine_cli.wrapped import wrapped
from engines.common.events import Event, EventKind, Report, duration
from engines.common.plurals import counted

PLAIN_SECONDS = 10.0  # between plain lines of one stage, where there is no terminal
_BARS = ((120, 24), (100, 10))  # columns of a terminal from which on a bar has so many; narrower ones have none
_flags: Callable[[], Mapping[str, str]] = dict  # of the verb at work
_settled: dict[str, Any] = {}  # what the verb at work chose in place of what it was given

_quiet = _verbose = _dry = False  # as the verb at work was asked to be


def be_quiet(asked: bool) -> None:
    """Show no progress from now on, or show it again: results, remarks beside them and errors are left."""
    global _quiet
    _quiet = asked


def be_verbose(asked: bool) -> None:
    """Show everything that is reported as a line with its time from now on, in place of bars, or no longer."""
    global _verbose
    _verbose = asked


def be_dry(asked: bool) -> None:
    """Have the verb end with PlannedError before it writes anything, from now on, or do what it does."""
    global _dry
    _dry = asked


def is_dry() -> bool:
    """Whether the verb at work is only to say what it would do."""
    return _dry


class PlannedError(Exception):
    """Ends a dry run: all is checked, and `plan` says what would be done."""

    def __init__(self, plan: Event) -> None:
        super().__init__(plan.text)
        self.plan = plan


@contextmanager
def speaking(flags: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """While this lasts, settings that a text marks are shown as `flags()` has them."""
    global _flags, _dry  # one process is one verb
    before, _flags = _flags, flags
    _settled.clear()
    try:
        yield
    finally:
        _flags, _dry = before, False


def settled() -> Mapping[str, Any]:
    """Settings that repeat what the verb at work chose on the way, as far as it has said so; None: not given then."""
    return dict(_settled)


def _shown(text: str) -> str:
    return with_flags(text, _flags()) if "`" in text else text


def echo(text: str = "") -> None:
    """A line of a verb's result, on stdout."""
    print(_shown(text), flush=True)  # noqa: T201  the one place that prints results


def echo_json(value: Any, indent: int | None = None) -> None:
    """A result for programs, on stdout: the library's texts as they are."""
    print(json.dumps(value, indent=indent), flush=True)  # noqa: T201  as in `echo`


def note(text: str) -> None:
    """A remark beside the result, on stderr."""
    print(wrapped(_shown(text), sys.stderr), file=sys.stderr, flush=True)  # noqa: T201  and the one that prints remarks


def next_step(verb: str, *words: object) -> None:
    """The command that comes next, ready to copy: the last line of a verb's result."""
    line = shlex.join(["dengine", verb, *map(str, words)])
    print(f"next: {line}", flush=True)  # noqa: T201  as in `echo`; it holds flags already


def option(flag: str, value: object) -> tuple[object, ...]:
    """A flag with its value, for `next_step`; nothing where there is none."""
    return () if value is None else (flag, value)


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Rows of text in aligned columns: the first to the left, the others, when all are numbers, to the right."""
    every = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(every[0]))] if every else []
    right = [i > 0 and all(_is_number(row[i]) for row in rows) for i in range(len(widths))]
    lines = []
    for row in every:
        cells = [
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace(",", "").removeprefix("-").removesuffix("%").isdigit()


def reporter(bars: "ProgressBars") -> Report:
    """What shows a verb's events: lines, a bar a stage, and a line for every evaluation of a training."""
    labels = dropped = 0
    begun = time.monotonic()

    def show(event: Event) -> None:
        nonlocal labels, dropped
        text = event.text
        if event.kind is not EventKind.PLANNED:
            _settled.update(event.settled)
        elif _dry:
            raise PlannedError(event)
        if _verbose:
            bars.line(f"{time.monotonic() - begun:8.1f} s  {event}")
            return
        if event.kind is EventKind.PLANNED:
            return
        if event.kind is EventKind.NOTE:
            bars.line(text)
            return
        if event.kind is EventKind.STEP:
            bars.step(event.stage, int(event.done or 0), int(event.total or 0), text, event.seconds_left)
            return
        if event.kind is EventKind.STARTED:
            bars.line(text)
            labels, dropped, text = int(event.figures.get("boxes", 0)), int(event.figures.get("dropped", 0)), ""
        if event.image is not None:
            labels += event.image.labels if event.image.kept else 0
            dropped += not event.image.kept
        if event.image is not None or event.figures.get("boxes"):
            text = counted(labels, "box") + (f", {dropped} dropped" if dropped else "")
        if "loss" in event.figures:
            text = f"loss {event.figures['loss']:.4f}"
            if measured := [f"{name} {value:.3f}" for name, value in event.figures.items() if name.startswith("AP")]:
                bars.line(f"step {event.done}: {', '.join(measured)}")
        if event.speed:
            text = ", ".join(part for part in (text, pace(event.speed)) if part)
        done = event.done or 0
        bars.update(
            event.stage, min(done, event.total or done), event.total, text, event.seconds_left, reached=event.reached
        )

    return show


def pace(speed: float) -> str:
    """Images a second in words, where they are few as seconds an image.

    >>> pace(2.345), pace(0.05)
    ('2.35 images/s', '20 s/image')
    """
    return f"{speed:.2f} images/s" if speed >= 0.1 else f"{1 / speed:.0f} s/image"


class ProgressBars:
    """One bar a stage, each with its time left; use as a context manager.

    Away from a terminal it writes plain lines: one when a stage begins, one every ten seconds, one at its end.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty() and not _quiet and not _verbose
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, tuple[float, float]] = {}  # stage -> (when first seen, how much was done then)
        self._printed: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._waiting: Any = None  # the bar that says that something is being prepared

    def __enter__(self) -> Self:
        if self._live:
            self._bars = _rich_bars(self._stream)
            self._bars.start()
            self._waiting = self._bars.add_task("preparing", total=None, count="", text="", until=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._ready()
            self._bars.stop()

    def _ready(self) -> None:
        """Nothing is being prepared any more."""
        if self._waiting is not None:
            self._bars.remove_task(self._waiting)
            self._waiting = None

    def line(self, text: str) -> None:
        """A line that stays, above the bars."""
        text = _shown(text)
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            self._write(text)

    def update(
        self,
        stage: str,
        done: float,
        total: float | None,
        text: str = "",
        seconds_left: float | None = None,
        *,
        reached: float | None = None,
    ) -> None:
        """Say how far `stage` is; without `seconds_left` the time left follows from the speed so far.

        `reached`: how long the bar is, where that is known more finely than `done`."""
        text = _shown(text)
        now = time.monotonic()
        if done < self._done.get(stage, done):  # it comes again
            self._started.pop(stage, None)
            self._printed.pop(stage, None)
        self._done[stage] = done
        first, done_then = self._started.setdefault(stage, (now, done))
        if seconds_left is None and total and done > done_then:
            seconds_left = (now - first) / (done - done_then) * (total - done)
        count = f"{done:g}" if total is None else f"{done:g}/{total:g}"
        if self._bars is not None:
            self._ready()
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, count="", text="", until=None)
            until = now + seconds_left if seconds_left and total and done < total else None
            position = done if reached is None else reached
            self._bars.update(self._tasks[stage], completed=position, total=total, count=count, text=text, until=until)
        elif self._is_due(stage, now, ended=total is not None and done >= total):
            left = f"{duration(seconds_left)} left" if seconds_left and total and done < total else ""
            self._write(", ".join(part for part in (f"{stage}: {count}", text, left) if part))

    def step(self, stage: str, done: int, total: int, text: str, seconds_left: float | None = None) -> None:
        """Say which of a few long steps begins: a line each where there is no terminal."""
        if self._bars is None:
            left = f", {duration(seconds_left)} left" if seconds_left else ""
            self._write(f"{stage}: {done + 1}/{total}, {_shown(text)}{left}")
        else:
            self.update(stage, done, total, text, seconds_left)

    def _is_due(self, stage: str, now: float, ended: bool) -> bool:
        last = self._printed.get(stage)
        if last is not None and (last == float("inf") or (not ended and now - last < PLAIN_SECONDS)):
            return False
        self._printed[stage] = float("inf") if ended else now
        return True

    def _write(self, text: str) -> None:
        if _quiet:
            return
        self._stream.write(text + "\n")
        self._stream.flush()


def _rich_bars(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.table import Column
    from rich.text import Text

    class Left(ProgressColumn):
        """The time left, which falls between two events, too."""

        def render(self, task: Task) -> Text:
            until = task.fields["until"]
            return Text("" if until is None else f"{duration(max(0.0, until - time.monotonic()))} left")

    console = Console(file=stream)
    columns = ("{task.description}", "{task.fields[count]}", "{task.fields[text]}")
    name, count, text = (TextColumn(column, markup=False) for column in columns)
    left = Left(table_column=Column(no_wrap=True))
    if (bar := next((bar for width, bar in _BARS if console.width >= width), None)) is None:
        return Progress(name, count, text, left, console=console)
    return Progress(name, BarColumn(bar_width=bar), count, text, TimeElapsedColumn(), left, console=console)
