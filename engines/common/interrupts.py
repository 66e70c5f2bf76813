"""Ctrl-C and SIGTERM: waiting for a good place to stop at.

Knows: that the first of them asks, and a second one interrupts at once. Knows nothing about what a good place is, or
what is kept there.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held(told: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """While this lasts, the first Ctrl-C (or SIGTERM) makes the yielded function true; the second one interrupts.

    `told` is called at the first. Outside the main thread, where no signal arrives, nothing is changed.
    """
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        told()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def terminable() -> Iterator[None]:
    """While this lasts, SIGTERM interrupts as Ctrl-C does, so that what is open is closed as well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
