"""What a run's next dataset would go by: the rules that it keeps, with the thresholds that a review chose.

Knows: both, and which one holds. Knows nothing about how datasets are written.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.errors import RunError
from engines.labels.rules import Rules
from engines.labels.scores import stored
from engines.painting.run_settings import RunSettings
from engines.runs.dataset_rules import DatasetRules, kept_rules, read_rules
from engines.runs.decisions import read_decisions
from engines.runs.saved_score import saved_score


def wanted_rules(folder: Path) -> DatasetRules:
    """The rules that the run keeps, with the score that a review chose. Raises RunError for what cannot be read."""
    kept, score = read_rules(folder), saved_score(folder)
    return kept if score is None else replace(kept, score=score)


def rules_in_force(folder: Path, run: RunSettings) -> Rules:
    """What those come to for the run."""
    return kept_rules(folder, run, wanted_rules(folder)).rules


def check_obeyed(folder: Path, info: Any, rules: Rules) -> None:
    """Raise RunError where a run's dataset, whose file has this `info`, was written before what a review decided."""
    known = info if isinstance(info, dict) else {}
    decided = read_decisions(folder).digest
    chosen = saved_score(folder) is not None and known.get("score") != stored(rules.thresholds)
    if chosen or (decided is not None and known.get("review") != decided):
        raise RunError(
            f"{folder} was reviewed since its dataset was written: write it as decided, `dengine finalize {folder}`."
        )
