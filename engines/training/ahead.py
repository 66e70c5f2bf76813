"""Adapters that are trained ahead of the one which is kept, each to judge images that it did not see.

Knows: how long they learn, what they take, and how a start that was stopped among them is found again. How images are
dealt to them, and how they are trained, is `folds`' matter.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.adapter.info import INFO_FILE
from engines.common.files import read_json, write_json
from engines.common.forecast import Part
from engines.errors import TrainingError
from engines.training.adapter_rehearsal import AdapterSpeeds
from engines.training.stopping import FOLDS, INDEX, check_same, steps_done
from engines.training.whole_images import MEASURING

FINDS, BEGUN = "finds.json", "begun.json"
VIEWS = 8  # of each image, whose pyramids are kept, where nothing is said


@dataclass(frozen=True)
class Ahead:
    """What is trained ahead."""

    fold: tuple[int, ...]  # of each image, from 0: the adapter of this number judges it, and the others learn from it
    steps: int | None = None  # of each training; None: as many as of the one that is kept

    @property
    def folds(self) -> int:
        """How many adapters there are."""
        return max(self.fold) + 1

    def length(self, steps: int) -> int:
        """Steps of each training, ahead of one of so many."""
        return self.steps or steps

    def identity(self, steps: int) -> dict[str, int]:
        """All that decides what they find beside the settings of the training of so many steps that is kept."""
        return {"folds": self.folds, "fold_steps": self.length(steps)}

    def parts(self, speeds: AdapterSpeeds, steps: int, fresh_of: Callable[[int, int], int], work: Path) -> list[Part]:
        """What is to be done, ahead of a training of so many steps, behind what is in `work`; `fresh_of`: how many of
        so many steps on so many images take new pyramids."""
        found, length = [], self.length(steps)
        for number in range(self.folds):
            judged, done = self.fold.count(number), self._done(number, length, work)
            fresh = fresh_of(length - done, len(self.fold) - judged)
            stage, folder = stage_of(number, self.folds), folder_of(work, number, self.folds)
            if not (folder / INFO_FILE).exists():
                found.append(Part(stage, done + fresh, speeds.head + speeds.pyramid))
                found.append(Part(stage, length - done - fresh, speeds.head))
            if not (folder / FINDS).exists():
                found.append(Part(MEASURING, judged, speeds.first))
        return found

    def done(self, steps: int, work: Path) -> dict[str, float]:
        """Steps that are done in `work`, by what events call the trainings."""
        length = self.length(steps)
        return {stage_of(number, self.folds): self._done(number, length, work) for number in range(self.folds)}

    def _done(self, number: int, length: int, work: Path) -> int:
        folder = folder_of(work, number, self.folds)
        return length if (folder / INFO_FILE).exists() else steps_done(folder / "training")


def folder_of(work: Path, number: int, folds: int) -> Path:
    """The folder of a fold, from 0."""
    return work / FOLDS / f"{number + 1}-of-{folds}"


def stage_of(number: int, folds: int) -> str:
    """What events call the training of a fold, from 0."""
    return f"fold {number + 1} of {folds}"


def begun(work: Path, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """The identity of the training whose folds are kept in `work`; `default` where none is. Raises TrainingError."""
    kept = (path for name in (INDEX, INFO_FILE) for path in (work / FOLDS).rglob(name))
    if not (work / BEGUN).exists() or next(kept, None) is None:
        return default
    found = read_json(work / BEGUN, TrainingError).get("identity")
    if not isinstance(found, dict):
        raise TrainingError(f"{work / BEGUN} is not of a training. Remove {work}, and train from the start.")
    return found


def begin(work: Path, identity: Mapping[str, Any]) -> None:
    """Leave the identity of a training whose folds begin."""
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / BEGUN, {"identity": json.loads(json.dumps(identity))})


def check_begun(work: Path, identity: Mapping[str, Any]) -> None:
    """Raise TrainingError for folds in `work` that are of another identity."""
    if before := begun(work, {}):
        check_same(work, before, identity, TrainingError)


def clear(work: Path) -> None:
    """Remove what the folds left."""
    shutil.rmtree(work / FOLDS, ignore_errors=True)
    (work / BEGUN).unlink(missing_ok=True)
