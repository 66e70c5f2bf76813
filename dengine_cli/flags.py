"""Settings as flags: what the library calls `keep_empty` is `--keep-empty` on the command line.

Knows: how a message of the library marks a setting (`engines.errors`), and the flags of each verb. Knows nothing about
what they mean.
"""

import re
from collections.abc import Mapping

_MARKED = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]+))?`")


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """The message with each marked setting as its flag: `score` becomes --score, `size=(256, 192)` --size 256x192.

    `flags` maps the library's names to flags; what it does not hold stays as it is.
    """

    def shown(match: re.Match[str]) -> str:
        flag = flags.get(match[1])
        if flag is None:
            return match[0]
        if match[2] in (None, "True"):
            return flag
        return f"{flag} {_value(match[1], match[2])}"

    return _MARKED.sub(shown, message)


def _value(name: str, text: str) -> str:
    """A tuple as the command line spells it: sizes 256x192, ranges 0.4:0.8."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    between = "x" if name in ("size", "frame") else ":"
    return between.join(part.strip() for part in text[1:-1].split(",") if part.strip())
