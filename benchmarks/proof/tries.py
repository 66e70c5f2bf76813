"""The tables of what was tried beside the arms: other heads, adapters, labels, trainings and amounts.

Knows: which records each of them is made of. A table that nothing was run for is left out, but for the heads, which
the issue asked for. Knows nothing about the bars.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.proof.described import AS_CHOSEN, full_images, learned, only, scarce_images
from benchmarks.proof.markdown import NOT_RUN, shown, spread, table
from benchmarks.proof.plan import FULL, ONCE, SELF, DetectorPlan, Plan, suffixed
from benchmarks.proof.summary import FIGURES, Records, full, gain, scarce


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
    kinds = {"once": "", "once more": SELF} | {learned(own): own for own in again}
    for what, own in kinds.items():
        names = [suffixed(name, own) for name in done]
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


def _labels(records: Records, plan: Plan) -> Iterable[str]:
    """What the same images are worth with other adapters' labels, or by other rules; and what other images are."""
    rows = []
    for suffix, what in scarce_images(plan).items():
        names = {name: suffixed(name, suffix) for name in plan.lists}
        for arm in ("generated", "pseudo"):
            gains = [_gain(records, detector.kind, names, arm) for detector in plan.detectors]
            if any(one != shown(None) for one in gains):
                counted = [records.get(f"{arm}-{one}", {}).get("figures") for one in names.values()]
                found = [figures for figures in counted if figures and figures["images"]]
                labels = [sum(figures["labels"].values()) / figures["images"] for figures in found]
                doubts = [figures["uncertain"] / figures["images"] for figures in found]
                painted = what.strengths if arm == "generated" else "-"
                rows.append(
                    (arm, painted, what.learned, what.score, what.uncertain, _mean(labels), _mean(doubts), *gains)
                )
    if not rows:
        return
    yield "## What images are worth with other labels, and other images (10% of the labels)\n"
    yield (
        "AP over real. Where scores were chosen on tune, uncertain regions were painted over before a detector saw the "
        "image; in later trainings they stay in view and teach nothing. Labels of an adapter that "
        "learned once, and of images at other strengths, were made while the images were painted, all others from the "
        "images' files.\n"
    )
    header = ("images", "strengths", "the adapter learned", "score", "uncertain from")
    counts = ("labels an image", "uncertain an image")
    yield table((*header, *counts, *(detector.kind for detector in plan.detectors)), rows)


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f}" if values else NOT_RUN


def _gain(records: Records, kind: str, names: Mapping[str, str], arm: str, real: str = "") -> str:
    """An arm over real, on the lists that were run.

    names: what a list is called in the arm's stages. real: suffix of the real images' trainings.
    """
    done = _done(records, kind, names, arm, real)
    arms = scarce(records, kind, [suffixed(name, real) for name in done], ("real",))
    arms |= scarce(records, kind, [names[name] for name in done], (arm,))
    return shown(gain(arms, arm, "real")) + only(done, list(names), "list")


def _done(records: Records, kind: str, names: Mapping[str, str], arm: str, real: str) -> list[str]:
    """The lists that both trainings were run for."""
    return [
        name
        for name, own in names.items()
        if f"{kind}-{own}-{arm}" in records and f"{kind}-{suffixed(name, real)}-real" in records
    ]


def _ways(records: Records, plan: Plan) -> Iterable[str]:
    """What the same images give in other trainings, with 10% of the labels, beside what they give in the arms'."""
    rows = []
    for own, way in plan.ways.items():
        what, real = scarce_images(plan)[way.labels], own if way.longer > 1 else ""
        for detector in plan.detectors:
            changed = {name: f"{name}-{way.labels}-{own}" for name in plan.lists}
            done = _done(records, detector.kind, changed, "generated", real)
            if done:
                plain = {name: f"{name}-{way.labels}" for name in done}
                before = _gain(records, detector.kind, plain, "generated")
                after = _gain(records, detector.kind, changed, "generated", real)
                steps = str(detector.steps * way.longer)
                rows.append((detector.kind, *what[:3], steps, way.mix or AS_CHOSEN, after, before))
    if rows:
        yield "## What the same images and labels are worth in other trainings (10% of the labels)\n"
        yield (
            "AP of real + generated over real images alone, which are trained for as many steps. A mix of two numbers "
            "goes evenly from the first to the second. The last column has the training of the arms, on the same "
            "lists.\n"
        )
        header = ("detector", "strengths", "the adapter learned", "score", "steps", "mix")
        yield table((*header, "over real", "in the arms' training"), rows)


def _full_ways(records: Records, plan: Plan) -> Iterable[str]:
    """What other images, other labels and other trainings give, with all labels."""
    known = full_images(plan)
    tried = {own: (what, AS_CHOSEN) for own, what in known.items() if own not in plan.ways_full}
    tried |= {own: (known[way.labels], way.mix or AS_CHOSEN) for own, way in plan.ways_full.items()}
    rows = []
    for own, (what, mix) in tried.items():
        gains = [_full_gain(records, detector, own) for detector in plan.detectors]
        if any(one != shown(None) for one in gains):
            rows.append((what.strengths, what.score, what.uncertain, mix, *gains))
    if len(rows) > 1:
        yield "## What other images, labels and trainings give (all labels)\n"
        yield "AP over real. Where regions are uncertain, they were painted over before a detector saw the image.\n"
        header = ("strengths", "score", "uncertain from", "mix")
        yield table((*header, *(detector.kind for detector in plan.detectors)), rows)


def _full_gain(records: Records, detector: DetectorPlan, own: str) -> str:
    """With all labels: generated over real, on the seeds that were run."""
    seeds = [str(seed) for seed in detector.seeds_full]
    done = [seed for seed in seeds if suffixed(f"{detector.kind}-{FULL}-{seed}", own) in records]
    return shown(gain(full(records, detector, own), "generated", "real")) + only(done, seeds, "seed")


def _rightness(records: Records) -> Iterable[str]:
    """How right labels are, by the strength that images were painted with."""
    if "truth" not in records:
        return
    found = records["truth"]["figures"]["rows"]
    classes = sorted({key.partition("/")[2] for row in found for key in row["figures"]})
    rows = []
    for row in found:
        painted = "{:.2f} to {:.2f}".format(*row["strengths"]) if row["strengths"] else "photographs"
        pairs = [[row["figures"].get(f"{what}/{name}") for what in ("precision", "recall")] for name in classes]
        shown_pairs = ["; ".join("-" if one is None else f"{one:.2f}" for one in pair) for pair in pairs]
        rows.append((f"`{row['labels']}`", painted, str(row["images"]), *shown_pairs))
    yield "## How right labels are\n"
    yield (
        "Precision; recall of labels (IoU of 0.5 or more) against the true labels of what the images show, by the "
        "strength they were painted with. With 10% of the labels nobody would have these. No stage reads them; who "
        "planned the last two rounds did. An object that was painted where the reference has none counts as wrong, "
        "though the picture may show it. Uncertain regions are no labels; objects of which less than 0.3 is in view "
        "count neither way.\n"
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
