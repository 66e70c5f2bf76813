"""How long a verb still takes, all its parts together.

Knows: parts of work by the stages that events name, what a unit of each is thought to take, and what events say of
them: the time between two events goes to the part that the later one is about. Knows nothing about what a part does.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from engines.common.events import Event, Report, duration, note

_UNITS = 2.0  # a beforehand guess counts as much as so many units that were measured
_SECONDS = 1.0  # of work measured, before guesses about other parts are corrected by it
_FACTORS = (0.4, 2.5)  # how far they are corrected, at most


@dataclass(frozen=True)
class Part:
    """A stretch of work whose units take about the same time each."""

    stage: str  # as events name it; parts of one stage follow each other
    units: float  # to be done, as `done` of the stage's events counts them
    seconds: float  # that a unit is thought to take


@dataclass
class _Measured:
    """A part, and what was seen of it."""

    part: Part
    done: float = 0.0  # units, those of earlier starts too
    units: float = 0.0  # that were timed
    seconds: float = 0.0  # that these took


class Forecast:
    """A report that stands before another one: what it is told passes through, and of the parts of its plan with
    `seconds_left` of the whole verb.

    >>> told = []
    >>> forecast = Forecast(told.append, clock=iter([0.0, 0.0]).__next__)
    >>> forecast.plan([Part("vae", 10, 1.0), Part("unet", 20, 3.0)])
    >>> str(told[0])
    'prepared in 0.0 s; about 70 s to go'
    >>> forecast.left()
    70.0
    """

    def __init__(self, report: Report, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._report, self._quiet, self._clock = report, quiet, clock
        self._begun = self._last = clock()
        self._parts: dict[str, list[_Measured]] = {}
        self._before: dict[str, float] = {}  # stage -> units of its runs before the one at work
        self._seen: dict[str, float] = {}  # stage -> `done` of its last event
        self._at_work = ""  # the stage of the last event

    @classmethod
    def of(cls, report: Report) -> "Forecast":
        """A report that is one already, else one before it."""
        return report if isinstance(report, cls) else cls(report)

    def plan(self, parts: Sequence[Part], done: Mapping[str, float] | None = None, *, quiet: bool = False) -> None:
        """Say what is to be done, of which `done` units by stage are done already; and, unless it is `quiet`, for how
        long all was prepared and how long the rest takes."""
        for part in parts:
            if part.units > 0:
                self._parts.setdefault(part.stage, []).append(_Measured(part))
        for stage, units in (done or {}).items():
            self._move(stage, units)
        now = self._last = self._clock()
        if not (quiet or self._quiet):
            self._report(note(f"prepared in {duration(now - self._begun)}; about {duration(self.left())} to go"))

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        if event.done is not None and event.stage in self._parts:
            self.reached(event.stage, event.done)
            event = replace(event, seconds_left=self.left())
        self._report(event)

    def reached(self, stage: str, done: float) -> None:
        """So much of a stage is done. Fewer units than before begin it anew, behind what was done."""
        now = self._clock()
        seconds, self._last = now - self._last, now
        at_work, self._at_work = self._at_work, stage
        before = self._seen.get(stage)
        self._seen[stage] = done
        if before is not None and done < before:
            self._before[stage] = self._before.get(stage, 0.0) + before
        taken = self._move(stage, self._before.get(stage, 0.0) + done)
        if before is None or done < before:  # it begins: until now another one was at work
            self._spend(at_work, seconds)
        elif not taken:
            self._spend(stage, seconds)
        guessed = sum(units * measured.part.seconds for measured, units in taken)
        for measured, units in taken if before is not None and done > before else ():
            share = units * measured.part.seconds / guessed if guessed else 1 / len(taken)
            measured.units += units
            measured.seconds += seconds * share

    def _spend(self, stage: str, seconds: float) -> None:
        """Count time to the part that a stage is in, if it is in one."""
        for measured in self._parts.get(stage, ()):
            if measured.done < measured.part.units:
                measured.seconds += seconds
                return

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return self._clock() - self._begun

    def left(self) -> float:
        """Seconds that all that is not done yet will take."""
        every = [measured for parts in self._parts.values() for measured in parts]
        spent = sum(measured.seconds for measured in every)
        guessed = sum(measured.units * measured.part.seconds for measured in every)
        least, most = _FACTORS
        factor = min(most, max(least, (_SECONDS + spent) / (_SECONDS + guessed)))
        return sum(self._left_of(measured, factor) for measured in every)

    @staticmethod
    def _left_of(measured: _Measured, factor: float) -> float:
        expected = factor * measured.part.seconds
        each = (_UNITS * expected + measured.seconds) / (_UNITS + measured.units)
        return max(0.0, measured.part.units - measured.done) * each

    def _move(self, stage: str, position: float) -> list[tuple[_Measured, float]]:
        """Count a stage's parts up to `position`; which of them moved, by how many units."""
        moved = []
        for measured in self._parts.get(stage, ()):
            done = min(measured.part.units, max(0.0, position))
            position -= measured.part.units
            if done > measured.done:
                moved.append((measured, done - measured.done))
                measured.done = done
        return moved


def longest(seconds: float, parts_of: Callable[[int], Sequence[Part]], most: int) -> int:
    """The largest number, from 1 to `most`, whose parts take no longer than so many seconds; 1 where none does.

    >>> longest(60, lambda steps: [Part("unet", steps, 0.5)], 1000)
    120
    """
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(part.units * part.seconds for part in parts_of(middle)) <= seconds
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
