"""The review's own file while it is written: what is on the disk, who may write, and what a kill leaves."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reviewing import decisions_in, make_review_run

from engines.errors import RunError
from engines.review.log import ReviewLog
from engines.runs.decision import Decision, Do
from engines.runs.decisions import read_decisions

KILLS = 50


def reject(number: int, name: str = "00000001.jpg") -> Decision:
    return Decision(f"decision-{number}", Do.REJECT, (name,))


def test_a_second_reviewer_is_refused_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with ReviewLog(tmp_path) as log:
        log.add([reject(1)])
        with pytest.raises(RunError, match="being reviewed"), ReviewLog(tmp_path):
            pass
    with ReviewLog(tmp_path) as log:
        assert log.add([reject(1), reject(2)]) == [reject(2)]
    assert [one["id"] for one in decisions_in(tmp_path)] == ["decision-1", "decision-2"]


def test_a_look_that_decided_nothing_leaves_no_file(tmp_path: Path) -> None:
    with ReviewLog(tmp_path):
        pass
    assert not (tmp_path / "review.jsonl").exists()


def test_a_torn_last_line_is_cut_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "review.jsonl").write_bytes(reject(1).to_line().encode() + b'\n{"id": "torn-line')
    with ReviewLog(tmp_path) as log:
        log.add([reject(2)])
    assert [one["id"] for one in decisions_in(tmp_path)] == ["decision-1", "decision-2"]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ReviewLog(tmp_path) as log:
        log.add([reject(1)])
        write = os.write

        def half(descriptor: int, data: bytes) -> int:
            write(descriptor, data[: len(data) // 2])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(OSError, match="space"):
                log.add([reject(2)])
        log.add([reject(3)])
        assert list(log.decisions.lines) == ["decision-1", "decision-3"]
    assert [one["id"] for one in decisions_in(tmp_path)] == ["decision-1", "decision-3"]


def test_an_undo_of_nothing_is_refused_and_not_written(tmp_path: Path) -> None:
    with ReviewLog(tmp_path) as log, pytest.raises(ValueError, match="before it"):
        log.add([reject(1), Decision("decision-2", Do.UNDO, of="decision-9")])
    assert decisions_in(tmp_path) == []


# Forks a server for every line of its input: the run's folder, and a file for what it says. A start of Python for each
# would be most of the test's time.
FORKS = """
import os, signal, sys
import engines.review.app, uvicorn
from engines.review.server import ReviewSettings, review
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    run, said = line.rstrip().split("|")
    if child := os.fork():
        print(child, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 1)
    review(ReviewSettings(run, open=False), report=lambda event: print(event, flush=True))
    os._exit(0)
"""


@pytest.fixture
def forks() -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", FORKS], text=True, **pipes) as process:  # type: ignore[call-overload]
        yield process
        process.stdin.close()


class Server:
    """`dengine review` as a process of its own."""

    def __init__(self, forks: subprocess.Popen[str], run: Path, said: Path) -> None:
        assert forks.stdin is not None
        assert forks.stdout is not None
        forks.stdin.write(f"{run}|{said}\n")
        forks.stdin.flush()
        self.process = int(forks.stdout.readline())
        patience = time.monotonic() + 30
        while not said.exists() or "\n" not in (text := said.read_text("utf-8")):
            assert time.monotonic() < patience
            time.sleep(0.002)
        self.url = text.split(": ", 1)[1].splitlines()[0]

    def post(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(asked).encode()
        request = urllib.request.Request(self.url + "api/" + name, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return dict(json.loads(answer.read()))

    def kill(self) -> None:
        """Returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(self.process, signal.SIGKILL)
                time.sleep(0.002)


@pytest.mark.slow
def test_a_server_killed_fifty_times_loses_no_decision_and_doubles_none(
    tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    """The page sends what was not answered again, under the same id: so does this test. Each kill comes at another
    moment of a stream of decisions, half of them maybe before the first answer.
    """
    run = make_review_run(tmp_path / "run", 20)
    names = sorted(path.name for path in (run / "images").iterdir())
    sent: list[str] = []
    answered: set[str] = set()
    waiting: list[dict[str, Any]] = []
    for kill in range(KILLS):
        server = Server(forks, run, tmp_path / f"said-{kill}")
        killer = threading.Timer(0.004 * (kill % 25), os.kill, (server.process, signal.SIGKILL))
        if kill % 2:
            killer.start()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if not waiting:
                number = len(sent)
                key = f"decision-{number:05d}"
                sent.append(key)
                do = "keep" if number % 3 else "reject"
                waiting.append({"id": key, "do": do, "images": [names[number % len(names)]]})
            try:
                server.post("decide", {"decisions": waiting})
            except (OSError, http.client.HTTPException):
                break
            answered.update(one["id"] for one in waiting)
            waiting.clear()
            if killer.ident is None:  # the other half of the kills come after an answer
                killer.start()
        killer.join()
        server.kill()
        found = [one["id"] for one in _whole_lines(run)]
        assert len(found) == len(set(found))
        assert answered <= set(found)
    server = Server(forks, run, tmp_path / "said")
    if waiting:
        server.post("decide", {"decisions": waiting})
    server.kill()
    assert [one["id"] for one in decisions_in(run)] == sent
    assert len(answered) >= KILLS // 2
    assert len(read_decisions(run)) == len(sent)


def _whole_lines(run: Path) -> list[dict[str, Any]]:
    path = run / "review.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
