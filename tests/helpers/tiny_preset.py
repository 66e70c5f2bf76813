"""A preset of `train-base` whose training takes seconds."""

from dataclasses import replace

from engines.training.presets import PRESETS, BasePreset, Phase


def tiny_preset() -> BasePreset:
    """The preset `small` with few channels, small frames and 32 steps."""
    small = PRESETS["small"]
    vae = {"block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2}
    unet = {
        "block_out_channels": (32, 32), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2,
    }  # fmt: skip
    phases = (Phase(32, 32, 2, 12, 4), Phase(48, 32, 2, 8, 4))
    return replace(
        small, short_side=48, vae={**small.vae, **vae} | {"up_block_types": ("UpDecoderBlock2D",) * 2},
        unet={**small.unet, **unet}, vae_size=32, vae_batch=2, vae_steps=12, phases=phases,
    )  # fmt: skip
