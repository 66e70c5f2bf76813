"""What a `generate` is about to do, said before it writes anything.

Knows: which settings are worth showing once they are settled, and what images of a run take on the disk. Knows nothing
about how long painting takes: only the first network calls show that.
"""

import itertools
from pathlib import Path
from typing import Any

from engines.common.events import Event, EventKind
from engines.common.plurals import counted
from engines.painting.run_settings import RunSettings
from engines.runs.journal import IMAGES
from engines.runs.state import RunState

_SHOWN = (
    "size", "steps", "sampler", "strength", "guidance", "guidance_interval", "score", "labels", "chunk", "slots",
    "rows", "engine", "precision", "threads",
)  # fmt: skip
_MEASURED = 200  # images whose files say how large one is


def planned(folder: Path, wanted: RunSettings, state: RunState) -> Event:
    """What is left to be painted, how, and what it takes on the disk, where images of the run are there to say so."""
    left, kept = state.target - state.done, "kept" if state.counts_kept else "painted"
    if state.over:
        text = f"{counted(state.done, 'image')} of {state.target} are {kept}: the dataset files alone are written again"
    else:
        there = f" to the {state.done} that are there" if state.done else ""
        text = f"paints until {counted(left, 'image')} are {kept}{there}, in chunks of {wanted.options.chunk}"
    found = {name: getattr(wanted.options, name) for name in _SHOWN}
    settled: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    size = _bytes_of_an_image(folder)
    needs = {"disk": size * left} if size is not None and left > 0 else {}
    return Event(EventKind.PLANNED, text=text, settled=settled, needs=needs)


def _bytes_of_an_image(folder: Path) -> float | None:
    """The mean size of a run's files; None where there is none yet."""
    files = itertools.islice((folder / IMAGES).iterdir(), _MEASURED) if (folder / IMAGES).is_dir() else ()
    sizes = [file.stat().st_size for file in files if file.is_file()]
    return sum(sizes) / len(sizes) if sizes else None
