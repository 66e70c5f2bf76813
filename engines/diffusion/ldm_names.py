"""How Stable Diffusion's own repositories name the weights that diffusers and transformers name otherwise.

Knows: for each weight of a UNet2DConditionModel, an AutoencoderKL and a CLIPTextModel, its name in a file of the
original layout ("LDM", CompVis/stable-diffusion and Stability-AI/stablediffusion), and how open_clip names a text
encoder's and keeps query, key and value in one tensor. Knows nothing about files.

diffusers has the same tables the other way round (loaders/single_file_utils.py, version 0.42).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_RESNET = {  # of the UNet
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_OPEN_CLIP |= {"self_attn.out_proj": "attn.out_proj"}
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


@dataclass(frozen=True)
class Source:
    """Where in a file of the original layout a weight is."""

    name: str
    third: int | None = None  # which third of the tensor's rows: open_clip keeps query, key and value in one


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """The original name of a UNet's weight or layer, for a configuration with as many layers in every block."""
    layers = config["layers_per_block"]
    per_block = (layers if isinstance(layers, int) else layers[0]) + 1
    for theirs, ours in (
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_in", "input_blocks.0.0"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
    ):
        if name == theirs or name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    side, block, kind, place, rest = re.fullmatch(  # type: ignore[union-attr]
        r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(\w+)\.(\d+)(.*)", name
    ).groups()
    number = int(block or 0)
    if kind == "resnets":
        for theirs, ours in _RESNET.items():
            rest = re.sub(rf"^\.{theirs}(?=\.|$)", f".{ours}", rest)
    if side == "mid_block":
        return f"middle_block.{2 * int(place) if kind == 'resnets' else 1}{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{per_block * (number + 1)}.0{rest.replace('.conv', '.op', 1)}"
    if kind == "upsamplers":
        attends = "CrossAttn" in config["up_block_types"][number]
        return f"output_blocks.{per_block * (number + 1) - 1}.{2 if attends else 1}{rest}"
    first = 1 if side == "down_blocks" else 0
    row = first + per_block * number + int(place)
    return f"{'input_blocks' if first else 'output_blocks'}.{row}.{0 if kind == 'resnets' else 1}{rest}"


def vae_name(name: str, config: Mapping[str, Any]) -> str:
    """The original name of a VAE's weight."""
    last = len(config["block_out_channels"]) - 1
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for theirs, ours in _VAE_ATTENTION.items():
            name = name.replace(f"attn_1.{theirs}.", f"attn_1.{ours}.")
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def open_clip_name(name: str) -> Source:
    """Where open_clip keeps a text encoder's weight, named without `text_model.`."""
    if name in _OPEN_CLIP_ENDS:
        return Source(_OPEN_CLIP_ENDS[name])
    layer, rest = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", name).groups()  # type: ignore[union-attr]
    beginning = f"transformer.resblocks.{layer}."
    if joined := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", rest):
        return Source(f"{beginning}attn.in_proj_{joined[2]}", "qkv".index(joined[1]))
    for theirs, ours in _OPEN_CLIP.items():
        rest = rest.replace(theirs, ours)
    return Source(beginning + rest)
