"""How long TensorRT for RTX builds each plan of some bundles, one after the other, without a GPU.

    python benchmarks/plan_builds.py [--target sm89] [--ranges] BUNDLE...
    python benchmarks/plan_builds.py --full sd15 WORK       a UNet of that size, random weights, made in WORK

Prints, for every graph: CPU seconds of the process, wall seconds, the plan's size, and what was resident at most so far
(start it again with --full for the build alone). Beside other programs, the CPU seconds alone mean something.
`make test` puts TensorRT for RTX where this script finds it, if it is not installed.
"""

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import full_size_models as models
from engines.backends.tensorrt.flavours import RTX, load_library, parse_targets
from engines.backends.tensorrt.plans import Machine
from engines.bundle.bundle import open_bundle
from engines.measure.memory import read_memory
from export.tensorrt.builder import PlanBuilder
from export.tensorrt.profiles import wanted_profiles


def main() -> None:
    reader = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    reader.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    reader.add_argument("--target", default="sm89", help="GPU architecture")
    reader.add_argument("--ranges", action="store_true", help="batches 1:2:4, widths up to twice the bundle's")
    reader.add_argument("--full", choices=sorted(models.SHAPES), help="a UNet of this size, made in FOLDER")
    asked = reader.parse_args()
    sys.path.append(str(Path(__file__).resolve().parent.parent / "build" / "tensorrt" / "rtx"))
    library = load_library(RTX)
    machine = Machine(RTX.title, library.version, *parse_targets([asked.target]))
    for folder in asked.folders:
        if asked.full:
            bundle = models.unet_graph(folder, models.SHAPES[asked.full], "float16")
            w, h = (side // bundle.vae_stride for side in bundle.frame)
            sizes = [{"B": (rows,) * 3, "h": (h,) * 3, "w": (w,) * 3} for rows in (16, 8)]  # 8 guided images; labels
            profiles: Any = {"unet": sizes}
        else:
            bundle = open_bundle(folder)
            frames = (bundle.frame, bundle.frame, (2 * bundle.frame[0], bundle.frame[1]))
            profiles = wanted_profiles(bundle, *(((1, 2, 4), frames) if asked.ranges else ()))
        builder = PlanBuilder(library, bundle, machine, None, lambda event: None)
        for graph, bounds in profiles.items():
            used, started = time.process_time(), time.monotonic()
            size = builder.build(graph, bounds, threading.Event()).nbytes
            cpu, wall, most = time.process_time() - used, time.monotonic() - started, read_memory().rss_peak / 1e9
            print(f"{folder.name:20} {graph:12} {cpu:6.1f} s CPU {wall:7.1f} s {size / 1e6:8.1f} MB, {most:.1f} GB")


if __name__ == "__main__":
    main()
