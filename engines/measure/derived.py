"""The figures of an engine that only follow from several measurements: speed-ups, and shares of the matmul rate.

Knows: how they are reckoned from what `bench` measured. Does not know how anything is measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engines.measure.roofline import rate_of

Figures = dict[str, Any]


def derived(figures: Figures, rooflines: Mapping[str, Figures], baseline: Sequence[Figures]) -> Figures:
    """An engine's figures with those that follow from other measurements.

    `roofline_share` of a graph, and of a tick: operations of its rows, over the median of its seconds, over the matmul
    rate of its precision, or of the `roofline_precision` beside it where its own has no rate (`rate_of`). Of the whole
    run: the seconds that all its calls would take at these rates, spare rows included, over the run's. A row that a
    backend does not compute, because it repeats another, counts as computed.
    """
    if "error" in figures:
        return figures
    speeds = {row["role"]: row["images_per_second"] for row in baseline if "error" not in row}
    result = figures | {"speedup": {role: figures["images_per_second"] / speed for role, speed in speeds.items()}}
    roofline = rooflines.get(figures["device"])
    if roofline is None or "error" in roofline:
        return result
    flops, best = roofline["flops"], roofline["best"]
    graphs, ideal = {}, 0.0
    for name, entry in figures["graphs"].items():
        work = flops[entry["graph"]] * entry["batch"]
        share = _share(work / entry["seconds"]["median"], rate_of(best, entry["precision"]))
        ideal += (share["roofline_share"] or 0.0) * entry["seconds"]["median"] * entry["calls"]
        graphs[name] = entry | {"flops": work} | share
    tick = figures["tick"]
    share = _share(flops["unet"] * tick["rows"] / tick["seconds"]["median"], rate_of(best, figures["precision"]))
    whole = share | {"roofline_share": ideal / figures["seconds"] if ideal else None}
    return result | {"graphs": graphs, "tick": tick | share} | whole


def _share(speed: float, rate: Mapping[str, Any] | None) -> Figures:
    """Operations a second over a rate, and the rate's precision."""
    if rate is None:
        return {"roofline_share": None, "roofline_precision": None}
    return {"roofline_share": speed / rate["flops_per_second"], "roofline_precision": rate["precision"]}
