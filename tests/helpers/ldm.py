"""Toy models as single files, under the names that Stable Diffusion's own repositories gave the weights.

Knows: how to write what others call a checkpoint, from a base model in the diffusers layout. The names are written out
here on their own, and not by the tables of `engines.diffusion.ldm_names`, which they are held against.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engines.diffusion.base_model import BaseModel

Tensors = dict[str, torch.Tensor]


def ldm_layout(base: BaseModel, *, open_clip: bool) -> Tensors:
    """A base model's weights under the names that Stable Diffusion's own repositories gave them."""
    found = {f"model.diffusion_model.{name}": value for name, value in _unet_names(base.unet).items()}
    found |= {f"first_stage_model.{name}": value for name, value in _vae_names(base.vae).items()}
    text = {name.removeprefix("text_model."): value for name, value in base.text_encoder.state_dict().items()}
    if not open_clip:
        return found | {f"cond_stage_model.transformer.text_model.{name}": value for name, value in text.items()}
    return found | {f"cond_stage_model.model.{name}": value for name, value in _open_clip_names(text).items()}


def _unet_names(unet: Any) -> Tensors:
    per_block, last = unet.config.layers_per_block + 1, len(unet.config.block_out_channels) - 1

    def renamed(name: str) -> str:
        name = re.sub(r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}", name)
        name = re.sub(r"^conv_in\.", "input_blocks.0.0.", name)
        name = re.sub(r"^conv_norm_out\.", "out.0.", re.sub(r"^conv_out\.", "out.2.", name))
        for kind, place in (("resnets", 0), ("attentions", 1)):
            name = re.sub(
                rf"^down_blocks\.(\d)\.{kind}\.(\d)",
                lambda m, place=place: f"input_blocks.{1 + per_block * int(m[1]) + int(m[2])}.{place}",  # type: ignore[misc]
                name,
            )
            name = re.sub(
                rf"^up_blocks\.(\d)\.{kind}\.(\d)",
                lambda m, place=place: f"output_blocks.{per_block * int(m[1]) + int(m[2])}.{place}",  # type: ignore[misc]
                name,
            )
        name = re.sub(r"^mid_block\.attentions\.0", "middle_block.1", name)
        name = re.sub(r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", name)
        name = re.sub(
            r"^down_blocks\.(\d)\.downsamplers\.0\.conv",
            lambda m: f"input_blocks.{per_block * (int(m[1]) + 1)}.0.op",
            name,
        )
        name = re.sub(
            r"^up_blocks\.(\d)\.upsamplers\.0",
            lambda m: f"output_blocks.{per_block * (int(m[1]) + 1) - 1}.{2 if attends(int(m[1])) else 1}",
            name,
        )
        for new, old in (
            ("norm1", "in_layers.0"),
            ("conv1", "in_layers.2"),
            ("norm2", "out_layers.0"),
            ("conv2", "out_layers.3"),
            ("time_emb_proj", "emb_layers.1"),
            ("conv_shortcut", "skip_connection"),
        ):
            if "transformer_blocks" not in name:
                name = name.replace(f".{new}.", f".{old}.")
        return name

    def attends(block: int) -> bool:
        return "CrossAttn" in unet.config.up_block_types[block]

    assert last < 10
    return {renamed(name): value for name, value in unet.state_dict().items()}


def original_unet_names(unet: Any) -> dict[str, str]:
    """The original name of each of a UNet's weights."""
    return dict(zip(unet.state_dict(), _unet_names(unet), strict=True))


def _vae_names(vae: Any) -> Tensors:
    last = len(vae.config.block_out_channels) - 1

    def renamed(name: str) -> str:
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
        for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            name = name.replace(f"attn_1.{new}.", f"attn_1.{old}.")
        return name.replace("conv_norm_out", "norm_out")

    found = {renamed(name): value for name, value in vae.state_dict().items()}
    matrices = re.compile(r"attn_1\.(q|k|v|proj_out)\.weight")
    return {name: value[..., None, None] if matrices.search(name) else value for name, value in found.items()}


def _open_clip_names(text: Mapping[str, torch.Tensor]) -> Tensors:
    found: Tensors = {
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "ln_final.weight": text["final_layer_norm.weight"],
        "ln_final.bias": text["final_layer_norm.bias"],
    }
    layers = sorted({name.split(".")[2] for name in text if name.startswith("encoder.layers.")})
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for layer in layers:
        old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [text[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{new}attn.in_proj_{kind}"] = torch.cat(parts)
            found[f"{new}attn.out_proj.{kind}"] = text[f"{old}self_attn.out_proj.{kind}"]
            found |= {f"{new}{to}.{kind}": text[f"{old}{name}.{kind}"] for name, to in names.items()}
    return found


def changed(source: Path, target: Path, more: Mapping[str, torch.Tensor], less: str = "^$", **notes: str) -> Path:
    """A copy of a single file with tensors added, and those left out whose names match `less`."""
    tensors = {name: value for name, value in load_file(source).items() if not re.search(less, name)}
    save_file({**tensors, **more}, target, metadata=notes or None)
    return target
