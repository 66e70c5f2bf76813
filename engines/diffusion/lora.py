"""LoRA files: low-rank changes to a base model's weights, added to them before anything else is done.

Knows: the names that kohya's trainers, diffusers and peft give the tensors, which weight each belongs to, and the sum
W + scale * alpha / rank * up down. All files are read and matched before a weight is changed.
Does not know what a LoRA was trained for.

The sum is done here and not by diffusers' `load_lora_weights`, which gave other weights for kohya files whose layers
differ in alpha or rank (diffusers 0.42.1 with peft 0.21.2: off by up to twice the weights' norm), and would ask for
two packages more. Where it is right (its own and peft's names, or one rank and alpha), both give the same to the bit.

Source: LoRA, Hu et al. 2021 (arXiv 2106.09685, section 4.1). Names: kohya-ss/sd-scripts, networks/lora.py; diffusers,
loaders/lora_conversion_utils.py.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engines.bundle.bundle import MANIFEST, open_bundle
from engines.common.files import sha256_file
from engines.common.weight_file import Header, read_header
from engines.diffusion.base_model import BaseModel
from engines.diffusion.weights import PICKLES, pickle_message
from engines.errors import BundleError, ModelError, UsageError

_DOWN, _UP, _ALPHA = "down", "up", "alpha"
_ENDINGS = (  # of a tensor's name, and what it then is
    (".lora_down.weight", _DOWN),
    (".lora_up.weight", _UP),
    (".lora.down.weight", _DOWN),
    (".lora.up.weight", _UP),
    (".lora_linear_layer.down.weight", _DOWN),
    (".lora_linear_layer.up.weight", _UP),
    ("_lora.down.weight", _DOWN),
    ("_lora.up.weight", _UP),
    (".lora_A.weight", _DOWN),
    (".lora_B.weight", _UP),
    (".alpha", _ALPHA),
)
_OTHER_KINDS = {  # text in a tensor's name, and what the file then is
    "hada_w": "a LoHa file",
    "lokr_w": "a LoKr file",
    "lora_mid": "a LoCon file with Tucker decomposition",
    "dora_scale": "a DoRA file",
    "lora_magnitude_vector": "a DoRA file",
    "lora_te2_": "a LoRA for Stable Diffusion XL",
    "text_encoder_2.": "a LoRA for Stable Diffusion XL",
    "double_blocks": "a LoRA for Flux",
    "joint_blocks": "a LoRA for Stable Diffusion 3",
    "transformer.transformer_blocks": "a LoRA for Stable Diffusion 3 or Flux",
    "lora_unet_input_blocks": "a LoRA with the names of Stable Diffusion XL trainers",
}
_FAMILY_OF_WIDTH = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
_EXPECTED = "a LoRA of plain linear and convolution layers for this base was expected"


@dataclass
class _Layer:
    """What a file holds for one weight."""

    tensors: dict[str, str] = field(default_factory=dict)  # _DOWN, _UP, _ALPHA to the tensor's name in the file
    target: nn.Module | None = None  # the layer whose weight it changes


@dataclass(frozen=True)
class _Lora:
    """One file, every layer of which has its target."""

    path: Path
    scale: float
    layers: tuple[_Layer, ...]
    alphas: Mapping[str, Any]  # settings that diffusers stores beside the tensors; empty in other files


def fuse_loras(base: BaseModel, loras: Sequence[tuple[Path, float]]) -> tuple[str, ...]:
    """Add LoRA files, each times its scale, to the weights of the base's UNet and text encoder, in place.

    Returns the files' names as `name:scale sha256:...`, for the manifest. Raises ModelError, before any weight has
    changed, for a file that is no LoRA, is of another kind, does not fit this base, or is in the weights of a bundle
    that serves as the base already; UsageError for a scale that is no number.
    """
    found = [_match(base, path, scale) for path, scale in loras]
    names = tuple(f"{lora.path.name}:{lora.scale:g} sha256:{sha256_file(lora.path)}" for lora in found)
    _check_new(names, base.folder)
    for lora in found:
        _add(lora)
    return names


def fused_hash(base_hash: str, names: Sequence[str]) -> str:
    """The hash that names a base with LoRAs fused into it, from the base's own and what `fuse_loras` returned.

    Files' names do not count, their order does not, their contents and scales do. Without LoRAs, the base's own.
    """
    if not names:
        return base_hash
    parts = sorted(f"{_content(name)}:{name.rpartition(' ')[0].rpartition(':')[2]}" for name in names)
    return hashlib.sha256("\n".join([base_hash, *parts]).encode()).hexdigest()


def _check_new(names: Sequence[str], folder: Path) -> None:
    """Raise ModelError for a file that the base in `folder`, a bundle, was exported with."""
    if not names or not (folder / MANIFEST).is_file():
        return
    try:
        earlier = {_content(name) for name in open_bundle(folder, verify=False).manifest.loras}
    except BundleError:
        return  # a base like any other
    if again := [name.rpartition(" ")[0] for name in names if _content(name) in earlier]:
        raise ModelError(
            f"{', '.join(again)} is in the weights of {folder} already. Leave it out, or give the base without it."
        )


def _content(name: str) -> str:
    """The hash in a LoRA's name."""
    return name.rpartition(" ")[2]


def _match(base: BaseModel, path: Path, scale: float) -> _Lora:
    """Read a file's header and find the layer that each of its tensors belongs to."""
    if not math.isfinite(scale):
        raise UsageError(f"{path}: the scale is {scale}; a number such as 0.8 was expected.")
    if not path.is_file():
        raise ModelError(f"{path} is no file; a LoRA as a .safetensors file was expected.")
    if path.suffix in PICKLES:
        raise ModelError(pickle_message(path))
    header = read_header(path)
    for mark, what in _OTHER_KINDS.items():
        if any(mark in name for name in header.tensors):
            raise ModelError(f"{path} is {what}; {_EXPECTED}.")
    layers = _layers(header, path)
    _check_family(layers, header, path, base)
    targets = _targets(base)
    unknown = sorted(name for name in layers if name not in targets)
    if unknown:
        raise ModelError(f'{path} changes layers that {base.folder} does not have, "{unknown[0]}" first; {_EXPECTED}.')
    for name, layer in layers.items():
        layer.target = targets[name]
        _check_shapes(name, layer, header, path, base)
    return _Lora(path, scale, tuple(layers.values()), _stored_settings(header, path))


def _layers(header: Header, path: Path) -> dict[str, _Layer]:
    """A file's tensors, gathered by the layer that they name."""
    layers: dict[str, _Layer] = {}
    for name in header.tensors:
        for ending, kind in _ENDINGS:
            if name.endswith(ending):
                layers.setdefault(_spelled(name.removesuffix(ending)), _Layer()).tensors[kind] = name
                break
        else:
            raise ModelError(f'{path} holds "{name}", which is no part of a LoRA; {_EXPECTED}.')
    for name, layer in layers.items():
        if not {_DOWN, _UP} <= layer.tensors.keys():
            raise ModelError(f'{path} has only one half of the change to "{name}". Download it again.')
    if not layers:
        raise ModelError(f"{path} holds no tensors; {_EXPECTED}.")
    return layers


def _spelled(name: str) -> str:
    """A layer's name in a file, spelled as `_targets` spells it."""
    if name.startswith(("lora_unet_", "lora_te_", "lora_te1_")):
        return name.replace("lora_te1_", "lora_te_", 1)
    name = re.sub(r"\.(?:processor\.)?to_(q|k|v)$", r".to_\1", name)
    name = re.sub(r"\.(?:processor\.)?to_out(?:\.0)?$", ".to_out.0", name)
    if name.startswith("text_encoder."):
        name = re.sub(r"\.to_(q|k|v)$", r".\1_proj", name)
        name = name.replace(".to_out.0", ".out_proj").replace("text_encoder.text_model.", "text_encoder.", 1)
    elif not name.startswith("unet."):  # files with the UNet alone may leave its name out
        name = f"unet.{name}"
    return name


def _targets(base: BaseModel) -> dict[str, nn.Module]:
    """Every linear and convolution layer of the UNet and the text encoder, under kohya's name and diffusers' own."""
    found: dict[str, nn.Module] = {}
    for network, prefix, flat in ((base.unet, "unet.", "lora_unet_"), (base.text_encoder, "text_encoder.", "lora_te_")):
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                plain = name.removeprefix("text_model.")
                found[prefix + plain] = module
                found[flat + ("text_model_" if network is base.text_encoder else "") + plain.replace(".", "_")] = module
    return found


def _check_family(layers: Mapping[str, _Layer], header: Header, path: Path, base: BaseModel) -> None:
    """Raise ModelError for a file made for another text width: the plainest sign of another family."""
    own = int(base.unet.config.cross_attention_dim)
    for name, layer in layers.items():
        width = header.tensors[layer.tensors[_DOWN]].shape[-1:]
        if re.search(r"attn2[._]to_[kv]$", name) and width != (own,) and width[0] in _FAMILY_OF_WIDTH:
            raise ModelError(
                f"{path} is a LoRA for {_FAMILY_OF_WIDTH[width[0]]} (its text is {width[0]} wide, that of "
                f"{base.folder} {own}). Give a LoRA made for this base."
            )


def _check_shapes(name: str, layer: _Layer, header: Header, path: Path, base: BaseModel) -> None:
    """Raise ModelError unless up times down has the shape of the layer's weight."""
    down, up = (header.tensors[layer.tensors[kind]].shape for kind in (_DOWN, _UP))
    weight = _weight(layer).shape
    rank = down[0] if down else 0
    fits = (
        rank > 0
        and up[:2] == (weight[0], rank)
        and math.prod(up[2:]) == 1
        and math.prod(down[1:]) == math.prod(weight[1:])
    )
    if fits:
        return
    shapes = " and ".join("x".join(map(str, shape)) for shape in (down, up))
    raise ModelError(
        f'{path} does not fit {base.folder}: its change to "{name}" is {shapes}, the weight there is '
        f"{'x'.join(map(str, weight))}. Give a LoRA made for this base."
    )


def _stored_settings(header: Header, path: Path) -> Mapping[str, Any]:
    """What diffusers' `save_lora_weights` noted of alphas and ranks; ModelError for another scaling rule."""
    try:
        settings = json.loads(header.metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as cause:
        raise ModelError(f"{path}: its lora_adapter_metadata is not readable as JSON: {cause}.") from cause
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: its lora_adapter_metadata is no JSON object.")
    for key, value in settings.items():
        if key.endswith((".use_rslora", ".use_dora")) and value:
            raise ModelError(f"{path} is scaled by another rule ({key}); {_EXPECTED}.")
    return settings


def _add(lora: _Lora) -> None:
    """Add one file's changes to the weights."""
    from safetensors import safe_open

    with safe_open(lora.path, "pt") as file, torch.no_grad():
        for layer in lora.layers:
            weight = _weight(layer)
            down, up = (file.get_tensor(layer.tensors[kind]).to(weight.device, torch.float32) for kind in (_DOWN, _UP))
            rank = down.shape[0]
            alpha = float(file.get_tensor(layer.tensors[_ALPHA])) if _ALPHA in layer.tensors else None
            if alpha is None:
                alpha = _noted_alpha(lora.alphas, layer.tensors[_DOWN], rank)
            change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            weight += (lora.scale * alpha / rank * change).to(weight.dtype)


def _noted_alpha(settings: Mapping[str, Any], name: str, rank: int) -> float:
    """A layer's alpha by the settings beside the tensors; without any, the rank: such files hold the change as is."""
    part, _, layer = name.partition(".")
    patterns = settings.get(f"{part}.alpha_pattern") or {}
    for pattern, alpha in patterns.items():  # as peft matches them: a whole name, or the end of one
        if re.match(rf"(.*\.)?({pattern})$", layer.partition(".lora_")[0]):
            return float(alpha)
    return float(settings.get(f"{part}.lora_alpha", rank))


def _weight(layer: _Layer) -> Tensor:
    weight = getattr(layer.target, "weight", None)
    assert isinstance(weight, Tensor)
    return weight
