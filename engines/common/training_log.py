"""`training.json`: how a training went, beside what it made.

Knows: the file: of each stage, in the order of training, the mean loss of every ten steps, and what evaluations
measured. Knows nothing about trainings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.common.files import read_json, write_json
from engines.errors import TrainingError

LOG = "training.json"

Row = dict[str, float]  # "step", "loss", and of an evaluation its figures


def write_log(folder: Path, stages: Mapping[str, Sequence[Row]]) -> None:
    """Write the log of a training's stages."""
    write_json(folder / LOG, {"format": 1, "stages": {name: list(rows) for name, rows in stages.items()}})


def read_log(folder: Path) -> dict[str, list[Row]]:
    """Its rows by stage; {} where there is no log. Raises TrainingError for one that is malformed."""
    if not (folder / LOG).exists():
        return {}
    stages: Any = read_json(folder / LOG, TrainingError).get("stages")
    if not isinstance(stages, dict) or not all(_is_log(rows) for rows in stages.values()):
        raise TrainingError(f"{folder / LOG} is no log of a training: remove it.")
    return stages


def _is_log(rows: Any) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and {"step", "loss"} <= row.keys()
        and all(type(value) in (int, float) for value in row.values())
        for row in rows
    )
