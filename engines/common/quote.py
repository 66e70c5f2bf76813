"""Foreign values in messages: on one line, sixty characters at most.

Knows: how a value that somebody else wrote is shown, and how many mistakes one message lists. Knows nothing about what
is wrong with it.
"""

import reprlib
from collections.abc import Callable, Sequence

LONGEST = 60  # characters of a foreign value
_LISTED = 300  # characters of the mistakes that one message lists

_REPR = reprlib.Repr()  # looks no deeper and no further than it shows
_REPR.maxlevel, _REPR.maxdict, _REPR.maxlist, _REPR.maxtuple = 3, 4, 8, 8
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = LONGEST


def shorten(text: object, limit: int = LONGEST) -> str:
    """A text without line breaks or other characters that do not print, cut to `limit` characters."""
    whole = _spelt(text, str)[: limit + 1]
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in whole)
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def quote(value: object) -> str:
    """A value as a message shows it: text in double quotes, everything else as Python writes it."""
    if isinstance(value, str):
        return f'"{shorten(value)}"'
    return shorten(_spelt(value, _REPR.repr))


def _spelt(value: object, spell: Callable[[object], str]) -> str:
    try:
        return spell(value)
    except ValueError:  # a whole number of more digits than Python spells
        return "a number of thousands of digits"


def list_mistakes(mistakes: Sequence[str]) -> str:
    """Mistakes one after the other, and how many more there are where that would grow too long; at least one shows."""
    shown, length = 0, 0
    for mistake in mistakes:
        length += len(mistake)
        if shown and length > _LISTED:
            break
        shown += 1
    more = len(mistakes) - shown
    return "; ".join(mistakes[:shown]) + (f"; and {more} more" if more else "")
