"""Spoilt dataset files: read or refused in a short line, soon, and nothing else."""

from pathlib import Path

import pytest
from fuzz_datasets import fuzz_datasets

MUTATIONS = 600  # some 4 seconds; `python tests/helpers/fuzz_datasets.py` tries more


@pytest.mark.slow
def test_spoilt_dataset_files_are_read_or_refused_in_a_line(tmp_path: Path) -> None:
    report = fuzz_datasets(tmp_path, MUTATIONS, seed=23)
    assert report.problems == []
    assert report.total == MUTATIONS
    assert report.read > MUTATIONS // 5
    assert report.refused > MUTATIONS // 5
