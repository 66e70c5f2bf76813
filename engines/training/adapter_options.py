"""How an adapter is trained: every setting, with its default and its range.

Knows nothing about how any of it is done.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from engines.adapter.info import AdapterConfig
from engines.common.devices import AUTO
from engines.common.schema import KEY, from_object, settle, to_object
from engines.diffusion import prompts
from engines.errors import Mistake, UsageError, refuse, wrong_values

_FROM_BASE = ("channels", "num_classes")  # AdapterConfig fields that are no setting
_KINDS_EXPECTED = "generic, listing and empty, adding up to 1"


@dataclass(frozen=True, kw_only=True)
class AdapterTrainOptions:
    """How an adapter is trained. Raises UsageError that lists every mistake at once."""

    # What is seen
    style: str = ""  # style words of the prompts; empty: those the base was trained with, or "photo"
    short_side: int = 0  # pixels of the images' short side; 0: as the base was trained, or 512
    frame: tuple[int, int] = (0, 0)  # (width, height) of training frames; (0, 0): the most common whole image
    scale: tuple[float, float] = (0.8, 1.25)  # random factor on the images' scale
    flips: bool = True  # mirror frames left to right, half of the time
    # Right-angle turns are as likely as not (microscopes, satellites).
    rotate: bool = field(default=False, metadata={KEY: "turns"})
    colour: float = 1.0  # strength of changes to brightness, contrast, saturation and hue; 0 for none
    min_visible: float = 0.3  # a cut box stays when this share of its area is in the frame
    prompt_probabilities: dict[str, float] = field(  # of generic, listing and empty prompts
        default_factory=lambda: {str(kind): share for kind, share in prompts.KIND_PROBABILITIES.items()}
    )
    timestep: int = 1  # t of the label pass
    # How it is learned
    steps: int = 3000  # optimiser steps
    minutes: float | None = None  # about how long it takes here, in place of `steps`
    batch: int = 4  # frames a step
    lr: float = 1e-3  # peak learning rate
    weight_decay: float = 1e-4  # AdamW's
    warmup: int = 100  # steps to the peak
    final_lr: float = 0.02  # learning rate at the last step, as a share of the peak
    grad_clip: float = 0.1  # largest norm of the gradient
    ema_decay: float = 0.998  # of the averaged weights
    ignore_finds: float = 0.0  # score from which its own finds without a label teach nothing; 0: they are background
    seed: int = 0  # decides every draw
    pseudo_share: float = 0.5  # about what share of the frames shows images that an adapter labelled, if there are any
    # Share of the images held out to pick the best checkpoint; 0: none, the last is kept.
    dev_fraction: float = field(default=0.1, metadata={KEY: "tune_fraction"})
    eval_every: int = 500  # steps between evaluations on them
    score: str = "AP50"  # the figure that picks: AP, AP50 or AP75
    precision_goal: float = 0.9  # of the labels: on the dev split, each class's score threshold is chosen to reach it
    network: dict[str, Any] = field(default_factory=dict)  # AdapterConfig fields, but for channels and num_classes
    # Where and how fast
    device: str = AUTO  # cpu, cuda or cuda:N; auto: a GPU where there is one
    precision: str = "auto"  # f32, bf16 or auto
    checkpoint_minutes: float = 3.0  # wall time between checkpoints
    cache_views: int = 0  # keep the pyramids of this many views of each image and use them again; 0: never
    cache_gb: float = 4.0  # memory for them, in GiB
    workers: int = 0  # threads that draw frames beforehand; for GPUs

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads."""
        return to_object(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "training options") -> Self:
        """Read what `to_json` wrote; UsageError lists every unknown key and wrong type at once."""
        return from_object(cls, value, UsageError, where)

    def __post_init__(self) -> None:
        settle(self)
        checks = (
            ("short_side", "0 or more", self.short_side >= 0),
            ("frame", "two positive sizes, or 0, 0", min(self.frame) > 0 or self.frame == (0, 0)),
            ("scale", "two positive factors, the lower first", 0 < self.scale[0] <= self.scale[1]),
            ("colour", "0 or more", self.colour >= 0),
            ("min_visible", "between 0 and 1", 0 <= self.min_visible <= 1),
            ("prompt_probabilities", _KINDS_EXPECTED, _are_probabilities(self.prompt_probabilities)),
            ("timestep", "between 0 and 999", 0 <= self.timestep < 1000),
            ("steps", "positive", self.steps > 0),
            ("minutes", "positive", self.minutes is None or 0 < self.minutes <= 1e6),
            ("batch", "positive", self.batch > 0),
            ("lr", "positive", self.lr > 0),
            ("grad_clip", "positive", self.grad_clip > 0),
            ("ema_decay", "at least 0 and below 1", 0 <= self.ema_decay < 1),
            ("ignore_finds", "at least 0 and below 1", 0 <= self.ignore_finds < 1),
            ("seed", "from 0 to 2^31 - 1", 0 <= self.seed < 2**31),
            ("pseudo_share", "between 0.01 and 0.99", 0.01 <= self.pseudo_share <= 0.99),
            ("dev_fraction", "at least 0 and below 1", 0 <= self.dev_fraction < 1),
            ("eval_every", "positive", self.eval_every > 0),
            ("score", "AP, AP50 or AP75", self.score in ("AP", "AP50", "AP75")),
            ("precision_goal", "above 0 and at most 1", 0 < self.precision_goal <= 1),
            ("cache_views", "0 or more", self.cache_views >= 0),
            ("cache_gb", "0 or more", self.cache_gb >= 0),
            ("workers", "0 or more", self.workers >= 0),
        )
        known = {name for name in AdapterConfig.__dataclass_fields__ if name not in _FROM_BASE}
        unknown = [("network", f'network has no setting "{name}"') for name in self.network if name not in known]
        refuse([*wrong_values(self, checks), *unknown, *self.more_mistakes()])

    def more_mistakes(self) -> Sequence[Mistake]:
        """What is wrong with fields of settings that extend these."""
        return ()


def _are_probabilities(value: Mapping[str, float]) -> bool:
    return (
        set(value) <= set(prompts.KIND_PROBABILITIES)
        and min(value.values(), default=-1.0) >= 0
        and math.isclose(sum(value.values()), 1.0, abs_tol=1e-6)
    )
