"""Where the command `dengine` begins.

Knows: that Ctrl-C ends it in one line while its libraries are imported, before anything is at stake. Imports none of
them itself. Knows nothing about verbs.
"""

import os
import signal
import sys
from types import FrameType

_EXIT_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main() -> None:
    """The console script."""
    before = signal.signal(signal.SIGINT, _leave)
    from dengine_cli.main import app

    try:
        signal.signal(signal.SIGINT, before)
        app()
    except KeyboardInterrupt:  # between two of these lines
        _leave(signal.SIGINT, None)


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: half an import raises errors of any kind."""
    os.write(sys.stderr.fileno(), b"stopped; nothing was begun\n")
    os._exit(_EXIT_INTERRUPTED)
