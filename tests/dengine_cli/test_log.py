"""The log that verbs leave in the folder that they wrote."""

import re
from pathlib import Path

import pytest
from command_line import assert_fails, dengine

from benchmarks.large_checks import different_files, read_hashes
from dengine_cli.log import Log
from engines.common.files import LOG_FILE, OWN
from engines.datasets.dataset import open_dataset

TIMED = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)  (.*)")


def lines(folder: Path) -> list[str]:
    """What a folder's log says, without times, which are in order."""
    found = [TIMED.fullmatch(line) for line in (folder / LOG_FILE).read_text("utf-8").splitlines()]
    read = [(match[1], match[2]) for match in found if match]
    assert len(read) == len(found)
    assert [time for time, _ in read] == sorted(time for time, _ in read)
    return [text for _, text in read]


@pytest.fixture
def painting(toy_bundle: Path) -> list[object]:
    """A small `generate`, but for how much and where."""
    fast = ("--engine", "torch", "--threads", 1, "--steps", 2, "--guidance", 1, "--keep-empty", "--no-report")
    return ["generate", "--bundle", toy_bundle, *fast]


@pytest.mark.slow
def test_a_log_has_what_was_said_and_goes_on_with_the_run(painting: list[object], tmp_path: Path) -> None:
    loud, still = tmp_path / "loud", tmp_path / "still"
    said = dengine(*painting, "--count", 1, "--out", loud)
    quiet = dengine(*painting, "--count", 1, "--out", still, "-q")
    assert (said.exit_code, quiet.exit_code, quiet.stderr) == (0, 0, ""), said.output
    first = lines(loud)
    assert first[0].startswith("dengine ")
    assert first[0].endswith(f"--count 1 --out {loud}")
    shown = [*said.stderr.splitlines(), *said.stdout.splitlines()]
    assert [line for line in shown if line not in first] == []
    assert any(line.startswith("painting: 1/1") for line in lines(still)), "what -q does not show is kept, too"
    assert different_files(read_hashes(loud), read_hashes(still)) == []

    before = (loud / LOG_FILE).read_bytes()
    assert_fails(dengine(*painting, "--count", 1, "--guidance", 2, "--out", loud), 1, "guidance")
    assert dengine(*painting, "--count", 2, "--out", loud, "--dry-run").exit_code == 0
    assert (loud / LOG_FILE).read_bytes() == before, "what is refused, or only planned, writes nothing"
    assert dengine(*painting, "--count", 2, "--out", loud).exit_code == 0
    assert (loud / LOG_FILE).read_bytes().startswith(before)
    assert any(line.endswith(f"--count 2 --out {loud}") for line in lines(loud)[len(first) :])
    assert len(open_dataset(loud, require_boxes=False).records) == 2


def test_nothing_is_written_before_the_verb_has_something_there(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.line("opening")
    log.begin()
    log.line("one\ntwo")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "image.png").write_bytes(b"")
    log.line("three")
    assert lines(tmp_path) == ["opening", "one", "two", "three"]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / OWN).write_text("a file", "utf-8")
    log = Log(tmp_path)
    log.begin()
    for text in ("one", "two"):
        log.line(text)
    assert [path.name for path in tmp_path.iterdir()] == [OWN]
