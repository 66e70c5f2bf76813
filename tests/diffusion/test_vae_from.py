"""A VAE from elsewhere: what is no VAE of the family is refused by name, about `vae`, and nothing of it is left out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ldm import Tensors, changed
from refusals import refused
from safetensors.torch import load_file, save_file

from engines.diffusion.base_model import load_base
from engines.diffusion.checkpoints import checkpoint_folder
from engines.errors import ModelError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(toy_bases: dict[str, Path], tmp_path: Path) -> Path:
    """A VAE's folder, to change."""
    return Path(shutil.copytree(toy_bases["sd1"] / "vae", tmp_path / "my vae"))


@pytest.fixture
def take(files: dict[str, Path], configs: Path) -> Callable[..., Path]:
    """Converts the sd1 file with a VAE in place of its own."""
    return lambda vae, **how: checkpoint_folder(files["sd1"], configs=configs, vae=vae, **how)


def change(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def shard(folder: Path, base: Path) -> list[Path]:
    load_base(base).vae.save_pretrained(folder, max_shard_size="20KB")
    (folder / WEIGHTS).unlink()
    return sorted(folder.glob("*-of-*.safetensors"))


def test_weights_that_the_configuration_does_not_describe_are_not_left_out(
    folder: Path, take: Callable[..., Path]
) -> None:
    change(folder, mid_block_add_attention=False)
    with refused(ModelError, "vae", folder, "mid_block.attentions.0"):
        take(folder)
    change(folder, mid_block_add_attention=True)
    save_file({**load_file(folder / WEIGHTS), "decoder.refiner.weight": torch.ones(3)}, folder / WEIGHTS)
    with refused(ModelError, "vae", folder, "decoder.refiner.weight"):
        take(folder)


def test_shards_are_read_and_a_missing_or_a_cut_one_is_named(
    folder: Path, toy_bases: dict[str, Path], take: Callable[..., Path]
) -> None:
    shards = shard(folder, toy_bases["sd1"])
    found = load_base(take(folder)).vae.state_dict()
    expected = load_base(toy_bases["sd1"]).vae.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-3])
    with refused(ModelError, "vae", shards[1]):
        take(folder)
    shards[1].unlink()
    with refused(ModelError, "vae", folder, shards[1].name):
        take(folder)


def no_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_number(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["decoder.conv_in.bias"][0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def two_variants(folder: Path) -> None:
    for variant in ("bf16", "ema"):
        shutil.copyfile(folder / WEIGHTS, folder / f"diffusion_pytorch_model.{variant}.safetensors")
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (no_configuration, "config.json"),
        (two_variants, "bf16"),
        (lambda folder: change(folder, latent_channels=16), "latent_channels"),
        (lambda folder: change(folder, scaling_factor=0.13025), "scaling_factor"),
        (lambda folder: change(folder, shift_factor=0.1159), "shift_factor"),
        (lambda folder: change(folder, _class_name="AutoencoderTiny"), "AutoencoderTiny"),
        (lambda folder: change(folder, quantization_config={"quant_method": "x"}), "quantization_config"),
        (lambda folder: (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1"), "git lfs"),
    ],
)
def test_what_is_wrong_with_a_folder_is_about_the_vae_and_names_it(
    spoil: Callable[[Path], object], named: str, folder: Path, take: Callable[..., Path]
) -> None:
    spoil(folder)
    with refused(ModelError, "vae", folder, named):
        take(folder)


def test_a_broken_number_is_named_before_anything_is_kept(folder: Path, take: Callable[..., Path]) -> None:
    no_number(folder)
    with refused(ModelError, "vae", folder / WEIGHTS, "decoder.conv_in.bias"):
        take(folder)


def test_a_base_whose_vae_has_no_configuration_is_not_looked_for_elsewhere(
    toy_bases: dict[str, Path], tmp_path: Path, take: Callable[..., Path]
) -> None:
    base = Path(shutil.copytree(toy_bases["sd1"], tmp_path / "base"))
    (base / "vae" / "config.json").unlink()
    with refused(ModelError, "vae", base / "vae", "config.json"):
        take(base)


def test_pickles_of_a_vae_alone_come_with_the_command_for_a_vae(folder: Path, take: Callable[..., Path]) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with refused(ModelError, "vae", "AutoencoderKL.from_pretrained", f"{folder} new-folder"):
        take(folder)


def of_xl(tensors: Tensors) -> Tensors:
    return {**tensors, "conditioner.embedders.1.model.ln_final.weight": torch.ones(3)}


def of_a_refiner(tensors: Tensors) -> Tensors:
    return {**tensors, "model.diffusion_model.label_emb.0.0.weight": torch.ones(3)}


def with_wide_latents(tensors: Tensors) -> Tensors:
    name = "first_stage_model.encoder.conv_out.weight"
    return {**tensors, name: torch.ones(32, *tensors[name].shape[1:])}


def a_lora(tensors: Tensors) -> Tensors:
    return {"lora_unet_mid_block.lora_down.weight": torch.ones(2, 2)}


def a_tiny_one(tensors: Tensors) -> Tensors:
    return {"1.conv.0.weight": torch.ones(4, 4, 3, 3)}


def without_an_encoder(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if ".encoder." not in name}


def averaged(tensors: Tensors) -> Tensors:
    prefix = "first_stage_model."
    copies = {name: f"{prefix}model_ema.{name.removeprefix(prefix).replace('.', '')}" for name in tensors}
    return {copies[name] if ".decoder." in name else name: value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (of_xl, "Stable Diffusion XL"),
        (of_a_refiner, "Stable Diffusion XL"),
        (with_wide_latents, "16"),
        (a_lora, "a LoRA"),
        (a_tiny_one, "1.conv.0.weight"),
        (without_an_encoder, "no encoder"),
        (averaged, "EMA"),
    ],
)
def test_files_with_another_vae_or_none_are_refused_by_what_they_are(
    made: Callable[[Tensors], Tensors],
    named: str,
    files: dict[str, Path],
    tmp_path: Path,
    take: Callable[..., Path],
) -> None:
    path = tmp_path / "other.safetensors"
    save_file(made(load_file(files["sd1"])), path)
    with refused(ModelError, "vae", path, named):
        take(path)


def test_a_vae_that_by_its_name_is_of_xl_is_remarked_on(
    toy_bases: dict[str, Path], tmp_path: Path, take: Callable[..., Path]
) -> None:
    said: dict[str, list[str]] = {"sdxl_vae": [], "ft-mse": []}
    for name, notes in said.items():
        path = shutil.copyfile(toy_bases["sd1"] / "vae" / WEIGHTS, tmp_path / f"{name}.safetensors")
        take(Path(path), note=notes.append)
    assert ["XL" in " ".join(notes) for notes in said.values()] == [True, False]


def test_a_file_with_the_vaes_own_averages_alone_says_so(files: dict[str, Path], configs: Path, tmp_path: Path) -> None:
    path = changed(files["sd1"], tmp_path / "own.safetensors", {})
    save_file(averaged(load_file(path)), path)
    with refused(ModelError, None, path, "EMA"):
        checkpoint_folder(path, configs=configs)
