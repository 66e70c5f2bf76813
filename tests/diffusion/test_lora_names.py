"""LoRA files: the weights that come out in every spelling of the names, and whose files are refused by their names."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ldm import original_unet_names
from lora_files import (
    ORIGINAL,
    Changes,
    Tensors,
    assert_weights,
    comfy,
    diffusers_new,
    diffusers_old,
    expected_weights,
    kohya,
    kohya_original,
    layers,
    peft,
    peft_saved,
    some_changes,
)
from refusals import refused
from safetensors.torch import save_file

from engines.diffusion.base_model import BaseModel, load_base
from engines.diffusion.lora import fuse_loras
from engines.errors import ModelError


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("spelling", [kohya, kohya_original, comfy, peft, peft_saved, diffusers_new, diffusers_old])
def test_fused_weights_are_the_sum_in_every_spelling(
    spelling: Callable[[Changes], Tensors], kind: str, toy_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = load_base(toy_bases[kind])
    ORIGINAL.update(original_unet_names(base.unet))
    changes = some_changes(base, attention_only=spelling is diffusers_old)
    expected = expected_weights(base, changes, 0.7)
    others = {name: value.clone() for name, value in base.vae.state_dict().items()}
    save_file(spelling(changes), tmp_path / "style.safetensors")
    (name,) = fuse_loras(base, [(tmp_path / "style.safetensors", 0.7)])
    assert_weights(base, expected)
    assert all(torch.equal(base.vae.state_dict()[key], value) for key, value in others.items())
    assert re.fullmatch(r"style\.safetensors:0\.7 sha256:[0-9a-f]{64}", name)


def test_alphas_that_diffusers_notes_beside_the_tensors_count(sd1: BaseModel, tmp_path: Path) -> None:
    changes = some_changes(sd1)
    stored = {
        f"{part}.{name}.{half}.weight": value
        for (part, name), (down, up, _) in changes.items()
        for half, value in (("lora_A", down), ("lora_B", up))
    }
    special = next(name for part, name in changes if part == "unet")
    notes = {"unet.lora_alpha": 6, "unet.alpha_pattern": {special: 1.5}, "text_encoder.lora_alpha": 3}
    save_file(stored, tmp_path / "noted.safetensors", metadata={"lora_adapter_metadata": json.dumps(notes)})
    alphas = {"unet": 6.0, "text_encoder": 3.0}
    meant = {key: (down, up, alphas[key[0]]) for key, (down, up, _) in changes.items()}
    meant["unet", special] = (*changes["unet", special][:2], 1.5)
    expected = expected_weights(sd1, meant, 1.0)
    fuse_loras(sd1, [(tmp_path / "noted.safetensors", 1.0)])
    assert_weights(sd1, expected)


def test_alphas_that_peft_keeps_in_a_file_beside_count(sd1: BaseModel, tmp_path: Path) -> None:
    changes = some_changes(sd1)
    stored = {
        f"base_model.model.{'text_model.' if part == 'text_encoder' else ''}{name}.{half}.weight": value
        for (part, name), (down, up, _) in changes.items()
        for half, value in (("lora_A", down), ("lora_B", up))
    }
    save_file(stored, tmp_path / "adapter_model.safetensors")
    settings = {"lora_alpha": 6, "alpha_pattern": {r"^down_blocks\.0.*": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with refused(ModelError, None, "alpha_pattern"):
        fuse_loras(sd1, [(tmp_path / "adapter_model.safetensors", 1.0)])
    special = next(name for part, name in changes if part == "unet")
    settings["alpha_pattern"] = {f"^{special}": 1.5}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    meant = {key: (down, up, 6.0) for key, (down, up, _) in changes.items()}
    meant["unet", special] = (*changes["unet", special][:2], 1.5)
    expected = expected_weights(sd1, meant, 1.0)
    fuse_loras(sd1, [(tmp_path / "adapter_model.safetensors", 1.0)])
    assert_weights(sd1, expected)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"use_rslora": True}))
    with refused(ModelError, None, "use_rslora"):
        fuse_loras(sd1, [(tmp_path / "adapter_model.safetensors", 1.0)])


@pytest.mark.parametrize("adapter", ["my-style", "v1.5", "default_0"])
def test_peft_may_name_the_adapter_as_it_likes(adapter: str, sd1: BaseModel, tmp_path: Path) -> None:
    changes = some_changes(sd1)
    expected = expected_weights(sd1, changes, 1.0)
    named = {name.replace(".weight", f".{adapter}.weight"): value for name, value in peft(changes).items()}
    save_file(named, tmp_path / "named.safetensors")
    fuse_loras(sd1, [(tmp_path / "named.safetensors", 1.0)])
    assert_weights(sd1, expected)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"r": 64, "lora_alpha": 128}, "64"),
        ({"r": 2, "lora_alpha": 2, "alpha_pattern": [1]}, "alpha_pattern"),
    ],
)
def test_settings_of_another_file_are_refused(
    settings: dict[str, object], named: str, sd1: BaseModel, tmp_path: Path
) -> None:
    path = tmp_path / "adapter_model.safetensors"
    changes = {key: value for key, value in some_changes(sd1).items() if len(value[0]) == 2}
    save_file(peft_saved(changes), path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2}))
    fuse_loras(sd1, [(path, 1.0)])
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with refused(ModelError, None, path, named):
        fuse_loras(sd1, [(path, 1.0)])


def test_a_matrix_fits_a_layer_that_the_base_writes_as_a_convolution(sd1: BaseModel, tmp_path: Path) -> None:
    name = next(name for part, name, _ in layers(sd1) if part == "unet" and name.endswith("proj_in"))
    weight = sd1.unet.get_submodule(name).weight
    assert weight.ndim == 4
    down, up = torch.ones(1, weight.shape[1]), torch.ones(weight.shape[0], 1)
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, tmp_path / "a.safetensors")
    before = weight.clone()
    fuse_loras(sd1, [(tmp_path / "a.safetensors", 0.5)])
    assert torch.allclose(weight, before + 0.5)


def wide(width: int, name: str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k") -> Tensors:
    return {f"{name}.lora_down.weight": torch.zeros(2, width), f"{name}.lora_up.weight": torch.zeros(32, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"lora_te2_x.lora_down.weight": torch.zeros(1)}, "is a LoRA for Stable Diffusion XL"),
        ({"transformer.transformer_blocks.0.lora_A.weight": torch.zeros(1)}, "Stable Diffusion 3 or Flux"),
        ({"lora_unet_double_blocks_0.lora_down.weight": torch.zeros(1)}, "a LoRA for Flux"),
        ({"lora_unet_mid_block.hada_w1_a": torch.zeros(1)}, "is a LoHa file"),
        ({"lora_unet_mid_block.lokr_w1": torch.zeros(1)}, "is a LoKr file"),
        ({"lora_unet_mid_block.dora_scale": torch.zeros(1)}, "is a DoRA file"),
        ({"model.diffusion_model.out.0.weight": torch.zeros(1)}, "which is no part of a LoRA"),
        ({"diffusion_model.out.2.diff": torch.zeros(1)}, "a file of whole differences"),
        ({"unet.conv_in.lora_A.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}, "holds F8_E4M3 weights"),
        (wide(2048, "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k"), "is a LoRA for Stable Diffusion XL"),
        ({"lora_unet_nothing.lora_down.weight": torch.zeros(1)}, "only one half of the change"),
        (wide(2048), r"is a LoRA for Stable Diffusion XL \(its text is 2048 wide, that of .* 32\)"),
        (wide(1024), "is a LoRA for Stable Diffusion 2.x"),
        (wide(40), r"does not fit .* is 2x40 and 32x2, the weight there is 32x32"),
        ({"unet.none.lora_A.weight": torch.zeros(1), "unet.none.lora_B.weight": torch.zeros(1)}, '"unet.none" first'),
    ],
)
def test_files_of_other_kinds_and_families_are_refused(
    tensors: Tensors, said: str, sd1: BaseModel, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=said) as caught:
        fuse_loras(sd1, [(tmp_path / "other.safetensors", 1.0)])
    assert "\n" not in str(caught.value)
