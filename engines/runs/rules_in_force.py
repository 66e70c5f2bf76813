"""What a run's next dataset would go by: its own rules, with the thresholds that a review chose.

Knows: both, and which one holds. Knows nothing about how datasets are written.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.errors import RunError
from engines.labels.rules import Rules
from engines.labels.scores import ScorePolicy, stored
from engines.painting.run_settings import RunSettings
from engines.runs.decisions import read_decisions
from engines.runs.saved_score import saved_score


def rules_in_force(folder: Path, run: RunSettings) -> Rules:
    """The rules of a plain `finalize`. Raises RunError for thresholds that cannot be read."""
    rules, score = run.rules, saved_score(folder)
    if score is None:
        return rules
    return replace(rules, thresholds=ScorePolicy.of(score).thresholds(rules.thresholds, run.class_names))


def check_obeyed(folder: Path, info: Any, rules: Rules) -> None:
    """Raise RunError where a run's dataset, whose file has this `info`, was written before what a review decided."""
    known = info if isinstance(info, dict) else {}
    decided = read_decisions(folder).digest
    chosen = saved_score(folder) is not None and known.get("score") != stored(rules.thresholds)
    if chosen or (decided is not None and known.get("review") != decided):
        raise RunError(
            f"{folder} was reviewed since its dataset was written: write it as decided, `dengine finalize {folder}`."
        )
