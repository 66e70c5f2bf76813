"""Ctrl-C and SIGTERM at random moments of trainings: same final bytes, and no step is lost.

DENGINE_STOPS=20 stops each of the verbs that train 20 times, in place of one of them once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOMENTS = int(os.environ.get("DENGINE_STOPS", "0"))
EVERY = ("train-base", "train-adapter", "train-adapter-folds", "audit", "evaluate")
VERBS = EVERY if MOMENTS else ("train-adapter",)


@pytest.mark.slow
def test_trainings_that_are_stopped_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    driver = [sys.executable, str(ROOT / "tests" / "helpers" / "stops.py"), str(tmp_path / "work"), str(MOMENTS or 1)]
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [*driver, *VERBS], env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True
    )
    found = json.loads(done.stdout)
    assert {verb: one["wrong"] for verb, one in found.items()} == {verb: [] for verb in VERBS}
    assert sum(one["stopped"] for one in found.values()) > 0
