"""The thresholds that were chosen for a run after it was painted: the score in its `.dengine/rules.json`.

Knows: that file's score, both ways; whatever else is in it stays. Knows nothing about what is done by it.
"""

from collections.abc import Mapping
from pathlib import Path

from engines.common.files import read_json, write_json
from engines.errors import RunError, UsageError
from engines.labels.scores import ScorePolicy, StoredScore, Thresholds, stored

RULES = ".dengine/rules.json"
_FORMAT = 1


def saved_score(folder: Path) -> StoredScore | None:
    """The score that was chosen last; None where none was. Raises RunError that names the file."""
    if not (folder / RULES).exists():
        return None
    score = read_json(folder / RULES, RunError).get("score")
    if score is None:
        return None
    numbers = list(score.values()) if isinstance(score, Mapping) else [score]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        raise RunError(f"{folder / RULES}: score is {score!r:.60}; a number, or one for each class, was expected.")
    try:
        ScorePolicy.of(score)
    except UsageError as cause:
        raise RunError(f"{folder / RULES}: {cause}") from cause
    return dict(score) if isinstance(score, Mapping) else float(score)


def save_score(folder: Path, thresholds: Thresholds) -> None:
    """Choose these thresholds."""
    path = folder / RULES
    before = read_json(path, RunError) if path.exists() else {"format": _FORMAT}
    path.parent.mkdir(exist_ok=True)
    write_json(path, {**before, "score": stored(thresholds)})
