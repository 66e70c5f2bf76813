"""How far the painting of a run is, how fast it goes and how long it still takes: from the work done, not from images.

Knows: that an image is so many ticks of the sampler, and then decoded and labelled; that a count of kept images takes
more jobs than it has images, and whole chunks of them. Knows nothing about networks.
"""

import time
from collections.abc import Callable

from engines.common.events import Event, EventKind, ImageNews, Report
from engines.runs.state import RunState

STAGE = "painting"  # in events
_EVERY = 0.2  # seconds between words about ticks, at least
_ROWS_AFTER = 4.6  # rows of the UNet that decoding and labelling an image is thought to take: Stable Diffusion's share
_JOBS_SEEN = 4.0  # jobs that all were kept, as it were, before any was seen


class Pace:
    """The pace of one start of a run. Everything is counted from when it is made."""

    def __init__(
        self,
        state: RunState,
        *,
        ticks_of_job: float,
        rows: int,
        chunk: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ticks_of_job`: network calls a job takes on average, 0 where none is painted; `rows` of such a call."""
        self._state, self._each, self._rows, self._chunk, self._clock = state, ticks_of_job, rows, chunk, clock
        self._begun = self._last = self._said = clock()
        self._done, self._jobs, self._kept = state.done, state.jobs, state.kept  # when it began
        self._ticks = self._handed = 0
        self._timed, self._first, self._tick_seconds, self._hand_seconds = 0, 0.0, 0.0, 0.0

    def tick(self) -> bool:
        """A network call of the sampler is over; whether it is time to say so."""
        self._ticks += 1
        seconds = self._since()
        if self._ticks == 1:  # it makes ready what others have
            self._first = seconds
        else:
            self._timed += 1
            self._tick_seconds += seconds
        due = self._last - self._said >= _EVERY
        if due:
            self._said = self._last
        return due

    def handed(self, images: int) -> None:
        """Images were decoded and labelled, or given to who does that meanwhile."""
        self._handed += images
        self._hand_seconds += self._since()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._begun

    @property
    def images(self) -> float:
        """Images that this start painted, those in work as the part of their work that is done."""
        painted = self._state.painted
        if not self._each:
            return float(painted)
        tick, after = self._tick, self._after
        done = (self._ticks * tick + self._handed * after) / (self._each * tick + after) if tick else 0.0
        return min(max(float(painted), done), float(max(painted, self._expected())))

    @property
    def speed(self) -> float:
        """Images a second, kept or not."""
        return self.images / seconds if (seconds := self.seconds) > 0 else 0.0

    @property
    def reached(self) -> float:
        """How much of the target is done, of work."""
        done, target = self._state.done, self._state.target
        if done >= target:
            return float(target)
        share = min(1.0, self.images / max(1.0, self._expected()))
        return max(float(done), self._done + share * (target - self._done))

    @property
    def left(self) -> float | None:
        """Seconds to the end of the last chunk; None before anything is known of it."""
        jobs = self._expected()
        if not self._each:
            painted = self._state.painted
            return self.seconds / painted * max(0.0, jobs - painted) if painted else None
        if not self._timed:
            return None
        ticks = max(0.0, self._each * jobs - self._ticks)
        return ticks * self._tick + max(0.0, jobs - self._handed) * self._after

    @property
    def _tick(self) -> float:
        return self._tick_seconds / self._timed if self._timed else self._first

    @property
    def _after(self) -> float:
        """Seconds that an image takes behind its ticks."""
        if self._handed:
            return self._hand_seconds / self._handed
        return _ROWS_AFTER * self._tick / max(1, self._rows)

    def _expected(self) -> float:
        """Jobs of this start: what is missing at the share of them that is kept so far, in whole chunks."""
        state = self._state
        if not state.counts_kept:
            return float(state.target - self._jobs)
        share = (state.kept + _JOBS_SEEN) / (state.jobs + _JOBS_SEEN)
        whole = state.jobs + max(0, state.target - state.kept) / share
        return max(1.0, -(-whole // self._chunk) * self._chunk - self._jobs)

    def _since(self) -> float:
        before, self._last = self._last, self._clock()
        return self._last - before


class Teller:
    """What is said while images are painted."""

    def __init__(self, state: RunState, report: Report) -> None:
        self._state, self._report = state, report
        self.pace: Pace | None = None  # once painting begins

    def tick(self) -> None:
        """A network call of the sampler is over."""
        self._state.count_tick()
        if self.pace is not None and self.pace.tick():
            self._tell(EventKind.PROGRESS)

    def handed(self, images: int) -> None:
        """Images are being decoded and labelled."""
        if self.pace is not None:
            self.pace.handed(images)

    def image(self, news: ImageNews) -> None:
        """An image is painted, and kept or dropped."""
        self._tell(EventKind.IMAGE, news)

    def _tell(self, kind: EventKind, news: ImageNews | None = None) -> None:
        assert self.pace is not None
        state, pace = self._state, self.pace
        self._report(
            Event(
                kind,
                STAGE,
                done=state.done,
                total=state.target,
                reached=pace.reached,
                speed=pace.speed,
                seconds_left=pace.left,
                image=news,
            )
        )
