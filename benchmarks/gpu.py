"""dengine on a GPU, beside the reference's way and diffusers with torch.compile: one script, one sitting of 25 minutes.

    python benchmarks/gpu.py --out benchmarks/results/gpu.md
    python benchmarks/gpu.py --toy --device cpu       a dry run with tiny networks

Makes a Stable Diffusion 2 base and an adapter of the paper's size with random weights, and paints 512x512 images from
text: diffusers in half precision with DDIM, 50 steps and guidance 7.5, as DiffusionEngine (arXiv 2309.03893) has it;
both with torch.compile at equal steps and batch; dengine with 1 to 64 images at once at its own steps (`gpu_rows`).
Beside that, every part of the path on its own, the bundled model, and `dengine doctor --gpu` (`gpu_parts`).

A stage is a process of its own, and is stopped when its share of the time has passed: rows that are missing then are
listed as left out, and measured by the next start with the same --work. The stage `models` makes what the others read;
`peaks` is what shares are of. The last line printed is the JSON.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.records import Record, Steps, measured_on, parser, table, write_report
from engines.measure.alone import ROOT, run_alone

MINUTES = 24.5  # for everything
# Every stage with its part of the time, in hundredths of what all take together.
PARTS = {"models": 10, "peaks": 3, "diffusers": 7, "dengine-compiled": 14, "diffusers-compiled": 12, "ticks": 20,
         "finisher": 10, "dengine": 10, "small": 6, "doctor": 8}  # fmt: skip
TIME_UP, TIME_WAS_UP = 75, "the time was up"  # a stage's exit code, and what is said of it
_SPARE, _ASKED = 5.0, "asked.json"  # seconds kept for the table; what a stage's process is told
_STAGE = "import pathlib, sys; from benchmarks import gpu; gpu.run_stage(sys.argv[1], pathlib.Path(sys.argv[2]))"


def main() -> int:
    """Run every stage, write and print the table; 0 when no row failed or was left out."""
    options = parser(__doc__, "work", "out")
    options.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    options.add_argument("--minutes", type=float, default=MINUTES, help=f"time for everything (default: {MINUTES})")
    options.add_argument("--stages", nargs="+", choices=PARTS, default=list(PARTS), help="in this order (default: all)")
    options.add_argument("--toy", action="store_true", help="tiny networks: a dry run of everything else")
    given = options.parse_args()
    begun = time.time()
    work = given.work or Path(tempfile.mkdtemp(prefix="dengine-gpu-"))
    work.mkdir(parents=True, exist_ok=True)
    identity = run_alone("benchmarks.records:here_task", {}) | {"toy": given.toy, "device": given.device}
    stopped: dict[str, str] = {}
    try:
        for stage, end in ends(given.stages):
            asked = {"identity": identity, "deadline": begun + (given.minutes * 60 - _SPARE) * end}
            (work / _ASKED).write_text(json.dumps(asked), "utf-8")
            if problem := run_apart(stage, work, asked["deadline"]):
                stopped[stage] = problem
            if problem and stage == "models":
                break
        found = steps_of(work, identity)
        result = summary(found.all(), stopped) | identity | {"origins": found.origins()}
    finally:
        if given.work is None:
            shutil.rmtree(work, ignore_errors=True)
    result["minutes"] = (time.time() - begun) / 60
    write_report(report(result), result, given.out)
    return 0 if result["rows"] and not result["left_out"] else 1


def ends(stages: Sequence[str]) -> list[tuple[str, float]]:
    """When each stage has to end, in shares of the time; what one leaves is the next one's."""
    whole, passed, found = sum(PARTS[stage] for stage in stages), 0, []
    for stage in stages:
        passed += PARTS[stage]
        found.append((stage, passed / whole))
    return found


def steps_of(work: Path, identity: Mapping[str, Any]) -> Steps:
    """What was measured in `work`; a row that cannot run is a row that says why, whatever the error."""
    return Steps(work / "steps", identity, errors=Exception)


def run_apart(stage: str, work: Path, deadline: float) -> str:
    """Run a stage in a process of its own until `deadline` (of time.time()); what went wrong, or nothing."""
    command = [sys.executable, "-c", _STAGE, stage, str(work.resolve())]
    # A session of its own, because torch.compile has workers that would go on.
    process = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, start_new_session=True)
    try:
        code = process.wait(max(deadline - time.time(), 1.0))
    except subprocess.TimeoutExpired:
        return TIME_WAS_UP
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return TIME_WAS_UP if code == TIME_UP else f"it ended with exit code {code}" if code else ""


def run_stage(stage: str, work: Path) -> None:
    """One stage, in this process: keep what is planned, and each row as soon as it is there."""
    import torch

    from benchmarks import gpu_parts as parts
    from benchmarks import gpu_rows as rows

    asked = json.loads((work / _ASKED).read_text("utf-8"))
    steps, identity = steps_of(work, asked["identity"]), asked["identity"]
    size, place = rows.TOY if identity["toy"] else rows.FULL, torch.device(identity["device"])
    if place.type == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device that PyTorch can use; --toy --device cpu makes a dry run without one.")
    if stage == "models":
        steps.do("models", lambda: rows.make_models(work, size), needed=True)
        return
    if stage == "peaks" or stage.startswith("dengine"):  # in no process of the reference's, whose TF32 it would set
        steps.do("peak", lambda: rows.peak(place, size, "f16" if place.type == "cuda" else "f32"))
    find = parts.parts_of if stage in parts.STAGES else rows.rows_of
    planned = dict(find(stage, work, size, place))
    steps.do(f"planned {stage}", lambda: {"rows": list(planned)})
    for name, measure in planned.items():
        if time.time() >= asked["deadline"]:
            sys.exit(TIME_UP)
        if "error" in steps.do(f"row {name}", measure):
            rows.begin_row(place)


def summary(steps: Mapping[str, Record], stopped: Mapping[str, str]) -> Record:
    """The rows with their shares of the peak, and those that are missing with the reason."""
    flops, peak = steps.get("models", {}), steps.get("peak", {})
    planned = [name for stage in PARTS for name in steps.get(f"planned {stage}", {}).get("rows", ())]
    done = {name: steps.get(f"row {name}", {"error": TIME_WAS_UP}) for name in planned}
    every = [{"row": name} | row for name, row in done.items() if "error" not in row]
    rows, parts = ([row for row in every if ("unet_rows" in row) == whole] for whole in (True, False))
    reference = next((row for row in rows if row["row"] == "reference's way, batch 1"), None)
    for row in rows:
        # The peak is of one precision; a row that computes in another has no share of it.
        known = "unet" in flops and peak.get("precision") == row["precision"]
        work = flops["unet"] * row["unet_rows"] if known else 0.0
        row["peak_share"] = work / row["unet_seconds"] / peak["flops_per_second"] if known else None
        row["against_reference"] = row["images_per_second"] / reference["images_per_second"] if reference else None
    left_out = {name: row["error"] for name, row in done.items() if "error" in row}
    left_out |= {f"stage {stage}": problem for stage, problem in stopped.items()}
    for part in parts:
        work = flops.get(part.get("graph", ""), 0.0) * part.get("batch", 0)
        part["peak_share"] = work / (part["ms"] / 1e3) / peak["flops_per_second"] if work and peak else None
    return {"flops": flops, "peak": peak, "rows": rows, "parts": parts, "left_out": left_out}


def report(result: Record) -> Iterator[str]:
    """The report's parts."""
    toy = "# A dry run with tiny networks: no figure below means anything"
    yield toy if result["toy"] else "# Stable Diffusion 2 on a GPU, random weights, 512x512, text to image"
    yield f"{measured_on(result)} {result['origins']} It took {result['minutes']:.1f} minutes."
    if "size" in (peak := result["peak"]):
        rate = f"{peak['flops_per_second'] / 1e12:.1f} TFLOP/s"
        yield f"Peak: {rate} of matrix products in {peak['precision']}, side {peak['size']}, in this run."
    heads = ("row", "precision", "steps", "images/s", "against the reference", "ms a UNet call", "rows", "of the peak",
             "GB of VRAM")  # fmt: skip
    yield table(heads, map(_cells, result["rows"]))
    shown = (
        (row["row"], row.get("found") or f"{row['ms']:.2f}", _percent(row["peak_share"])) for row in result["parts"]
    )
    yield table(("part", "ms", "of the peak"), shown)
    yield "\n".join(f"- left out: {name}: {reason.rstrip('.')}." for name, reason in result["left_out"].items())


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def _cells(row: Record) -> tuple[object, ...]:
    against = row["against_reference"]
    return (
        row["row"], row["precision"], row["steps"], f"{row['images_per_second']:.2f}",
        "-" if against is None else f"{against:.1f}x", f"{row['unet_seconds'] * 1e3:.1f}", row["unet_rows"],
        _percent(row["peak_share"]), f"{row['memory']['vram_peak'] / 1e9:.1f}",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
