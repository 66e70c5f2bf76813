"""The report of `speed.py`: what every row has to reach, whether it did, and the figures behind it.

Knows: how figures are laid out. Does not know how they were measured, or what they have to reach (`speed_bars`). What
was not measured says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import peers
from benchmarks.records import bar_table, measured_on, table
from benchmarks.speed_bars import OURS, POINTS, Steps, bars, setting_of, tick_share

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
    if value["toy"]:
        yield "**A dry run: the full-size rows used a tiny network.**"
    yield "## What it has to reach"
    yield bar_table(bars(steps))
    yield "## Images a second"
    yield table(("what", "setting", "images/s", "seconds", "labels", "images"), _rates(steps))
    yield (
        "Labels: AP50 (0 to 100) of a run's boxes against the labels of PyTorch in float32 on the same jobs; images: "
        "their mean PSNR against its images, in dB. The fastest slots were measured again, and the first table takes "
        "the middle of these measurements: the best of several flatters. torch.compile's own time is not counted, nor "
        "is loading."
    )
    sizes = {size: rate for size, rate in steps.get("baseline-sizes", {}).items() if size != "error"}
    if sizes:
        told = ", ".join(f"{size}: {rate:.2f}" for size, rate in sizes.items())
        yield f"One full batch of diffusers, images/s by batch: {told}."
    yield "## Best settings"
    yield from _best(steps)
    yield "## Peers"
    yield from peers.report(steps.get("peers", {}).get("peers", ()))
    yield "## A UNet of Stable Diffusion 2's size"
    yield from _tick(steps)
    yield "## Where the time goes"
    yield from _inside(steps)
    errors = [(name, step["error"]) for name, step in steps.items() if "error" in step]
    if errors:
        yield "## What did not run"
        yield table(("step", "error"), errors)


def _rates(steps: Steps) -> Iterator[Cells]:
    for name, step in steps.items():
        if name.startswith("baseline-") and "seconds" in step:
            how = f"batch {step['batch']}, {step['precision']}{', torch.compile' if step['compiled'] else ''}"
            yield "diffusers and adapter", how, *_figures(step), "-", "-"
    for precision in OURS:
        judged = steps.get(f"labels-{precision}", {})
        same = [f"{100 * judged['ap50']:.1f}", f"{judged['psnr']:.1f}"] if "psnr" in judged else ["-", "-"]
        for name, step in steps.items():
            if name.startswith((f"ours-{precision}", f"final-{precision}")) and "seconds" in step:
                yield f"dengine generate --precision {precision}", _setting(step), *_figures(step), *same


def _figures(step: Mapping[str, Any]) -> Cells:
    return f"{step['images_per_second']:.2f}", f"{step['seconds']:.1f}"


def _setting(step: Mapping[str, Any]) -> str:
    """What a run painted with, and which measurements it is the middle one of."""
    rates = ", ".join(f"{rate:.2f}" for rate in step["rates"])
    return setting_of(step) + (f"; the middle of {rates}" if len(step["rates"]) > 1 else "")


def _best(steps: Steps) -> Iterator[str]:
    slow, own = steps.get("best-reference", {}), steps.get("best-search-own", {})
    if "label_ap50" not in slow:
        yield "Not measured: give --detector."
        return
    yield (
        "Other settings paint other images. Each is judged on its own images by a detector that was trained on real "
        "ones: AP50 (0 to 100) of the labels against what it finds with a score of 0.5 or more; in brackets, where "
        "nineteen of twenty draws of as many references, with all of their images, have it. What is traded is told by "
        "the setting and by the rows of the UNet that an image took, two for a guided step; fewer steps may change a "
        "picture less, too, and so leave it easier to label. The search paints few jobs of another seed; what held "
        "there was painted again, the fastest first, on the whole workload, until one held within "
        f"{POINTS:g} points of the slow reference (diffusers, float32)."
    )
    rows = [_judged("slow reference: diffusers, the whole workload", slow, slow)]
    for name, step in steps.items():
        if name.startswith(("best-own", "best-final-")) and "label_ap50" in step:
            rows.append(_judged(f"the whole workload: {_setting(step)}", step, slow))
    for name, step in steps.items():
        if name.startswith("best-search-") and "label_ap50" in step and "label_ap50" in own:
            title = "the workload's own settings" if step is own else setting_of(step)
            rows.append(_judged(f"search: {title}", step, own))
    yield table(
        ("setting", "images", "images/s", "AP50 of the labels", "against the reference", "labels an image",
         "UNet rows an image"),
        rows,
    )  # fmt: skip


def _judged(name: str, step: Mapping[str, Any], slow: Mapping[str, Any]) -> Cells:
    rate, (low, high) = step.get("images_per_second"), step["interval"]
    change = "-" if step is slow else f"{100 * (step['label_ap50'] - slow['label_ap50']):+.1f}"
    found = f"{100 * step['label_ap50']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    taken = f"{step['unet_rows']:.1f}" if "unet_rows" in step else "-"
    shown = "-" if rate is None else f"{rate:.2f}"
    return name, step["images"], shown, found, change, f"{step['labels']:.1f}", taken


def _tick(steps: Steps) -> Iterator[str]:
    rows: list[Cells] = []
    for name, step in steps.items():
        if name.startswith(("tick-diffusers", "tick-ours")) and "seconds" in step:
            title = "diffusers, float32" if name == "tick-diffusers" else f"ours, {step['precision']}"
            seconds, share = step["seconds"], tick_share(step)
            spread = f"{seconds['p10']:.2f} to {seconds['p90']:.2f}"
            error = f"{step['relative_error']:.1e}" if "relative_error" in step else "-"
            rows.append((title, f"{seconds['median']:.2f}", spread, "-" if share is None else f"{share:.1%}", error))
    yield table(("one guided step of one image", "seconds", "p10 to p90", "of the bf16 rate", "relative error"), rows)
    ours = steps.get("tick-ours-auto", {})
    if "flops" in ours:
        rates = ", ".join(f"{n} {r['flops_per_second'] / 1e9:.0f} ({r['runtime']})" for n, r in ours["rates"].items())
        yield (
            f"{ours['flops'] / 1e12:.2f} TFLOP a tick, attention's products included. Matmul rates of the same process "
            f"in GFLOP/s: {rates}. The share counts operations that are spared, too: what both rows have in common is "
            f"computed once, and convolutions of doubled images on the images themselves.{_reach(steps)} The error is "
            "that of the network's output against diffusers' on the same inputs; with random weights it says how exact "
            "the arithmetic is, not what images would look like."
        )


def _reach(steps: Steps) -> str:
    """How far bf16's matmul rate would carry without what is spared."""
    ours, slow = steps["tick-ours-auto"], steps.get("tick-diffusers", {})
    rate = ours["rates"].get("bf16")
    if rate is None or "seconds" not in slow:
        return ""
    least = ours["flops"] / rate["flops_per_second"]
    times = slow["seconds"]["median"] / least
    return f" All of them at this processor's bf16 rate take {least:.2f} s, {times:.2f}x as fast as diffusers."


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
