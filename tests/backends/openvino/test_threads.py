"""Which cores OpenVINO's threads take, where several processes share a machine."""

import os
import threading

import pytest

from engines.backends.registry import open_backend
from engines.bundle.bundle import default_bundle, open_bundle
from engines.common.devices import cpu_cores

pytest.importorskip("openvino")


@pytest.mark.skipif(
    cpu_cores() < 2 or not hasattr(os, "sched_getaffinity"), reason="one core")
)
def test_a_process_of_fewer_threads_than_cores_is_held_to_none_of_them() -> None:
    bundle = open_bundle(default_bundle(), verify=False)
    backend = open_backend(bundle, "openvino", precision="f32", threads=1, keep_compiled=False)
    call = backend.prepare("text_encoder", bundle.specs["text_encoder"].input_shapes({"B": 1}))
    seen = []

    def run() -> None:
        call.run()
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [os.sched_getaffinity(0)]
    assert len(seen[0]) == cpu_cores()
