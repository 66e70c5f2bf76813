"""The tables of what was tried beside the arms: other heads, adapters, labels, trainings and amounts.

Knows: which records each of them is made of. A table that nothing was run for is left out, but for the heads, which
the issue asked for. Knows nothing about the bars.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.proof.markdown import NOT_RUN, shown, spread, table
from benchmarks.proof.plan import FULL, ONCE, SELF, THIRD, DetectorPlan, Plan, Way
from benchmarks.proof.summary import FIGURES, Records, full, gain, scarce

AS_CHOSEN = "as tune chose"


def tries(records: Records, plan: Plan) -> Iterable[str]:
    """Every table."""
    yield from _adapters(records, plan)
    yield from _self_trained(records, plan)
    yield from _labels(records, plan)
    yield from _ways(records, plan)
    yield from _full_ways(records, plan)
    yield from _rightness(records)
    yield from _amounts(records, plan)


def _adapters(records: Records, plan: Plan) -> Iterable[str]:
    """Heads and sizes: their AP, and what the data they label is worth."""
    first, kind = plan.lists[0], plan.detectors[0].kind
    real = scarce(records, kind, (first,), ("real",))
    rows = []
    for variant in (ONCE, *plan.variants):
        name = f"{first}-{variant}"
        adapter = first if variant == ONCE else name
        own = scarce(records, kind, (name,), ("generated",))
        tuned = records.get(f"adapter-{adapter}", {}).get("figures", {}).get("tune", {}).get("generic", {})
        read = records.get(f"adapter-val-{adapter}", {}).get("figures", {}).get("results", {}).get("adapter", {})
        rows.append(
            (
                "rt_detr, 128 wide" if variant == ONCE else " ".join(plan.variants[variant]),
                f"{100 * tuned['AP']:.1f}" if tuned else NOT_RUN,
                f"{100 * read['figures']['AP']:.1f}" if read else NOT_RUN,
                spread(own["generated"].values("AP")) if own else NOT_RUN,
                shown(gain(real | own, "generated", "real")),
            )
        )
    yield f"## The adapter's head (list {first})\n"
    yield "What the same generated images are worth with each one's labels, by `--score matched`.\n"
    header = ("head", "AP on tune", "AP on val", f"{kind} with the images it labelled", "over real")
    yield table(header, rows)


def _self_trained(records: Records, plan: Plan) -> Iterable[str]:
    """The lists' adapters, and those that learned once more: on tune and on val."""
    done = [name for name in plan.lists if f"adapter-{name}-{SELF}" in records]
    if not done:
        return
    rows = []
    again = [own for own in plan.again if f"adapter-{done[0]}-{own}" in records]
    kinds = {"once": "", "once more": SELF} | {_learned(own): own for own in again}
    for what, own in kinds.items():
        names = [f"{name}-{own}".removesuffix("-") for name in done]
        tuned = [records[f"adapter-{name}"]["figures"]["tune"]["generic"] for name in names if own not in again]
        on_tune = [[100 * one[key] for one in tuned] for key in ("AP", "AP50")]
        read = [records.get(f"adapter-val-{name}", {}).get("figures", {}).get("results", {}) for name in names]
        val = [100 * one["adapter"]["figures"]["AP"] for one in read] if all(read) else []
        rows.append((what, *(spread(values) for values in on_tune), spread(val) if val else NOT_RUN))
    yield f"## An adapter that learns once more, from its own labels (lists {', '.join(done)})\n"
    yield (
        f"`train-adapter --pseudo`: {100 * plan.self_share:g}% of the frames show the other train images, with the "
        "labels of the adapter that learned once. Neither learned from the tune part that measures, but checkpoints "
        "and thresholds were chosen on it. The third time, an adapter learns for longer, from the labels of the second "
        "one, matched in number, and from the whole list: nothing is left to measure on but val.\n"
    )
    yield table(("the adapter learned", "AP on tune", "AP50 on tune", "AP on val"), rows)


def _learned(own: str) -> str:
    return {SELF: "once more", THIRD: "a third time"}.get(own, own)


def _labels(records: Records, plan: Plan) -> Iterable[str]:
    """What the same images are worth with other adapters' labels, or by other rules; and what other images are."""
    tried = [(arm, arm, suffix, how) for suffix, how in _label_rules(plan).items() for arm in ("generated", "pseudo")]
    for suffix, how in plan.repaints.items():
        painted = "generated, strengths {:g} to {:g}".format(*how.strength)
        tried.append((painted, "generated", suffix, (_learned(how.adapter), how.score, 0.0)))
    rows = []
    for images, arm, suffix, (adapter, score, uncertain) in tried:
        names = {name: f"{name}-{suffix}".removesuffix("-") for name in plan.lists}
        gains = [_gain(records, detector.kind, names, arm) for detector in plan.detectors]
        if any(one != shown(None) for one in gains):
            counted = [records.get(f"{arm}-{one}", {}).get("figures") for one in names.values()]
            found = [figures for figures in counted if figures and figures["images"]]
            labels = [sum(figures["labels"].values()) / figures["images"] for figures in found]
            doubts = [figures["uncertain"] / figures["images"] for figures in found]
            below = f"{uncertain:g}" if uncertain else "-"
            rows.append((images, adapter, score, below, _mean(labels), _mean(doubts), *gains))
    if not rows:
        return
    yield "## What images are worth with other labels, and other images (10% of the labels)\n"
    yield (
        "AP over real. Where scores were chosen on tune, uncertain regions were painted over before a detector saw the "
        "image; in later trainings they stay in view and teach nothing. Labels of an adapter that "
        "learned once, and of images at other strengths, were made while the images were painted, all others from the "
        "images' files.\n"
    )
    header = ("images", "the adapter learned", "score", "uncertain from", "labels an image", "uncertain an image")
    yield table((*header, *(detector.kind for detector in plan.detectors)), rows)


def _label_rules(plan: Plan) -> dict[str, tuple[str, str, float]]:
    """By the suffix of a list's name: how often the adapter learned, its score, and where uncertain regions begin."""
    tuned = {suffix: (_learned(suffix or "once"), "chosen on tune", plan.uncertain) for suffix in ("", SELF)}
    again = {suffix: (_learned(how.adapter), how.score, how.uncertain) for suffix, how in plan.relabels.items()}
    return tuned | again


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f}" if values else NOT_RUN


def _gain(records: Records, kind: str, names: Mapping[str, str], arm: str) -> str:
    """An arm over real, on the lists that were run; `names`: how the arm's stages call the lists of real images."""
    done = [name for name in names if f"{kind}-{names[name]}-{arm}" in records and f"{kind}-{name}-real" in records]
    arms = scarce(records, kind, done, ("real",)) | scarce(records, kind, [names[name] for name in done], (arm,))
    only = f" (list {', '.join(done)} alone)" if 0 < len(done) < len(names) else ""
    return shown(gain(arms, arm, "real")) + only


def _ways(records: Records, plan: Plan) -> Iterable[str]:
    """What the same images give in other trainings, with 10% of the labels, beside what they give in the arms'."""
    rows: list[tuple[str, ...]] = []
    for own, way in plan.ways.items():
        how = plan.repaints.get(way.labels)
        images = "strengths {:g} to {:g}".format(*how.strength) if how else "as in the arms"
        plain = {name: f"{name}-{way.labels}" for name in plan.lists}
        known = {name: f"{name}-{own}" if way.longer > 1 else name for name in plan.lists}
        changed = {known[name]: f"{plain[name]}-{own}" for name in plan.lists}
        changes = [_gain(records, detector.kind, changed, "generated") for detector in plan.detectors]
        if any(one != shown(None) for one in changes):
            steps = plan.detectors[0].steps
            gains = [_gain(records, detector.kind, plain, "generated") for detector in plan.detectors]
            before = (images, str(steps), AS_CHOSEN, *gains)
            rows += [before] if before not in rows else []
            rows.append((images, str(steps * way.longer), way.mix or AS_CHOSEN, *changes))
    if rows:
        yield "## What the same images and labels are worth in other trainings (10% of the labels)\n"
        yield (
            "AP over real, with the labels of adapters that learned a third time, by `--score matched`; real images "
            "alone are trained for as many steps. A mix of two numbers goes evenly from the first to the second.\n"
        )
        yield table(("generated images", "steps", "mix", *(detector.kind for detector in plan.detectors)), rows)


def _full_ways(records: Records, plan: Plan) -> Iterable[str]:
    """What the same images give with other labels and in other trainings, with all labels."""
    rows = []
    for own, way in {"": Way(""), **plan.ways_full}.items():
        gains = [_full_gain(records, detector, own) for detector in plan.detectors]
        if any(one != shown(None) for one in gains):
            score = plan.relabels_full[way.labels].score if way.labels else "chosen on tune"
            rows.append((score, way.mix or AS_CHOSEN, *gains))
    if len(rows) > 1:
        yield "## What the same images are worth with other labels and in other trainings (all labels)\n"
        yield table(("score", "mix", *(f"{detector.kind}, AP over real" for detector in plan.detectors)), rows)


def _full_gain(records: Records, detector: DetectorPlan, own: str) -> str:
    """With all labels: generated over real, on the seeds that were run."""
    seeds = [
        seed for seed in detector.seeds_full if f"{detector.kind}-{FULL}-{seed}-{own}".removesuffix("-") in records
    ]
    only = f" (seed {', '.join(map(str, seeds))} alone)" if 0 < len(seeds) < len(detector.seeds_full) else ""
    return shown(gain(full(records, detector, own), "generated", "real")) + only


def _rightness(records: Records) -> Iterable[str]:
    """How right labels are, by the strength that images were painted with."""
    if "truth" not in records:
        return
    found = records["truth"]["figures"]["rows"]
    classes = sorted({key.partition("/")[2] for row in found for key in row["figures"]})
    rows = []
    for row in found:
        least = "photographs" if row["strength_from"] is None else f"from {row['strength_from']:g}"
        pairs = [[row["figures"].get(f"{what}/{name}") for what in ("precision", "recall")] for name in classes]
        shown_pairs = ["; ".join("-" if one is None else f"{one:.2f}" for one in pair) for pair in pairs]
        rows.append((f"`{row['labels']}`", least, str(row["images"]), *shown_pairs))
    yield "## How right labels are\n"
    yield (
        "Precision; recall of the labels of images, against the true labels of what they show, by the strength that "
        "they were painted with. With 10% of the labels nobody would have these: they explain, and chose nothing. An "
        "object that was painted where the reference has none counts as wrong.\n"
    )
    yield table(("labels", "strength", "images", *classes), rows)


def _amounts(records: Records, plan: Plan) -> Iterable[str]:
    first, kind = plan.judged_images(plan.lists[0]), plan.detectors[0].kind
    if f"{kind}-{first}-amounts" not in records:
        return
    results = dict(records[f"{kind}-{first}-amounts"]["figures"]["results"])
    whole = records.get(f"{kind}-{first}-generated", {}).get("figures", {}).get("results", {})
    if "generated" in whole:
        results[f"generated{plan.count}"] = whole["generated"]
    yield f"## Amounts of generated images ({kind}, list {first})\n"
    order = sorted(results, key=lambda name: int(name.removeprefix("generated") or 0) if name != "real" else 0)
    rows = []
    for name in order:
        figures = results[name]["figures"]
        shown_name = "none" if name == "real" else name.removeprefix("generated")
        rows.append((shown_name, *(f"{100 * figures[one]:.1f}" for one in FIGURES)))
    yield table(("generated images", *FIGURES), rows)
