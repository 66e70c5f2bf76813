"""The report of `speed.py`: what every row has to reach, whether it did, and the figures behind it.

Knows: how figures are laid out. Does not know how they were measured, or what they have to reach (`speed_bars`). What
was not measured says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import peers
from benchmarks.records import bar_table, measured_on, table
from benchmarks.speed_bars import OURS, Steps, bars, setting_of

Cells = Sequence[object]


def report(value: Mapping[str, Any]) -> Iterator[str]:
    """Every part, from what `speed.py` writes as JSON."""
    steps: Steps = value["steps"]
    load = value["workload"]
    yield "# Speed on a CPU"
    yield f"{measured_on(value)} Every row in a process of its own, one after the other. {value['origins']}"
    yield (
        f"Workload: {load['jobs']} images, img2img on references that the bundled model painted, "
        f"{load['frame'][0]}x{load['frame'][1]}, {load['steps']} DDIM steps, guidance {load['guidance']:g}, strengths "
        f"{load['strength'][0]} to {load['strength'][1]}. images/s count from the end of loading to every file on "
        "disk; ours has its journal and fsync in it."
    )
    yield "## What it has to reach"
    yield bar_table(bars(steps))
    yield "## Images a second"
    yield table(("what", "setting", "images/s", "seconds", "labels", "images"), _rates(steps))
    yield (
        "Labels: AP50 (0 to 100) of a run's boxes against the labels of PyTorch in float32 on the same jobs; images: "
        "PSNR against its images, dB. The fastest slots were measured again; the first table has the middle of these."
    )
    sizes = {size: rate for size, rate in steps.get("baseline-sizes", {}).items() if size != "error"}
    if sizes:
        told = ", ".join(f"{size}: {rate:.2f}" for size, rate in sizes.items())
        yield f"One full batch of diffusers, images/s by batch: {told}."
    yield "## Other settings of the same jobs"
    yield (
        "DPM++ 2M, the fast ones guided where t/T is 0.4 or more. They paint other images: labels are judged by a "
        "detector that learned from photographs alone, AP50 (0 to 100) against what it finds with a score of 0.5 or "
        "more; in brackets, where nineteen of twenty draws of as many images have it."
    )
    yield table(("what", "setting", "images/s", "AP50 of the labels", "labels an image"), _judged(steps))
    yield "## Peers"
    yield from peers.report(steps.get("peers", {}).get("peers", ()))
    yield "## Where the time goes"
    yield from _inside(steps)
    errors = [(name, step["error"]) for name, step in steps.items() if "error" in step]
    if errors:
        yield "## What did not run"
        yield table(("step", "error"), errors)


def _rates(steps: Steps) -> Iterator[Cells]:
    for name, step in steps.items():
        if name.startswith("baseline-") and "seconds" in step:
            how = f"batch {step['batch']}, {step['precision']}"
            yield "diffusers and adapter", how, *_figures(step), "-", "-"
    for precision in OURS:
        judged = steps.get(f"labels-{precision}", {})
        same = [f"{100 * judged['ap50']:.1f}", f"{judged['psnr']:.1f}"] if "psnr" in judged else ["-", "-"]
        for name, step in steps.items():
            if name.startswith((f"ours-{precision}", f"final-{precision}")) and "seconds" in step:
                yield f"dengine generate --precision {precision}", _setting(step), *_figures(step), *same


def _judged(steps: Steps) -> Iterator[Cells]:
    for name, judged in steps.items():
        step = steps.get(name.replace("judged-", "settings-"), steps.get(name.removeprefix("judged-"), {}))
        if name.startswith("judged-") and "ap50" in judged and "rates" in step:
            ap50, low, high = (f"{100 * judged[key]:.1f}" for key in ("ap50", "low", "high"))
            spread = f"{ap50} [{low}, {high}]"
            yield name[7:], _setting(step), f"{step['images_per_second']:.2f}", spread, f"{judged['labels']:.1f}"


def _figures(step: Mapping[str, Any]) -> Cells:
    return f"{step['images_per_second']:.2f}", f"{step['seconds']:.1f}"


def _setting(step: Mapping[str, Any]) -> str:
    """What a run painted with, and which measurements it is the middle one of."""
    rates = ", ".join(f"{rate:.2f}" for rate in step["rates"])
    return setting_of(step) + (f"; the middle of {rates}" if len(step["rates"]) > 1 else "")


def _inside(steps: Steps) -> Iterator[str]:
    known = {name: step for name, step in steps.items() if name.startswith("inside-") and "graphs" in step}
    for name, step in known.items():
        yield f"### {name}: {step['backend']}, {step['slots']} slots, {step['rows']} rows"
        yield table(("what", "calls", "batch", "ms a call alone", "seconds in the run", "of the run"), _graphs(step))
        yield f"{step['images']} images in {step['seconds']:.1f} s, {step['images_per_second']:.2f} images/s."
    if not known:
        yield "Not measured."


def _graphs(step: Mapping[str, Any]) -> Iterator[Cells]:
    total = step["seconds"]
    for name, graph in sorted(step["graphs"].items(), key=lambda item: -(item[1]["run_seconds"] or 0.0)):
        taken = graph["run_seconds"]
        shown = ("-", "-") if taken is None else (f"{taken:.2f}", f"{taken / total:.1%}")
        yield name, graph["calls"], graph["batch"], f"{1000 * graph['seconds']['median']:.2f}", *shown
    if step["outside_share"] is not None:
        outside = step["outside_share"]
        yield "outside the graphs", "-", "-", "-", f"{outside * total:.2f}", f"{outside:.1%}"
