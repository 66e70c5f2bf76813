"""The thresholds that a review chose for a run: what `finalize` goes by where it is not told a score.

Knows: their file, both ways. Knows nothing about what is done by them.
"""

from dataclasses import dataclass
from pathlib import Path

from engines.common.files import read_json, write_json
from engines.common.schema import from_object
from engines.errors import RunError, UsageError
from engines.labels.scores import ScorePolicy, StoredScore, Thresholds, stored
from engines.runs.journal import OWN

THRESHOLDS = f"{OWN}/thresholds.json"
_FORMAT = 1


@dataclass(frozen=True)
class _Saved:
    """The file."""

    format: int
    score: float | dict[str, float]


def saved_score(folder: Path) -> StoredScore | None:
    """The score that was chosen last; None where none was. Raises RunError that names the file."""
    path = folder / THRESHOLDS
    if not path.exists():
        return None
    content = read_json(path, RunError)
    if content.get("format") != _FORMAT:
        raise RunError(f"{path}: format {_FORMAT} was expected. Remove it, or choose thresholds in a review again.")
    score = from_object(_Saved, content, RunError, str(path)).score
    try:
        ScorePolicy.of(score)
    except UsageError as cause:
        raise RunError(f"{path}: {cause}") from cause
    return score


def save_score(folder: Path, thresholds: Thresholds) -> None:
    """Choose these thresholds."""
    (folder / THRESHOLDS).parent.mkdir(exist_ok=True)
    write_json(folder / THRESHOLDS, {"format": _FORMAT, "score": stored(thresholds)})


def forget_score(folder: Path) -> None:
    """Whoever names a score has the last word."""
    (folder / THRESHOLDS).unlink(missing_ok=True)
