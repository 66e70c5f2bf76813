"""Ctrl-C after OpenVINO has come and gone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# OpenVINO maps a signal stack when it compiles a real network, and unmaps it with the compiled model.
PROGRAM = """
import gc, os, signal, sys
sys.path.insert(0, sys.argv[1])
from engines.backends import open_backend
from engines.bundle import default_bundle, open_bundle

bundle = open_bundle(default_bundle(), verify=False)
calls = []
for threads in (1, 2):
    backend = open_backend(bundle, "openvino", threads=threads, device="cpu", keep_compiled=False)
    calls.append(backend.prepare("vae_encoder", bundle.specs["vae_encoder"].input_shapes({"B": 1, "h": 8, "w": 8})))
del backend, calls
gc.collect()
signal.signal(signal.SIGINT, lambda number, frame: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_reaches_its_handler_after_openvino_models_are_gone() -> None:
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", PROGRAM, str(ROOT)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stdout) == (0, "handled\n"), found.stderr
