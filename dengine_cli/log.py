"""The log that a verb leaves in the folder that it wrote: what it showed, or would have without `--quiet`, with times.

Knows: that nothing is written before the verb itself has something there, and that a log which cannot be written stops
nothing. Knows nothing about what is shown.
"""

import time
from collections import deque
from pathlib import Path

from engines.common.files import LOG_FILE

_WAITING = 1000  # lines at most, until there is a folder for them


class Log:
    """The log of a verb that writes a `folder`; None: of one that writes none."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._waiting = deque[str](maxlen=_WAITING)
        self._working = False

    def line(self, text: str) -> None:
        """Add a line of now, or more where the text has more."""
        if self._folder is not None:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            self._waiting.extend(f"{now}  {one}\n" for one in text.splitlines())
            self._write()

    def begin(self) -> None:
        """The verb is at work: from now on lines are written, as soon as there is something in its folder."""
        self._working = True
        self._write()

    def _write(self) -> None:
        if self._folder is None or not self._working or not self._waiting:
            return
        try:
            if not self._folder.is_dir() or next(self._folder.iterdir(), None) is None:
                return
            path = self._folder / LOG_FILE
            path.parent.mkdir(exist_ok=True)
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(self._waiting)
        except OSError:  # of a full disk the verb says more
            self._folder = None
        self._waiting.clear()
