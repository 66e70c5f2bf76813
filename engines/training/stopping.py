"""What a training that was stopped leaves, how it goes on, and when that is removed.

Knows: the files of a checkpoint, and its index. Knows nothing about weights, or about why a training was stopped.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.common.events import Report, note
from engines.common.files import read_json
from engines.common.interrupts import held
from engines.common.plurals import counted
from engines.common.quote import list_mistakes, quote, shorten
from engines.common.schema import from_object, hold, in_range
from engines.common.training_log import Row
from engines.errors import DengineError, Interrupted, TrainingError

INDEX, BEST = "checkpoint.json", "best.safetensors"
FOLDS = "folds"  # the folder whose folders, such as 1-of-3, each hold the training of a fold
_SAVING = "The training is over and is being saved. Ctrl-C again stops at once."


@dataclass(frozen=True)
class Reached:
    """How far a checkpoint is."""

    stage: str  # as events name it
    step: int  # optimiser steps that are done
    steps: int  # of so many

    def __str__(self) -> str:
        return f"{self.stage}, step {self.step} of {self.steps}"


@dataclass(frozen=True)
class CheckpointIndex:
    """What the index says of the checkpoint beside it."""

    file: str  # name of the weights' file
    stage: str  # as events name it
    step: int  # optimiser steps that are done
    best: dict[str, float]  # figures of the best evaluation; {} without one
    identity: dict[str, Any]  # all that decides the result, the options among it
    losses: tuple[float, ...] = ()  # since they were last told
    log: tuple[Row, ...] = ()  # of a training that was begun before `metrics.jsonl`

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        options = self.identity.get("options")
        found = options.get("steps") if isinstance(options, Mapping) else None
        return found if type(found) is int else 0


def read_index(folder: Path) -> CheckpointIndex:
    """The index of the checkpoint in `folder`. Raises TrainingError that says what is wrong with it."""
    where, mend = str(folder / INDEX), "Remove the folder, and train from the start."
    found = from_object(CheckpointIndex, read_json(folder / INDEX, TrainingError), TrainingError, where)
    checks = (
        ("file", "the file of a checkpoint", re.fullmatch(r"checkpoint-\d+\.safetensors", found.file) is not None),
        ("step", f"1 to {found.steps}, the steps of its options", 1 <= found.step <= found.steps),
        ("best", "numbers", in_range(found.best, -1e30, 1e30)),
        ("losses", "numbers that can be added up", in_range(found.losses, -1e30, 1e30)),
        ("log", "rows with a step and a loss", all({"step", "loss"} <= row.keys() for row in found.log)),
        ("log", "rows of numbers", in_range(found.log, -1e30, 1e30)),
    )
    hold(found, checks, TrainingError, where, mend)
    return found


def reached(folder: Path) -> Reached | None:
    """The newest checkpoint below a folder; None where none is."""
    indices = sorted(folder.rglob(INDEX), key=lambda path: path.stat().st_mtime_ns)
    if not indices:
        return None
    index, place = read_index(indices[-1].parent), indices[-1].parent.parent
    stage = f"fold {place.name.replace('-', ' ')}" if place.parent.name == FOLDS else index.stage
    return Reached(stage, index.step, index.steps)


def unfinished(folder: Path) -> TrainingError:
    """The error of a start that is not to go on with the training in `folder`."""
    return TrainingError(
        f"{folder} holds an unfinished training; continue it with `resume=True`, or remove it.", field="resume"
    )


def steps_done(folder: Path) -> int:
    """Steps behind the checkpoint of the training in `folder`; 0 where there is none. Raises TrainingError."""
    return read_index(folder).step if (folder / INDEX).exists() else 0


@contextmanager
def told_what_is_kept(folder: Path, *finished: str) -> Iterator[None]:
    """Turn a Ctrl-C inside the block into an `Interrupted` that says what is kept below `folder`, as the disk has it.

    `finished`: patterns of the files that trainings leave when they are done.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        kept, done = reached(folder), sum(len(list(folder.glob(pattern))) for pattern in finished)
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


def check_same(folder: Path, before: object, now: Mapping[str, Any], error: type[DengineError]) -> None:
    """Raise `error` that shows what differs where `before`, read from a file of `folder`, is not all that decides its
    content `now`."""
    if found := list(_differences(before if isinstance(before, Mapping) else {}, json.loads(json.dumps(now)))):
        raise error(
            f"{folder} was made with other settings: {list_mistakes(found)}. Give these again, or another folder."
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What differs between two JSON objects, a line a key: "options.lr was 0.001, is 0.002"."""
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            yield f"{prefix}{shorten(key)} was {quote(before)}, is {quote(now)}"
