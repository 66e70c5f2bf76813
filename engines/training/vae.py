"""Training the autoencoder of a base model on square crops.

Knows: the reconstruction loss and its evaluation. Knows nothing about diffusion.

B batch, H/W pixels.
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from engines.common.rng import Stream, generator
from engines.diffusion.latents import to_pixels
from engines.training.presets import BasePreset
from engines.training.together import share
from engines.training.trainer import LossAt
from engines.training.views import ImageStore, ViewOptions, draw_view

KL_WEIGHT = 2e-4


def vae_views(preset: BasePreset, rotate: bool) -> ViewOptions:
    """How the autoencoder's crops are cut."""
    return ViewOptions(preset.vae_size, preset.vae_size, preset.short_side, (0.8, 1.25), rotate=rotate)


def vae_loss(vae: Any, store: ImageStore, views: ViewOptions, batch: int, seed: int, device: str) -> LossAt:
    """The loss of a step, on this process's share of the crops that the seed draws."""

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        pixels = crops_at(step, store, views, batch, seed).to(device)
        posterior = vae.encode(pixels).latent_dist
        latents = latents_at(step, posterior, batch, seed)
        rebuilt = vae.decode(latents).sample.float()
        rebuilding = reconstruction_loss(rebuilt, pixels)
        divergence = posterior.kl().float().mean() / latents[0].numel()
        return rebuilding + KL_WEIGHT * divergence, {
            "rebuilding": rebuilding.detach(),
            "kl": divergence.detach(),
        }

    return loss_at


def crops_at(step: int, store: ImageStore, views: ViewOptions, batch: int, seed: int) -> torch.Tensor:
    """This process's share of the crops of a step, [B, 3, H, W] in [-1, 1]."""
    rng = generator(seed, Stream.VAE_VIEWS, step)
    crops = [draw_view(store, int(i), views, rng) for i in rng.integers(len(store.records), size=batch)]
    return torch.stack([to_pixels(crop.pixels) for crop in crops[share(batch)]])  # all: one stream draws them


def latents_at(step: int, posterior: Any, batch: int, seed: int) -> torch.Tensor:
    """What a step draws of the latents of its crops, or of this process's share of them."""
    mean: torch.Tensor = posterior.mean
    noise = generator(seed, Stream.VAE_LATENTS, step).standard_normal((batch, *mean.shape[1:]), dtype=np.float32)
    drawn: torch.Tensor = mean + posterior.std * torch.from_numpy(noise[share(batch)]).to(mean.device)
    return drawn


def reconstruction_loss(rebuilt: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """L1 on pixels, on their gradients, and on halved, quartered and eighth-size copies; [B, 3, H, W] both.

    The gradients keep outlines sharp, the small copies keep colours right.
    """
    loss = functional.l1_loss(rebuilt, pixels)
    loss = loss + functional.l1_loss(rebuilt.diff(dim=2), pixels.diff(dim=2))
    loss = loss + functional.l1_loss(rebuilt.diff(dim=3), pixels.diff(dim=3))
    for factor in (2, 4, 8):
        small = functional.avg_pool2d(rebuilt, factor), functional.avg_pool2d(pixels, factor)
        loss = loss + functional.l1_loss(*small)
    return loss


def psnr(rebuilt: torch.Tensor, pixels: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], after clipping the rebuilt one."""
    error = functional.mse_loss(rebuilt.clamp(-1, 1).float(), pixels.float()).item()
    return float(10 * np.log10(4.0 / max(error, 1e-12)))
