"""What a verb shows while it works and when it is done.

Knows: what becomes of a verb's events, results, remarks and errors, and that all of it goes into the verb's log, too;
settings that a text of the library marks are shown as the flags of the verb at work. How bars look is `bars`' matter,
and tables `tables`'. Progress goes to stderr, results to stdout.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from dengine_cli import tables
from dengine_cli.bars import Bars, Lines, Position, View, can_draw
from dengine_cli.flags import with_flags
from dengine_cli.log import Log
from dengine_cli.wrapped import in_lines, width_of, wrapped
from engines.common.events import Event, EventKind, Report
from engines.common.plurals import counted
from engines.common.versions import installed_versions

_FIGURES = ("AP", "AP50", "AP75")  # of an evaluation; those of each class come with the result
_LOG_SECONDS = 60.0  # between lines of one stage in a log
_flags: Callable[[], Mapping[str, str]] = dict  # of the verb at work
_settled: dict[str, Any] = {}  # what the verb at work chose in place of what it was given

_quiet = _verbose = _dry = False  # as the verb at work was asked to be
_log, _plans = Log(), False  # of the verb at work, and whether it has yet to say what it plans
_WORK = (EventKind.STARTED, EventKind.STEP, EventKind.PROGRESS, EventKind.IMAGE)


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


def keep_log(folder: Path | None, command: str, *, plans: bool = False) -> None:
    """Keep a log of what is shown from now on, in a folder once a verb works there; it begins with the command.

    A verb that `plans` reports PLANNED before it works.
    """
    global _log, _plans
    _log, _plans = Log(folder), plans
    version = installed_versions(("dengine",)).get("dengine", "from its sources")
    _log.line(f"dengine {version}: {command}")


def end_log() -> None:
    """Keep none any more."""
    global _log
    _log = Log()


def log_begins() -> None:
    """What was shown so far goes into the log's folder, and what follows."""
    if not _dry:
        _log.begin()


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
    _log.line(_shown(text))
    print(wrapped(_shown(text), sys.stdout), flush=True)  # noqa: T201  the one place that prints results


def echo_json(value: Any, indent: int | None = None) -> None:
    """A result for programs, on stdout: the library's texts as they are."""
    print(json.dumps(value, indent=indent), flush=True)  # noqa: T201  as in `echo`


def echo_file(text: str) -> None:
    """A result that is a file, on stdout, as it is."""
    print(text, flush=True)  # noqa: T201  as in `echo`


def note(text: str) -> None:
    """A remark beside the result, on stderr."""
    _say(_shown(text))


def complain(text: str) -> None:
    """An error, on stderr, with its settings shown already."""
    _say(f"error: {text}")


def _say(text: str) -> None:
    _log.line(text)
    print(wrapped(text, sys.stderr), file=sys.stderr, flush=True)  # noqa: T201  and the one that prints remarks, errors


def next_step(verb: str, *words: object) -> None:
    """The command that comes next, ready to copy: the last line of a verb's result."""
    line = [shlex.quote(str(word)) for word in ("dengine", verb, *words)]
    _log.line(f"next: {' '.join(line)}")
    print(in_lines(line, width_of(sys.stdout), "next: "), flush=True)  # noqa: T201  as in `echo`; it holds flags already


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Rows of text in aligned columns, as they fit onto the terminal that results go to, if they go to one."""
    return tables.table(rows, header, width_of(sys.stdout))


def option(flag: str, value: object) -> tuple[object, ...]:
    """A flag with its value, for `next_step`; nothing where there is none."""
    return () if value is None else (flag, value)


def reporter(bars: "ProgressBars") -> Report:
    """What shows a verb's events: lines, a bar a stage, and a line for every evaluation of a training."""
    labels = dropped = 0
    begun = time.monotonic()

    def show(event: Event) -> None:
        nonlocal labels, dropped
        text = event.text
        _take_note_of(event)
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
            if measured := [f"{name} {event.figures[name]:.3f}" for name in _FIGURES if name in event.figures]:
                bars.line(f"step {event.done}: {', '.join(measured)}")
        if event.speed:
            text = ", ".join(part for part in (text, pace(event.speed)) if part)
        done = event.done or 0
        bars.update(
            event.stage, min(done, event.total or done), event.total, text, event.seconds_left, reached=event.reached
        )

    return show


def _take_note_of(event: Event) -> None:
    """What follows from an event beside what is shown: settings, the end of a dry run, that the verb works."""
    global _plans
    if event.kind is not EventKind.PLANNED:
        _settled.update(event.settled)
    elif _dry:
        raise PlannedError(event)
    else:
        _plans = False
    if event.kind in _WORK and not _plans:
        log_begins()


def pace(speed: float) -> str:
    """Images a second in words, where they are few as seconds an image.

    >>> pace(2.345), pace(0.05)
    ('2.35 images/s', '20 s/image')
    """
    return f"{speed:.2f} images/s" if speed >= 0.1 else f"{1 / speed:.0f} s/image"


class ProgressBars:
    """How far a verb is, shown on a stream and kept in its log; use as a context manager.

    Away from a terminal these are plain lines.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        live = can_draw(self._stream) and not _verbose
        shown: list[View] = [] if _quiet else [Bars(self._stream) if live else Lines(self._print)]
        self._views = [*shown, Lines(_log.line, _LOG_SECONDS)]
        self._started: dict[str, tuple[float, float]] = {}  # stage -> (when it began, how much was done then)
        self._done: dict[str, float] = {}

    def __enter__(self) -> Self:
        for view in self._views:
            view.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for view in self._views:
            view.end(kind is None)

    def line(self, text: str) -> None:
        """A line that stays, above the bars."""
        for view in self._views:
            view.line(_shown(text))

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
        at = self._position(stage, done, total, text, seconds_left, reached)
        for view in self._views:
            view.show(at)

    def step(self, stage: str, done: int, total: int, text: str, seconds_left: float | None = None) -> None:
        """Say which of a few long steps begins: a line each where there is no terminal."""
        at = self._position(stage, done, total, text, seconds_left, None)
        for view in self._views:
            view.step(at)

    def _position(
        self, stage: str, done: float, total: float | None, text: str, left: float | None, reached: float | None
    ) -> Position:
        now, again = time.monotonic(), done < self._done.get(stage, done)
        if again:
            self._started.pop(stage, None)
        self._done[stage] = done
        first, done_then = self._started.setdefault(stage, (now, done))
        said = left is not None
        if not said and total and done > done_then:
            left = (now - first) / (done - done_then) * (total - done)
        return Position(stage, done, total, _shown(text), left, said, reached, now, again)

    def _print(self, text: str) -> None:
        self._stream.write(wrapped(text, self._stream) + "\n")
        self._stream.flush()
