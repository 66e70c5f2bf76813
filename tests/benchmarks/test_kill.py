"""The kill test: a command is killed in the middle and goes on, and a folder that differs is told."""

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import kills
import pytest
from kill_scenes import Scene, disagreeing

from benchmarks import kill_test


def in_forks(monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], object]) -> None:
    """What the kill test starts does `work` on the folder that is its last word."""

    def start(words: list[str], log: Path) -> int:
        if child := os.fork():
            return child
        try:
            work(Path(words[-1]))
        finally:
            os._exit(0)

    monkeypatch.setattr(kills, "start", start)


def slowly(content: Callable[[], str]) -> Callable[[Path], None]:
    """Writes file 0 to 19 where they are not there, one after the other, and the annotations last."""

    def work(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for number in range(20):
            if not (folder / str(number)).exists():
                time.sleep(0.01)
                (folder / f".{number}").write_text(str(number))
                (folder / f".{number}").rename(folder / str(number))
        (folder / "annotations.json").write_text(content())

    return work


SCENE = Scene(lambda folder: ["make", str(folder)], lambda folder: ["make", str(folder)], lambda folder: None,
              lambda folder: [])  # fmt: skip


def test_what_goes_on_to_the_same_bytes_is_as_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_forks(monkeypatch, slowly(lambda: "the same"))
    seconds, expected = kills.in_peace(SCENE, tmp_path / "peace")
    times, wrong = kills.one_round(SCENE, tmp_path / "round", seconds / 2, expected, 3, random.Random(1))
    assert (times > 0, wrong) == (True, [])


def test_a_file_that_differs_after_a_kill_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_forks(monkeypatch, slowly(lambda: str(time.monotonic())))
    seconds, expected = kills.in_peace(SCENE, tmp_path / "peace")
    _, wrong = kills.one_round(SCENE, tmp_path / "round", seconds / 2, expected, 1, random.Random(1))
    assert wrong == ["annotations.json differs"]


def test_what_ends_before_it_is_killed_is_no_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_forks(monkeypatch, lambda folder: None)
    assert not kills.kill(["make", str(tmp_path)], tmp_path / "log", 0.2)


def test_a_folder_that_contradicts_itself_is_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert disagreeing(tmp_path) == []
    (tmp_path / "annotations.json").write_text(json.dumps({"images": [{"file_name": "00000000.jpg"}]}))
    (tmp_path / "journal.jsonl").write_text(json.dumps({"outcome": "kept", "file": "00000000.jpg"}) + "\n")
    assert disagreeing(tmp_path) == ["images is not what annotations.json says"]
    (tmp_path / "images" / "00000000.jpg").touch()
    assert disagreeing(tmp_path) == []
    (tmp_path / "journal.jsonl").write_text("")
    assert disagreeing(tmp_path) == ["annotations.json has images without a line"]


def test_counts_are_added_up(tmp_path: Path) -> None:
    for good in (1, 0):
        kill_test.add_result(tmp_path / "kills.json", "merge", 1, good)
    assert json.loads((tmp_path / "kills.json").read_text()) == {"merge": {"kills": 2, "as_promised": 1}}
