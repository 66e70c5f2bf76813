"""Long lines on a terminal: cut between words, as a terminal itself does not. Anywhere else they stay one line."""

import shutil
import textwrap
from typing import TextIO


def wrapped(text: str, stream: TextIO) -> str:
    """The text as `stream` is to show it; a word that is wider than the terminal, such as a path, stays whole."""
    if not stream.isatty():
        return text
    width = max(20, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
