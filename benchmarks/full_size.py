"""Stable Diffusion at full size on a CPU: export, checks and images, with their time and memory.

    python benchmarks/full_size.py --shape sd21 --work WORK --out benchmarks/results/full_size.md
    python benchmarks/full_size.py --shape sd15 --work WORK --toy       a dry run with tiny networks

For each shape it makes a random base model and an adapter of the paper's size (`full_size_models`), exports them with
float32 and with float16 graphs, and paints two images at 512x512 and at 768x512 from each bundle. Every command runs in
a process of its own, whose memory is what the kernel says was resident at most, weights mapped from files included.

A step that was done is not done again: remove its entry from WORK/SHAPE/steps.json to repeat it. The markdown file
holds every shape that WORK has figures of. Prints one JSON line last.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

GRAPH_DTYPES = ("float32", "float16")
MOST_GB, MOST_MINUTES = 14.0, 30.0  # of an export, on two cores
SIZES = ("512x512", "768x512")
TOY_SIZES = ("128x128", "192x128")
COUNT, STEPS = 2, 4  # images a run, and steps of their schedule
SHAPES = ("sd15", "sd21")
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "openvino")
_STEP = re.compile(r"export: (\d+)/(\d+), (.+)")
_POLL = 0.2  # seconds between two looks at a process's memory
_PROGRAM = "from dengine_cli.main import main; main()"

Record = dict[str, Any]


def main() -> int:
    """Run what is left to do, write the table, print one line; 0 when every export kept to its limits."""
    given = read_options()
    dtypes = tuple(given.graph_dtypes.split(","))
    for shape in SHAPES if given.shape == "all" else (given.shape,):
        run_shape(given.work / shape, shape, dtypes, given.toy)
    found = {shape: read_records(given.work / shape) for shape in SHAPES}
    found = {shape: records for shape, records in found.items() if records}
    told = {
        shape: {name: _without_text(record) for name, record in records.items()} for shape, records in found.items()
    }
    result = {"machine": machine(), "versions": versions(), "toy": given.toy, "shapes": told}
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(markdown(result), "utf-8")
    print(json.dumps(result))
    return 0 if all(within_limits(record) for records in found.values() for record in records.values()) else 1


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=(*SHAPES, "all"), default="all", help="which base model (default: all)")
    parser.add_argument("--work", type=Path, required=True, help="folder for models, bundles and images; kept")
    parser.add_argument("--out", type=Path, help="markdown file for the table")
    parser.add_argument("--graph-dtypes", default=",".join(GRAPH_DTYPES), help="bundles to make (default: both)")
    parser.add_argument("--toy", action="store_true", help="tiny networks: a dry run of everything else")
    return parser.parse_args()


def run_shape(work: Path, shape: str, dtypes: Sequence[str], toy: bool) -> None:
    """Every step of one shape that is not done yet."""
    work.mkdir(parents=True, exist_ok=True)
    base, adapter = work / "base", work / "adapter"
    do(work, "models", partial(make_models, work, shape, toy), [base, adapter])
    for dtype in dtypes:
        bundle = work / dtype
        export = ["export", "--model", base, "--adapter", adapter, "--out", bundle, "--graph-dtype", dtype]
        do(work, f"export {dtype}", partial(run_and_read, export, work, exported, bundle), [bundle])
        for size in TOY_SIZES if toy else SIZES:
            out = work / f"{dtype}-{size}"
            generate = [
                *("generate", "--bundle", bundle, "--out", out, "--count", COUNT, "--keep-empty", "--min-quality", 0),
                *("--steps", STEPS, "--size", size, "--image-format", "png"),
            ]
            do(work, f"generate {dtype} {size}", partial(run_and_read, generate, work, painted, out), [out])


def do(work: Path, name: str, action: Callable[[], Record], outputs: Sequence[Path]) -> None:
    """Do a step unless its record and outputs are there; what a broken-off one left is removed first."""
    records = read_records(work)
    if name in records and all(path.exists() for path in outputs):
        print(f"{work.name}: {name} is done", file=sys.stderr, flush=True)
        return
    print(f"{work.name}: {name}", file=sys.stderr, flush=True)
    for path in outputs:
        shutil.rmtree(path, ignore_errors=True)
    records[name] = action()
    temporary = work / "steps.json.tmp"
    temporary.write_text(json.dumps(records, indent=2), "utf-8")
    temporary.replace(work / "steps.json")


def read_records(work: Path) -> dict[str, Record]:
    """What was done in a shape's folder, by step."""
    path = work / "steps.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def _without_text(record: Record) -> Record:
    """A record without what the command printed, which WORK/SHAPE/steps.json keeps."""
    return {key: value for key, value in record.items() if key != "said"}


def make_models(work: Path, shape: str, toy: bool) -> Record:
    """Write base and adapter, in a process of its own; returns how large they are."""
    process = multiprocessing.get_context("spawn").Process(target=_make_models, args=(work, shape, toy))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"the models of {shape} were not made: exit {process.exitcode}")
    return dict(json.loads((work / "parameters.json").read_text("utf-8")))


def _make_models(work: Path, name: str, toy: bool) -> None:
    import full_size_models as models

    shape = models.reduced(models.SHAPES[name]) if toy else models.SHAPES[name]
    parameters = models.make_base(work / "base", shape)
    parameters["adapter"] = models.make_adapter(work / "adapter", work / "base", shape)
    weights = sum(path.stat().st_size for path in (work / "base").rglob("*.safetensors"))
    record = {"parameters": parameters, "bytes": weights, "frame": list(shape.frame)}
    (work / "parameters.json").write_text(json.dumps(record), "utf-8")


def run_and_read(arguments: Sequence[object], work: Path, read: Callable[[Path], Record], made: Path) -> Record:
    """Run a command (`measured`), then `read` what it made."""
    return measured(arguments, work) | read(made)


def measured(arguments: Sequence[object], work: Path) -> Record:
    """Run `dengine` with these arguments; what it says goes to WORK/SHAPE/log too, with the seconds since its start.

    Returns minutes, peak_gb, and of an export its steps, each with its seconds and what was resident at most.
    """
    words = [str(argument) for argument in arguments]
    peaks: list[float] = [0.0]  # GB resident, of every step so far
    steps: list[tuple[float, str]] = [(0.0, "starting")]
    lines: list[str] = []
    started = time.monotonic()
    with (
        (work / "log").open("a", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        ) as process,
    ):  # fmt: skip
        watcher = threading.Thread(target=_watch, args=(process, peaks), daemon=True)
        watcher.start()
        log.write(f"dengine {' '.join(words)}\n")
        assert process.stdout is not None
        for line in process.stdout:
            seconds = time.monotonic() - started
            lines.append(line.rstrip())
            log.write(f"{seconds:8.1f} s  {peaks[-1]:5.2f} GB  {line.rstrip()}\n")
            log.flush()
            if match := _STEP.match(line):
                steps.append((seconds, match[3]))
                peaks.append(0.0)
        process.wait()
        watcher.join()
    seconds = time.monotonic() - started
    if process.returncode != 0:
        sys.exit(f"dengine {' '.join(words)} failed: {lines[-1] if lines else 'it said nothing'}")
    ends = [begin for begin, _ in steps[1:]] + [seconds]
    return {
        "minutes": round(seconds / 60, 2),
        "peak_gb": round(max(peaks), 2),
        "steps": [
            {"step": text, "seconds": round(end - begin, 1), "peak_gb": round(peak, 2)}
            for (begin, text), end, peak in zip(steps, ends, peaks, strict=True)
        ],
        "said": [line for line in lines if line and not _STEP.match(line)],
    }


def _watch(process: "subprocess.Popen[str]", peaks: list[float]) -> None:
    """Keep what is resident at most, in GB, in the last of `peaks`, until the process ends."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            match = re.search(r"VmRSS:\s+(\d+) kB", status.read_text("ascii"))
        except OSError:
            return
        if match:
            peaks[-1] = max(peaks[-1], int(match[1]) * 1024 / 1e9)
        time.sleep(_POLL)


def exported(bundle: Path) -> Record:
    """What a bundle's manifest says of its checks, and how large the bundle is."""
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    names = ("relative_error", "agreement", "ranges")
    return {
        "bytes": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
        "islands": manifest["islands"],
        **{name: manifest["figures"][name] for name in names if name in manifest["figures"]},
    }


def painted(run: Path) -> Record:
    """The images of a run: bytes, and mean and spread of their pixels, which tell noise from a blank; and its boxes."""
    import numpy as np
    from PIL import Image

    dataset = json.loads((run / "annotations.json").read_text("utf-8"))
    images = []
    for path in sorted((run / "images").iterdir()):
        pixels = np.asarray(Image.open(path), np.float32)
        images.append(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "size": [pixels.shape[1], pixels.shape[0]],
                "mean": round(float(pixels.mean()), 1),
                "spread": round(float(pixels.std()), 1),
            }
        )
    settings = json.loads((run / "run.json").read_text("utf-8"))
    return {"images": images, "boxes": len(dataset["annotations"]), "backend": settings["backend"]}


def within_limits(record: Record) -> bool:
    """Whether a step kept to the limits, if it is an export."""
    is_export = "relative_error" in record
    return not is_export or (record["peak_gb"] < MOST_GB and record["minutes"] < MOST_MINUTES)


def machine() -> str:
    """Processor, cores and memory."""
    from engines.common.devices import cpu_name

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu_name()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


def versions() -> dict[str, str]:
    """Versions of the packages that took part, where installed."""
    from engines.common.versions import installed_versions

    return {"python": platform.python_version()} | installed_versions(PACKAGES)


def markdown(result: Mapping[str, Any]) -> str:
    """The tables."""
    from full_size_report import report

    return report(result, most_gb=MOST_GB, most_minutes=MOST_MINUTES, count=COUNT, steps=STEPS)


if __name__ == "__main__":
    sys.exit(main())
