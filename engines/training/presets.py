"""Sizes of base models, as data.

Knows: network shapes and training lengths by name. Knows nothing about how they are trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from engines.errors import UsageError


@dataclass(frozen=True)
class Phase:
    """A stretch of the UNet's training at one view size."""

    width: int  # pixels
    height: int  # pixels
    batch: int  # views a step
    steps: int  # optimiser steps
    views: int  # distinct views whose latents are encoded beforehand


@dataclass(frozen=True)
class BasePreset:
    """Shapes and schedules of one base model; the dictionaries are keyword arguments of diffusers and transformers."""

    short_side: int  # pixels images are scaled to before views are cut
    vae: Mapping[str, Any]  # AutoencoderKL
    unet: Mapping[str, Any]  # UNet2DConditionModel
    text: Mapping[str, Any]  # CLIPTextConfig, but for the vocabulary
    text_length: int  # tokens in a padded prompt
    vae_size: int  # pixels of a side of the VAE's square crops
    vae_batch: int  # crops a step
    vae_steps: int  # optimiser steps
    vae_lr: float  # peak learning rate of the VAE
    decoder_channels: int  # of the decoder that is distilled from the VAE
    decoder_blocks: tuple[int, ...]  # its blocks a level, the finest last
    decoder_steps: int  # optimiser steps
    decoder_lr: float  # peak learning rate
    unet_lr: float  # peak learning rate of the UNet and the text encoder
    phases: tuple[Phase, ...] = field(default=())  # of the UNet's training, in order

    @property
    def batches(self) -> set[int]:
        """The sizes of all batches."""
        return {self.vae_batch, *(phase.batch for phase in self.phases)}


def _vae(channels: tuple[int, ...], layers: int, groups: int) -> dict[str, Any]:
    return {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "layers_per_block": layers,
        "latent_channels": 4,
        "norm_num_groups": groups,
    }


def _unet(channels: tuple[int, ...], layers: int, text_width: int, heads: int) -> dict[str, Any]:
    """Attention on every level but the finest, which is the costly one."""
    levels = len(channels)
    return {
        "block_out_channels": channels,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        "up_block_types": ("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        "layers_per_block": layers,
        "cross_attention_dim": text_width,
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "norm_num_groups": 32,
        "use_linear_projection": True,
    }


def _text(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": width,
    }


PRESETS: Mapping[str, BasePreset] = {
    # The bundled model: 13.6 M parameters, about 65 minutes on two CPU cores.
    "small": BasePreset(
        short_side=256,
        vae=_vae((16, 32, 64, 128), layers=1, groups=8),
        unet=_unet((64, 128, 192), layers=1, text_width=64, heads=8),
        text=_text(64, layers=2, heads=4),
        text_length=24,
        vae_size=128,
        vae_batch=8,
        vae_steps=2000,
        vae_lr=1e-3,
        decoder_channels=32,
        decoder_blocks=(3, 3, 1, 0),
        decoder_steps=4000,
        decoder_lr=1e-3,
        unet_lr=6e-4,
        phases=(Phase(160, 160, 32, 1400, 8192), Phase(320, 256, 8, 1600, 2048)),
    ),
    # For a GPU: 512-pixel frames; never trained yet.
    "large": BasePreset(
        short_side=512,
        vae=_vae((64, 128, 256, 256), layers=2, groups=32),
        unet=_unet((192, 384, 576, 576), layers=2, text_width=256, heads=8),
        text=_text(256, layers=4, heads=4),
        text_length=77,
        vae_size=256,
        vae_batch=16,
        vae_steps=30000,
        vae_lr=3e-4,
        decoder_channels=64,
        decoder_blocks=(3, 3, 3, 1),
        decoder_steps=30000,
        decoder_lr=3e-4,
        unet_lr=2e-4,
        phases=(Phase(256, 256, 64, 30000, 32768), Phase(640, 512, 16, 30000, 8192)),
    ),
}


def base_preset(name: str) -> BasePreset:
    """The preset of that name, or a UsageError listing the names."""
    if name not in PRESETS:
        raise UsageError(
            f'`preset` is "{name}", which does not exist; one of {", ".join(PRESETS)} was expected.', field="preset"
        )
    return PRESETS[name]


@dataclass(frozen=True)
class Lengths:
    """How long the trainings of a base model are."""

    vae_steps: int  # optimiser steps
    phases: tuple[Phase, ...]  # of the UNet's training
    decoder_steps: int  # optimiser steps

    @property
    def unet_steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)


def lengths_of(preset: BasePreset, scale: float, images: int, *, all_views: bool = False) -> Lengths:
    """A preset's training times `scale`.

    A shorter one encodes as much fewer views, but one of each of the `images` where it has the steps to show them;
    with `all_views` as many as the preset says.
    """

    def scaled(phase: Phase) -> Phase:
        steps = _scaled(phase.steps, scale)
        views = max(_scaled(phase.views, scale), min(images, steps * phase.batch))
        return replace(phase, steps=steps, views=phase.views if all_views else min(phase.views, views))

    phases = tuple(scaled(phase) for phase in preset.phases)
    return Lengths(_scaled(preset.vae_steps, scale), phases, _scaled(preset.decoder_steps, scale))


def _scaled(number: int, scale: float) -> int:
    return max(1, round(number * scale))
