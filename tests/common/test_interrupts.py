"""What becomes of Ctrl-C and SIGTERM while a verb runs."""

import contextlib
import os
import signal

import pytest

from engines.common.interrupts import terminable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_library_swallows_is_known_of(number: signal.Signals) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    with terminable() as told:
        assert not told()
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert told()
    assert {one: signal.getsignal(one) for one in before} == before
