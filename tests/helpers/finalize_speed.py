"""How long `finalize` takes on a large run, and how much memory.

    python tests/helpers/finalize_speed.py --images 10000,100000 --formats coco,yolo,imagefolder

Each run is finalized in a process of its own: wall and CPU seconds of the call alone, and the most memory of the
process. The run is synthetic (`review_speed.make_journal`): one picture under many names, 12 boxes each.

Knows: what is measured, and how. Knows nothing about how datasets are written.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from review_speed import FRAME, make_journal

from engines.runs.finalize import FinalizeSettings, finalize


def measure(run: Path, formats: str) -> dict[str, float]:
    """Finalize a run by another score than its own, in this process."""
    settings = FinalizeSettings(run, score=0.35, formats=formats.split(","))
    began, cpu = time.monotonic(), time.process_time()
    summary = finalize(settings)
    return {
        "images": summary.images, "boxes": summary.boxes,
        "wall_s": round(time.monotonic() - began, 1), "cpu_s": round(time.process_time() - cpu, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip


def main() -> None:
    """Make the runs, measure each, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="10000,100000")
    parser.add_argument("--formats", default="coco")
    parser.add_argument("--work", type=Path, help="a folder on the disk that is to be measured")
    parser.add_argument("--run", type=Path, help="measure a run that is there, in this process")
    asked = parser.parse_args()
    if asked.run is not None:
        print(json.dumps(measure(asked.run, asked.formats)))  # noqa: T201
        return
    for images in map(int, asked.images.split(",")):
        with tempfile.TemporaryDirectory(dir=asked.work) as scratch:
            run = make_journal(Path(scratch) / "run", images, picture=FRAME)
            command = [sys.executable, __file__, "--run", str(run), "--formats", asked.formats]
            subprocess.run(command, check=True)
            shutil.rmtree(run)


if __name__ == "__main__":
    main()
