"""A build, watched: its progress from nested phases, told by many threads, and how it is cancelled."""

import signal
import threading

import pytest

from engines.common.events import Event
from export.tensorrt.progress import Phases, run_cancellable

# --- a build, watched --------------------------------------------------------------------------------------------


def test_shares_follow_from_nested_steps_and_never_go_back() -> None:
    told: list[Event] = []
    now = [0.0]
    phases = Phases("unet", told.append, clock=lambda: now[0])
    phases.start("Building", None, 2)
    phases.start("Tactics", "Building", 4)
    now[0] = 10.0
    phases.step("Tactics", 0)
    assert (told[-1].done, told[-1].text) == (12.5, "Tactics")
    assert told[-1].seconds_left == pytest.approx(70.0)
    phases.start("Other", "Building", 10)  # another thread's, less far
    assert told[-1].done == 12.5
    phases.finish("Tactics")
    phases.step("Other", 0)
    assert told[-1].done == 12.5  # 5.0 by its own, which would be a step back
    phases.step("Building", 0)
    assert told[-1].done == 55.0
    phases.finish("Other")
    phases.finish("Building")
    assert told[-1].done == 100
    phases.start("Serializing", None, 1)
    assert told[-1].done == 0
    phases.step("unheard of", 3)
    phases.finish("unheard of")


def test_phases_may_be_told_from_many_threads() -> None:
    told: list[Event] = []
    phases = Phases("unet", told.append)
    phases.start("Building", None, 8)

    def work(number: int) -> None:
        for _ in range(50):
            phases.start(f"part {number}", "Building", 5)
            for step in range(5):
                phases.step(f"part {number}", step)
            phases.finish(f"part {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shares = [progress.done or 0.0 for progress in told]
    assert shares == sorted(shares)
    assert len(shares) == 1 + 4 * 50 * 6


def test_work_that_can_be_cancelled_gives_its_result_or_its_error() -> None:
    assert run_cancellable(lambda cancel: 5, lambda: False) == 5

    def fail(cancel: threading.Event) -> None:
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        run_cancellable(fail, lambda: False)


@pytest.mark.parametrize("how", ["stop", "Ctrl-C"])
def test_work_is_cancelled_and_waited_for(how: str) -> None:
    ended: list[bool] = []

    def work(cancel: threading.Event) -> None:
        if how == "Ctrl-C":
            signal.raise_signal(signal.SIGINT)
        ended.append(cancel.wait(10))

    with pytest.raises(KeyboardInterrupt):
        run_cancellable(work, lambda: how == "stop")
    assert ended == [True]
