"""Trainings that other processes can take part in: `beside` starts them by the names of what is here.

Knows: a toy network with its training. Knows nothing about tests.
"""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engines.common.events import Report
from engines.common.rng import generator
from engines.errors import DatasetError
from engines.training.shared_norm import share_statistics
from engines.training.together import count, dismiss, first_alone, is_first, share
from engines.training.trainer import FitOptions, fit

BATCH, STEPS, STOP_AT = 8, 6, 3


@dataclass(frozen=True)
class ToySettings:
    """Of `toy_train`."""

    out: Path  # folder of its checkpoints
    device: str = "cpu"
    devices: int = 1
    resume: bool = False
    stop: bool = False  # the first process gets a Ctrl-C in step STOP_AT, the others SIGTERM in the one before
    fail: bool = False  # another one finds a bad image there


def toy_network() -> nn.Module:
    """A small network with a batch norm."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=0.01)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def toy_train(settings: ToySettings, report: Report, started: float) -> nn.Module:
    """Train the toy; checkpoints are left where they are."""
    with first_alone():
        network = toy_network()
    share_statistics(network)

    def loss_at(step: int) -> tuple[torch.Tensor, Mapping[str, float | torch.Tensor]]:
        if step == STOP_AT and settings.stop and is_first():
            os.kill(os.getpid(), signal.SIGINT)
        if step == STOP_AT - 1 and settings.stop and not is_first():
            os.kill(os.getpid(), signal.SIGTERM)
        if step == STOP_AT and settings.fail and not is_first():
            raise DatasetError("data/3.png is cut off.")
        drawn = generator(1, step).standard_normal((BATCH, 3, 6, 6), dtype=np.float32)
        pixels = torch.from_numpy(drawn[share(BATCH)])
        loss = (network(pixels) - pixels.mean(dim=(2, 3))[:, :2]).square().mean()
        return loss, {"processes": float(count()), "half": loss.detach() / 2}

    options = FitOptions(steps=STEPS, lr=1e-2, warmup=2, precision="f32", checkpoint_minutes=60.0)
    fit(network, loss_at, options, settings.out, stage="toy", identity={}, resume=settings.resume, report=report)
    dismiss()
    return network
