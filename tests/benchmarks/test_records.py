"""`benchmarks/records.py`, the one way to keep measurements and to report them; and that every script has help."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.records import Steps, measured_on, table, write_report
from engines.errors import BackendError

SCRIPTS = ("audit_bar", "full_size_models", "gpu", "kill_test", "large", "speed")


def fail() -> dict[str, Any]:
    raise BackendError("no such\nruntime")


def test_finished_measurements_are_kept_and_failed_ones_tried_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def steps(jobs: int) -> Steps:
        return Steps(tmp_path, {"jobs": jobs, "size": (4, 3)}, tell=calls.append)

    assert steps(1).do("good", lambda: {"seconds": 1.0}) == {"seconds": 1.0}
    assert steps(1).do("bad", fail) == {"error": "no such runtime"}
    assert steps(1).do("good", lambda: {"seconds": 2.0}) == {"seconds": 1.0}
    assert steps(1).all() == {"good": {"seconds": 1.0}, "bad": {"error": "no such runtime"}}
    assert steps(1).do("bad", lambda: {"seconds": 3.0}) == {"seconds": 3.0}
    assert calls == ["good", "bad", "bad"]
    assert steps(2).all() == {}  # of another workload
    assert steps(2).do("good", lambda: {"seconds": 4.0}) == {"seconds": 4.0}
    again = steps(1)
    again.forget("ba")
    assert again.all() == {}
    assert again.origins() == "Nothing was measured."


def test_a_needed_measurement_that_fails_ends_the_script_and_other_errors_are_kept_where_asked(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="paint: no such runtime"):
        Steps(tmp_path, {}, tell=lambda line: None).do("paint", fail, needed=True)
    with pytest.raises(ZeroDivisionError):
        Steps(tmp_path, {}, tell=lambda line: None).do("row", lambda: {"seconds": 1 / 0})
    every = Steps(tmp_path, {}, tell=lambda line: None, errors=Exception)
    assert every.do("row", lambda: {"seconds": 1 / 0}) == {"error": "ZeroDivisionError: division by zero"}


def test_what_is_kept_tells_when_it_ended_and_which_commit_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tmp_path, {}, tell=lambda line: None)
    for code, names in (("new", ("a", "b")), ("old", ("c",))):
        monkeypatch.setattr("benchmarks.records.commit", lambda code=code: code)
        for name in names:
            steps.do(name, dict)
    now = time.strftime("%Y-%m-%d", time.gmtime())
    assert steps.origins().startswith("3 measurements, ended from 20")
    assert f"to {now}" in steps.origins()
    assert steps.origins().endswith("UTC: 2 by commit new, 1 by commit old.")


def test_a_report_is_printed_and_written_with_its_figures_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"processor": "a CPU", "cores": 2, "memory_gib": 23.5, "system": "Linux x86_64", "gpus": ["a GPU"]}
    value = {"machine": place, "versions": {"python": "3.11"}}
    assert measured_on(value) == "Machine: a GPU, a CPU, 2 cores, 24 GiB, Linux x86_64. Versions: python 3.11."
    rows = table(("what", "found"), [("a|b", 1)])
    assert rows == "| what | found |\n| --- | --- |\n| a/b | 1 |"
    assert table(("what", "found"), []) == "Not measured."
    write_report(("# Title", "", rows), value, tmp_path / "new" / "report.md")
    assert (tmp_path / "new" / "report.md").read_text("utf-8") == f"# Title\n\n{rows}\n"
    assert json.loads((tmp_path / "new" / "report.json").read_text("utf-8")) == value
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "# Title"
    assert json.loads(printed[-1]) == value


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_how_it_is_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as done:
        importlib.import_module(f"benchmarks.{name}").main()
    assert done.value.code == 0
    assert f"python benchmarks/{name}.py" in capsys.readouterr().out


def test_keeping_and_reporting_imports_no_runtime() -> None:
    code = "import sys; import benchmarks.records; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "openvino", "onnxruntime", "tensorrt"} & set(done.stdout.split())
