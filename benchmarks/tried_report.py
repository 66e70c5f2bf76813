"""The report of `tried.py` as markdown.

Knows: how figures are laid out. Does not know how they were measured.
"""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

AS_IT_IS, ALL = "as it is", "everything undone"


def report(value: Mapping[str, Any]) -> str:
    """The tables, from what `tried.py` writes as JSON."""
    here, load, rates, run = value["machine"], value["workload"], value["rates"], value["run"]
    whole = statistics.median(rates[AS_IT_IS])
    spread = f"{min(rates[AS_IT_IS]):.2f} to {max(rates[AS_IT_IS]):.2f}"
    encoding = _share(value["inside"][AS_IT_IS], "vae_encoder")
    lines = [
        "# What single things are worth on a CPU",
        "",
        f"Machine: {here['processor']}, {here['cores']} cores. Versions: "
        f"{', '.join(f'{name} {version}' for name, version in value['versions'].items())}.",
        "",
        f"Command: `{value['command']}`. {load['jobs']} images of the committed workload (`speed.md`) in "
        f"{run['precision']}, {run['slots']} slots, chunks of {run['chunk']}, each run in a process of its own. As it "
        f"is: {whole:.2f} images/s, the median of {len(rates[AS_IT_IS])} runs, {spread}; a change within that spread "
        "may be none. Labels and images are compared with those of a run as it is, as in `speed.md` (99 dB: the same "
        "pixels).",
        "",
        "| what is done | images/s without it | change | runs | labels | images |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, every in rates.items():
        found, same = statistics.median(every), value["same"][name]
        told = ", ".join(f"{rate:.2f}" for rate in every)
        change = "-" if name == AS_IT_IS else f"{found / whole - 1:+.1%}"
        lines.append(f"| {name} | {found:.2f} | {change} | {told} | {100 * same['ap50']:.1f} | {same['psnr']:.1f} |")
    lines += [
        "",
        f"Latents of references are not kept: the {load['jobs']} jobs have {value['crops']} different crops. Encoding "
        f"them takes {encoding:.1%} of the run.",
    ]
    for name in (ALL, AS_IT_IS):
        lines += ["", f"## Where the time goes, {name}", "", *_profile(value["inside"][name])]
    lines += ["", "Copies between PyTorch and OpenVINO count as the graphs' own time."]
    return "\n".join([*lines, ""])


def _profile(step: Mapping[str, Any]) -> Iterator[str]:
    yield "| graph | calls | batch | seconds in the run | of the run |"
    yield "| --- | --- | --- | --- | --- |"
    for name, graph in sorted(step["graphs"].items(), key=lambda item: -float(item[1]["run_seconds"])):
        cells = name, graph["calls"], graph["batch"], f"{graph['run_seconds']:.2f}", f"{_share(step, name):.1%}"
        yield f"| {' | '.join(map(str, cells))} |"
    outside = step["outside_share"]
    yield f"| outside the graphs | - | - | {outside * step['seconds']:.2f} | {outside:.1%} |"
    yield ""
    yield f"{step['images']} images in {step['seconds']:.1f} s, {step['images_per_second']:.2f} images/s."


def _share(step: Mapping[str, Any], graph: str) -> float:
    return float(step["graphs"][graph]["run_seconds"] / step["seconds"]) if graph in step["graphs"] else 0.0
