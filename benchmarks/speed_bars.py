"""What every row of `speed.py` has to reach, and whether it did.

Knows: the bars, and which figures decide them. Does not know how anything was measured, or how the report looks. What
was not measured says so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import peers

Steps = Mapping[str, Mapping[str, Any]]
OURS = ("auto", "int8", "f32")  # precisions; one that this version or machine lacks is listed with its error
POINTS = 2.0  # AP50, 0 to 100, that the labels of a faster setting may lose
COMPILED = ("baseline-compiled-1", "baseline-compiled")
RATES = {"1": 4.0, "best": 3.0, "settings": 8.0, "peer": 1.3, "tick": 3.7}
OUTSIDE, ROOFLINE, FIRST_IMAGE = 0.05, 0.55, 3.0


@dataclass(frozen=True)
class Bar:
    """One row of the first table."""

    what: str
    wanted: str
    found: str
    met: bool | None  # None: not measured, or no bar

    def cells(self) -> tuple[str, ...]:
        """The row."""
        return self.what, self.wanted, self.found, {True: "met", False: "**not met**", None: "-"}[self.met]


def bars(steps: Steps) -> Iterator[Bar]:
    """Every row with what it has to reach."""
    one, best = _rate(steps, "baseline-1"), _best_baseline(steps)
    compiled = max((rate for name in COMPILED if (rate := _rate(steps, name)) is not None), default=None)
    for precision in OURS[:2]:
        ours = steps.get(f"final-{precision}", {})
        rate = ours.get("images_per_second")
        if rate is None and precision != "auto":
            continue
        name = f"bundled model, {ours.get('precision', precision)}"
        yield _times(f"{name}, against eager diffusers at batch 1", rate, one, RATES["1"])
        yield _times(f"{name}, against eager diffusers at its best batch", rate, best, RATES["best"])
        yield _times(f"{name}, against diffusers with torch.compile at its faster batch", rate, compiled, None)
        int8 = ours.get("precision") == "int8"  # beside which peers may be in int8, too
        tried = steps.get("peers", {}).get("peers", ())
        peer = peers.fastest(tried, int8=int8)
        peer_rate = None if peer is None else float(peer["images_per_second"])
        told = f" ({peer['title']}, {peer['precision']})" if peer else ""
        alike = RATES["peer"] if not int8 or any(result.get("int8") for result in tried) else None
        yield _times(f"{name}, against the fastest peer, pictures alone{told}", rate, peer_rate, alike)
        share = steps.get(f"inside-{precision}", {}).get("outside_share")
        yield Bar(
            f"{name}, time outside the graphs", f"<= {OUTSIDE:.0%} of wall", _percent(share), _at_most(share, OUTSIDE)
        )
    final = best_final(steps)
    yield _times(
        _final_name(final), None if final is None else float(final["images_per_second"]), best, RATES["settings"]
    )
    yield from _tick_bars(steps)
    first = first_image_seconds(steps)
    found = "not measured" if first is None else f"{first:.2f} s"
    yield Bar("load to one finished image", f"<= {FIRST_IMAGE:g} s", found, _at_most(first, FIRST_IMAGE))


def best_ours(steps: Steps, *precisions: str) -> Mapping[str, Any] | None:
    """The fastest run of the committed workload in one of these precisions (as asked for), at whatever slots."""
    names = tuple(f"ours-{precision}" for precision in precisions)
    runs = [step for name, step in steps.items() if name.startswith(names) and "error" not in step]
    return max(runs, key=lambda step: float(step["images_per_second"]), default=None)


def holds(found: Mapping[str, Any], slow: Mapping[str, Any]) -> bool:
    """Whether a setting's labels agree with the detector within POINTS of the slow one's."""
    return 100 * (float(slow["label_ap50"]) - float(found["label_ap50"])) <= POINTS


def best_final(steps: Steps) -> Mapping[str, Any] | None:
    """The fastest setting whose labels held on the whole workload; None where none did, or none was judged."""
    slow = steps.get("best-reference", {})
    if "label_ap50" not in slow:
        return None
    judged = (step for name, step in steps.items() if name.startswith("best-final-") and "error" not in step)
    finals = [step for step in judged if holds(step, slow)]
    return max(finals, key=lambda step: float(step["images_per_second"]), default=None)


def first_image_seconds(steps: Steps) -> float | None:
    """The median of the starts that found the cache of compiled models warm."""
    seconds = sorted(step["first_image_seconds"] for step in _warm_starts(steps))
    return float(seconds[len(seconds) // 2]) if seconds else None


def _warm_starts(steps: Steps) -> list[Mapping[str, Any]]:
    named = [f"first-image-{number}" for number in range(1, 100)]
    return [steps[name] for name in named if steps.get(name, {}).get("first_image_seconds") is not None]


def _best_baseline(steps: Steps) -> float | None:
    """images/s of eager diffusers at its best batch."""
    rates = [rate for name in ("baseline-1", "baseline-best") if (rate := _rate(steps, name)) is not None]
    return max(rates, default=None)


def _rate(steps: Steps, name: str) -> float | None:
    found = steps.get(name, {}).get("images_per_second")
    return None if found is None else float(found)


def _times(what: str, ours: float | None, other: float | None, wanted: float | None) -> Bar:
    bar = "no bar" if wanted is None else f"{wanted:g}x"
    if ours is None or other is None:
        return Bar(what, bar, "not measured", None)
    met = None if wanted is None else ours / other >= wanted
    return Bar(what, bar, f"{ours / other:.2f}x ({ours:.2f} / {other:.2f} images/s)", met)


def _at_most(found: float | None, limit: float) -> bool | None:
    return None if found is None else found <= limit


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.1%}"


def _final_name(final: Mapping[str, Any] | None) -> str:
    name = "best settings, against eager diffusers at its best batch"
    if final is None:
        return f"{name}, labels within {POINTS:g} points"
    return f"{name} ({setting_of(final)}; its labels {100 * final['label_ap50']:.1f})"


def setting_of(step: Mapping[str, Any]) -> str:
    """What a run painted with."""
    sampler = {"ddim": "DDIM", "dpmpp": "DPM++ 2M"}[step["sampler"]]
    interval = step["guidance_interval"]
    guided = "" if interval in (None, [0.0, 1.0]) else f", guided where t/T is in {interval[0]:g}:{interval[1]:g}"
    return f"{sampler} {step['steps']} steps{guided}, {step['precision']}, {step['slots']} slots"


def _tick_bars(steps: Steps) -> Iterator[Bar]:
    slow = steps.get("tick-diffusers", {})
    for precision in OURS[:2]:
        ours = steps.get(f"tick-ours-{precision}", {})
        if "seconds" not in ours and precision != "auto":
            continue
        what = f"SD2-size UNet tick, {ours.get('precision', precision)}"
        both = [step["seconds"]["median"] for step in (slow, ours) if "seconds" in step]
        times, told = None, "not measured"
        if len(both) == 2:
            times = both[0] / both[1]
            told = f"{times:.2f}x ({both[0]:.2f} s / {both[1]:.2f} s)"
        wanted = RATES["tick"]
        yield Bar(f"{what}, against diffusers float32", f"{wanted:g}x", told, _at_least(times, wanted))
        share = tick_share(ours)
        if ours.get("precision") != "int8":  # whose own rate is another
            met = _at_least(share, ROOFLINE)
            yield Bar(f"{what}, share of the bf16 matmul rate", f">= {ROOFLINE:.0%}", _percent(share), met)


def _at_least(found: float | None, limit: float) -> bool | None:
    return None if found is None else found >= limit


def tick_share(step: Mapping[str, Any]) -> float | None:
    """Operations of a tick over its seconds and the bf16 matmul rate; None where that was not measured."""
    rate = step.get("rates", {}).get("bf16")
    return None if rate is None else step["flops"] / step["seconds"]["median"] / rate["flops_per_second"]
