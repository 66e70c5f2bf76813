"""A verb's command line, to be read and copied on a page.

Knows: how settings are spelt there. Knows nothing about which of them matter.
"""

import shlex
from collections.abc import Mapping
from typing import Any

_NAMES = {"formats": "format"}
_BETWEEN = {"size": "x", "formats": ","}


def command(verb: str, asked: Mapping[str, Any]) -> str:
    """The line; settings that are None are left out, and a switch that is on has no value."""
    words = ["dengine", *verb.split()]
    for name, value in asked.items():
        if value is None or value is False:
            continue
        words.append("-" * 2 + _NAMES.get(name, name).replace("_", "-"))
        if isinstance(value, Mapping):
            words.append(",".join(f"{key}={one:g}" for key, one in value.items()))
        elif isinstance(value, tuple | list):
            words.append(_BETWEEN.get(name, ":").join(str(one) for one in value))
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)
