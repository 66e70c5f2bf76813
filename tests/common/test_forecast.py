"""One time left for all parts of a verb."""

import pytest

from engines.common.events import Event, EventKind, note
from engines.common.forecast import Forecast, Part


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def forecast_of(*parts: Part, done: dict[str, float] | None = None) -> tuple[Forecast, Clock, list[Event]]:
    told: list[Event] = []
    clock = Clock()
    forecast = Forecast(told.append, clock=clock)
    clock.now += 5
    forecast.plan(parts, done)
    return forecast, clock, told


def test_the_plan_is_said_and_preparation_is_no_part_of_it() -> None:
    forecast, _, told = forecast_of(Part("vae", 10, 2.0), Part("unet", 10, 4.0))
    assert forecast.left() == pytest.approx(60)
    assert told[0].kind is EventKind.NOTE
    assert "5.0 s" in str(told[0])
    assert "60 s" in str(told[0])


def test_events_of_the_plan_say_what_all_of_it_takes_and_others_pass() -> None:
    forecast, clock, told = forecast_of(Part("vae", 100, 1.0), Part("unet", 100, 1.0))
    forecast(Event(EventKind.PROGRESS, "vae", done=0, total=100))
    clock.now += 50
    forecast(Event(EventKind.PROGRESS, "vae", done=50, total=100))
    assert told[-1].seconds_left == pytest.approx(150)
    other = Event(EventKind.PROGRESS, "other", done=1, total=2)
    forecast(other)
    forecast(note("line"))
    assert told[-2:] == [other, note("line")]


def test_a_machine_that_is_slower_than_thought_is_so_at_what_comes_too() -> None:
    forecast, clock, _ = forecast_of(Part("vae", 100, 1.0), Part("unet", 100, 1.0))
    forecast.reached("vae", 0)
    clock.now += 100
    forecast.reached("vae", 50)
    assert forecast.left() == pytest.approx(300, rel=0.03)


def test_what_is_measured_outweighs_what_was_guessed() -> None:
    forecast, clock, _ = forecast_of(Part("vae", 1000, 10.0))
    forecast.reached("vae", 0)
    for done in range(10, 310, 10):
        clock.now += 10
        forecast.reached("vae", done)
    assert forecast.left() == pytest.approx(700, rel=0.1)


def test_parts_of_one_stage_have_speeds_of_their_own() -> None:
    forecast, clock, _ = forecast_of(Part("unet", 10, 1.0), Part("unet", 10, 5.0))
    forecast.reached("unet", 0)
    clock.now += 10
    forecast.reached("unet", 10)
    assert forecast.left() == pytest.approx(50)
    clock.now += 7
    forecast.reached("unet", 11)
    assert 45 < forecast.left() < 60


def test_a_stage_that_comes_again_goes_on_behind_what_was_done() -> None:
    forecast, clock, _ = forecast_of(Part("measuring", 30, 1.0))
    for _ in range(2):
        forecast.reached("measuring", 0)
        clock.now += 10
        forecast.reached("measuring", 10)
    assert forecast.left() == pytest.approx(10)


def test_time_before_a_stage_begins_slows_nothing() -> None:
    forecast, clock, _ = forecast_of(Part("vae", 10, 1.0), Part("unet", 10, 1.0))
    clock.now += 1000
    forecast.reached("vae", 0)
    assert forecast.left() == pytest.approx(20)


def test_what_an_earlier_start_did_is_not_to_be_done() -> None:
    forecast, clock, _ = forecast_of(Part("vae", 10, 1.0), Part("unet", 10, 2.0), done={"vae": 10, "unet": 4})
    assert forecast.left() == pytest.approx(12)
    forecast.reached("unet", 4)
    clock.now += 2
    forecast.reached("unet", 5)
    assert forecast.left() == pytest.approx(10)


def test_a_stage_that_another_one_interrupts_keeps_its_time() -> None:
    forecast, clock, _ = forecast_of(Part("adapter", 100, 1.0), Part("measuring", 20, 0.1))
    forecast.reached("adapter", 0)
    for done in (10, 20, 30, 40):
        clock.now += 10
        forecast.reached("measuring", 0)
        clock.now += 0.5
        forecast.reached("measuring", 5)
        forecast.reached("adapter", done)
    assert forecast.left() == pytest.approx(60, rel=0.02)
