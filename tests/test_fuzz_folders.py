"""What verbs leave in folders, spoilt file by file: read, or refused in a short line, soon, and nothing else."""

from pathlib import Path

import pytest
from fuzz_folders import KINDS, fuzz_kind

MUTATIONS = 60  # of each kind; `python tests/helpers/fuzz_folders.py` tries more


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_spoilt_files_of_a_folder_are_read_or_refused_in_a_line(kind: str, tmp_path: Path) -> None:
    report = fuzz_kind(kind, tmp_path, MUTATIONS, seed=23)
    assert report.problems == []
    assert report.total == MUTATIONS
    assert report.refused > MUTATIONS // 3
