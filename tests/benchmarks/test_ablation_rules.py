"""`benchmarks/ablation_rules.py`: what rules keep of a painted run, and what a detector makes of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_runs import make_run

from benchmarks.ablation_rules import Painted, look_at, measure, rows, table
from engines.labels.boxes import Instances
from engines.labels.rules import Rules
from engines.runs.journal import IMAGES, SPARE
from engines.runs.near_duplicates import REPEATS_IMAGE

NAMES = ("a", "b")


def painted(folder: Path, *, spare: int = 0) -> Painted:
    """Seven images whose one box scores 0.9, 0.45, 0.1, 0.6, 0.31, 0.2, 0.8; the detector finds it on all of them.

    The last `spare` of them are in the run's folder of unused images.
    """

    def predict(images: Any) -> list[Instances]:
        found = []
        for pixels in images:
            label = round(float(pixels.mean()) / 20) % 2
            box = np.array([[1.0, 2.0, 30.0, 20.0]], dtype=np.float32)
            found.append(Instances.of(box, [label], [0.9]))
        return found

    detector: Any = SimpleNamespace(predict=predict, info=SimpleNamespace(class_names=NAMES))
    run = make_run(folder, keep_empty=True, reference=None)
    (run / SPARE).mkdir()
    for file in sorted((run / IMAGES).iterdir())[7 - spare :]:
        file.rename(run / SPARE / file.name)
    return look_at(run, detector, 0.5)


def test_a_higher_threshold_loses_objects_and_uncertain_regions_excuse_them(tmp_path: Path) -> None:
    run = painted(tmp_path / "run")
    scores = [entry.instances.scores.max(initial=0.0) for entry in run.entries]
    rules = Rules(0.5, NAMES, keep_empty=True)
    found = measure("x", run, rules)
    right = sum(score >= 0.5 for score in scores)
    assert (found["images"], found["precision"], found["recall"]) == (7, 1.0, right / 7)
    assert found["f1"] == pytest.approx(2 * right / (right + 7))
    assert (found["excused"], sum(found["by_class"].values())) == (None, right)
    unsure = sum(0.3 <= score < 0.5 for score in scores)
    excused = measure("x", run, replace(rules, uncertain=0.3))["excused"]
    assert excused == pytest.approx(unsure / (7 - right))
    assert 0 < excused < 1
    assert measure("x", run, replace(rules, uncertain=0.05))["excused"] == 1.0


def test_images_that_the_dataset_does_not_use_are_looked_at_too(tmp_path: Path) -> None:
    rules = Rules(0.5, NAMES, keep_empty=True)
    found = measure("x", painted(tmp_path / "spare", spare=2), rules)
    assert found == measure("x", painted(tmp_path / "run"), rules)


def test_dropped_images_count_for_nothing(tmp_path: Path) -> None:
    run = painted(tmp_path / "run")
    rules = Rules(0.5, NAMES, keep_empty=True)
    dropped = {run.entries[row].index: REPEATS_IMAGE for row in (0, 1)}
    found = measure("x", run, rules, dropped)
    assert (found["images"], found["repeats"]) == (5, {REPEATS_IMAGE: 2})
    assert measure("x", run, replace(rules, min_quality=0.5))["images"] < 7


def test_every_rule_has_a_row_and_the_table_all_of_them(tmp_path: Path) -> None:
    run = painted(tmp_path / "run")
    found = list(rows(run, {"a": 0.4}, run))
    names = [row["setting"] for row in found]
    assert len(set(names)) == len(names) == 16
    by_class = next(row for row in found if row["setting"] == "a score for each class")
    assert by_class["by_class"] == found[-1]["by_class"]
    lines = table(found).splitlines()
    assert len(lines) == 2 + 16
    assert len({line.count("|") for line in lines}) == 1
    assert "2 near an earlier image" in table(
        [measure("x", run, Rules(0.5, NAMES), {0: REPEATS_IMAGE, 1: REPEATS_IMAGE})]
    )
