"""Keeps a thread's signal stack what it was.

Knows: what OpenVINO does to it. Compiling a model leaves the calling thread with an alternate signal stack of its own
(`sigaltstack`), which is unmapped when the model goes; the next Ctrl-C, whose handler runs on that stack, then ends the
process with a segmentation fault (seen with OpenVINO 2026.4 on Linux). Knows nothing else of OpenVINO.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_ROOM = 64  # bytes, more than stack_t has on any system


@contextmanager
def same_signal_stack() -> Iterator[None]:
    """Whatever happens inside, this thread has the alternate signal stack afterwards that it had before."""
    change = getattr(ctypes.CDLL(None), "sigaltstack", None)
    if change is None:
        yield
        return
    before = ctypes.create_string_buffer(_ROOM)
    known = change(None, before) == 0
    try:
        yield
    finally:
        if known:
            change(before, None)
