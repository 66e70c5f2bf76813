"""Stages side by side: each lane keeps to its own cores and takes the next stage that waits for nothing.

Two trainings with a core each do more than one training with both cores: small networks leave the second one waiting.

Knows: which stage may begin, and how lanes end together. Knows nothing about what a stage does.
"""

import os
import threading
from collections.abc import Callable, Sequence

from benchmarks.proof.stages import Stage

GOES_ON, TIME_IS_UP = "goes on next time", "time is up"


class Lanes:
    """Works a list of stages off; the list's own order holds wherever a stage is free to begin.

    perform: does a stage; returns why it is left unfinished, or nothing. `GOES_ON`: the time is up, for all of them.
    stop: set when a lane failed or somebody interrupted: `perform` is to return soon then.
    """

    def __init__(self, stages: Sequence[Stage], perform: Callable[[Stage], str], stop: threading.Event) -> None:
        self.left: list[tuple[Stage, str]] = []
        self._waiting = list(stages)
        self._running: list[Stage] = []
        self._perform = perform
        self._stop = stop
        self._over = False
        self._changed = threading.Condition()
        self._errors: list[BaseException] = []

    def run(self, count: int) -> list[tuple[Stage, str]]:
        """Work everything off in `count` lanes; returns what is left and why, in the order it was given up.

        Raises what a stage raised, after the other lanes have stopped.
        """
        shares = shares_of_cores(count)
        lanes = [threading.Thread(target=self._lane, args=(share,)) for share in shares]
        for lane in lanes:
            lane.start()
        try:
            for lane in lanes:
                lane.join()
        except BaseException:
            self._stop.set()
            for lane in lanes:
                lane.join()
            raise
        if self._errors:
            raise self._errors[0]
        return self.left

    def _lane(self, cores: set[int]) -> None:
        if cores:
            os.sched_setaffinity(0, cores)  # of this thread; the processes that it starts inherit it
        while (stage := self._next()) is not None:
            try:
                why = self._perform(stage)
            except BaseException as error:
                self._errors.append(error)
                self._stop.set()
                why = "failed"
            with self._changed:
                self._running.remove(stage)
                self._over |= why == GOES_ON or self._stop.is_set()
                if why:
                    self.left.append((stage, why))
                self._changed.notify_all()

    def _next(self) -> Stage | None:
        """The first stage that waits for no other one; waits for it. None when there is nothing more to begin."""
        with self._changed:
            while self._waiting:
                if self._over:
                    self.left += [(stage, TIME_IS_UP) for stage in self._waiting]
                    self._waiting.clear()
                    break
                self._give_up()
                pending = {stage.name for stage in (*self._waiting, *self._running)}
                ready = (stage for stage in self._waiting if not pending & {*stage.needs, *stage.reads})
                if (stage := next(ready, None)) is not None:
                    self._waiting.remove(stage)
                    self._running.append(stage)
                    return stage
                if self._running:
                    self._changed.wait()
            return None

    def _give_up(self) -> None:
        """Move what needs a stage that is left to those that are left. In order, so chains fall at once."""
        for stage in list(self._waiting):
            if {other.name for other, _ in self.left} & {*stage.needs, *stage.reads}:
                self._waiting.remove(stage)
                self.left.append((stage, "needs what is left"))


def shares_of_cores(count: int) -> list[set[int]]:
    """The cores of each of `count` lanes, as even as can be; empty sets for one lane, and where cores can't be had."""
    if count == 1 or not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    return [{*cores[place::count]} or {cores[place % len(cores)]} for place in range(count)]
