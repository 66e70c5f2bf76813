"""The stages of the proof: what each needs and what it leaves.

Knows: the graph of stages for a plan. Knows nothing about commands or figures, about the order of stages, or about what
is done.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.proof import actions, choices, readings
from benchmarks.proof.actions import BASE, RULES, Figures
from benchmarks.proof.plan import FULL, DetectorPlan, Plan, Way
from benchmarks.proof.workplace import Workplace

Action = Callable[[Workplace], Figures]
_STEP = 0.0025  # minutes of a training step, about: half of what it takes of one core


@dataclass(frozen=True)
class Stage:
    """One stage."""

    name: str
    group: str  # what --only may name in place of it
    action: Action
    needs: tuple[str, ...] = ()  # stages whose records it reads
    reads: tuple[str, ...] = ()  # stages whose files it reads
    leaves: tuple[str, ...] = ()  # files under WORK that are there when it is whole
    minutes: float = 5.0  # about, on two cores
    resumes: bool = True  # goes on where it was stopped; one that doesn't is not begun without time for all of it
    torchvision: bool = False  # needs the other environment
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the plan: a record of others is refused


def label_stages(plan: Plan, name: str, variant: tuple[str, ...] = ()) -> Iterator[Stage]:
    """The adapter of a list, its bundle, and (not for variants) its labels on the other train images."""
    adapter, bundle = f"adapter-{name}", f"bundle-{name}"
    settings = {"steps": plan.adapter_steps, "lr": plan.adapter_lr, "goal": plan.precision_goal, "variant": variant}
    settings["refit"] = plan.refit
    left = (adapter, f"{adapter}-fit") if plan.refit else (adapter,)
    action = partial(actions.train_adapter, name=name, variant=variant)
    yield Stage(
        adapter, "adapter", action, reads=("lists", BASE), leaves=tuple(f"{one}/adapter.json" for one in left),
        minutes=12.0, settings=settings,
    )  # fmt: skip
    yield bundle_stage(plan, name)
    if not variant:
        yield Stage(
            f"pseudo-{name}", "pseudo", partial(actions.label_rest, name=name), reads=("lists", bundle),
            leaves=(f"pseudo-{name}/annotations.json",), minutes=1.0, resumes=False,
            settings={"uncertain": plan.uncertain},
        )  # fmt: skip


def bundle_stage(plan: Plan, name: str) -> Stage:
    """The bundle of an adapter."""
    settings = {"guidance": plan.guidance, "template": plan.template, "uncertain": plan.uncertain, "frame": plan.frame}
    return Stage(
        f"bundle-{name}", "bundle", partial(actions.export_bundle, name=name), reads=(BASE, f"adapter-{name}"),
        leaves=(f"bundle-{name}/manifest.json",), minutes=2.0, resumes=False, settings=settings,
    )  # fmt: skip


def ablation_stage(plan: Plan, name: str) -> Stage:
    """It is judged by a detector that learned from the list's labels on real pixels, and nothing else."""
    judge = f"tune-{plan.detectors[0].kind}-{name}-long"
    needs = ("thresholds-full",) if name == FULL else ()
    reads = ("lists", judge) if name == FULL else (judge, f"bundle-{name}", f"pseudo-{name}")
    action = partial(actions.ablate, name=name, detector=judge)
    settings = {"jobs": plan.ablation_jobs, "slack": plan.slack, "least": plan.least_strength}
    return Stage(f"ablation-{name}", "ablation", action, needs, reads, minutes=12.0, settings=settings)


def rules_stage(plan: Plan) -> Stage:
    judge = f"tune-{plan.detectors[0].kind}-{FULL}-long"
    needs, reads = (f"ablation-{FULL}", f"thresholds-{FULL}"), ("lists", f"generated-{FULL}", judge)
    action = partial(actions.try_rules, detector=judge)
    return Stage(RULES, "ablation", action, needs, reads, minutes=6.0, settings={"count": plan.count})


def generated_stage(plan: Plan, name: str) -> Stage:
    ablation = f"ablation-{FULL if name == FULL else plan.lists[0]}"
    needs = (ablation, "thresholds-full") if name == FULL else (ablation,)
    reads = ("lists",) if name == FULL else ("lists", f"bundle-{name}")
    stage = f"generated-{name}"
    settings = {"count": plan.count, "guidance": plan.guidance_full if name == FULL else plan.guidance}
    action = partial(actions.generate, name=name)
    leaves = (f"{stage}/annotations.json",)
    return Stage(stage, "generated", action, needs, reads, leaves, 12.0, settings=settings)


def read_stage(name: str) -> Stage:
    reads = ("lists",) if name == FULL else ("lists", f"bundle-{name}")
    action = partial(readings.read_adapter, name=name)
    return Stage(f"adapter-val-{name}", "detectors", action, reads=reads, minutes=1.0, resumes=False)


def tuned_stages(plan: Plan, detector: DetectorPlan, name: str) -> Iterator[Stage]:
    """The baseline with each learning rate at half length, then with the best of them at full length."""
    tried = []
    for lr in detector.lrs:
        tried.append(f"tune-{detector.kind}-{name}-lr{lr:g}")
        yield _training(plan, detector, tried[-1], name, share=0.5, lr=partial(_given, lr))
    long = f"tune-{detector.kind}-{name}-long"
    best = partial(chosen_lr, detector=detector, name=name)
    yield _training(plan, detector, long, name, needs=tuple(tried), share=1.0, lr=best)


def mix_stages(
    plan: Plan, detector: DetectorPlan, names: tuple[str, ...], arms: tuple[str, ...], mixes: tuple[float, ...]
) -> Iterator[Stage]:
    for arm in arms:
        for mix in mixes:
            for name in names:
                needs = (f"tune-{detector.kind}-{_tuned_on(plan, name)}-long",)
                lr = partial(chosen_lr, detector=detector, name=_tuned_on(plan, name))
                stage = f"mix-{arm}-{name}-{mix:g}"
                yield _training(plan, detector, stage, name, needs=needs, share=plan.mix_share, lr=lr, arm=arm, mix=mix)


def _training(
    plan: Plan,
    detector: DetectorPlan,
    stage: str,
    name: str,
    *,
    needs: tuple[str, ...] = (),
    share: float,
    lr: Callable[[Workplace], float],
    arm: str = "",
    mix: float = 0.5,
) -> Stage:
    def action(place: Workplace) -> Figures:
        return actions.tune(place, stage, detector.kind, name, lr=lr(place), share=share, arm=arm, mix=mix)

    settings = {"steps": detector.tune_steps, "share": share, "short_side": plan.short_side, "batch": plan.batch}
    leaves = (f"{stage}/detector/detector.json",)
    torchvision = detector.kind != "rt_detr"
    reads = ("lists", f"{arm}-{name}") if arm else ("lists",)
    minutes = _STEP * detector.tune_steps * share
    return Stage(stage, "tune", action, needs, reads, leaves, minutes, torchvision=torchvision, settings=settings)


def arm_stages(plan: Plan, detector: DetectorPlan, name: str) -> Iterator[Stage]:
    """Real images alone, then with generated ones, then with pseudo-labelled ones; the first is trained once."""
    yield baseline_stage(plan, detector, f"{detector.kind}-{name}-real", name, actions.seed_of(name))
    yield compared_stage(plan, detector, name, "generated", f"generated-{name}", name)
    yield compared_stage(plan, detector, name, "pseudo", f"pseudo-{name}", name)


def baseline_stage(
    plan: Plan, detector: DetectorPlan, stage: str, name: str, seed: int, way: Way | None = None
) -> Stage:
    """Real images alone."""
    on = _tuned_on(plan, name)
    tried = tuple(f"tune-{detector.kind}-{on}-lr{lr:g}" for lr in detector.lrs)
    steps = _steps(detector, way)

    def action(place: Workplace) -> Figures:
        chosen = {"lr": chosen_lr(place, detector=detector, name=on), "seed": seed, "steps": steps}
        return readings.compare(place, stage, detector.kind, name, chosen)

    return _final(plan, detector, stage, action, tried, ("lists",), steps)


def compared_stage(
    plan: Plan,
    detector: DetectorPlan,
    name: str,
    arm: str,
    synthetic: str,
    known: str,
    amounts: str = "",
    way: Way | None = None,
) -> Stage:
    """`known`: the list whose training on real images alone this one is held against."""
    stage, before = f"{detector.kind}-{name}-{arm}", f"{detector.kind}-{known}-real"
    tuned = f"tune-{detector.kind}-{plan.lists[0]}-long"
    drawn = "pseudo" if arm == "pseudo" else "generated"
    mixed = tuple(f"mix-{drawn}-{one}-{mix:g}" for one in plan.lists for mix in plan.mixes)
    steps = _steps(detector, way)

    def action(place: Workplace) -> Figures:
        chosen = {
            "synthetic": synthetic,
            "arm": arm,
            "lr": chosen_lr(place, detector=detector, name=plan.lists[0]),
            "mix": _mix(way) or chosen_mix(place, arm=drawn, names=plan.lists, mixes=plan.mixes),
            "seed": actions.seed_of(name),
            "steps": steps,
            "known": before,
            "amounts": amounts,
        }
        return readings.compare(place, stage, detector.kind, name, chosen)

    trainings = len(plan.amounts) if amounts else 1
    return _final(
        plan, detector, stage, action, (tuned, *mixed), ("lists", synthetic, before), steps, trainings, _mix(way)
    )


def length_stages(plan: Plan, detector: DetectorPlan, name: str) -> Iterator[Stage]:
    """The baseline as the final trainings have it, and longer, measured on tune: is it at its plateau?"""
    needs = (f"tune-{detector.kind}-{name}-long",)
    lr = partial(chosen_lr, detector=detector, name=name)
    for length in plan.lengths:
        steps = round(length * detector.steps)
        share = steps / detector.tune_steps
        yield _training(plan, detector, f"length-{detector.kind}-{name}-{steps}", name, needs=needs, share=share, lr=lr)


def full_arm_stages(plan: Plan, detector: DetectorPlan) -> Iterator[Stage]:
    for seed in detector.seeds_full:
        stage = f"{detector.kind}-{FULL}-{seed}"
        yield baseline_stage(plan, detector, f"{stage}-real", FULL, seed)
        yield full_compared_stage(plan, detector, stage, f"generated-{FULL}", seed)


def full_compared_stage(
    plan: Plan, detector: DetectorPlan, stage: str, synthetic: str, seed: int, way: Way | None = None
) -> Stage:
    """Real images and generated ones, with all labels; held against the real images alone, which a seed has once."""
    tuned, before = f"tune-{detector.kind}-{FULL}-long", f"{detector.kind}-{FULL}-{seed}-real"
    mixed = tuple(f"mix-generated-{FULL}-{mix:g}" for mix in plan.mixes_full)

    def action(place: Workplace) -> Figures:
        chosen = {
            "synthetic": synthetic,
            "arm": "generated",
            "lr": chosen_lr(place, detector=detector, name=FULL),
            "mix": _mix(way) or chosen_mix(place, arm="generated", names=(FULL,), mixes=plan.mixes_full),
            "seed": seed,
            "steps": detector.steps,
            "known": before,
        }
        return readings.compare(place, stage, detector.kind, FULL, chosen)

    reads = ("lists", synthetic, before)
    return _final(plan, detector, stage, action, (tuned, *mixed), reads, detector.steps, mix=_mix(way))


def _final(
    plan: Plan,
    detector: DetectorPlan,
    stage: str,
    action: Action,
    needs: tuple[str, ...],
    reads: tuple[str, ...],
    steps: int,
    trainings: int = 1,
    mix: str = "",
) -> Stage:
    settings: dict[str, Any] = {"steps": steps, "short_side": plan.short_side, "batch": plan.batch}
    settings |= {"resamples": plan.resamples} | ({"mix": mix} if mix else {})
    torchvision = detector.kind != "rt_detr"
    return Stage(
        stage,
        "detectors",
        action,
        needs,
        reads,
        leaves=(f"{stage}/comparison.json",),
        minutes=_STEP * steps * trainings,
        torchvision=torchvision,
        settings=settings,
    )


def _steps(detector: DetectorPlan, way: Way | None) -> int:
    return detector.steps * (way.longer if way else 1)


def _mix(way: Way | None) -> str:
    return way.mix if way else ""


def _given(value: float, place: Workplace) -> float:
    """A learning rate that nobody has to choose."""
    return value


def _tuned_on(plan: Plan, name: str) -> str:
    """The list whose learning rate holds for a list."""
    return FULL if name == FULL else plan.lists[0]


def chosen_lr(place: Workplace, *, detector: DetectorPlan, name: str) -> float:
    """The learning rate whose half-length baseline has the highest AP on the list's tune part."""
    return choices.best(
        {lr: [place.figures(f"tune-{detector.kind}-{name}-lr{lr:g}")["figures"]["AP"]] for lr in detector.lrs}
    )


def chosen_mix(place: Workplace, *, arm: str, names: tuple[str, ...], mixes: tuple[float, ...]) -> float:
    """The share of an arm's images whose trainings have the highest mean AP over the lists' tune parts."""
    return choices.best(
        {mix: [place.figures(f"mix-{arm}-{name}-{mix:g}")["figures"]["AP"] for name in names] for mix in mixes}
    )
