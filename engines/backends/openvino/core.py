"""OpenVINO's Core, set up for a machine that several processes may share.

Knows: where its threads may run. Knows nothing about graphs.
"""

from typing import Any

from engines.common.devices import cpu_cores


def open_core(ov: Any, threads: int) -> Any:
    """A Core whose threads are pinned to cores only where they are as many as these.

    OpenVINO pins them by itself: two processes of one thread each then share the first core and leave the others idle
    (measured: half of the calls a second). What is compiled first in a process decides, so it is said here for all.
    """
    core = ov.Core()
    core.set_property("CPU", {"ENABLE_CPU_PINNING": threads >= cpu_cores()})
    return core
