"""How long calls take, and how much of a run is spent inside them.

Knows: statistics of repeated calls, and a backend that notes when each of its calls ran.
Does not know: which backend that is, what its graphs compute, or what a run is.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from engines.backends.base import Backend, Call, Role, Shapes, Tensors
from engines.diffusion.capture import Record, Step, capture

WARM_UP = 3  # calls that are not counted
CALLS = 20  # calls that are
LIMIT = 10.0  # seconds after which no further call is begun, once there are LEAST
LEAST = 3


@dataclass(frozen=True)
class Spread:
    """What repeated calls took, in seconds a call."""

    median: float
    p10: float  # a tenth of the calls took no longer
    p90: float  # nine tenths of them
    calls: int  # that were counted

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def spread(seconds: Sequence[float]) -> Spread:
    """Median, 10th and 90th percentile, between neighbours by their distance; at least one number is needed."""
    p10, median, p90 = np.percentile(seconds, (10, 50, 90)).tolist()
    return Spread(median, p10, p90, len(seconds))


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(
    run: Callable[[], object],
    device: torch.device,
    *,
    warm_up: int = WARM_UP,
    calls: int = CALLS,
    limit: float = LIMIT,
) -> Spread:
    """Time `calls` calls of `run` one after the other, each from an idle device to an idle device.

    The first `warm_up` calls are not counted. Slow calls are made fewer times: none is begun when `limit` seconds have
    passed and LEAST of them (or `calls`, where that is less) are there; the warm-up has a limit of its own.
    """
    begun = time.perf_counter()
    for _ in range(warm_up):
        run()
        synchronise(device)
        if time.perf_counter() - begun > limit:
            break
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < calls and (len(seconds) < LEAST or time.perf_counter() - begun < limit):
        start = time.perf_counter()
        run()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return spread(seconds)


def profiled(run: Callable[[], object], device: torch.device) -> list[tuple[str, int, float]]:
    """(kernel, how often it ran, seconds of all of them) of a second run, those that took longest first; on a CPU
    PyTorch's operators."""
    run()
    with torch.profiler.profile() as profile:
        run()
        synchronise(device)
    spent = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
    found = [(event.key, int(event.count), getattr(event, spent) / 1e6) for event in profile.key_averages()]
    return sorted(found, key=lambda one: -one[2])


@dataclass(frozen=True)
class Use:
    """A graph as it was prepared: what tells its calls apart."""

    graph: str
    batch: int  # of its first input
    role: Role | None = None  # what it was prepared for

    @property
    def name(self) -> str:
        """What readers of a figure call it: the graph's name, or "label pass" for the UNet of labels."""
        return "label pass" if self.role == "labels" else self.graph


@dataclass(frozen=True)
class Interval:
    """One call, on `time.perf_counter`'s clock."""

    use: Use
    start: float
    end: float


def covered(intervals: Iterable[tuple[float, float]], start: float, end: float) -> float:
    """Seconds between `start` and `end` in which at least one of the intervals (start, end) was running."""
    total, reached = 0.0, start
    for begin, stop in sorted(intervals):
        begin, stop = max(begin, reached), min(stop, end)
        if stop > begin:
            total += stop - begin
            reached = stop
    return total


def outside_share(intervals: Iterable[Interval], start: float, end: float) -> float:
    """Share of the time from `start` to `end` in which no graph ran: 1 - union of the calls' intervals / (end - start).

    Calls may overlap, since threads, and a GPU's streams, may run graphs side by side; what two of them cover counts
    once. Work of the host that another thread does while a graph runs is therefore not counted: it costs no wall time
    of its own. (That it may slow the graph down shows in the graph's seconds.) A call's interval is that of `Call.run`
    on the host, waiting included; on a GPU it is the GPU's own, from the first kernel to the last.
    """
    return 1.0 - covered(((one.start, one.end) for one in intervals), start, end) / (end - start)


class HostClock:
    """When the host is at a point of the program."""

    def mark(self) -> Any:
        """Now."""
        return time.perf_counter()

    def seconds(self, mark: Any) -> float:
        """A mark on `time.perf_counter`'s clock."""
        return float(mark)


class GpuClock:
    """When a GPU is at a point of the stream that the calling thread stands on. Nothing waits for it before it is asked
    for the seconds."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first = self.mark()
        self._first.synchronize()
        self._zero = time.perf_counter()

    def mark(self) -> Any:
        """An event behind what is enqueued."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, mark: Any) -> float:
        """A mark on `time.perf_counter`'s clock, as far as the two run alike; waits for it."""
        mark.synchronize()
        return self._zero + float(self._first.elapsed_time(mark)) / 1e3


@dataclass
class _TimedCall:
    """A call that notes when it ran."""

    call: Call
    use: Use
    backend: "TimedBackend"

    @property
    def inputs(self) -> Tensors:
        return self.call.inputs

    @property
    def outputs(self) -> Tensors:
        return self.call.outputs

    @property
    def capturable(self) -> bool:
        return self.call.capturable

    def run(self) -> None:
        self.backend.note(self.call.run, [self.use])


@dataclass
class TimedBackend:
    """A backend in front of another, whose calls note when they ran and are otherwise the other's.

    Nothing is synchronised that was not before, and the buffers are the other's own: a run takes as long as without
    it. Calls of several threads are noted together; a list's `append` needs no lock. A recording, made by `record`,
    notes at every replay the calls that it holds.
    """

    backend: Backend
    calls: dict[Use, Call] = field(default_factory=dict)  # what was prepared, untimed; the last one of equal uses

    def __post_init__(self) -> None:
        self._clock = GpuClock(self.device) if self.device.type == "cuda" else HostClock()
        self._noted: list[tuple[Use, Any, Any]] = []
        self._recording = threading.local()  # `uses` of the calls that this thread is recording

    @property
    def intervals(self) -> list[Interval]:
        """When calls ran, in the order in which they were noted; on a GPU this waits for them."""
        return [Interval(use, self._clock.seconds(one), self._clock.seconds(two)) for use, one, two in self._noted]

    def note(self, step: Step, uses: Sequence[Use]) -> None:
        """Run a step that is calls of these uses."""
        if (recorded := getattr(self._recording, "uses", None)) is not None:
            recorded += uses
            step()
            return
        before = self._clock.mark()
        step()
        after = self._clock.mark()
        self._noted += [(use, before, after) for use in uses]

    def record(self, step: Step, device: torch.device, capture: Record = capture) -> Step:
        """What `capture` is, with every replay noted."""
        uses: list[Use] = []
        self._recording.uses = uses
        try:
            replay = capture(step, device)
        finally:
            self._recording.uses = None
        return lambda: self.note(replay, uses)

    @property
    def name(self) -> str:
        """See `Backend`."""
        return self.backend.name

    @property
    def description(self) -> str:
        """See `Backend`."""
        return self.backend.description

    @property
    def device(self) -> torch.device:
        """See `Backend`."""
        return self.backend.device

    @property
    def precision(self) -> str:
        """See `Backend`."""
        return self.backend.precision

    @property
    def threads(self) -> int:
        """See `Backend`."""
        return self.backend.threads

    def prepare(
        self,
        graph: str,
        shapes: Shapes,
        outputs: Sequence[str] | None = None,
        varies: str | None = None,
        role: Role | None = None,
    ) -> Call:
        """See `Backend.prepare`."""
        batch = next(iter(shapes.values()))[0]
        use = Use(graph, batch, role)
        self.calls[use] = self.backend.prepare(graph, shapes, outputs, varies, role)
        return _TimedCall(self.calls[use], use, self)
