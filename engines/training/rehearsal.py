"""How long a training takes on this machine: a step or two of each kind, tried out before it begins.

Knows: how a step is timed without changing anything, and what the parts of a base model's training are. Knows nothing
about how a step comes to its loss.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engines.common.devices import resolve_precision
from engines.common.events import Event, EventKind
from engines.common.forecast import Forecast, Part
from engines.measure.memory import read_memory
from engines.training.assess import LOOKING, PAINTED, STEPS, Networks
from engines.training.decoder import decoder_loss
from engines.training.presets import BasePreset, Lengths, Phase
from engines.training.trainer import FitOptions, LossAt, autocast, checkpoint_bytes
from engines.training.unet import SCALED_ON, Views, ViewSource, encode_views, encoding_of, trained_of, unet_loss
from engines.training.vae import vae_loss, vae_views

_TRIED = 16  # views that are encoded
_FORWARD = 3  # a training step takes so many times a call of the network


@dataclass(frozen=True)
class Speeds:
    """Seconds that things take here."""

    vae: float  # a step of the autoencoder's training
    views: tuple[float, ...]  # encoding a view of each phase
    unet: tuple[float, ...]  # a step of each phase
    decoder: float = 0.0  # a step of the decoder's


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of the second of two calls: the first one makes ready what later ones have."""
    seconds = 0.0
    for _ in range(2):
        started = time.monotonic()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        seconds = time.monotonic() - started
    return seconds


def planned(text: str, settled: Mapping[str, Any], trained: Sequence[nn.Module], report: Forecast) -> Event:
    """What is said of a training whose parts were tried out, before anything is written; `trained`: networks, each by a
    training of its own, the last of which has its newest checkpoint beside the one before."""
    sizes = [checkpoint_bytes(network) for network in trained]
    found = read_memory()  # of a step without what the optimiser and the average hold: three quarters of a checkpoint
    memory = {"memory": found.rss_peak + (0 if found.vram_peak else 3 * max(sizes) // 4)}
    disk = {"disk": max(sum(sizes[:number]) + 2 * size for number, size in enumerate(sizes))}
    return Event(EventKind.PLANNED, text=text, seconds_left=report.left(), settled=settled, needs={**memory, **disk})


def step_seconds(module: nn.Module, loss_at: LossAt, precision: str, device: str) -> float:
    """Seconds of a training step, but for the optimiser's part; weights, buffers and random draws stay as they are."""
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    precision = resolve_precision(precision, device)

    def step() -> None:
        with autocast(precision, device):
            loss, _ = loss_at(0)
        torch.autograd.backward(loss)

    module.train()
    with torch.random.fork_rng(devices=[]):
        seconds = timed(step, device)
    module.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
    return seconds


def try_out(networks: Networks, source: ViewSource, preset: BasePreset, style: str, stages: Collection[str]) -> Speeds:
    """Time the steps of a base model's training. Nothing is changed by it."""
    precision, device, views = source.precision, source.device, vae_views(preset, source.rotate)
    vae = decoder = 0.0
    if "decoder" in stages:
        trained: Any = networks.decoder
        loss_at = decoder_loss(trained, networks.vae, source.store, views, preset.vae_batch, source.seed, device)
        decoder = step_seconds(trained, loss_at, precision, device)
    if "vae" in stages:
        loss_at = vae_loss(networks.vae, source.store, views, preset.vae_batch, source.seed, device)
        vae = step_seconds(networks.vae, loss_at, precision, device)
    encoding, steps = [], []
    for number, phase in enumerate(preset.phases if "unet" in stages else ()):
        few, encoded = _few(phase), list[Views]()

        def encode(few: Phase = few, encoded: list[Views] = encoded, number: int = number) -> None:
            encoded.append(encode_views(networks.vae, source, few, number))

        encoding.append(timed(encode, device) / few.views)
        options = FitOptions(steps=few.steps, lr=preset.unet_lr, seed=source.seed, precision=precision, device=device)
        loss_at = unet_loss(networks, source.class_names, (few,), style, options, {0: encoded[-1]})
        steps.append(step_seconds(trained_of(networks), loss_at, precision, device))
    return Speeds(vae, tuple(encoding), tuple(steps), decoder)


def _few(phase: Phase) -> Phase:
    """A phase with a few views."""
    return Phase(phase.width, phase.height, phase.batch, phase.steps, _TRIED)


def parts_of(
    lengths: Lengths, speeds: Speeds, stages: Collection[str], looked_at: int, done: Mapping[str, int]
) -> list[Part]:
    """What is to be done for a base model, of which `done` steps by stage are done; `looked_at`: images in the end."""
    parts = [Part("vae", lengths.vae_steps, speeds.vae)] if "vae" in stages else []
    if "decoder" in stages:
        parts.append(Part("decoder", lengths.decoder_steps, speeds.decoder))
    if "unet" not in stages:
        return parts
    phases = list(zip(lengths.phases, speeds.views, speeds.unet, strict=True))
    if "vae" in stages:
        parts.append(Part(encoding_of(lengths.phases[0]), SCALED_ON, speeds.views[0]))
    begun = 0
    for phase, view, step in phases:
        begun += phase.steps
        if done.get("unet", 0) < begun:  # its views are encoded anew by a resume
            parts.append(Part(encoding_of(phase), phase.views, view))
        parts.append(Part("unet", phase.steps, step))
    last, view, step = phases[-1]
    row = step / _FORWARD / last.batch
    return [*parts, Part(LOOKING, looked_at, 2 * view), Part(LOOKING, PAINTED, 2 * STEPS * row + view)]
