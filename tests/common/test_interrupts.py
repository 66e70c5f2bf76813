"""What becomes of Ctrl-C and SIGTERM while a verb runs."""

import contextlib
import os
import signal
from typing import Any

import pytest

from engines.common.interrupts import terminable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_library_swallows_is_known_of(number: signal.Signals) -> None:
    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    found = {one: signal.signal(one, handler) for one, handler in usual.items()}  # Ray, in other tests, leaves its own
    try:
        with terminable() as told:
            assert not told()
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), number)
            assert told()
        assert {one: signal.getsignal(one) for one in usual} == usual
    finally:
        for one, handler in found.items():
            signal.signal(one, handler)


def test_handlers_of_who_calls_the_library_stay() -> None:
    heard: list[int] = []
    found = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, found)
