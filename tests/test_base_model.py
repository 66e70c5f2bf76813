"""Base models: what loads, what is refused and how it says so, and the hash that names the weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from engines.diffusion.base_model import alphas_cumprod, base_hash, load_base
from engines.errors import ModelError


@pytest.fixture
def folder(toy_bases: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_bases["sd1"], tmp_path / "base"))


def test_both_stable_diffusion_shapes_load_and_know_their_numbers(toy_bases: dict[str, Path]) -> None:
    first, second = load_base(toy_bases["sd1"]), load_base(toy_bases["sd2"])
    assert (first.prediction_type, second.prediction_type) == ("epsilon", "v_prediction")
    assert (first.vae_stride, first.latent_multiple, first.size_multiple) == (8, 2, 16)
    assert (second.vae_stride, second.latent_multiple, second.size_multiple) == (4, 4, 16)
    assert first.encode_prompts(["a photo", ""]).shape == (2, first.text_length, 32)
    assert not any(parameter.requires_grad for parameter in first.unet.parameters())


def test_encoding_takes_the_mode_and_decoding_undoes_the_scaling(toy_bases: dict[str, Path]) -> None:
    base = load_base(toy_bases["sd1"])
    pixels = torch.zeros(1, 3, 32, 32)
    latents = base.encode_images(pixels)
    assert torch.equal(latents, base.encode_images(pixels))
    expected = base.vae.decode(latents / base.scaling_factor).sample
    assert torch.equal(base.decode_latents(latents), expected)


def test_weights_that_can_run_code_are_refused(folder: Path) -> None:
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"unet holds no \.safetensors"):
        load_base(folder)


def test_a_missing_part_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelError, match="has no vae/"):
        load_base(folder)


def test_a_file_and_a_wrong_path_say_what_was_expected(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        load_base(folder / "model_index.json")
    with pytest.raises(ModelError, match="does not exist"):
        load_base("./no/such/folder")


def test_an_unknown_prediction_type_is_refused(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "sample"}))
    with pytest.raises(ModelError, match='"sample"'):
        load_base(folder)


def test_a_damaged_weight_file_is_a_model_error(folder: Path) -> None:
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="does not load"):
        load_base(folder)


def test_the_hash_follows_the_weights_and_nothing_else(folder: Path, toy_bases: dict[str, Path]) -> None:
    assert base_hash(folder) == base_hash(toy_bases["sd1"])
    (folder / "notes.json").write_text("{}")
    assert base_hash(folder) == base_hash(toy_bases["sd1"])
    weights = next((folder / "vae").glob("*.safetensors"))
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    assert base_hash(folder) != base_hash(toy_bases["sd1"])


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_alphas_are_those_of_diffusers(schedule: str) -> None:
    from diffusers import DDIMScheduler

    config = {"beta_schedule": schedule, "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    expected = DDIMScheduler(**config).alphas_cumprod
    assert torch.allclose(alphas_cumprod(config), expected.double(), rtol=1e-6)
    with pytest.raises(ModelError, match="cosine"):
        alphas_cumprod({**config, "beta_schedule": "cosine"})
