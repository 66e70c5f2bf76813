"""What the proof does, in numbers: everything that was chosen beforehand, in one frozen dataclass.

Knows: sizes, lengths, what is tried on tune parts, which arms and lists there are. Knows nothing about files or how a
stage is run. What is chosen by measuring (learning rate, mix, strength, thresholds) is in `choices`.

How the sizes came about: a round has to fit into a few hours of two cores. A training step of four 256x192 frames
takes about 0.3 s of one core that has bf16 (0.5 to 0.6 s in float32), so the 2400 steps of a final training, 480 passes
over the 20 images of a 10% list, take 12 minutes. What only chooses (learning rate, mix) takes a quarter of that.

This is the third round, and two more that add to it. The records of the first two are in `results/proof_first` and
`results/proof_second`. Each was planned with the figures of those before in view, those on val among them, so val was
not untouched any more.

- The first one taught: thresholds for a precision of 0.8 left out most red cells of one list, and more regions were
  marked as uncertain than there were labels; adapters of 1600 steps were best after 400 to 800, with the learning rate
  still high; they never saw the labels of their own tune parts; the base was short.
- The second one taught: 600 steps are no plateau of the baseline. The third keeps the second one's adapters and images,
  and trains every arm for 2400.
- The third one taught that more is to be had from labels: the fourth keeps its images, lengths and mixes, and changes
  who labels, by which scores, and what becomes of regions of doubt (`relabels`, `again`).
- The fourth one taught that the same labels are worth more on photographs than on painted images: the fifth paints
  lighter ones (`repaints`), and trains in other ways (`ways`). Strengths, mixes and lengths there were set by hand,
  after a look at labels beside true ones (`truth`), as the fourth's scores and regions of doubt were.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SELF = "self"  # names an adapter that learned once more, from its own labels on the other train images
ONCE = "once"  # the first adapter, beside other heads and sizes
THIRD = "third"  # one that learned a third time
FULL = "full"  # stands for the whole train split where a list is named
BARS = {"scarce": 5.0, "full": 2.0, "baseline_ap50": 75.0}  # in points of AP: what has to be reached
PAPER = {"COCO": 3.1, "VOC": 7.6, "Clipart": 11.5}  # arXiv 2309.03893: gains in points of AP


def suffixed(name: str, own: str) -> str:
    """`10-0-self` of `10-0` and `self`; `10-0` of it and no suffix."""
    return f"{name}-{own}" if own else name


@dataclass(frozen=True)
class DetectorPlan:
    """How every detector of one kind is trained, in every arm."""

    kind: str  # of `dengine evaluate --detector`
    steps: int  # optimiser steps of a training that val is read with
    tune_steps: int  # of one that chooses, on tune
    lrs: tuple[float, ...]  # learning rates that the baseline is tried with, on tune
    seeds_full: tuple[int, ...]  # seeds in the setting with all labels


@dataclass(frozen=True)
class Relabel:
    """Other labels on the images of the arms."""

    adapter: str  # suffix of the adapter that labels
    score: str  # as `dengine label --score`
    uncertain: float  # regions from this score up to the threshold teach detectors nothing; 0: there are none


@dataclass(frozen=True)
class Again:
    """An adapter that learns from a list's labels and from an adapter's on the other train images; none is held out."""

    labels: str  # suffix of the relabelling of these images
    steps: int
    cache_views: int  # kept pyramids of each image


@dataclass(frozen=True)
class Repaint:
    """Other generated images."""

    adapter: str  # suffix of the adapter whose bundle paints and labels; with all labels it is the bundled model
    score: str  # as `dengine finalize --score`
    strength: tuple[float, float]


@dataclass(frozen=True)
class Way:
    """Another way to train on images of the arms; everything that is not named here is as in the arms."""

    labels: str  # suffix of the generated images: of `relabels` or of `repaints`
    mix: str = ""  # as `dengine evaluate --mix`; empty: what tune chose
    longer: int = 1  # times the steps; the real images alone are trained as long. With all labels: 1


@dataclass(frozen=True)
class Plan:
    """The whole proof."""

    seed: int = 2309  # draws the lists
    lists: tuple[str, ...] = ("10-0", "10-1", "10-2")  # 10% of train; list n takes seed n
    extra_lists: tuple[str, ...] = ("5-0", "25-0")  # for the first detector, as time allows
    shares: Mapping[str, float] = field(default_factory=lambda: {"5": 0.05, "10": 0.10, "25": 0.25})  # of train
    tune_images: Mapping[str, int] = field(default_factory=lambda: {"5": 3, "10": 5, "25": 8})  # cut out of a list
    tune_full: float = 0.1  # share of train, by the rule that the bundled adapter's tune part follows
    style: str = "microscope photo"
    # Painting
    base_scale: float = 0.5  # factor on the length of train-base
    frame: str = "320x256"  # pixels of painted images
    count: int = 820  # generated images in every setting: 4 for each of the 205 train images
    template: str = "a {style}"  # the label-free base has never seen a class word
    guidance: float = 1.0  # off: with that one prompt there is nothing to lead towards, and it halves the cost
    guidance_full: float = 3.0  # the bundled model's own
    least_strength: float = 0.3
    slack: float = 0.03  # F1 of labels that more strength may cost: see choices.strength
    uncertain: float = 0.25  # boxes from here up to the threshold mark their region
    ablation_jobs: int = 32  # images of each setting in the ablation
    # The adapter
    adapter_steps: int = 700
    adapter_eval_every: int = 100
    adapter_lr: float = 4e-4
    cache_views: int = 64  # kept pyramids of each image: 15 images' fit in 1 GB
    precision_goal: float = 0.65  # of labels, where the tune part has boxes enough to say
    refit: bool = True  # the adapter that labels learns from the whole list, after the tune part chose thresholds
    self_share: float = 0.8  # of frames that show the adapter's own labels, where it learns once more
    relabels: Mapping[str, Relabel] = field(  # other labels on the same images, by their suffix
        default_factory=lambda: {
            "matched": Relabel(SELF, "matched", 0.0),
            THIRD: Relabel(THIRD, "matched", 0.4),
            f"{THIRD}-sure": Relabel(THIRD, "matched", 0.0),
        }
    )
    again: Mapping[str, Again] = field(  # adapters that learned from these, by their suffix
        default_factory=lambda: {THIRD: Again("matched", 2100, 16)}
    )
    repaints: Mapping[str, Repaint] = field(  # other images, by their suffix
        default_factory=lambda: {"light": Repaint(THIRD, "matched", (0.1, 0.3))}
    )
    ways: Mapping[str, Way] = field(  # other ways to train on the same images, by their suffix
        default_factory=lambda: {
            "late": Way(f"{THIRD}-sure", mix="0.8:0.2"),
            "long": Way("light", longer=2),
        }
    )
    relabels_full: Mapping[str, Relabel] = field(  # as `relabels`, with all labels
        default_factory=lambda: {"matched": Relabel("", "matched", 0.0)}
    )
    ways_full: Mapping[str, Way] = field(  # as `ways`, with all labels
        default_factory=lambda: {"late": Way("light", mix="0.6:0")}
    )
    judged: Mapping[str, str] = field(  # suffixes of the arms that bars are held against; `full`: with all labels
        default_factory=lambda: {"generated": "light", "pseudo": f"{THIRD}-sure", "adapter": THIRD}
    )
    variants: Mapping[str, tuple[str, ...]] = field(  # other heads and sizes, compared on the first list
        default_factory=lambda: {
            "narrow": ("--width", "64", "--decoder-layers", "2"),
            "deformable": ("--head", "deformable_detr"),
        }
    )
    # Detectors
    short_side: int = 192  # pixels: frames of 256x192
    batch: int = 4
    detectors: tuple[DetectorPlan, ...] = (
        DetectorPlan("rt_detr", 2400, 600, (5e-4, 1e-3), (0, 1, 2)),
        DetectorPlan("retinanet", 2400, 600, (5e-4, 1e-3), (0,)),
    )
    curve_points: int = 6  # measurements on tune during a training there
    mixes: tuple[float, ...] = (0.5, 0.8)  # tried on tune, for either arm of the label-scarce setting
    mixes_full: tuple[float, ...] = (0.3, 0.5)
    mix_share: float = 1 / 3  # length of these trainings, as a share of `tune_steps`
    lengths: tuple[float, ...] = (1.0, 2.0)  # times `steps`: finished baselines of the first list, measured on tune
    amounts: tuple[str, ...] = ("1x", "2x")  # of generated images on the first list, beside 4x
    resamples: int = 1000  # draws of the validation images

    def judged_images(self, name: str) -> str:
        """A list with the suffix of the generated images that the bars are held against."""
        return suffixed(name, self.judged.get("generated", ""))

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)

    def __post_init__(self) -> None:
        """Raises ValueError for bars on something that no stage makes, and for a longer way with all labels."""
        images = {"", SELF, *self.relabels, *self.repaints}
        known = {"generated": images, "pseudo": images - {*self.repaints}, "adapter": {"", SELF, *self.again}}
        known["full"] = {"", *self.relabels_full, *self.repaints, *self.ways_full}
        if wrong := {arm: own for arm, own in self.judged.items() if own not in known.get(arm, ())}:
            raise ValueError(f"Bars cannot be held against {wrong}.")
        if any(way.longer != 1 for way in self.ways_full.values()):
            raise ValueError("Trainings with all labels are all of one length.")

    def detector(self, kind: str) -> DetectorPlan:
        """The one of a kind."""
        return next(one for one in self.detectors if one.kind == kind)


# Every stage in a few seconds or minutes, to see that all of it runs; its figures mean nothing.
TOY = Plan(
    extra_lists=(),
    base_scale=0.002,
    count=12,
    ablation_jobs=4,
    adapter_steps=6,
    adapter_eval_every=3,
    cache_views=2,
    again={THIRD: Again("matched", 6, 2)},
    variants={"narrow": ("--width", "64", "--decoder-layers", "2")},
    detectors=(
        DetectorPlan("rt_detr", 12, 6, (5e-4, 1e-3), (0,)),
        DetectorPlan("retinanet", 12, 6, (5e-4,), (0,)),
    ),
    curve_points=2,
    mixes=(0.5,),
    mixes_full=(0.5,),
    lengths=(1.0,),
    amounts=("1",),
    resamples=20,
)
