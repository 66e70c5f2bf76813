"""The command that repeats a run.

Knows: which of its settings were not the defaults. Knows nothing about where it is shown.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from engines.common.spell import command
from engines.painting.run_settings import RunSettings
from engines.painting.settings import PaintOptions

_NOT_ASKED = ("chunk", "slots", "rows", "threads", "short_side", "frequencies")  # what follows from the rest


def generate_command(run: RunSettings, paths: bool = True) -> str:
    """The line, with an `out` of its own; without `paths`, folders are called by their last name alone."""
    plain = {item.name: item.default for item in fields(PaintOptions)}
    asked: dict[str, Any] = {}
    for name, value in vars(run.options).items():
        if value is None or value == plain[name] or name in _NOT_ASKED or value is False:
            continue
        asked[name] = value.name if isinstance(value, Path) and not paths else value
    return command("generate", asked | {"out": "again"})
