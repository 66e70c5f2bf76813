"""LoRA files: low-rank changes to a base model's weights, added to them before anything else is done.

Knows: the sum W + scale * alpha / rank * up down. All files are read, matched and found finite before a weight is
changed. Does not know what a LoRA was trained for, or how its tensors are called (`lora_names`).

The sum is done here and not by diffusers' `load_lora_weights`, which gave other weights for kohya files whose layers
differ in alpha or rank (diffusers 0.42.1 with peft 0.21.2: off by up to twice the weights' norm), and would ask for
two packages more. Where it is right (its own and peft's names, or one rank and alpha), both give the same to the bit.

Source: LoRA, Hu et al. 2021 (arXiv 2106.09685, section 4.1). Names: kohya-ss/sd-scripts, networks/lora.py; diffusers,
loaders/lora_conversion_utils.py.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.common.files import sha256_file
from engines.common.quote import quote
from engines.common.weight_file import Header, by_sides, check_finite, check_no_quantisation, read_header
from engines.diffusion.base_model import BaseModel
from engines.diffusion.families import few_steps
from engines.diffusion.lora_names import (
    ALPHA,
    DOWN,
    EXPECTED,
    UP,
    layer_names,
    noted_alpha,
    noted_settings,
    tensor_kind,
)
from engines.diffusion.origin import content_of, fused_in
from engines.diffusion.weights import PICKLES, pickle_message
from engines.errors import ModelError, UsageError

_FAMILY_OF_WIDTH = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


@dataclass
class _Layer:
    """What a file holds for one weight."""

    tensors: dict[str, str] = field(default_factory=dict)  # DOWN, UP, ALPHA to the tensor's name in the file
    alpha: float = 1.0  # the change is alpha / rank times up down
    target: nn.Module | None = None  # the layer whose weight it changes


@dataclass(frozen=True)
class _Lora:
    """One file, every layer of which has its target."""

    path: Path
    scale: float
    layers: tuple[_Layer, ...]


def fuse_loras(
    base: BaseModel, loras: Sequence[tuple[Path, float]], note: Callable[[str], None] = lambda text: None
) -> tuple[str, ...]:
    """Add LoRA files, each times its scale, to the weights of the base's UNet and text encoder, in place.

    `note` is told what the user may not expect of a file: one for a few steps, or for a base that predicts something
    else. Returns the files' names as `name:scale sha256:...`, for the manifest. Raises ModelError, before any weight
    has changed, for a file that is no LoRA, is of another kind, changes nothing, does not fit this base, or is in the
    weights of a bundle that serves as the base already, and for sums that are no numbers; UsageError for a scale that
    is none.
    """
    found = [_match(base, path, scale, note) for path, scale in loras]
    names = tuple(f"{lora.path.name}:{lora.scale:g} sha256:{sha256_file(lora.path)}" for lora in found)
    _check_new(names, base.folder)
    for lora in found:
        _add(lora)
    return names


def _check_new(names: Sequence[str], folder: Path) -> None:
    """Raise ModelError for a file that is in the weights of the base in `folder` already."""
    earlier = {content_of(name) for name in fused_in(folder)} if names else set()
    if again := [name.rpartition(" ")[0] for name in names if content_of(name) in earlier]:
        raise ModelError(
            f"{', '.join(again)} is in the weights of {folder} already. Leave it out, or give the base without it."
        )


def _match(base: BaseModel, path: Path, scale: float, note: Callable[[str], None]) -> _Lora:
    """Read a file's header and find the layer that each of its tensors belongs to."""
    if not math.isfinite(scale):
        raise UsageError(f"{path}: the scale is {scale}; a number such as 0.8 was expected.")
    if not path.is_file():
        raise ModelError(f"{path} is no file; a LoRA as a .safetensors file was expected.")
    if path.suffix in PICKLES:
        raise ModelError(pickle_message(path))
    header = read_header(path)
    check_no_quantisation(path, header.tensors)
    layers = _layers(header, path)
    _check_family(layers, header, path, base)
    targets = layer_names(base)
    unknown = sorted(name for name in layers if name not in targets)
    if unknown:
        raise ModelError(
            f"{path} changes layers that {base.folder} does not have, {quote(unknown[0])} first; {EXPECTED}."
        )
    for name, layer in layers.items():
        layer.target = targets[name]
        _check_shapes(name, layer, header, path, base)
    if len({id(layer.target) for layer in layers.values()}) < len(layers):
        raise ModelError(f"{path} changes one layer twice, under two names; {EXPECTED}.")
    _read_alphas(layers, header, path)
    for remark in _remarks(header, path, base):
        note(f"{path.name} {remark}")
    return _Lora(path, scale, tuple(layers.values()))


def _remarks(header: Header, path: Path, base: BaseModel) -> Iterator[str]:
    """What is to be said of a file that fits: by its name, its folder's, and its notes."""
    if few_steps(path.stem, path.resolve().parent.name, header.metadata.get("modelspec.title", "")):
        yield "looks like a LoRA that makes a model paint in a few steps; dengine samples as without it"
    noted = {"v": "v_prediction", "epsilon": "epsilon"}.get(header.metadata.get("modelspec.prediction_type", ""))
    own = base.scheduler_config.get("prediction_type", "epsilon")
    if noted not in (None, own):
        yield f"says of itself that it is for a base that predicts {noted}, and this one predicts {own}"


def _layers(header: Header, path: Path) -> dict[str, _Layer]:
    """A file's tensors, gathered by the layer that they name."""
    layers: dict[str, _Layer] = {}
    for name in header.tensors:
        kind, layer = tensor_kind(name, path)
        if layers.setdefault(layer, _Layer()).tensors.setdefault(kind, name) != name:
            raise ModelError(f"{path} holds the change to {quote(layer)} twice, by {quote(name)}, too.")
    for name, found in layers.items():
        if not {DOWN, UP} <= found.tensors.keys():
            raise ModelError(f"{path} has only one half of the change to {quote(name)}. Download it again.")
    if not layers:
        raise ModelError(f"{path} holds no tensors; {EXPECTED}.")
    return layers


def _check_family(layers: Mapping[str, _Layer], header: Header, path: Path, base: BaseModel) -> None:
    """Raise ModelError for a file made for another text width: the plainest sign of another family."""
    own = int(base.unet.config.cross_attention_dim)
    for name, layer in layers.items():
        width = header.tensors[layer.tensors[DOWN]].shape[-1:]
        if re.search(r"attn2[._]to_[kv]$", name) and width != (own,) and width[0] in _FAMILY_OF_WIDTH:
            raise ModelError(
                f"{path} is a LoRA for {_FAMILY_OF_WIDTH[width[0]]} (its text is {width[0]} wide, that of "
                f"{base.folder} {own}). Give a LoRA made for this base."
            )


def _check_shapes(name: str, layer: _Layer, header: Header, path: Path, base: BaseModel) -> None:
    """Raise ModelError unless up times down has the shape of the layer's weight."""
    down, up = (header.tensors[layer.tensors[kind]].shape for kind in (DOWN, UP))
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
    shapes = " and ".join(map(by_sides, (down, up)))
    raise ModelError(
        f"{path} does not fit {base.folder}: its change to {quote(name)} is {shapes}, the weight there is "
        f"{by_sides(weight)}. Give a LoRA made for this base."
    )


def _read_alphas(layers: Mapping[str, _Layer], header: Header, path: Path) -> None:
    """Find each layer's alpha; see that all numbers are finite, and that they change something. Raises ModelError."""
    from safetensors import safe_open

    settings, changes = noted_settings(header, path), False
    with safe_open(path, "pt") as file:
        for layer in layers.values():
            tensors = {name: file.get_tensor(name) for name in layer.tensors.values()}
            check_finite(path, tensors)
            name, rank = layer.tensors[DOWN], header.tensors[layer.tensors[DOWN]].shape[0]
            if ALPHA not in layer.tensors:
                layer.alpha = noted_alpha(settings, name, rank, path)
            elif (alpha := tensors[layer.tensors[ALPHA]]).numel() == 1:
                layer.alpha = float(alpha)
            else:
                raise ModelError(f"{path}: {quote(layer.tensors[ALPHA])} holds {alpha.numel()} numbers, and not one.")
            changes |= layer.alpha != 0 and all(bool(tensors[layer.tensors[half]].any()) for half in (DOWN, UP))
    if not changes:
        raise ModelError(
            f"{path} changes nothing: in every layer its numbers, or its alpha, are 0. Give a trained LoRA."
        )


def _add(lora: _Lora) -> None:
    """Add one file's changes to the weights."""
    from safetensors import safe_open

    with safe_open(lora.path, "pt") as file, torch.no_grad():
        for layer in lora.layers:
            weight = _weight(layer)
            down, up = (file.get_tensor(layer.tensors[kind]).to(weight.device, torch.float32) for kind in (DOWN, UP))
            change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            weight += (lora.scale * layer.alpha / down.shape[0] * change).to(weight.dtype)
            if not bool(weight.isfinite().all()):
                raise ModelError(
                    f"{lora.path} times {lora.scale:g} makes the layer of {quote(layer.tensors[UP])} larger than its "
                    "numbers can be. Give a smaller scale, or another copy of it."
                )


def _weight(layer: _Layer) -> Tensor:
    weight = getattr(layer.target, "weight", None)
    assert isinstance(weight, Tensor)
    return weight
