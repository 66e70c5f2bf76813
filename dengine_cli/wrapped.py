"""Long lines on a terminal: cut between words, as a terminal itself does not. Anywhere else they stay one line."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import TextIO

_NARROWEST = 20  # columns that are believed
_NAMED = re.compile(r"\s*\S+( \S+)* {2,}")  # the name in a line such as "memory         24 GiB"


def width_of(stream: TextIO) -> int | None:
    """Columns of the terminal that `stream` writes to; None where it is none."""
    return max(_NARROWEST, shutil.get_terminal_size().columns) if stream.isatty() else None


def wrapped(text: str, stream: TextIO) -> str:
    """The text as `stream` is to show it; a word that is wider than the terminal, such as a path, stays whole."""
    if (width := width_of(stream)) is None:
        return text
    return "\n".join(_filled(line, width) for line in text.split("\n"))


def _filled(line: str, width: int) -> str:
    """One line as several where it is wider than so many columns; what stands behind a name stays behind it."""
    if len(line) <= width:
        return line
    named = _NAMED.match(line)
    indent = len(named[0]) if named and len(named[0]) <= width // 2 else len(line) - len(line.lstrip())
    return textwrap.fill(line, width, subsequent_indent=indent * " ", break_long_words=False, break_on_hyphens=False)


def in_lines(words: Sequence[str], width: int | None, before: str = "") -> str:
    """A command line behind `before`, over several lines where it is wider than so many columns: ready to copy.

    >>> print(in_lines(["dengine", "export", "--model", "bases/mine"], 30, "next: "))
    next: dengine export \\
      --model bases/mine
    """
    parts: list[str] = []  # a flag and its value stay together
    for word in words:
        if parts and parts[-1].startswith("-") and " " not in parts[-1] and not word.startswith("-"):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    lines = [before + parts[0]]
    for part in parts[1:]:
        if width is not None and len(f"{lines[-1]} {part} \\") > width:
            lines.append(f"  {part}")
        else:
            lines[-1] += f" {part}"
    return " \\\n".join(lines)
