"""What the tensors of a LoRA file are called, and which layer of a base model each of them changes.

Knows: the names that kohya's trainers, diffusers, peft and ComfyUI give the same layers, in diffusers' spelling and in
that of the original repositories; which names mean another kind of file; and where alphas are noted that are no
tensors. Knows nothing about weights.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from engines.common.files import read_json
from engines.common.quote import quote, shorten
from engines.common.schema import in_range
from engines.common.weight_file import Header
from engines.diffusion.base_model import BaseModel
from engines.diffusion.families import TEXT_PREFIXES
from engines.diffusion.ldm_names import open_clip_name, unet_name
from engines.errors import ModelError

DOWN, UP, ALPHA = "down", "up", "alpha"
EXPECTED = "a LoRA of plain linear and convolution layers for this base was expected"
_ENDINGS = (  # of a tensor's name, and what it then is; peft may put an adapter's name before `weight`
    (re.compile(r"\.lora_down\.weight$"), DOWN),
    (re.compile(r"\.lora_up\.weight$"), UP),
    (re.compile(r"(\.lora|\.lora_linear_layer|_lora)\.down\.weight$"), DOWN),
    (re.compile(r"(\.lora|\.lora_linear_layer|_lora)\.up\.weight$"), UP),
    (re.compile(r"\.lora_A(\.\S+)?\.weight$"), DOWN),
    (re.compile(r"\.lora_B(\.\S+)?\.weight$"), UP),
    (re.compile(r"\.alpha$"), ALPHA),
)
_OTHER_KINDS = {  # text in a tensor's name, and what the file then is
    "hada_w": "a LoHa file",
    "lokr_w": "a LoKr file",
    "lora_mid": "a LoCon file with Tucker decomposition",
    "dora_scale": "a DoRA file",
    "lora_magnitude_vector": "a DoRA file",
    ".oft_": "an OFT file",
    "lora_te2_": "a LoRA for Stable Diffusion XL",
    "text_encoder_2.": "a LoRA for Stable Diffusion XL",
    "text_encoders.clip_g.": "a LoRA for Stable Diffusion XL",
    "double_blocks": "a LoRA for Flux",
    "joint_blocks": "a LoRA for Stable Diffusion 3",
    "transformer.transformer_blocks": "a LoRA for Stable Diffusion 3 or Flux",
}
_PEFT = "base_model.model."
_PEFT_SETTINGS = "adapter_config.json"  # beside a file that peft saved
_ORIGINAL = ("model.diffusion_model.", "diffusion_model.")  # before a layer of the UNet in its original name
_PLAIN_PATTERN = re.compile(r"\^?([\w.\\-]+)\$?")
_MOST_ALPHA = 1e6


def tensor_kind(name: str, path: Path) -> tuple[str, str]:
    """What a tensor is (DOWN, UP or ALPHA), and its layer's name as `layer_names` spells it. Raises ModelError."""
    what = next((what for mark, what in _OTHER_KINDS.items() if mark in name), None)
    if name.endswith((".diff", ".diff_b")):
        what = "a file of whole differences"
    if what is not None:
        raise ModelError(f"{path} is {what}; {EXPECTED}.")
    for ending, kind in _ENDINGS:
        if ending.search(name):
            return kind, _spelled(ending.sub("", name))
    raise ModelError(f"{path} holds {quote(name)}, which is no part of a LoRA; {EXPECTED}.")


def layer_names(base: BaseModel) -> dict[str, nn.Module]:
    """Every linear and convolution layer of the UNet and the text encoder, under each of its names."""
    found: dict[str, nn.Module] = {}
    layers = base.unet.config.layers_per_block
    same = isinstance(layers, int) or len(set(layers)) == 1  # else the original layout has no name for them
    for name, module in base.unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            names = [name, unet_name(name, base.unet.config)] if same else [name]
            found |= {f"unet.{one}": module for one in names}
            found |= {f"lora_unet_{one.replace('.', '_')}": module for one in names}
    for name, module in base.text_encoder.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            plain = name.removeprefix("text_model.")
            found[f"text_encoder.{plain}"] = found[f"lora_te_{plain.replace('.', '_')}"] = module
            original = open_clip_name(plain + ".weight")
            if original.third is None:
                found[f"text_encoder.{original.name.removesuffix('.weight')}"] = module
    return found


def _spelled(name: str) -> str:
    """A layer's name in a file, spelled as `layer_names` spells it."""
    for flat in ("lora_te_", "lora_te1_"):
        if name.startswith(flat):
            return "lora_te_" + name.removeprefix(flat).removeprefix("text_model_")
    if name.startswith("lora_unet_"):
        return name
    name = name.replace(_PEFT, "", 1)
    for prefix in _ORIGINAL:
        if name.startswith(prefix):
            return f"unet.{name.removeprefix(prefix)}"
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            return f"text_encoder.{name.removeprefix(prefix).removeprefix('text_model.')}"
    if name.startswith(("text_model.", "encoder.layers.")):
        name = f"text_encoder.{name}"
    name = re.sub(r"\.(?:processor\.)?to_(q|k|v)$", r".to_\1", name)
    name = re.sub(r"\.(?:processor\.)?to_out(?:\.0)?$", ".to_out.0", name)
    if name.startswith("text_encoder."):
        name = re.sub(r"\.to_(q|k|v)$", r".\1_proj", name)
        return name.replace(".to_out.0", ".out_proj").replace("text_encoder.text_model.", "text_encoder.", 1)
    return name if name.startswith("unet.") else f"unet.{name}"  # files with the UNet alone may leave its name out


def noted_settings(header: Header, path: Path) -> Mapping[str, Any]:
    """What diffusers' `save_lora_weights` noted of alphas and ranks in the file, or peft in the settings beside it.

    Keys are diffusers', such as `unet.lora_alpha`; peft's have no part in front. Raises ModelError for another scaling
    rule.
    """
    settings: Any = {}
    beside = path.with_name(_PEFT_SETTINGS)
    try:
        if text := header.metadata.get("lora_adapter_metadata"):
            settings = json.loads(text)
        elif any(_PEFT in name for name in header.tensors) and beside.is_file():
            settings = read_json(beside, ModelError)
    except (ValueError, RecursionError) as cause:
        reason = shorten(cause, 100)
        raise ModelError(f"{path}: its lora_adapter_metadata is not readable as JSON: {reason}.") from cause
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: its lora_adapter_metadata is no JSON object.")
    for key, value in settings.items():
        if key.rpartition(".")[2] in ("use_rslora", "use_dora") and value:
            raise ModelError(f"{path} is scaled by another rule ({shorten(key)}); {EXPECTED}.")
    return settings


def noted_alpha(settings: Mapping[str, Any], name: str, rank: int, path: Path) -> float:
    """A layer's alpha by the settings beside the tensors; without any, the rank: such files hold the change as is.

    Patterns are matched as peft does: a whole name, or the end of one. Raises ModelError for one that is no plain name,
    for an alpha that is no number, and for settings of another file: of one rank, where the layer has another.
    """
    part, _, layer = name.replace(_PEFT, "", 1).partition(".")
    prefix = f"{part}." if any(key.startswith(f"{part}.") for key in settings) else ""
    layer = re.split(r"\.lora[_.]", layer if prefix else name.replace(_PEFT, "", 1))[0]
    found = settings.get(f"{prefix}lora_alpha", rank)
    noted_rank = settings.get(f"{prefix}r", rank)
    if noted_rank != rank and not settings.get(f"{prefix}rank_pattern"):
        raise ModelError(
            f"{path}: the settings with it are for rank {quote(noted_rank)}, and {quote(name)} has {rank}. They belong "
            "to another file."
        )
    patterns = settings.get(f"{prefix}alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ModelError(f"{path}: its alpha_pattern is {quote(patterns)}; names of layers with numbers were expected.")
    for pattern, alpha in patterns.items():
        plain = _PLAIN_PATTERN.fullmatch(pattern)
        if plain is None:
            raise ModelError(f"{path}: its alpha_pattern has {quote(pattern)}; names of layers were expected.")
        wanted = plain[1].replace("\\", "")
        if layer == wanted or (not pattern.startswith("^") and layer.endswith(f".{wanted}")):
            found = alpha
            break
    if type(found) not in (int, float) or not in_range(found, -_MOST_ALPHA, _MOST_ALPHA):
        raise ModelError(f"{path}: an alpha is {quote(found)}; a number was expected.")
    return float(found)
