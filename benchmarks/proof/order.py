"""The order that the stages of the proof are run in.

Knows: which stages a plan comes to, and what comes before what. Knows nothing about what a stage needs or leaves.

What decides later stages comes first, then the label-scarce setting on every list with one detector and the next, the
setting with all labels with the first detector, other adapters, labels, images and trainings, all labels with the
second detector, other images, labels and trainings there, and what is run as time allows. A stage whose record is there
is done; one that another reads is done again, from its seed, where its files are gone.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

from benchmarks.proof import actions, truth
from benchmarks.proof.actions import BASE
from benchmarks.proof.plan import FULL, ONCE, SELF, THIRD, Plan, Relabel, Way
from benchmarks.proof.stages import (
    Stage,
    ablation_stage,
    arm_stages,
    baseline_stage,
    bundle_stage,
    compared_stage,
    full_arm_stages,
    full_compared_stage,
    generated_stage,
    label_stages,
    length_stages,
    mix_stages,
    read_stage,
    rules_stage,
    tuned_stages,
)


def build(plan: Plan) -> list[Stage]:
    """Every stage of a plan, in the order they are run in."""
    second = list(_second(plan))
    scarce = [stage for stage in second if FULL not in stage.name]
    return [
        *_ready(plan),
        *_scarce(plan),
        *scarce,
        *_full(plan),
        *_variants(plan),
        *_self_trained(plan),
        *_relabelled(plan),
        *_repainted(plan),
        *_ways(plan),
        *(stage for stage in second if stage not in scarce),
        *_full_ways(plan),
        _truth(plan),
        *_extras(plan),
    ]


def _ready(plan: Plan) -> Iterator[Stage]:
    """Lists, base, and the learning rate of the first detector, which judges the painting settings."""
    first, detector = plan.lists[0], plan.detectors[0]
    settings = {"seed": plan.seed, "shares": dict(plan.shares), "tune": dict(plan.tune_images)}
    laid_out = ("data/ImageSets/Main/val-kept.txt",)
    yield Stage("lists", "lists", actions.make_lists, leaves=laid_out, minutes=0.5, settings=settings)
    yield Stage(
        BASE, "base", actions.train_base, reads=("lists",), leaves=(f"{BASE}/model_index.json",),
        minutes=150.0 * plan.base_scale, settings={"scale": plan.base_scale},
    )  # fmt: skip
    yield from tuned_stages(plan, detector, first)
    for name in plan.lists:
        yield from label_stages(plan, name)
    yield ablation_stage(plan, first)
    for name in plan.lists:
        yield generated_stage(plan, name)
    yield from mix_stages(plan, detector, plan.lists, ("pseudo", "generated"), plan.mixes)


def _scarce(plan: Plan) -> Iterator[Stage]:
    for name in plan.lists:
        yield read_stage(name)
        yield from arm_stages(plan, plan.detectors[0], name)


def _full(plan: Plan) -> Iterator[Stage]:
    detector = plan.detectors[0]
    yield from tuned_stages(plan, detector, FULL)
    yield Stage(
        "thresholds-full", "thresholds", actions.choose_full_thresholds, reads=("lists",), minutes=1.0,
        settings={"goal": plan.precision_goal, "tune": plan.tune_full},
    )  # fmt: skip
    yield ablation_stage(plan, FULL)
    yield generated_stage(plan, FULL)
    yield from mix_stages(plan, detector, (FULL,), ("generated",), plan.mixes_full)
    yield read_stage(FULL)
    yield from full_arm_stages(plan, detector)
    yield rules_stage(plan)


def _second(plan: Plan) -> Iterator[Stage]:
    for detector in plan.detectors[1:]:
        yield from tuned_stages(plan, detector, plan.lists[0])
        for name in plan.lists:
            yield from arm_stages(plan, detector, name)
        yield from tuned_stages(plan, detector, FULL)
        yield from full_arm_stages(plan, detector)


def _variants(plan: Plan) -> Iterator[Stage]:
    """Other heads and sizes of the adapter: what the same images are worth with their labels, in matched numbers."""
    first, detector = plan.lists[0], plan.detectors[0]
    for variant in (ONCE, *plan.variants):
        name, adapter = f"{first}-{variant}", first
        if variant != ONCE:
            adapter = name
            yield from label_stages(plan, name, plan.variants[variant])
            yield read_stage(name)
        yield _labelled(
            "variants", f"generated-{first}", f"generated-{name}", adapter, Relabel(variant, "matched", 0.0)
        )
        yield compared_stage(plan, detector, name, "generated", f"generated-{name}", first)


def _self_trained(plan: Plan) -> Iterator[Stage]:
    """Adapters that learn once more from their own labels, and what their labels on the same images are worth."""
    for name in plan.lists:
        own, adapter, bundle = f"{name}-{SELF}", f"adapter-{name}-{SELF}", f"bundle-{name}-{SELF}"
        settings = {"steps": plan.adapter_steps, "lr": plan.adapter_lr, "goal": plan.precision_goal}
        yield Stage(
            adapter, "self", partial(actions.train_again, name=name), (f"adapter-{name}",),
            ("lists", BASE, f"adapter-{name}", f"pseudo-{name}"), (f"{adapter}/adapter.json",), 20.0,
            settings=settings | {"share": plan.self_share, "uncertain": plan.uncertain},
        )  # fmt: skip
        yield bundle_stage(plan, own)
        for arm in ("generated", "pseudo"):
            folder = f"{arm}-{own}"
            yield Stage(
                folder, "self", partial(actions.label_again, arm=arm, name=name), (adapter,),
                ("lists", bundle, f"{arm}-{name}"), (f"{folder}/annotations.json",), 2.0, resumes=False,
                settings={"uncertain": plan.uncertain},
            )  # fmt: skip
            yield compared_stage(plan, plan.detectors[0], own, arm, folder, name)
    for name in plan.lists:
        yield read_stage(f"{name}-{SELF}")


def _again(plan: Plan, own: str) -> Iterator[Stage]:
    """Adapters that learn from labels of the relabelled photographs."""
    how = plan.again[own]
    settings = {"lr": plan.adapter_lr, "share": plan.self_share, **asdict(how)}
    for name in plan.lists:
        adapter = f"adapter-{name}-{own}"
        yield Stage(
            adapter, "again", partial(actions.train_from_labels, name=name, own=own), (),
            ("lists", BASE, f"pseudo-{name}-{how.labels}"), (f"{adapter}/adapter.json",), 30.0, settings=settings,
        )  # fmt: skip
        yield bundle_stage(plan, f"{name}-{own}")
        yield read_stage(f"{name}-{own}")


def _relabelled(plan: Plan) -> Iterator[Stage]:
    """The same images with labels by other rules, and what these are worth."""
    untrained = set(plan.again)
    for own, how in plan.relabels.items():
        if how.adapter in untrained:
            untrained.remove(how.adapter)
            yield from _again(plan, how.adapter)
        for arm in ("generated", "pseudo"):
            for name in plan.lists:
                folder, adapter = f"{arm}-{name}-{own}", f"{name}-{how.adapter}"
                yield _labelled("relabelled", f"{arm}-{name}", folder, adapter, how)
                for detector in plan.detectors:
                    yield compared_stage(plan, detector, f"{name}-{own}", arm, folder, name)


def _labelled(group: str, images: str, out: str, adapter: str, how: Relabel) -> Stage:
    """Other labels on a copy of a stage's images."""
    action = partial(
        actions.label_copy, bundle=adapter, images=images, out=out, score=how.score, uncertain=how.uncertain
    )
    reads = ("lists", images) if adapter == FULL else ("lists", f"bundle-{adapter}", images)
    return Stage(out, group, action, (), reads, (f"{out}/annotations.json",), 2.0, resumes=False, settings=asdict(how))


def _repainted(plan: Plan) -> Iterator[Stage]:
    """Other images, and what these are worth."""
    for own, how in plan.repaints.items():
        for name in plan.lists:
            yield _repaint(plan, name, own, (f"bundle-{name}-{how.adapter}",))
            for detector in plan.detectors:
                yield compared_stage(plan, detector, f"{name}-{own}", "generated", f"generated-{name}-{own}", name)


def _repaint(plan: Plan, name: str, own: str, reads: tuple[str, ...] = ()) -> Stage:
    stage = f"generated-{name}-{own}"
    settings = {"count": plan.count, **asdict(plan.repaints[own])}
    return Stage(
        stage, "repainted", partial(actions.repaint, name=name, own=own), (), ("lists", *reads),
        (f"{stage}/annotations.json",), 6.0, settings=settings,
    )  # fmt: skip


def _ways(plan: Plan) -> Iterator[Stage]:
    """Other ways to train on the lists' images."""
    for own, way in plan.ways.items():
        for detector in plan.detectors:
            for name in plan.lists:
                known = name if way.longer == 1 else f"{name}-{own}"
                if known != name:
                    real = f"{detector.kind}-{known}-real"
                    yield baseline_stage(plan, detector, real, name, actions.seed_of(name), way)
                trained, images = f"{name}-{way.labels}-{own}", f"generated-{name}-{way.labels}"
                yield compared_stage(plan, detector, trained, "generated", images, known, way=way)


def _full_ways(plan: Plan) -> Iterator[Stage]:
    """Other images, other labels and other ways to train with all labels."""
    images = f"generated-{FULL}"
    for own in plan.repaints:
        yield _repaint(plan, FULL, own)
        yield from _full_trainings(plan, own, Way(own))
    for own, how in plan.relabels_full.items():
        yield _labelled("relabelled", images, f"{images}-{own}", FULL, how)
        yield from _full_trainings(plan, own, Way(own))
    for own, way in plan.ways_full.items():
        yield from _full_trainings(plan, own, way)


def _full_trainings(plan: Plan, own: str, way: Way) -> Iterator[Stage]:
    for detector in plan.detectors:
        for seed in detector.seeds_full:
            stage = f"{detector.kind}-{FULL}-{seed}-{own}"
            yield full_compared_stage(plan, detector, stage, f"generated-{FULL}-{way.labels}", seed, way)


def _truth(plan: Plan) -> Stage:
    """How right labels are, of the first list and with all labels."""
    first, sure = plan.lists[0], f"{THIRD}-sure"
    sources = {f"{arm}-{first}-{sure}": f"{arm}-{first}" for arm in ("pseudo", "generated")}
    sources[f"generated-{FULL}"] = f"generated-{FULL}"
    sources |= {
        stage: stage for name in (first, FULL) for stage in (f"generated-{name}-{own}" for own in plan.repaints)
    }
    reads = tuple(dict.fromkeys(("lists", *sources, *sources.values())))
    return Stage(
        "truth", "truth", partial(truth.read_labels, sources=sources), (), reads, minutes=1.0, resumes=False,
        settings={"sources": sources},
    )  # fmt: skip


def _extras(plan: Plan) -> Iterator[Stage]:
    """Longer baselines, other amounts of generated images, other numbers of labels."""
    first, detector = plan.lists[0], plan.detectors[0]
    for one in plan.detectors:
        yield from length_stages(plan, one, first)
    if plan.amounts:
        own = plan.judged_images(first)
        yield compared_stage(plan, detector, own, "amounts", f"generated-{own}", first, ",".join(plan.amounts))
    for name in plan.extra_lists:
        yield from label_stages(plan, name)
        yield generated_stage(plan, name)
        yield read_stage(name)
        yield from arm_stages(plan, detector, name)
