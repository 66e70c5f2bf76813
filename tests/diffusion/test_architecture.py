"""What configurations may say: everything else is refused by name before anything is built or read."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.adapter.pyramid import PyramidUNet, pyramid_channels
from engines.diffusion.architecture import empty_network
from engines.diffusion.base_model import BaseModel, check_layout, load_base, local_folder
from engines.errors import ModelError

HUGE = 10**12


@pytest.fixture
def folder(toy_bases: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_bases["sd1"], tmp_path / "base"))


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def weights_of(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def refused(folder: Path, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        load_base(folder)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("unet", {"block_out_channels": [HUGE, HUGE]}, '"block_out_channels" must be a whole number from 1 to 16384'),
        ("unet", {"layers_per_block": HUGE}, '"layers_per_block" must be a whole number from 1 to 16'),
        ("unet", {"layers_per_block": 16}, "describes more layers than the weights beside it have"),
        ("unet", {"transformer_layers_per_block": 10**6}, '"transformer_layers_per_block" must be'),
        ("unet", {"down_block_types": ["DownBlock2D"] * 5000}, '"down_block_types" must be'),
        ("unet", {"down_block_types": ["DownBlock2D"] * 3}, "all lists need as many as there are blocks"),
        ("unet", {"cross_attention_dim": "768"}, '"cross_attention_dim" must be a whole number .*, not "768"'),
        ("unet", {"norm_eps": float("nan")}, '"norm_eps" must be a number from 0 to 1, not nan'),
        ("unet", {"norm_num_groups": 7}, "describes no network"),
        ("unet", {"act_fn": "x" * 10_000}, '"act_fn" must be silu .*, not "xxx'),
        ("unet", {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, '"mid_block_type" must be'),
        ("unet", {"encoder_hid_dim": 5}, '"encoder_hid_dim" is 5; only None is supported'),
        ("unet", {"out_channels": 8}, "a network that predicts something else"),
        ("unet", {"attention_head_dim": 3}, "is not what config.json describes"),
        ("unet", {"quantization_config": {"quant_method": "bitsandbytes"}}, "the weights are quantised"),
        ("vae", {"layers_per_block": 10**5}, '"layers_per_block" must be'),
        ("vae", {"latent_channels": 2**40}, '"latent_channels" must be|input channels'),
        ("vae", {"shift_factor": 0.1}, '"shift_factor" must be'),
        ("vae", {"latents_mean": [0.1]}, '"latents_mean" is'),
        ("vae", {"scaling_factor": 0}, '"scaling_factor" must be'),
        ("text_encoder", {"vocab_size": HUGE}, '"vocab_size" must be'),
        ("text_encoder", {"num_hidden_layers": 60}, "describes more layers than"),
        ("text_encoder", {"num_attention_heads": 5}, '"hidden_size" .32. must be a multiple'),
        ("text_encoder", {"hidden_act": {"a": [1] * 1000}}, '"hidden_act" must be'),
        ("text_encoder", {"use_attention_mask": True}, '"use_attention_mask" is true, which is not supported'),
        ("text_encoder", {"hidden_size": 48, "intermediate_size": 96}, "is not what config.json describes"),
        ("text_encoder", {"max_position_embeddings": 64}, "is not what config.json describes"),
    ],
)
def test_a_configuration_is_refused_by_name_before_anything_is_built(
    part: str, changes: dict[str, Any], said: str, folder: Path
) -> None:
    change(folder / part / "config.json", **changes)
    refused(folder, said)


def test_settings_that_diffusers_does_not_know_either_are_passed_over(folder: Path) -> None:
    change(folder / "unet" / "config.json", my_own_note="x", only_cross_attention=None)
    load_base(folder)


def test_parts_of_different_models_are_told_by_their_widths(folder: Path, toy_bases: dict[str, Path]) -> None:
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
        shutil.copytree(toy_bases["sd2"] / part, folder / part)
    refused(folder, "its unet reads text that is 32 wide, and its text_encoder gives text that is 48 wide")


def without_mid_block(folder: Path) -> None:
    change(folder / "unet" / "config.json", mid_block_type=None)
    path = weights_of(folder, "unet")
    save_file({name: value for name, value in load_file(path).items() if not name.startswith("mid_block.")}, path)


def test_a_small_distillation_without_a_mid_block_has_a_pyramid(folder: Path) -> None:
    before = pyramid_channels(load_base(folder).unet.config)
    without_mid_block(folder)
    unet = load_base(folder).unet
    channels = pyramid_channels(unet.config)
    assert (channels[0], channels[1]) == (before[0], before[1] - 64)
    _, *levels = PyramidUNet(unet)(torch.ones(1, 4, 8, 8), torch.tensor([1]), torch.ones(1, 3, 32))
    assert [level.shape[1] for level in levels] == list(channels)


def test_weights_beyond_those_that_are_described_mean_another_network(folder: Path) -> None:
    path = weights_of(folder, "unet")
    save_file({**load_file(path), "adapter.proj.weight": torch.zeros(2)}, path)
    refused(folder, 'it holds "adapter.proj.weight"')


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_numbers_that_are_not_finite_are_refused_at_load(part: str, folder: Path) -> None:
    path = weights_of(folder, part)
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[0] = float("nan") if part == "vae" else float("-inf")
    save_file(tensors, path)
    refused(folder, f"{part}: .* holds NaN or infinity")


def test_scaled_and_packed_weights_are_refused_by_their_headers(folder: Path) -> None:
    path = weights_of(folder, "unet")
    tensors = load_file(path)
    save_file({**tensors, "conv_in.weight": tensors["conv_in.weight"].to(torch.float8_e5m2)}, path)
    refused(folder, r'holds F8_E5M2 weights \("conv_in.weight"\)')
    save_file({**tensors, "conv_in.weight.absmax": torch.zeros(2)}, path)
    refused(folder, 'is quantised: it holds "conv_in.weight.absmax"')


def test_names_of_earlier_versions_give_the_same_weights(folder: Path, toy_bases: dict[str, Path]) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile(r"attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.")
    path = weights_of(folder, "vae")
    renamed = {
        pattern.sub(lambda m: f"attentions.0.{old[m[1]]}.", name): value for name, value in load_file(path).items()
    }
    assert renamed.keys() != load_file(path).keys()
    save_file(renamed, path)
    path = weights_of(folder, "text_encoder")
    text = {name.removeprefix("text_model."): value for name, value in load_file(path).items()}
    save_file({**text, "embeddings.position_ids": torch.arange(32)[None]}, path)
    assert_same(load_base(folder), load_base(toy_bases["sd1"]))


def assert_same(found: BaseModel, expected: BaseModel) -> None:
    for part in ("unet", "vae", "text_encoder"):
        for name, value in getattr(expected, part).state_dict().items():
            assert torch.equal(getattr(found, part).state_dict()[name], value), f"{part}.{name}"
    assert torch.equal(found.encode_prompts(["a photo"]), expected.encode_prompts(["a photo"]))


@pytest.mark.parametrize("index", ["safetensors.fp16.index.json", "safetensors.index.fp16.json"])
def test_shards_of_earlier_versions_load(index: str, folder: Path, toy_bases: dict[str, Path]) -> None:
    load_base(folder).unet.half().save_pretrained(folder / "unet", variant="fp16", max_shard_size="30KB")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    listing = next((folder / "unet").glob("*.index.*json"))
    value = json.loads(listing.read_text())
    old = re.compile(r"\.fp16(-\d{5}-of-\d{5})\.safetensors")
    value["weight_map"] = {name: old.sub(r"\1.fp16.safetensors", file) for name, file in value["weight_map"].items()}
    listing.unlink()
    (folder / "unet" / f"diffusion_pytorch_model.{index}").write_text(json.dumps(value))
    for shard in list((folder / "unet").glob("*.safetensors")):
        shard.rename(shard.with_name(old.sub(r"\1.fp16.safetensors", shard.name)))
    assert len(list((folder / "unet").glob("*-of-*.fp16.safetensors"))) > 1
    expected = load_base(toy_bases["sd1"]).unet.half().float().state_dict()
    found = load_base(folder).unet.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clip_sample": True}, "clip_sample is true"),
        ({"thresholding": True}, "thresholding is true"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas is true"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is for flow matching"),
        ({"_class_name": "EDMEulerScheduler"}, "is for the EDM formulation"),
        ({"num_train_timesteps": 10**15}, "num_train_timesteps must be from 1 to 10000"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps must be"),
        ({"beta_start": float("inf")}, "beta_start must be from 0 to 1, not inf"),
        ({"steps_offset": -5}, "steps_offset must be"),
        ({"beta_start": 0}, "the betas begin at 0.0, where nothing is noisy yet"),
        ({"trained_betas": [1e-300] * 9}, "the betas begin at"),
        ({"timestep_spacing": ["leading"]}, "timestep_spacing is"),
        ({"beta_schedule": "x" * 9000}, "is not supported; linear or scaled_linear"),
        ({"trained_betas": [0.01] * 20_000}, "trained_betas must be"),
        ({"trained_betas": [[0.01]]}, "trained_betas must be"),
    ],
)
def test_schedules_that_cannot_be_honoured_are_refused_at_load(
    changes: dict[str, Any], said: str, folder: Path
) -> None:
    change(folder / "scheduler" / "scheduler_config.json", **changes)
    refused(folder, said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "LCMScheduler"}, "distilled for a few steps"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, "distilled for a few steps"),
        ({"steps_offset": 0}, "steps_offset 0"),
        ({}, ""),
    ],
)
def test_what_is_sampled_otherwise_than_elsewhere_is_remarked_on(
    changes: dict[str, Any], said: str, folder: Path
) -> None:
    change(folder / "scheduler" / "scheduler_config.json", **changes)
    notes: list[str] = []
    assert local_folder(folder, None, notes.append) == folder
    assert [said in note for note in notes] == [True] * bool(said)


def test_a_folder_named_as_models_for_few_steps_is_remarked_on(toy_bases: dict[str, Path], tmp_path: Path) -> None:
    notes: list[str] = []
    local_folder(shutil.copytree(toy_bases["sd1"], tmp_path / "my-turbo"), None, notes.append)
    assert len(notes) == 1
    assert "few steps" in notes[0]


def test_a_described_network_takes_no_memory(folder: Path) -> None:
    check_layout(folder)
    network = empty_network(folder / "unet", "unet")
    assert all(value.is_meta for value in network.state_dict().values())
