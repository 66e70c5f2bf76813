"""The thresholds that a review chose for a run: what `finalize` goes by where it is not told a score.

Knows: their file, both ways. Knows nothing about what is done by them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.common.files import read_json, write_json
from engines.errors import RunError, UsageError
from engines.labels.scores import ScorePolicy, StoredScore, Thresholds, stored

THRESHOLDS = ".dengine/thresholds.json"
_FORMAT = 1


def saved_score(folder: Path) -> StoredScore | None:
    """The score that was chosen last; None where none was. Raises RunError that names the file."""
    path = folder / THRESHOLDS
    if not path.exists():
        return None
    content = read_json(path, RunError)
    score: Any = content.get("score")
    numbers = list(score.values()) if isinstance(score, Mapping) else [score]
    if content.get("format") != _FORMAT or not all(isinstance(one, int | float) for one in numbers):
        raise RunError(f"{path}: format {_FORMAT} and a score, one number or one for each class, were expected.")
    try:
        ScorePolicy.of(score)
    except UsageError as cause:
        raise RunError(f"{path}: {cause}") from cause
    return dict(score) if isinstance(score, Mapping) else float(numbers[0])


def save_score(folder: Path, thresholds: Thresholds) -> None:
    """Choose these thresholds."""
    (folder / THRESHOLDS).parent.mkdir(exist_ok=True)
    write_json(folder / THRESHOLDS, {"format": _FORMAT, "score": stored(thresholds)})


def forget_score(folder: Path) -> None:
    """Whoever names a score has the last word."""
    (folder / THRESHOLDS).unlink(missing_ok=True)
