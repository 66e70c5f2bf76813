"""Spoilt files of a run: its dataset is written rightly, or refused in a short line, and nothing else."""

from pathlib import Path

import pytest
from fuzz_runs import fuzz_runs

MUTATIONS = 200  # some 4 seconds; `python tests/helpers/fuzz_runs.py` tries more


@pytest.mark.slow
def test_spoilt_files_of_a_run_are_read_or_refused_in_a_line(tmp_path: Path) -> None:
    report = fuzz_runs(tmp_path, MUTATIONS, seed=23)
    assert report.problems == []
    assert report.total == MUTATIONS
    assert report.read > MUTATIONS // 20
    assert report.refused > MUTATIONS // 3
