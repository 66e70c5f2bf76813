"""Which cores OpenVINO's threads take, where several processes share a machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.common.devices import cpu_cores

ROOT = Path(__file__).parents[3]
PROGRAM = """
import contextlib, os, sys, threading
sys.path.insert(0, sys.argv[1])
from engines.backends.openvino.backend import probe
from engines.backends.registry import open_backend
from engines.bundle.bundle import default_bundle, open_bundle

probe()
bundle = open_bundle(default_bundle(), verify=False)
backend = open_backend(bundle, "openvino", threads=1, keep_compiled=False)
call = backend.prepare("vae_encoder", bundle.specs["vae_encoder"].input_shapes({"B": 2, "h": 16, "w": 16}))
thread = threading.Thread(target=lambda: [call.run() for _ in range(20)])
thread.start()
least = 999
while thread.is_alive():
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            least = min(least, len(os.sched_getaffinity(int(task))))
print(least)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or cpu_cores() < 2, reason="one core, or none that can be told")
def test_a_process_of_fewer_threads_than_cores_is_held_to_none_of_them() -> None:
    pytest.importorskip("openvino")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT)], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == cpu_cores()
