"""dengine on a GPU, beside the reference's way and diffusers with torch.compile: one script, one table, in 8 minutes.

    python benchmarks/gpu.py --out benchmarks/results
    python benchmarks/gpu.py --toy --device cpu --out OUT       a dry run with tiny networks

Needs PyTorch, diffusers, transformers and this checkout. It makes a Stable Diffusion 2 base and an adapter of the
paper's size with random weights, and paints 512x512 images from text: diffusers in half precision with DDIM, 50 steps,
guidance 7.5 and the label from its last UNet call, as DiffusionEngine (arXiv 2309.03893) does it; both with
torch.compile at equal steps and batch; and dengine with 1 to 64 images at once at its own number of steps (`gpu_rows`
says what a row measures). UNet and VAE decoder of both are compiled: diffusers' in mode reduce-overhead, which has CUDA
graphs of its own; dengine's in the default mode, inside dengine's graph. `--stages` knows one more, `diffusers-tuned`:
diffusers in mode max-autotune. With it name all stages, and give them time: `--minutes 12`.

A stage is a process of its own, and is stopped when its share of the time has passed: rows that are missing then are
listed as left out. Without the stage `models` and one of dengine's there are no shares of the peak. Figures go to
OUT/gpu.json and OUT/gpu.md; the last line printed is the JSON.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

MINUTES = 7.5  # for everything
# Every stage with its part of the time, in hundredths of what all but the last take together.
PARTS = {"models": 30, "diffusers": 10, "dengine-compiled": 24, "diffusers-compiled": 18, "dengine": 18,
         "diffusers-tuned": 50}  # fmt: skip
USUAL = tuple(PARTS)[:-1]  # what runs unless stages are named
_SPARE = 5.0  # seconds kept for the table
HEADS = ("row", "precision", "steps", "images/s", "against the reference", "ms a UNet call", "rows", "of the peak",
         "GB of VRAM")  # fmt: skip

Record = dict[str, Any]


def main() -> int:
    """Run every stage, write and print the table; 0 when no row failed or was left out."""
    given = read_options()
    if given.stage is not None:
        run_stage(given.stage, given.work, given.device, given.toy, given.deadline)
        return 0
    begun = time.time()
    work = Path(tempfile.mkdtemp(prefix="dengine-gpu-")) if given.work is None else given.work
    work.mkdir(parents=True, exist_ok=True)
    (work / "rows.jsonl").unlink(missing_ok=True)
    try:
        for stage, end in ends(given.stages.split(",")):
            deadline = begun + (given.minutes * 60 - _SPARE) * end
            problem = run_apart(stage, work, given.device, given.toy, deadline)
            if problem:
                note(work, {"stage": stage, "problem": problem})
            if problem and stage == "models":
                break
        records = read_notes(work)
    finally:
        if given.work is None:
            shutil.rmtree(work, ignore_errors=True)
    result = summary(records, given.toy, time.time() - begun)
    text = markdown(result)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gpu.md").write_text(text, "utf-8")
    (given.out / "gpu.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(text)
    print(json.dumps(result))
    return 0 if result["rows"] and not result["left_out"] else 1


def ends(stages: Sequence[str]) -> list[tuple[str, float]]:
    """When each stage has to end, in shares of the time; what one leaves is the next one's."""
    whole, passed, found = sum(PARTS[stage] for stage in stages), 0, []
    for stage in stages:
        passed += PARTS[stage]
        found.append((stage, passed / whole))
    return found


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"time for everything (default: {MINUTES})")
    parser.add_argument("--work", type=Path, help="folder for the models; kept (default: one that is removed)")
    parser.add_argument(
        "--stages", default=",".join(USUAL), help=f"of {', '.join(PARTS)}, in this order (default: all but the last)"
    )
    parser.add_argument("--toy", action="store_true", help="tiny networks: a dry run of everything else")
    parser.add_argument("--stage", choices=tuple(PARTS), help=argparse.SUPPRESS)  # a process of this script's own
    parser.add_argument("--deadline", type=float, default=float("inf"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.stages.split(",")) - set(PARTS):
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    return given


def run_apart(stage: str, work: Path, device: str, toy: bool, deadline: float) -> str:
    """Run a stage in a process of its own until `deadline` (of time.time()); what went wrong, or nothing."""
    command = [
        *(sys.executable, str(Path(__file__).resolve()), "--out", str(work), "--work", str(work), "--stage", stage),
        *("--device", device, "--deadline", str(deadline), *(["--toy"] if toy else [])),
    ]
    print(f"{stage} ...", file=sys.stderr, flush=True)
    # A session of its own, because torch.compile has workers that would go on.
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
    try:
        code = process.wait(max(deadline - time.time(), 1.0))
    except subprocess.TimeoutExpired:
        return "the time was up"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "" if code == 0 else f"it ended with exit code {code}"


def run_stage(stage: str, work: Path, device: str, toy: bool, deadline: float) -> None:
    """One stage, in this process: note what is planned, and each row as soon as it is there."""
    import gpu_rows as rows
    import torch

    from engines.backends.probe import one_line
    from engines.measure.machine import machine, versions

    size = rows.TOY if toy else rows.FULL
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no CUDA device that PyTorch can use; --toy --device cpu makes a dry run without one.")
    if stage == "models":
        rows.make_models(work, size)
        note(work, {"machine": machine(), "versions": versions(), "flops": rows.image_flops(work, size)})
        return
    # In a process of dengine's: it would change the reference's setting of TF32.
    if stage.startswith("dengine") and not any("peak" in record for record in read_notes(work)):
        note(work, {"peak": rows.peak(place, size, "f16" if place.type == "cuda" else "f32")})
    planned = list(rows.STAGES[stage](work, size, place))
    note(work, {"planned": [name for name, _ in planned]})
    for name, measure in planned:
        if time.time() >= deadline:
            break
        print(f"  {name}", file=sys.stderr, flush=True)
        try:
            note(work, {"row": name} | measure())
        except Exception as cause:  # a row that cannot run is a row that says why
            note(work, {"failed": name, "problem": f"{type(cause).__name__}: {one_line(cause)}"})
            rows.begin_row(place)


def note(work: Path, record: Record) -> None:
    """Keep what was found, whatever comes after it."""
    with (work / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_notes(work: Path) -> list[Record]:
    """Everything that was noted; a last line that was cut short is none."""
    path = work / "rows.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def summary(records: Sequence[Record], toy: bool, seconds: float) -> Record:
    """The rows with their shares of the peak, and those that are missing with the reason."""
    found: Record = {"toy": toy, "minutes": seconds / 60}
    for record in records:
        found |= {key: record[key] for key in ("machine", "versions", "flops", "peak") if key in record}
    stopped = {record["stage"]: record["problem"] for record in records if "stage" in record}
    failed = {record["failed"]: record["problem"] for record in records if "failed" in record}
    rows = [dict(record) for record in records if "row" in record]
    reference = next((row for row in rows if row["row"] == "reference's way, batch 1"), None)
    for row in rows:
        # The peak is of one precision; a row that computes in another has no share of it.
        row["peak_share"] = None
        if "flops" in found and "peak" in found and found["peak"]["precision"] == row["precision"]:
            operations = found["flops"]["unet"] * row["unet_rows"] / row["unet_seconds"]
            row["peak_share"] = operations / found["peak"]["flops_per_second"]
        row["against_reference"] = row["images_per_second"] / reference["images_per_second"] if reference else None
    done = {row["row"] for row in rows}
    planned = [name for record in records if "planned" in record for name in record["planned"]]
    left_out = {name: failed.get(name, "the time was up") for name in planned if name not in done}
    return found | {"rows": rows, "left_out": left_out | {f"stage {name}": text for name, text in stopped.items()}}


def markdown(result: Record) -> str:
    """The table."""
    machine, versions = result.get("machine", {}), result.get("versions", {})
    lines = ["# Stable Diffusion 2 on a GPU, random weights, 512x512, text to image", ""]
    if result["toy"]:
        lines = ["# A dry run with tiny networks: no figure below means anything", ""]
    place = ", ".join(machine.get("gpus") or [machine.get("processor", "unknown machine")])
    lines += [f"{place}; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."]
    if "peak" in result:
        peak = result["peak"]
        rate = f"{peak['flops_per_second'] / 1e12:.1f} TFLOP/s"
        lines += [f"Peak: {rate} of matrix products in {peak['precision']}, side {peak['size']}, in this run."]
    lines += ["", f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in result["rows"]]
    lines += ["", *(f"Left out: {name}: {reason.rstrip('.')}." for name, reason in result["left_out"].items())]
    return "\n".join([*lines, f"It took {result['minutes']:.1f} minutes.", ""])


def _cells(row: Record) -> tuple[str, ...]:
    share, against = row["peak_share"], row["against_reference"]
    return (
        row["row"], row["precision"], str(row["steps"]), f"{row['images_per_second']:.2f}",
        "-" if against is None else f"{against:.1f}x", f"{row['unet_seconds'] * 1e3:.1f}", str(row["unet_rows"]),
        "-" if share is None else f"{100 * share:.0f}%", f"{row['memory']['vram_peak'] / 1e9:.1f}",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
