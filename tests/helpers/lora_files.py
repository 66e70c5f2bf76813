"""LoRA files of random changes to a base model, in every spelling of the names, and the weights that they come to."""

import re
from collections.abc import Iterator

import torch
from torch import nn

from engines.diffusion.base_model import BaseModel

Tensors = dict[str, torch.Tensor]
Changes = dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor, float]]  # (part, layer) to down, up, alpha

IN_LORAS = re.compile(r"attn|ff\.net|proj_|conv1|conv_shortcut|_proj|fc\d")


def layers(base: BaseModel) -> Iterator[tuple[str, str, nn.Module]]:
    for part in ("unet", "text_encoder"):
        for name, module in getattr(base, part).named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and IN_LORAS.search(name):
                yield part, name.removeprefix("text_model."), module


def weight_of(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def some_changes(base: BaseModel, attention_only: bool = False) -> Changes:
    """Random changes to many layers, their ranks and alphas differing from layer to layer."""
    generator = torch.Generator().manual_seed(5)
    found: Changes = {}
    for part, name, module in layers(base):
        if attention_only and not re.search(r"attn\d\.to_|self_attn", name):
            continue
        rank, weight = 2 + len(found) % 3, weight_of(module)
        down = torch.randn((rank, *weight.shape[1:]), generator=generator)
        up = torch.randn((weight.shape[0], rank, *(1 for _ in weight.shape[2:])), generator=generator)
        found[part, name] = (down, up, 0.5 + len(found) % 4)
    return found


def kohya(changes: Changes) -> Tensors:
    found: Tensors = {}
    for (part, name), (down, up, alpha) in changes.items():
        flat = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part] + name.replace(".", "_")
        found |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(alpha)}
    return found


def plain(changes: Changes, down_name: str, up_name: str) -> Tensors:
    """diffusers' and peft's names; alpha is in the tensors already, as these files have it."""
    found: Tensors = {}
    for (part, name), (down, up, alpha) in changes.items():
        full = f"{part}.{'text_model.' if part == 'text_encoder' else ''}{name}"
        found |= {full + down_name: down, full + up_name: up * (alpha / len(down))}
    return found


def peft(changes: Changes) -> Tensors:
    return plain(changes, ".lora_A.weight", ".lora_B.weight")


def peft_saved(changes: Changes) -> Tensors:
    """As `PeftModel.save_pretrained` names them, and as a state dict that still has the adapter's name."""
    found = {}
    for number, (name, value) in enumerate(peft(changes).items()):
        name = "base_model.model." + name.removeprefix("unet.")
        found[name.replace(".weight", ".default.weight") if number // 2 % 2 else name] = value
    return found


def original(name: str) -> str:
    """A layer of either toy UNet as the original layout calls it."""
    return ORIGINAL[f"{name}.weight"].removesuffix(".weight")


ORIGINAL: dict[str, str] = {}  # of the base in hand, by weight


def comfy(changes: Changes) -> Tensors:
    """ComfyUI's: dotted, the UNet in the original layout."""
    found: Tensors = {}
    for (part, name), (down, up, alpha) in changes.items():
        full = f"text_encoders.clip_l.transformer.text_model.{name}"
        if part == "unet":
            full = f"diffusion_model.{original(name)}"
        found |= {f"{full}.lora_down.weight": down, f"{full}.lora_up.weight": up, f"{full}.alpha": torch.tensor(alpha)}
    return found


def kohya_original(changes: Changes) -> Tensors:
    """kohya's, with the UNet's layers in the original layout."""
    found: Tensors = {}
    for (part, name), (down, up, alpha) in changes.items():
        flat = "lora_te1_text_model_" + name.replace(".", "_")
        if part == "unet":
            flat = "lora_unet_" + original(name).replace(".", "_")
        found |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(alpha)}
    return found


def diffusers_new(changes: Changes) -> Tensors:
    found = plain(changes, ".lora.down.weight", ".lora.up.weight")
    text = re.compile(r"^(text_encoder\..*)\.lora\.")
    return {text.sub(r"\1.lora_linear_layer.", name): value for name, value in found.items()}


def diffusers_old(changes: Changes) -> Tensors:
    found: Tensors = {}
    for name, value in plain(changes, "_lora.down.weight", "_lora.up.weight").items():
        name = re.sub(r"(attn\d)\.to_", r"\1.processor.to_", name).replace("to_out.0_", "to_out_")
        name = re.sub(r"self_attn\.([qkv])_proj", r"self_attn.to_\1", name).replace(
            "self_attn.out_proj", "self_attn.to_out"
        )
        found[name] = value
    return found


def expected_weights(base: BaseModel, changes: Changes, scale: float) -> dict[tuple[str, str], torch.Tensor]:
    """W + scale * alpha / rank * up down, in float64, of every layer."""
    found = {}
    for part, name, module in layers(base):
        weight = weight_of(module)
        found[part, name] = weight.double()
        if (part, name) in changes:
            down, up, alpha = changes[part, name]
            product = torch.tensordot(up.double().flatten(1), down.double(), dims=1)
            found[part, name] = weight.double() + scale * alpha / len(down) * product
    return found


def assert_weights(base: BaseModel, expected: dict[tuple[str, str], torch.Tensor]) -> None:
    for part, name, module in layers(base):
        weight = weight_of(module)
        error = (weight.double() - expected[part, name]).norm() / expected[part, name].norm()
        assert error < 1e-6, (part, name, float(error))
