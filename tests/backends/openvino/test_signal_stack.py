"""The signal stack of a thread in which OpenVINO compiled a network."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

PROGRAM = """
import ctypes, os, signal, sys
sys.path.insert(0, sys.argv[1])
from engines.backends.registry import open_backend
from engines.bundle.bundle import default_bundle, open_bundle

def signal_stack():
    found = ctypes.create_string_buffer(64)
    assert ctypes.CDLL(None).sigaltstack(None, found) == 0
    return found.raw

bundle = open_bundle(default_bundle(), verify=False)
before = signal_stack()
backend = open_backend(bundle, "openvino", threads=1, device="cpu", keep_compiled=False)
call = backend.prepare("vae_encoder", bundle.specs["vae_encoder"].input_shapes({"B": 1, "h": 8, "w": 8}))
call.run()
assert signal_stack() == before, "it is another one"
signal.signal(signal.SIGINT, lambda number, frame: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal stacks")
def test_openvino_leaves_the_signal_stack_that_ctrl_c_is_handled_on() -> None:
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", PROGRAM, str(ROOT)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stdout) == (0, "handled\n"), found.stderr
