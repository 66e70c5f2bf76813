"""How long TensorRT for RTX builds each plan of some bundles, one after the other, without a GPU.

    python benchmarks/plan_builds.py [--target sm89] [--ranges] BUNDLE...

Prints, for every graph: CPU seconds of the whole process (user and system), wall seconds, and the plan's size. On a
machine where other programs compute, the CPU seconds alone mean something. Graphs in float32 are built, too.
`make test` puts TensorRT for RTX where this script finds it, if it is not installed.
"""

import argparse
import resource
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engines.backends.tensorrt.flavours import RTX, load_library, parse_targets
from engines.backends.tensorrt.plans import Machine
from engines.bundle.bundle import open_bundle
from export.tensorrt.builder import PlanBuilder
from export.tensorrt.profiles import wanted_profiles


def cpu_seconds() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    reader = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    reader.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    reader.add_argument("--target", default="sm89", help="GPU architecture")
    reader.add_argument("--ranges", action="store_true", help="batches 1:2:4, widths up to twice the bundle's")
    asked = reader.parse_args()
    sys.path.append(str(Path(__file__).resolve().parent.parent / "build" / "tensorrt" / "rtx"))
    library = load_library(RTX)
    machine = Machine(RTX.title, library.version, parse_targets([asked.target])[0])
    for folder in asked.bundles:
        bundle = open_bundle(folder)
        width, height = bundle.frame
        sizes = ((width, height), (width, height), (2 * width, height))
        profiles = wanted_profiles(bundle, (1, 2, 4), sizes) if asked.ranges else wanted_profiles(bundle)
        builder = PlanBuilder(library, bundle, machine, None, lambda event: None)
        for graph, wanted in profiles.items():
            before, started = cpu_seconds(), time.monotonic()
            size = builder.build(graph, wanted, threading.Event()).nbytes
            cpu, wall = cpu_seconds() - before, time.monotonic() - started
            print(f"{folder.name:24} {graph:14} {cpu:6.1f} s CPU {wall:7.1f} s {size / 1e6:8.1f} MB", flush=True)


if __name__ == "__main__":
    main()
