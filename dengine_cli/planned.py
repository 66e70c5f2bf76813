"""What `--dry-run` prints: what a verb would do, how long that takes, and what it needs.

Knows: how the event that a verb reports before it writes reads on a terminal. Knows nothing about the verbs.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dengine_cli import console
from engines.common.events import Event, duration

_UNKNOWN = "not known before it begins"


def show_plan(plan: Event, out: object) -> None:
    """Print what would be done into the folder `out`, and that nothing is."""
    needs = plan.needs
    memory = f"at least {_size(needs['memory'])}" if "memory" in needs else _UNKNOWN
    disk = f"about {_size(needs['disk'])}" if "disk" in needs else _UNKNOWN
    time = f"about {duration(plan.seconds_left)}" if plan.seconds_left else _UNKNOWN
    rows = [("time", time), ("memory", memory), ("disk", f"{disk}{_free(out)}")]
    console.echo(plan.text)
    console.echo(console.table(rows))
    console.echo("with")
    for name, value in plan.settled.items():
        console.echo(f"  `{name}={_spelt(value)}`")
    console.echo("a dry run: nothing was written")


def _spelt(value: Any) -> str:
    """A setting's value, as a message of the library would have it."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={one:g}" for key, one in value.items()) or "{}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _free(out: object) -> str:
    """How much room there is where `out` is to be; nothing for what is no folder here."""
    place = Path(str(out)).absolute()
    there = next((one for one in (place, *place.parents) if one.is_dir()), None)
    return f"; {_size(shutil.disk_usage(there).free)} are free" if there else ""


def _size(number: float) -> str:
    """Bytes in words.

    >>> _size(12_345), _size(45_000_000), _size(3 << 30)
    ('12 KiB', '43 MiB', '3.0 GiB')
    """
    for unit, shift in (("GiB", 30), ("MiB", 20)):
        if number >= 1 << shift:
            return f"{number / (1 << shift):.{1 if shift == 30 else 0}f} {unit}"
    return f"{number / 1024:.0f} KiB"
