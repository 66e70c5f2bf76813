"""The kill test: a command is killed in the middle and goes on, and a folder that differs is told."""

import random
import sys
from pathlib import Path

import pytest

from benchmarks import kill_test

# Writes image 0 to 19 where they are not there, one after the other, and the annotations last.
PROGRAM = """
import pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
(out / "images").mkdir(parents=True, exist_ok=True)
for number in range(20):
    path = out / "images" / f"{number:08d}.jpg"
    if not path.exists():
        time.sleep(0.02)
        path.write_text(str(number))
(out / "annotations.json").write_text(WORDS)
"""


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> int:
    monkeypatch.setattr(kill_test, "PROGRAM", PROGRAM.replace("WORDS", words))
    arguments = ["--bundle", str(tmp_path), "--kills", "3", "--seed", "1", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["kill_test.py", *arguments])
    return kill_test.main()


@pytest.mark.slow
def test_runs_that_go_on_to_the_same_bytes_are_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, "'the same'") == 0
    said = capsys.readouterr().out
    assert "identical 3 of 3" in said
    assert "without annotations" in said
    assert not list((tmp_path / "work").glob("round-?"))


@pytest.mark.slow
def test_a_file_that_differs_after_a_kill_is_named_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, "str(time.time())") == 1
    assert "annotations.json differs" in capsys.readouterr().out
    assert (tmp_path / "work" / "round-1").is_dir()


def test_a_run_that_ends_before_it_is_killed_was_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill_test, "PROGRAM", "")
    assert kill_test.kill([], tmp_path / "run", 5, random.Random(0)) == "too late"
