"""Measurements in processes of their own."""

import os
from pathlib import Path

import pytest
from refusals import refused

from engines.errors import BackendError, UsageError
from engines.measure.alone import run_alone

TASKS = """
import os
from engines.errors import UsageError

def echo(arguments, tell):
    print("libraries print what they like")
    tell("half\\nway")
    return {"given": arguments["number"], "process": os.getpid()}

def refuse(arguments, tell):
    raise UsageError("`steps` is 0; 1 or more was expected.", field="steps")

def crash(arguments, tell):
    raise RuntimeError("out of luck")

def vanish(arguments, tell):
    os._exit(9)
"""


@pytest.fixture(autouse=True)
def _tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "measure_tasks.py").write_text(TASKS, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_result_and_what_was_said_come_back_from_another_process() -> None:
    told: list[str] = []
    found = run_alone("measure_tasks:echo", {"number": 7}, told.append)
    assert found["given"] == 7
    assert found["process"] != os.getpid()
    assert told == ["half way"]


def test_an_error_of_ours_keeps_its_class_words_and_field() -> None:
    with refused(UsageError, "steps", "`steps` is 0; 1 or more was expected."):
        run_alone("measure_tasks:refuse", {})


def test_another_end_is_a_backend_error_with_the_last_words() -> None:
    with refused(BackendError, None, "exit code 1", "RuntimeError: out of luck"):
        run_alone("measure_tasks:crash", {})
    with refused(BackendError, None, "exit code 9"):
        run_alone("measure_tasks:vanish", {})
