"""What a training that was stopped leaves, how it goes on, and when that is removed.

Knows: the files of a checkpoint, and its index. Knows nothing about weights, or about why a training was stopped.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.common.events import Report, note
from engines.common.interrupts import held
from engines.common.plurals import counted
from engines.errors import Interrupted

INDEX, BEST = "checkpoint.json", "best.safetensors"
_SAVING = "The training is over and is being saved. Ctrl-C again stops at once."


@dataclass(frozen=True)
class Reached:
    """How far a checkpoint is."""

    stage: str  # as events name it
    step: int  # optimiser steps that are done
    steps: int  # of so many

    def __str__(self) -> str:
        return f"{self.stage}, step {self.step} of {self.steps}"


def reached(folder: Path) -> Reached | None:
    """The newest checkpoint below a folder; None where none is."""
    indices = sorted(folder.rglob(INDEX), key=lambda path: path.stat().st_mtime_ns)
    if not indices:
        return None
    index = json.loads(indices[-1].read_text("utf-8"))
    return Reached(str(index["stage"]), int(index["step"]), int(index["identity"]["options"]["steps"]))


def steps_done(folder: Path) -> int:
    """Steps behind the checkpoint of the training in `folder`; 0 where there is none."""
    return int(json.loads((folder / INDEX).read_text("utf-8"))["step"]) if (folder / INDEX).exists() else 0


@contextmanager
def told_what_is_kept(folder: Path, finished: str) -> Iterator[None]:
    """Turn a Ctrl-C inside the block into an `Interrupted` that says what is kept below `folder`, as the disk has it.

    `finished`: the pattern of a file that each training leaves when it is done.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        kept, done = reached(folder), len(list(folder.glob(finished)))
        before = f" ({counted(done, 'training')} finished)" if done else ""
        said = f"stopped at {kept}" if kept else "stopped" if done else "stopped before anything was saved"
        raise Interrupted(f"{said}{before}", kept=bool(kept or done)) from stop


def save_result(save: Callable[[], object], folders: Sequence[Path], report: Report) -> None:
    """Save what was trained, then remove the checkpoints in `folders`; the first Ctrl-C waits for that."""
    with held(lambda: report(note(_SAVING))):
        save()
        for folder in folders:
            finished(folder)


def finished(folder: Path) -> None:
    """Remove the checkpoints of a training whose result has been saved elsewhere."""
    for path in (*folder.glob("checkpoint-*.safetensors"), *folder.glob(".*.tmp"), folder / INDEX, folder / BEST):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two JSON-like objects, a line a key: "options.lr was 0.001, is 0.002"."""
    found = []
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += differences(before, now, f"{prefix}{key}.")
        elif _plain(before) != _plain(now):
            found.append(f"{prefix}{key} was {before}, is {now}")
    return found


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
