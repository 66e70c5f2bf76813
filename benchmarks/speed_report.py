"""The report of `speed.py` as markdown: what every row has to reach, whether it did, and the figures behind it.

Knows: how figures are laid out. Does not know how they were measured, or what they have to reach (`speed_bars`). What
was not measured says so.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import peer_runner
import peers
from speed_bars import OURS, POINTS, Steps, bars, setting_of, tick_share
from speed_store import PROFILE


def report(value: Mapping[str, Any]) -> str:
    """Every table, from what `speed.py` writes as JSON."""
    steps: Steps = value["steps"]
    load = value["workload"]
    versions = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    machine = value["machine"]
    parts = [
        "# Speed on a CPU",
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, "
        f"{machine['system']}. Versions: {versions}.",
        f"Command: `{value['command']}`. Every row in a process of its own, one after the other. "
        f"{_origins(value['origins'])}",
        f"Workload: {load['jobs']} images, img2img on references that the bundled model painted, "
        f"{load['frame'][0]}x{load['frame'][1]}, {load['steps']} DDIM steps, guidance {load['guidance']:g}, strengths "
        f"{load['strength'][0]} to {load['strength'][1]}. images/s count from the end of loading to every file on "
        "disk; ours has its journal and fsync in it.",
    ]
    if value["toy"]:
        parts.append("**A dry run: the full-size rows used a tiny network.**")
    parts += [
        "## What it has to reach",
        table(("what", "at least", "found", ""), [bar.cells() for bar in bars(steps)]),
        "## Images a second",
        table(("what", "setting", "images/s", "seconds", "wall of the command", "labels", "images"), _rates(steps)),
        "Labels: AP50 (0 to 100) of a run's boxes against the labels of PyTorch in float32 on the same jobs; images: "
        "their mean PSNR against its images, in dB. The fastest slots were measured again, and the first table takes "
        "the middle of these measurements: the best of several flatters. torch.compile's own time is not counted, nor "
        "is loading. The wall of the command holds start, imports and loading, with compiled models from "
        "the cache.",
        *_baseline_sizes(steps),
        "## Best settings",
        *_best(steps, value["candidates"]),
        "## Peers",
        *_peers(steps),
        "## A UNet of Stable Diffusion 2's size",
        *_tick(steps),
        "## From load to a first image",
        *_first_image(steps),
        "## Where the time goes",
        *(list(_inside(steps)) or ["Not measured."]),
        "## Commands of ours",
        *_commands(steps),
    ]
    errors = [(name, step["error"]) for name, step in steps.items() if "error" in step]
    if errors:
        parts += ["## What did not run", table(("step", "error"), errors)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origins(origins: Mapping[str, Mapping[str, Any]]) -> str:
    """When rows ended, and how many of them which code measured."""
    known = [origin for name, origin in origins.items() if origin["ended"] and not name.startswith(PROFILE)]
    if not known:
        return ""
    ends = sorted(str(origin["ended"]) for origin in known)
    counted = Counter(origin["commit"] for origin in known if origin["commit"]).most_common()
    told = ", ".join(f"{count} by commit {commit}" for commit, count in counted)
    return f"{len(known)} measurements, ended from {ends[0]} to {ends[-1]} UTC{f': {told}' if told else ''}."


def table(header: Sequence[str], rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]) -> str:
    """A markdown table; a line that says so where there are no rows."""
    lines = list(rows)
    if not lines:
        return "Not measured."
    every = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in every)


def _rates(steps: Steps) -> Iterator[Sequence[object]]:
    for name, step in steps.items():
        if name.startswith("baseline-") and "seconds" in step:
            how = f"batch {step['batch']}, {step['precision']}{', torch.compile' if step['compiled'] else ''}"
            yield "diffusers and adapter", how, f"{step['images_per_second']:.2f}", f"{step['seconds']:.1f}", *"---"
    for precision in OURS:
        judged = steps.get(f"labels-{precision}", {})
        same = [f"{100 * judged['ap50']:.1f}", f"{judged['psnr']:.1f}"] if "psnr" in judged else ["-", "-"]
        for name, step in steps.items():
            if name.startswith((f"ours-{precision}", f"final-{precision}")) and "seconds" in step:
                figures = [f"{step[key]:.{digits}f}" for key, digits in _FIGURES.items()]
                yield f"dengine generate --precision {precision}", setting_of(step) + _again(step), *figures, *same


def _again(step: Mapping[str, Any]) -> str:
    """What to say of a figure that is the middle one of several."""
    rates = ", ".join(f"{rate:.2f}" for rate in step.get("rates", ()))
    return f"; the middle of {rates}" if len(step.get("rates", ())) > 1 else ""


_FIGURES = {"images_per_second": 2, "seconds": 1, "wall_seconds": 1}  # digits after the point


def _baseline_sizes(steps: Steps) -> Iterator[str]:
    sizes = {k: v for k, v in steps.get("baseline-sizes", {}).items() if k != "error"}
    if sizes:
        found = ", ".join(f"{size}: {rate:.2f}" for size, rate in sizes.items())
        yield f"One full batch of diffusers, images/s by batch: {found}."


def _best(steps: Steps, candidates: Mapping[str, str]) -> Iterator[str]:
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
    rows += [
        _judged(f"the whole workload: {setting_of(step)}{_again(step)}", step, slow)
        for name, step in steps.items() if name.startswith(("best-own", "best-final-")) and "label_ap50" in step
    ]  # fmt: skip
    if "label_ap50" in own:
        rows.append(_judged("search: the workload's own settings", own, own))
        rows += [
            _judged(f"search: {title}", steps[name], own)
            for name, title in candidates.items() if "label_ap50" in steps.get(name, {})
        ]  # fmt: skip
    yield table(
        ("setting", "images", "images/s", "AP50 of the labels", "against the reference", "labels an image",
         "UNet rows an image"),
        rows,
    )  # fmt: skip


def _judged(name: str, step: Mapping[str, Any], slow: Mapping[str, Any]) -> Sequence[object]:
    rate = step.get("images_per_second")
    points = 100 * (step["label_ap50"] - slow["label_ap50"])
    change = "-" if step is slow else f"{points:+.1f}"
    shown = "-" if rate is None else f"{rate:.2f}"
    judged = step.get("judged", step)
    ends = judged.get("label_ap50_interval")  # not in rows of before
    found = f"{100 * step['label_ap50']:.1f}" + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")
    taken = f"{judged['unet_rows']:.1f}" if "unet_rows" in judged else "-"
    return name, step["images"], shown, found, change, f"{step['labels']:.1f}", taken


def _peers(steps: Steps) -> Iterator[str]:
    found = steps.get("peers", {})
    if "peers" not in found:
        yield "Not measured."
        return
    label = found["label"]["seconds_an_image"]
    int8 = (
        f" OpenVINO's in int8, too, quantized by optimum with {peer_runner.SAMPLES} calls of the UNet while it paints "
        'the jobs\' prompts: "hybrid" is its own choice for diffusion models, "full" has matrix products compute in '
        "int8 as well. What int8 does to the pictures was not judged for them."
    )
    yield (
        "The same jobs on optimum's pipelines, each in an environment of its own at its best batch, shapes and "
        f"precision of float32 and bf16.{int8 if any(peer.get('int8') for peer in found['peers']) else ''} In their "
        "favour: crops are cut beforehand, and export, quantization and loading are not timed. They paint pictures "
        "without boxes. The last column adds the label pass in PyTorch, "
        f"{1000 * label:.0f} ms an image, measured in dengine's own environment (the adapter needs a newer "
        "transformers than theirs), on latents that are there already."
    )
    yield peers.table(found["peers"], label)
    for result in found["peers"]:
        painted = [_painted(one) for one in result.get("painted", ()) if "error" not in one]
        if painted:
            yield f"{result['title']}, all images: {'; '.join(painted)}."
        failed = [entry for entry in result.get("search", ()) if "error" in entry]
        if failed:
            told = f"{len(failed)} of {len(result['search'])} settings failed"
            yield f"{result['title']}: {told}, the first with {failed[0]['error']}"


def _painted(one: Mapping[str, Any]) -> str:
    shapes = "static" if one["static"] else "dynamic"
    return f"{one['precision']}, {shapes} shapes, batch {one['batch']}: {one['images_per_second']:.2f} images/s"


def _tick(steps: Steps) -> Iterator[str]:
    rows: list[Sequence[object]] = []
    for name, step in steps.items():
        if name.startswith("tick-") and "seconds" in step and name != "tick-unet":
            how = "both rows at once" if name.endswith("-whole") else "as generate runs it"
            title = "diffusers, float32" if name == "tick-diffusers" else f"ours, {step['precision']}, {how}"
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


def _first_image(steps: Steps) -> Iterator[str]:
    rows = [
        (
            "cold cache" if name == "first-image-0" else "warm cache",
            *(f"{steps[name][key]:.2f}" for key in ("import_seconds", "load_seconds", "first_image_seconds")),
            f"{steps[name]['slots']} slots, {steps[name]['rows']} rows",
        )
        for name in sorted(steps)
        if name.startswith("first-image-") and steps[name].get("first_image_seconds") is not None
    ]
    yield table(("start", "imports", "load", "load to first image, s", "with"), rows)
    if rows:
        yield "The first start finds the cache as earlier rows left it. Imports come before the clock."


def _inside(steps: Steps) -> Iterator[str]:
    needed = steps.get("inside-rows", {}).get("rows")
    for name, step in steps.items():
        if not name.startswith(("profile-", "inside-")) or "graphs" not in step:
            continue
        yield f"### {name}: {step['backend']}, {step['slots']} slots, {step['rows']} rows"
        yield table(("what", "calls", "batch", "ms a call alone", "seconds in the run", "of the run"), _graphs(step))
        computed = step["graphs"]["unet"]["calls"] * step["graphs"]["unet"]["batch"]
        spare = f", {1 - needed / computed:.1%} spare" if needed else ""
        yield (
            f"{step['images']} images in {step['seconds']:.1f} s, {step['images_per_second']:.2f} images/s. "
            f"The sampler's UNet computed {computed} rows{spare}."
        )


def _graphs(step: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    total = step["seconds"]
    for name, graph in sorted(step["graphs"].items(), key=lambda item: -(item[1]["run_seconds"] or 0.0)):
        taken = graph["run_seconds"]
        alone = f"{1000 * graph['seconds']['median']:.2f}"
        shown = ("-", "-") if taken is None else (f"{taken:.2f}", f"{taken / total:.1%}")
        yield name, graph["calls"], graph["batch"], alone, *shown
    if step["outside_share"] is not None:
        outside = step["outside_share"]
        yield "outside the graphs", "-", "-", "-", f"{outside * total:.2f}", f"{outside:.1%}"


def _commands(steps: Steps) -> Iterator[str]:
    lines = [
        step["command"] for name, step in steps.items() if "command" in step and not name.startswith("best-search")
    ]
    if lines:
        yield "```\n" + "\n".join(lines) + "\n```"
