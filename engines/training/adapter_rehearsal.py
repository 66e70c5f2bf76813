"""How long an adapter's training takes on this machine: what its parts are, tried out before it begins.

Knows: that a step is a pyramid of the frozen base, kept or made anew, and the adapter's own part; and how often the dev
split is measured on. Knows nothing about how any of it is done.
"""

import time
from dataclasses import dataclass

import torch
from torch import nn

from engines.adapter.model import DetectionAdapter
from engines.common.forecast import Part
from engines.training.pyramids import BatchSource
from engines.training.rehearsal import step_seconds
from engines.training.trainer import FitOptions, LossAt
from engines.training.whole_images import MEASURING, DevSplit

_LOOKS = (1, 2)  # at the dev split behind the training: with what the base gave before, and anew


@dataclass(frozen=True)
class AdapterSpeeds:
    """Seconds that things take here."""

    pyramid: float  # what the base gives for a batch
    head: float  # the adapter's own part of a step
    fresh: float  # a step that needs the base
    kept: float  # a step, where pyramids are kept
    first: float  # detecting on an image of the dev split
    again: float  # the same where what the base gives is kept


def timed_pyramids(source: BatchSource, batches: int) -> tuple[float, list[tuple[torch.Tensor, ...]]]:
    """The pyramids of the first batches, and the seconds of the last."""
    found, seconds = [], 0.0
    for step in range(batches):
        started = time.monotonic()
        found.append(source.at(step).pyramid)
        seconds = time.monotonic() - started
    return seconds, found


def try_adapter(
    model: DetectionAdapter, source: BatchSource, dev: DevSplit, loss_at: LossAt, options: FitOptions, pyramid: float
) -> AdapterSpeeds:
    """Time a step, and detecting on an image; nothing is changed by it. `pyramid`: seconds of those of a batch."""
    network: nn.Module = model
    step = step_seconds(network, loss_at, options.precision, options.device)
    fresh, kept = (pyramid + step, step) if source.keeps else (step, step)
    first, again = dev.seconds(model) if len(dev) else (0.0, 0.0)
    return AdapterSpeeds(pyramid, max(0.0, fresh - pyramid), fresh, kept, first, again)


def adapter_parts(speeds: AdapterSpeeds, options: FitOptions, fresh: int, images: int, done: int) -> list[Part]:
    """What is to be done behind step `done`, where `fresh` of the steps need the base; `images`: of the dev split."""
    left = options.steps - done
    parts = [Part("adapter", done + fresh, speeds.fresh), Part("adapter", left - fresh, speeds.kept)]
    if not options.evaluate_every:
        return parts
    every = options.evaluate_every
    evaluations = options.steps // every - done // every + (options.steps % every > 0)
    again, anew = _LOOKS
    times = ((1, speeds.first), (evaluations - 1 + again, speeds.again), (anew, speeds.first))
    return parts + [Part(MEASURING, number * images, seconds) for number, seconds in times]
