"""How far painting is, by the work done: before the first image is there, and with the speed that the summary says."""

import itertools
from functools import partial
from pathlib import Path

import pytest
from fakes import FakeBackend
from painting import Generate, make_paint

from engines.common.events import Event, EventKind
from engines.labels.rules import Rules
from engines.runs import generate as generate_module
from engines.runs import pace as pace_module
from engines.runs.pace import Pace
from engines.runs.state import RunState


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def state_of(target: int, *, counts_kept: bool = False, done: int = 0) -> RunState:
    return RunState(target, counts_kept, 32, Rules({"a": 0.3}), jobs=done, kept=done, unkept=0)


def paint(pace: Pace, state: RunState, clock: Clock, ticks: int, images: int, kept: bool = True) -> None:
    """So many ticks of a second, then images that took two seconds each to decode."""
    for _ in range(ticks):
        clock.now += 1
        pace.tick()
    clock.now += 2 * images
    pace.handed(images)
    state.jobs += images
    state.painted += images
    state.kept += images * kept


def test_ticks_move_it_before_an_image_is_there() -> None:
    clock, state = Clock(), state_of(8)
    pace = Pace(state, ticks_of_job=5, rows=8, chunk=8, clock=clock)
    assert pace.left is None
    seen = []
    for _ in range(10):
        clock.now += 1
        pace.tick()
        seen.append(pace.reached)
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.5
    assert 1.5 < seen[-1] < 2
    assert state.done == 0


def test_the_time_left_is_known_from_the_first_ticks_and_right_behind_the_first_images() -> None:
    clock, state = Clock(), state_of(8)
    pace = Pace(state, ticks_of_job=5, rows=8, chunk=8, clock=clock)
    paint(pace, state, clock, 5, 0)
    assert pace.left == pytest.approx(8 * 5 - 5 + 8 * 4.6 / 8, rel=0.01)
    paint(pace, state, clock, 15, 4)
    assert pace.left == pytest.approx(4 * (5 + 2))
    paint(pace, state, clock, 20, 4)
    assert (pace.left, pace.reached) == (0, 8)
    assert pace.speed == pytest.approx(8 / (8 * (5 + 2)))


def test_the_speed_after_a_resume_is_that_of_this_start() -> None:
    clock, state = Clock(), state_of(8, done=6)
    pace = Pace(state, ticks_of_job=5, rows=8, chunk=2, clock=clock)
    paint(pace, state, clock, 5, 1)
    assert pace.speed == pytest.approx(1 / 7, rel=0.1)
    assert pace.reached == pytest.approx(7, rel=0.05)


def test_images_that_are_dropped_take_their_time_and_chunks_are_painted_whole() -> None:
    clock, state = Clock(), state_of(10, counts_kept=True)
    pace = Pace(state, ticks_of_job=1, rows=8, chunk=4, clock=clock)
    paint(pace, state, clock, 4, 4, kept=False)
    share = 4 / 8
    assert pace.left == pytest.approx((24 - 4) * 3), f"10 at {share} of 4 seen are 20 more, so that 24 are painted"


def test_where_nothing_is_painted_images_say_how_far_it_is() -> None:
    clock, state = Clock(), state_of(8)
    pace = Pace(state, ticks_of_job=0, rows=8, chunk=8, clock=clock)
    assert pace.reached == 0
    state.jobs = state.painted = state.kept = 2
    clock.now = 4
    assert (pace.left, pace.reached, pace.speed) == (12, 2, 0.5)


def test_a_run_says_its_pace_with_every_tick_and_the_summary_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace_module, "_EVERY", 0.0)
    steps = itertools.count()
    monkeypatch.setattr(generate_module, "Pace", partial(Pace, clock=lambda: float(next(steps))))
    painted: Generate = make_paint(tmp_path, monkeypatch)
    events: list[Event] = []
    summary = painted(tmp_path / "run", jobs=9, chunk=9, backend=FakeBackend(), events=events)
    told = [event for event in events if event.kind in (EventKind.PROGRESS, EventKind.IMAGE)]
    first = next(number for number, event in enumerate(told) if event.image is not None)
    assert any(0 < (event.reached or 0) < 1 for event in told[:first]), "ticks are told before an image is there"
    reached = [event.reached or 0 for event in told]
    assert reached[-1] == 9
    assert told[-1].speed == pytest.approx(summary.images_per_second, rel=0.1)
