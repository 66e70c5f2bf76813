"""Ctrl-C in the first moments of the command, while its libraries are imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STARTS = {"the module": ["-m", "dengine"], "the script": ["-c", "from dengine_cli.start import main; main()"]}
BEGUN = "import time\ntry:\n    print('begun', flush=True)\n    time.sleep(20)\nexcept BaseException:\n    "
# What a library does with an interrupt in the middle of its import.
LIBRARIES = {name: BEGUN + rest for name, rest in (
    ("lets it through", "raise\n"), ("hides it", "pass\n"), ("takes it for another", "raise ImportError('no part')\n"),
)}  # fmt: skip


@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_ctrl_c_while_a_library_is_imported_ends_in_one_line(tmp_path: Path, library: str, how: str) -> None:
    (tmp_path / "typer.py").write_text(LIBRARIES[library], "utf-8")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, *STARTS[how], "finalize", "nowhere"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, cwd=tmp_path, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert said.startswith("stopped")
    assert said.count("\n") == 1
