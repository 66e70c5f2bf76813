"""How far a TensorRT build is, and how it is cancelled.

Knows: how TensorRT reports its work (phases of counted steps, one inside another), what share of the whole and how much
time left follow from that, and how Ctrl-C reaches it. Does not know what is built, and does not import TensorRT.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from engines.common.events import Event, EventKind, Report
from engines.common.interrupts import SIGNALS

_LOOK_SECONDS = 0.1  # between two looks at `stop`


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int
    started: float


def building(graph: str, text: str, percent: float, seconds_left: float | None = None) -> Event:
    """How far the plans of a graph are; `text` is TensorRT's name for what it does."""
    return Event(EventKind.PROGRESS, graph, text, percent, 100.0, seconds_left)


class Phases:
    """The phases of one build, told by TensorRT from several threads.

    A phase's share is that of its finished steps and of the step in work, which is as far as the phase inside it that
    is furthest. Outermost phases come one after the other; the bar is the last one's, and never goes back.
    """

    def __init__(self, stage: str, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._stage, self._report, self._clock = stage, report, clock
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._root: str | None = None
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins, inside `parent`."""
        with self._lock:
            inside = parent if parent in self._phases else None
            self._phases[name] = _Phase(inside, max(steps, 1), 0, self._clock())
            if inside is None:
                self._root, self._share = name, 0.0
            self._tell(name)

    def step(self, name: str, step: int) -> None:
        """Step number `step` (from 0) of a phase is done."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
                self._tell(name)

    def finish(self, name: str) -> None:
        """A phase is over, maybe before its last step."""
        with self._lock:
            self._phases.pop(name, None)
            if name == self._root:
                self._share = 1.0
                self._report(building(self._stage, name, 100.0))
                self._root = None

    def _tell(self, name: str) -> None:
        root = self._phases.get(self._root or "")
        if root is None or self._root is None:
            return
        self._share = max(self._share, self._share_of(self._root))
        elapsed = self._clock() - root.started
        left = elapsed / self._share * (1.0 - self._share) if self._share > 0.0 else None
        self._report(building(self._stage, name, round(100.0 * self._share, 1), left))

    def _share_of(self, name: str) -> float:
        phase = self._phases[name]
        inside = (self._share_of(child) for child, other in self._phases.items() if other.parent == name)
        return min(1.0, (phase.done + max(inside, default=0.0)) / phase.steps)


def make_monitor(trt: Any, phases: Phases, cancel: threading.Event) -> Any:
    """What the package `trt` tells of a build, from threads of its own; it cancels the build once `cancel` is set.

    No error may leave it, which would end the process: the first one cancels the build and is kept as `error`.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._guard(phases.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._guard(phases.step, phase_name, step)
            return not cancel.is_set() and self.error is None

        def phase_finish(self, phase_name: str) -> None:
            self._guard(phases.finish, phase_name)

        def _guard(self, tell: Callable[..., None], *words: Any) -> None:
            try:
                tell(*words)
            except BaseException as cause:
                self.error = self.error or cause

    return Monitor()


def run_cancellable(work: Callable[[threading.Event], Any], stop: Callable[[], bool]) -> Any:
    """Run `work` in a thread of its own and give its result; Ctrl-C, or `stop`, sets the event it was given.

    TensorRT holds the thread that builds until it is done, while Python hears of Ctrl-C only in its first thread: that
    one waits here. Raises KeyboardInterrupt once work that was cancelled has ended; else what `work` raised.
    """
    cancel = threading.Event()
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(cancel))
        except BaseException as cause:
            errors.append(cause)

    thread = threading.Thread(target=run, name="build")
    with _ctrl_c_sets(cancel):
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_SECONDS)
            if stop():
                cancel.set()
    if cancel.is_set():
        raise KeyboardInterrupt
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def _ctrl_c_sets(cancel: threading.Event) -> Iterator[None]:
    """While this lasts, Ctrl-C (or SIGTERM) sets `cancel` and interrupts nothing. Outside the first thread, where none
    arrives, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda number, frame: cancel.set()) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
