"""Trainings that take seconds: a preset of `train-base`, and the commands of both verbs."""

import json
from dataclasses import replace
from pathlib import Path

from kill_scenes import write_pictures

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


def small_trainings(folder: Path, base: Path, **settings: object) -> dict[str, list[object]]:
    """Each verb's command, but for where it writes, on pictures in `folder`; `settings`: of the adapter's training."""
    data, file = folder / "data", folder / "settings.json"
    network = {"width": 16, "heads": 2, "ffn_width": 16, "decoder_layers": 1, "queries": 8, "denoising": 0}
    usual = {"network": network, "short_side": 32, "batch": 1, "warmup": 2, "eval_every": 2}
    write_pictures(data, 6, labels=True)
    file.write_text(json.dumps(usual | settings), "utf-8")
    more = ["--precision", "f32", "--no-report"]
    return {
        "train-base": ["train-base", data, "--preset", "tiny", *more],
        "train-adapter": ["train-adapter", data, "--model", base, "--settings", file, *more],
    }
