"""What every row of `speed.py` has to reach, and whether it did.

Knows: the bars, and which figures decide them. Does not know how anything was measured, or how the report looks. What
was not measured says so.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import peers
from benchmarks.records import Bar

Steps = Mapping[str, Mapping[str, Any]]
OURS = ("auto", "int8", "f32")  # precisions; one that this version or machine lacks is listed with its error
EAGER = ("baseline-1", "baseline-best")
RATES = {"1": 4.0, "best": 3.0, "peer": 1.6, "fast": 10.0}
AS_RIGHT = 0.02  # AP50 that the labels of faster settings may lose
OUTSIDE = 0.05


def bars(steps: Steps) -> Iterator[Bar]:
    """Every row with what it has to reach."""
    best = _best_rate(steps, EAGER)
    for precision in OURS[:2]:
        ours = steps.get(f"final-{precision}", {})
        rate = ours.get("images_per_second")
        if rate is None and precision != "auto":
            continue
        name = f"bundled model, {ours.get('precision', precision)}"
        one = _best_rate(steps, EAGER[:1])
        yield _times(f"{name}, against eager diffusers at batch 1", rate, one, RATES["1"])
        yield _times(f"{name}, against eager diffusers at its best batch", rate, best, RATES["best"])
        share = steps.get(f"inside-{precision}", {}).get("outside_share")
        reached = None if share is None else share <= OUTSIDE
        yield f"{name}, time outside the graphs", f"<= {OUTSIDE:.0%} of wall", percent(share), reached
    for name in ("usual", "usual-int8"):
        if "images_per_second" in (ours := steps.get(f"settings-{name}", {})):
            told = f"`generate` where nobody says, {ours['precision']}"
            yield _against_peers(told, ours["images_per_second"], ours["precision"] == "int8", steps)
    if fast := fastest_as_right(steps):
        told = f"settings whose labels are as right ({setting_of(fast)}), against eager diffusers at its best batch"
        yield _times(told, fast["images_per_second"], best, RATES["fast"])


def best_ours(steps: Steps, *precisions: str) -> Mapping[str, Any] | None:
    """The fastest run of the committed workload in one of these precisions (as asked for), at whatever slots."""
    beginnings = tuple(f"ours-{precision}" for precision in precisions)
    runs = [step for name, step in steps.items() if name.startswith(beginnings) and "error" not in step]
    return max(runs, key=lambda step: float(step["images_per_second"]), default=None)


def fastest_as_right(steps: Steps) -> Mapping[str, Any] | None:
    """The fastest of the other settings whose labels an independent detector finds as right as the slow run's."""
    slow = steps.get("judged-ours-f32", {}).get("ap50", 2.0)
    held = [step for name, step in steps.items() if name.startswith("settings-") and "error" not in step
            and steps.get(name.replace("settings-", "judged-"), {}).get("ap50", 0.0) >= slow - AS_RIGHT]  # fmt: skip
    return max(held, key=lambda step: float(step["images_per_second"]), default=None)


def setting_of(step: Mapping[str, Any]) -> str:
    """What a run painted with."""
    return f"{step['steps']} steps, {step['precision']}, {step['slots']} slots"


def percent(share: float | None) -> str:
    """A share, or that it is not known."""
    return "not measured" if share is None else f"{share:.1%}"


def _best_rate(steps: Steps, names: tuple[str, ...]) -> float | None:
    """images/s of the fastest of the named steps."""
    rates = [steps[name]["images_per_second"] for name in names if "images_per_second" in steps.get(name, {})]
    return max(map(float, rates), default=None)


def _times(what: str, ours: float | None, other: float | None, wanted: float | None) -> Bar:
    bar = "no bar" if wanted is None else f"{wanted:g}x"
    if ours is None or other is None:
        return what, bar, "not measured", None
    reached = None if wanted is None else ours / other >= wanted
    return what, bar, f"{ours / other:.2f}x ({ours:.2f} / {other:.2f} images/s)", reached


def _against_peers(name: str, rate: float | None, int8: bool, steps: Steps) -> Bar:
    """Like beside like: peers may be in int8 where ours is, which has no bar where none of them is."""
    tried = steps.get("peers", {}).get("peers", ())
    peer = peers.fastest(tried, int8=int8)
    told = f" ({peer['title']}, {peer['precision']})" if peer else ""
    alike = RATES["peer"] if not int8 or any(result.get("int8") for result in tried) else None
    other = None if peer is None else float(peer["images_per_second"])
    return _times(f"{name}, against the fastest peer, pictures alone{told}", rate, other, alike)
