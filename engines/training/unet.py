"""Training the UNet and the text encoder of a base model, on latents that are encoded beforehand.

Knows: the diffusion loss, the views of each phase and their latents. Knows nothing about the autoencoder's training, or
about folders of models. The loss is Min-SNR-5 weighted (Hang et al. 2023, arXiv 2303.09556) on epsilon or v.

B batch, T timesteps, Z latent channels, h/w latents, L tokens, D text width.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from engines.common.devices import resolve_precision
from engines.common.events import Event, EventKind, Report, silent
from engines.common.rng import Stream, generator
from engines.common.tokenizer import tokenize
from engines.common.training_log import TrainingLog
from engines.diffusion import prompts
from engines.diffusion.base_model import encode_pixels
from engines.diffusion.latents import add_noise, to_pixels, velocity
from engines.diffusion.noise import alphas_cumprod
from engines.training.assess import Networks
from engines.training.presets import Phase
from engines.training.together import gathered, share
from engines.training.trainer import FitOptions, LossAt, autocast, fit
from engines.training.views import ImageStore, ViewOptions, draw_view

MIN_SNR = 5.0
PROMPT_KINDS: dict[prompts.PromptKind, float] = {"listing": 0.75, "generic": 0.15, "empty": 0.10}
SCALED_ON = 256  # views whose latents say how large latents are
_ENCODED = 16  # views encoded together

Views = tuple[torch.Tensor, list[dict[str, int]]]  # latents float32 [views, Z, h, w], and the class counts of each


@dataclass(frozen=True)
class ViewSource:
    """What the views of a phase are cut from, and how."""

    store: ImageStore
    class_names: Sequence[str]
    short_side: int  # pixels that images are scaled to
    rotate: bool  # whether turned views are as likely as upright ones
    seed: int
    precision: str
    device: str


def train_unet(
    networks: Networks,
    source: ViewSource,
    phases: Sequence[Phase],
    style: str,
    options: FitOptions,
    folder: Path,
    *,
    identity: dict[str, Any],
    resume: bool,
    report: Report,
    log: TrainingLog,
) -> None:
    """Fit UNet and text encoder in place to the latents of random views; the autoencoder only encodes them."""
    encoded: dict[int, Views] = {}

    def prepare(step: int) -> None:
        if (number := phase_at(phases, step)) not in encoded:
            encoded.clear()
            encoded[number] = encode_views(networks.vae, source, phases[number], number, report)

    fit(
        trained_of(networks), unet_loss(networks, source.class_names, phases, style, options, encoded), options, folder,
        stage="unet", identity=identity, resume=resume, report=report, prepare=prepare, log=log,
    )  # fmt: skip


def trained_of(networks: Networks) -> nn.Module:
    """What is trained together."""
    return nn.ModuleDict({"unet": networks.unet, "text_encoder": networks.text_encoder}).requires_grad_(True)


def phase_at(phases: Sequence[Phase], step: int) -> int:
    """The number of the phase that a step is in."""
    return next(i for i in range(len(phases)) if step < sum(phase.steps for phase in phases[: i + 1]))


def unet_loss(
    networks: Networks,
    class_names: Sequence[str],
    phases: Sequence[Phase],
    style: str,
    options: FitOptions,
    encoded: Mapping[int, Views],
) -> LossAt:
    """The loss of a step, on this process's share of views of its phase in `encoded`."""
    alphas = alphas_cumprod(networks.scheduler_config).float().to(options.device)
    prediction_type = str(networks.scheduler_config.get("prediction_type", "epsilon"))

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        number = phase_at(phases, step)
        latents, counts = encoded[number]
        rng = generator(options.seed, Stream.UNET_STEP, step)
        chosen = rng.integers(len(counts), size=phases[number].batch)
        texts = [prompts.training_prompt(rng, style, counts[i], class_names, PROMPT_KINDS, 0.0) for i in chosen]
        timesteps = torch.from_numpy(rng.integers(len(alphas), size=len(chosen))).to(options.device)
        shape, own = (len(chosen), *latents.shape[1:]), share(len(chosen))
        noise = generator(options.seed, Stream.UNET_NOISE, step).standard_normal(shape, dtype=np.float32)
        states = networks.text_encoder(tokenize(networks.tokenizer, texts[own]).to(options.device))[0]
        loss = diffusion_loss(
            networks.unet,
            latents[chosen[own]].to(options.device),
            torch.from_numpy(noise[own]).to(options.device),
            timesteps[own],
            states,
            alphas,
            prediction_type,
        )
        return loss, {}

    return loss_at


def diffusion_loss(
    unet: Any,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    states: torch.Tensor,
    alphas: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """The Min-SNR weighted loss of one batch.

    `latents`, `noise` [B, Z, h, w]; `timesteps` int64 [B]; `states` [B, L, D]; `alphas` cumulative products [T].
    """
    alpha = alphas[timesteps].to(latents.dtype)
    output = unet(add_noise(latents, noise, alphas, timesteps), timesteps, states).sample.float()
    ratio = alpha / (1 - alpha)
    if prediction_type == "v_prediction":
        target = velocity(latents, noise, alphas, timesteps)
        weight = ratio.clamp(max=MIN_SNR) / (ratio + 1)
    else:
        target, weight = noise, ratio.clamp(max=MIN_SNR) / ratio
    return (functional.mse_loss(output, target, reduction="none").mean(dim=(1, 2, 3)) * weight).mean()


def scale_latents(vae: Any, source: ViewSource, phases: Sequence[Phase], report: Report) -> None:
    """Set the VAE's scaling factor so that latents have unit variance."""
    phase = replace(phases[0], views=SCALED_ON)
    vae.register_to_config(scaling_factor=1.0)
    latents, _ = encode_views(vae, source, phase, len(phases), report)
    vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 5))


def encoding_of(phase: Phase) -> str:
    """What events call the encoding of a phase's views."""
    return f"views {phase.width}x{phase.height}"


@torch.no_grad()
def encode_views(vae: Any, source: ViewSource, phase: Phase, number: int, report: Report = silent) -> Views:
    """The views of a phase, the `number`th, as latents; each process encodes its share of them."""
    options = ViewOptions(phase.width, phase.height, source.short_side, rotate=source.rotate)
    latents, counts, own = [], [], range(phase.views)[share(phase.views)]
    for first in range(0, len(own), _ENCODED):
        report(Event(EventKind.PROGRESS, encoding_of(phase), done=first * phase.views // len(own), total=phase.views))
        pixels = []
        for k in own[first : first + _ENCODED]:
            rng = generator(source.seed, Stream.UNET_VIEWS, number, k)
            view = draw_view(source.store, k % len(source.store.records), options, rng)
            pixels.append(to_pixels(view.pixels))
            found = Counter(view.instances.labels.tolist())
            counts.append({name: found[i] for i, name in enumerate(source.class_names) if found[i]})
        with autocast(resolve_precision(source.precision, source.device), source.device):
            encoded = encode_pixels(vae, torch.stack(pixels).to(source.device))
        latents.append(encoded.float().cpu())
    report(Event(EventKind.PROGRESS, encoding_of(phase), done=phase.views, total=phase.views))
    return torch.cat(gathered(latents)), gathered(counts)
