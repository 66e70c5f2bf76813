"""Distilling a small decoder from the VAE of a base model: it makes the VAE's pixels of the same latents, sooner.

Knows: the decoder's shape and its loss. The idea and the network are TAESD's (Ollin Boer Bohan, 2023,
github.com/madebyollin/taesd), as diffusers' AutoencoderTiny has them: convolutions without normalisation, and few of
them at full size. What is learned is the VAE's own picture of a latent and not the photograph: it has one answer.

B batch, Z latent channels, h/w latents, H/W pixels.
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from engines.common.files import read_json
from engines.common.schema import to_object
from engines.diffusion.architecture import tiny_decoder
from engines.diffusion.base_model import BASE_NOTES, base_files
from engines.diffusion.origin import ORIGIN, read_origin
from engines.errors import ModelError
from engines.training.presets import BasePreset
from engines.training.trainer import LossAt
from engines.training.vae import crops_at, latents_at, reconstruction_loss
from engines.training.views import ImageStore, ViewOptions


def new_decoder(vae: Any, preset: BasePreset, seed: int) -> Any:
    """A decoder for the latents of `vae` (AutoencoderKL), with random weights."""
    levels = len(vae.config.block_out_channels)
    blocks = (*[3] * (levels - len(preset.decoder_blocks)), *preset.decoder_blocks[-levels:])
    torch.manual_seed(seed)
    return tiny_decoder(
        {
            "latent_channels": int(vae.config.latent_channels),
            "decoder_block_out_channels": (preset.decoder_channels,) * levels,
            "num_decoder_blocks": blocks,
        }
    ).to(vae.device)


def decoder_loss(
    decoder: Any, vae: Any, store: ImageStore, views: ViewOptions, batch: int, seed: int, device: str
) -> LossAt:
    """The loss of a step, on latents that the VAE draws of crops: what is painted is no exact encoding either."""

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        pixels = crops_at(step, store, views, batch, seed).to(device)
        with torch.no_grad():
            latents = latents_at(step, vae.encode(pixels).latent_dist, batch, seed)
            wanted = vae.decode(latents).sample.float()
        rebuilding = reconstruction_loss(decoder.decode(latents * vae.config.scaling_factor).sample.float(), wanted)
        return rebuilding, {"rebuilding": rebuilding.detach()}

    return loss_at


def copy_base(base: Path, out: Path) -> dict[str, Any]:
    """Copy a base model's files to the folder `out` as they are, so that its adapters fit; returns its notes, with the
    names that these know it by.
    """
    for path in base_files(base):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / path, out / path)
    notes = read_json(base / BASE_NOTES, ModelError) if (base / BASE_NOTES).is_file() else {}
    return notes | {ORIGIN: to_object(read_origin(base))}
