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
def terminable() -> Iterator[Callable[[], bool]]:
    """While this lasts, SIGTERM interrupts as Ctrl-C does, so that what is open is closed as well.

    The yielded function says whether either came: a library may swallow the KeyboardInterrupt, and end in an error of
    its own (torch.asarray does, while safetensors reads).
    """
    told: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        told.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    usual = {signal.default_int_handler, signal.SIG_DFL}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number in (number for number, handler in before.items() if handler in usual):
            signal.signal(number, handle)
        yield lambda: bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
