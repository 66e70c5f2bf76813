"""proof.md: what the records say, as text for a reader who trusts nothing.

Knows: the sections and their wording. Every figure comes from a record; what was not run is said to be not run, and a
bar that is not reached is said to be not met. Knows nothing about how the figures came to be.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.proof import pictures
from benchmarks.proof.described import AS_CHOSEN, full_images, scarce_images
from benchmarks.proof.markdown import NOT_RUN, ablations, shown, spread, table
from benchmarks.proof.order import build
from benchmarks.proof.plan import BARS, FULL, PAPER, Plan
from benchmarks.proof.stages import chosen_lr, chosen_mix
from benchmarks.proof.summary import (
    FIGURES,
    FULL_ARMS,
    SCARCE_ARMS,
    Bar,
    Gain,
    Records,
    Runs,
    bars,
    baseline,
    full,
    gain,
    scarce,
)
from benchmarks.proof.tries import tries
from benchmarks.proof.workplace import ProofError, Workplace
from engines.common.files import read_json, write_atomic

NAMES = {"real": "real", "pseudo": "real + pseudo", "generated": "real + generated", "adapter": "the adapter itself"}
FINDINGS = Path(__file__).parent / "findings.md"  # typed; everything else is made from records
NOT_MET, MET = "**not met**", "met"
_HEAD = """# What generated images are worth: the proof on BCCD

Written by `benchmarks/proof/run.py` from the records in `{folder}/`; nothing but the part on what the figures suggest
was typed. Everything was trained from random weights: no pretrained weights of anybody. How to repeat it:
`benchmarks/proof/README.md`.

BCCD: 205 train and 87 val images of blood smears, three classes. The val images are read by the runs below, each once.
{left_out}AP is COCO's, in points (0 to 100). ± is the standard deviation over the lists or seeds; brackets hold the 95%
interval over draws of the val images, paired: the same draws for every run.
"""


def write(place: Workplace) -> Path:
    """Write proof.md and ablation.md beside the records' folder, and the pictures into it; returns the first."""
    records = read_records(place.results)
    place.results.mkdir(parents=True, exist_ok=True)
    target = place.results.parent / "proof.md"
    drawn = pictures.write(place.results, place.work, records, place.plan)
    write_atomic(target, "\n".join(sections(place, records, drawn)).encode())
    if ablation := list(ablations(records)):
        write_atomic(place.results.parent / "ablation.md", "\n".join(ablation).encode())
    return target


def read_records(folder: Path) -> Records:
    """Every record by its stage."""
    return {path.stem: read_json(path, ProofError) for path in sorted(folder.glob("*.json"))}


def sections(place: Workplace, records: Records, drawn: Sequence[tuple[str, str]]) -> Iterable[str]:
    """The document, part by part. `drawn`: file and caption of each picture."""
    plan = place.plan
    out = records.get("lists", {}).get("figures", {}).get("left_out_of_val", [])
    left_out = f"Left out of it, as nearly the same picture as a train image: {', '.join(out)}.\n" if out else ""
    yield _HEAD.format(folder=place.results.name, left_out=left_out)
    yield from _bars(plan, bars(records, plan), {one.kind: baseline(records, one) for one in plan.detectors})
    yield from _findings()
    yield from _settings(records, plan)
    yield from tries(records, plan)
    yield from _chosen(place, records)
    for file, caption in drawn:
        yield f"![{caption}]({place.results.name}/{file})\n\n{caption}\n"
    yield from _costs(records, plan)


def verdict(bar: Bar, ap50: float | None) -> str:
    """Met, not met, or not run; a gain without a good baseline (its AP50, in points) is not met, whatever it is."""
    if bar.reached is None:
        return NOT_RUN
    if isinstance(bar.found, Gain) and (ap50 is None or ap50 < BARS["baseline_ap50"]):
        why = "the baseline was not run" if ap50 is None else f"the baseline's AP50 is {ap50:.1f}"
        return f"{NOT_MET}: no gain counts yet, since {why}" if bar.reached else NOT_MET
    return MET if bar.reached else NOT_MET


def _bars(plan: Plan, found: Sequence[Bar], ap50: Mapping[str, float | None]) -> Iterable[str]:
    yield "## The bars\n"
    rows = [(bar.what, bar.kind, f"{bar.least:g}", shown(bar.found), verdict(bar, ap50[bar.kind])) for bar in found]
    rows += [
        (f"the paper's gain on {name}, for comparison", "DINO", "", f"+{value}", "") for name, value in PAPER.items()
    ]
    yield table(("what", "detector", "at least", "found", ""), rows)
    yield _judged(plan)
    for bar in found:
        if isinstance(bar.found, Gain) and bar.least == 0.0 and not bar.reached:
            yield (
                f"{bar.kind}: painting gives no more than labels on the other real images do ({shown(bar.found)}). "
                "The generated images show what those images show, repainted: that may be why.\n"
            )


def _judged(plan: Plan) -> str:
    """Which images, with whose labels, the bars are held against."""
    scarce_kinds, full_kinds = scarce_images(plan), full_images(plan)
    generated, pseudo = (scarce_kinds[plan.judged.get(arm, "")] for arm in ("generated", "pseudo"))
    way = plan.ways_full.get(plan.judged.get("full", ""))
    whole = full_kinds[way.labels if way else plan.judged.get("full", "")]
    return (
        f"With 10% of the labels, generated images have the labels of adapters that learned {generated.learned}, by "
        f"scores {generated.score}, and strengths {generated.strengths}; photographs those of adapters that learned "
        f"{pseudo.learned}, by scores {pseudo.score}. With all labels: scores {whole.score}, strengths "
        f"{whole.strengths}, mix {way.mix if way else AS_CHOSEN}.\n"
    )


def _settings(records: Records, plan: Plan) -> Iterable[str]:
    for detector in plan.detectors:
        yield f"## 10% of the labels, {detector.kind}\n"
        yield from _arms(scarce(records, detector.kind, plan.lists, own=plan.judged), SCARCE_ARMS, "list")
    for detector in plan.detectors:
        yield f"## All labels, {detector.kind}\n"
        yield from _arms(full(records, detector, plan.judged.get("full", "")), FULL_ARMS, "seed")
    for name in plan.extra_lists:
        kind = plan.detectors[0].kind
        yield f"## {name.partition('-')[0]}% of the labels, {kind}, one list\n"
        yield from _arms(scarce(records, kind, (name,)), SCARCE_ARMS, "list")


def _arms(arms: Mapping[str, Runs], order: Sequence[str], unit: str) -> Iterable[str]:
    if not arms:
        yield f"{NOT_RUN}\n"
        return
    classes = sorted({name for runs in arms.values() for one in runs.figures for name in one if name.startswith("AP/")})
    header = ["trained on", *FIGURES, *(name.replace("AP/", "AP ") for name in classes), f"AP by {unit}", "over real"]
    rows = []
    for arm in order:
        if arm not in arms:
            rows.append([NAMES[arm], *[NOT_RUN] * (len(header) - 1)])
            continue
        runs = arms[arm]
        each = ", ".join(f"{value:.1f}" for value in runs.values("AP"))
        change = None if arm == "real" else gain(arms, arm, "real")
        rows.append([NAMES[arm], *(spread(runs.values(name)) for name in (*FIGURES, *classes)), each, shown(change)])
    yield table(header, rows)
    if (change := gain(arms, "generated", "pseudo")) is not None:
        yield f"real + generated over real + pseudo: {shown(change)}\n"


def _lengths(records: Records, plan: Plan) -> Iterable[str]:
    """Finished baselines of several lengths: where they stop getting better is the plateau."""
    first = plan.lists[0]
    rows = []
    for detector in plan.detectors:
        chosen = f"tune-{detector.kind}-{first}-long"
        stages = {detector.tune_steps: chosen} | {
            steps: f"length-{detector.kind}-{first}-{steps}"
            for steps in (round(length * detector.steps) for length in plan.lengths)
        }
        for steps, stage in stages.items():
            ap = f"{100 * _ap(records[stage]):.1f}" if stage in records else NOT_RUN
            ap50 = f"{100 * records[stage]['figures']['figures']['AP50']:.1f}" if stage in records else NOT_RUN
            rows.append((detector.kind, str(steps), ap, ap50))
    yield f"### Is the baseline at its plateau? (list {first}, measured on its tune part)\n"
    yield table(("baseline", "steps", "AP", "AP50"), rows)
    yield "Each row is a whole training: its learning rate has come down at the end.\n"


def _chosen(place: Workplace, records: Records) -> Iterable[str]:
    """What was chosen on tune parts, and the plateau of the baseline."""
    plan = place.plan
    yield "## What was chosen, on tune parts alone\n"
    rows = []
    for detector in plan.detectors:
        for name in (plan.lists[0], FULL):
            tried = {lr: records.get(f"tune-{detector.kind}-{name}-lr{lr:g}") for lr in detector.lrs}
            if not all(tried.values()):
                continue
            lr = chosen_lr(place, detector=detector, name=name)
            each = ", ".join(f"{one:g}: {100 * _ap(record):.1f}" for one, record in tried.items() if record)
            long = records.get(f"tune-{detector.kind}-{name}-long")
            half = tried[lr]
            after = f"{100 * _ap(long):.1f} ({100 * (_ap(long) - _ap(half)):+.1f})" if long and half else NOT_RUN
            rows.append((detector.kind, name, f"{lr:g}", each, after))
    header = ("baseline", "list", "learning rate", "AP of each after half of these steps", "AP after all (change)")
    yield table(header, rows)
    yield from _lengths(records, plan)
    for arm, names, mixes in (
        ("generated", plan.lists, plan.mixes),
        ("pseudo", plan.lists, plan.mixes),
        ("generated", (FULL,), plan.mixes_full),
    ):
        stages = [f"mix-{arm}-{name}-{mix:g}" for mix in mixes for name in names]
        if all(stage in records for stage in stages):
            mix = chosen_mix(place, arm=arm, names=names, mixes=mixes)
            each = ", ".join(f"{one:g}: {_mean_ap(records, arm, names, one):.1f}" for one in mixes)
            yield f"- mix of {NAMES[arm]} ({', '.join(names)}): {mix:g}, of AP {each}"
    for name in (plan.lists[0], FULL):
        if found := records.get(f"ablation-{name}"):
            low, high = found["figures"]["strength"]
            yield f"- strength ({name}): {low:g} to {high:g}; the table is in `ablation.md`"
    for name in (*plan.lists, *plan.extra_lists):
        if found := records.get(f"adapter-{name}"):
            scores = ", ".join(f"{key} {value:g}" for key, value in found["figures"]["thresholds"].items()) or "none"
            yield f"- score thresholds of the adapter of {name}: {scores}; 0.3 for every other class"
    if found := records.get("thresholds-full"):
        yield f"- score thresholds of the bundled adapter: {found['figures']['score']}"
    yield (
        f"- chosen beforehand: prompt template `{plan.template}` and guidance {plan.guidance:g} for the base that has "
        f"seen no class word; regions from score {plan.uncertain:g} up to the threshold are marked as uncertain; "
        f"adapters of {plan.adapter_steps} steps; no image is dropped for its quality"
    )
    yield (
        "- set by hand, with earlier rounds' figures on val in view, and labels beside true ones: scores of other "
        "labels, strengths of other images, mixes and lengths of other trainings\n"
    )


def _ap(record: Mapping[str, Any]) -> float:
    return float(record["figures"]["figures"]["AP"])


def _mean_ap(records: Records, arm: str, names: Sequence[str], mix: float) -> float:
    return 100 * statistics.fmean(_ap(records[f"mix-{arm}-{name}-{mix:g}"]) for name in names)


def _findings() -> Iterable[str]:
    """What was made of the figures, by hand; nothing where nothing was written."""
    if FINDINGS.exists():
        yield f"## What the figures suggest\n\n{FINDINGS.read_text('utf-8')}"


def _costs(records: Records, plan: Plan) -> Iterable[str]:
    yield "## Every stage: its cost and its command\n"
    rows = []
    stages = build(plan)
    for stage in stages:
        if (record := records.get(stage.name)) is None:
            continue
        before = record["figures"].get("trained_before")
        minutes = "made beforehand" if before else f"{record['seconds'] / 60:.1f}"
        rows.append((stage.name, minutes, "<br>".join(f"`{line}`" for line in record["commands"])))
    attempts = [one for record in records.values() for one in (record, *record.get("before", ()))]
    total = sum(one["seconds"] for one in attempts) / 3600
    yield table(("stage", "minutes", "command"), rows)
    yield f"In all {total:.1f} hours so far, attempts that were broken off included.\n"
    if left := [stage.name for stage in stages if stage.name not in records]:
        yield f"Not run: {', '.join(left)}.\n"
    if again := [stage for stage, record in records.items() if record.get("before")]:
        yield (
            f"Made once more from the seed, since later stages read files that were gone: {', '.join(again)}. "
            "The table has their last making; their records keep the earlier figures, and stages that were finished by "
            "then read the earlier files.\n"
        )
    yield from _places("Made on", records, machines)
    yield from _places("The environment of the RetinaNet", records, environments)


def machines(record: Mapping[str, Any]) -> Iterable[str]:
    """What a stage was made on, each time it was made."""
    for one in (record, *record.get("before", ())):
        made = one["machine"]
        where = f"{made['gpu']}, " if "gpu" in made else ""
        where += f"{made['cpu']}, {made['cores']} cores, {made['precision']}"
        yield f"{where}; Python {made['python']}, {_listed(made['versions'])}"


def environments(record: Mapping[str, Any]) -> Iterable[str]:
    """The library versions of the other environment, where a stage ran in it."""
    if "other_environment" in record:
        yield _listed(record["other_environment"])


def _places(what: str, records: Records, told: Callable[[Mapping[str, Any]], Iterable[str]]) -> Iterable[str]:
    """A line for each place that stages were made in; where there are several, the stages of all but the commonest."""
    places: dict[str, list[str]] = {}
    for stage, record in records.items():
        for text in dict.fromkeys(told(record)):
            places.setdefault(text, []).append(stage)
    for rank, text in enumerate(sorted(places, key=lambda text: -len(places[text]))):
        stages = "most stages" if rank == 0 else ", ".join(places[text])
        yield f"{what} {text}" + ("\n" if len(places) == 1 else f": {stages}\n")


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
