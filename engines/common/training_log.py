"""`metrics.jsonl`: how a training goes, step by step, beside what it makes.

Knows: the file: a JSON object a line, one of every ten steps and of every evaluation, with the stage, the step, the
mean loss since the line before, its parts, the learning rate, and what was measured. No clock is in it, so that a
training that was stopped and went on has the same file as one that was not. Knows nothing about trainings.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.common.files import sync_folder, write_atomic
from engines.common.schema import in_range
from engines.errors import TrainingError

LOG = "metrics.jsonl"

Row = dict[str, float]  # "step", "loss", and other figures


class TrainingLog:
    """The log of a training while it grows; `stages`: of the training, as its lines name them."""

    def __init__(self, folder: Path, stages: Sequence[str]) -> None:
        self._path, self._stages = folder / LOG, tuple(stages)

    def begin(self, stage: str, step: int, before: Sequence[Row] = ()) -> None:
        """Make ready for what comes behind `step` of a stage: what is said of later ones, by a training that was
        stopped, goes, and so do stages of another training and a last line that is torn.

        `before`: rows up to there that were kept elsewhere. Raises TrainingError for a file that is no log.
        """
        old = self._path.read_bytes() if self._path.exists() else b""
        lines = [(name, row) for name, row in _read(self._path) if name in self._stages]
        kept = [(name, row) for name, row in lines if name != stage or row["step"] <= step]
        if not any(name == stage for name, _ in kept):
            kept += [(stage, row) for row in before]
        if (new := "".join(_line(name, row) for name, row in kept).encode()) != old or not self._path.exists():
            write_atomic(self._path, new)

    def add(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Add a line, of the figures that are finite, by six digits."""
        row = {name: float(f"{value:.6g}") for name, value in figures.items() if math.isfinite(value)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(stage, {"step": step, **row}))

    def sync(self) -> None:
        """Flush it to the disk."""
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(self._path.parent)


def write_log(folder: Path, stages: Mapping[str, Sequence[Row]]) -> None:
    """Write the log of a training's stages."""
    text = "".join(_line(name, row) for name, rows in stages.items() for row in rows)
    write_atomic(folder / LOG, text.encode())


def read_log(folder: Path) -> dict[str, list[Row]]:
    """Its rows by stage; {} where there is no log. Raises TrainingError for one that is malformed."""
    stages: dict[str, list[Row]] = {}
    for name, row in _read(folder / LOG):
        stages.setdefault(name, []).append(row)
    return stages


def _line(stage: str, row: Row) -> str:
    return json.dumps({"stage": stage, **row}, ensure_ascii=False, allow_nan=False) + "\n"


def _read(path: Path) -> list[tuple[str, Row]]:
    """Stage and row of every whole line."""
    try:
        *lines, _ = path.read_text("utf-8").split("\n")
        rows = [json.loads(line) for line in lines]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as cause:
        raise TrainingError(f"{path} is not readable as a log of a training: {cause}. Remove it.") from cause
    if not all(_is_row(row) for row in rows):
        raise TrainingError(f"{path} is no log of a training: remove it.")
    return [(row.pop("stage"), row) for row in rows]


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("stage"), str)
        and {"step", "loss"} <= row.keys()
        and all(type(value) in (int, float) for name, value in row.items() if name != "stage")
        and in_range([value for name, value in row.items() if name != "stage"], -1e300, 1e300)
    )
