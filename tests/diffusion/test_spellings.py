"""Single files in the spellings that others write: the weights that diffusers reads, or a refusal."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ldm import Tensors, changed
from refusals import refused
from safetensors.torch import load_file, save_file

from engines.diffusion.architecture import empty_network
from engines.diffusion.base_model import BaseModel, load_base
from engines.diffusion.checkpoints import CONFIGS, checkpoint_folder
from engines.diffusion.families import few_steps
from engines.diffusion.ldm_names import unet_name, vae_name
from engines.diffusion.weights import STEMS
from engines.errors import ModelError

TEXT = "cond_stage_model.transformer.text_model."
OPEN_TEXT = "cond_stage_model.model."


def written(source: Path, target: Path, renamed: Callable[[str], str]) -> Path:
    """A copy of a single file with its tensors under other names."""
    save_file({renamed(name): value for name, value in load_file(source).items()}, target)
    return target


def assert_same(found: BaseModel, expected: BaseModel | Any) -> None:
    for part in STEMS:
        state, theirs = getattr(found, part).state_dict(), getattr(expected, part).state_dict()
        assert state.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(state[name], value), f"{part}.{name}"


def hf_text(base: Path) -> Tensors:
    """A text encoder's weights under transformers' own names, as some tools put them into files of SD 2."""
    state = load_base(base).text_encoder.state_dict()
    return {TEXT + name.removeprefix("text_model."): value for name, value in state.items()}


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_weights_are_those_that_diffusers_reads(kind: str, files: dict[str, Path], configs: Path) -> None:
    from diffusers import StableDiffusionPipeline

    config = checkpoint_folder(files[kind], "epsilon", configs=configs)
    theirs = StableDiffusionPipeline.from_single_file(str(files[kind]), config=str(config), local_files_only=True)
    assert_same(load_base(config), theirs)


def test_weights_are_those_that_diffusers_reads_of_an_sd2_file_with_transformers_names(
    toy_bases: dict[str, Path], files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    path = changed(files["sd2"], tmp_path / "hf.safetensors", hf_text(toy_bases["sd2"]), "^cond_stage")
    config = checkpoint_folder(path, "epsilon", configs=configs)
    theirs = StableDiffusionPipeline.from_single_file(str(path), config=str(config), local_files_only=True)
    assert_same(load_base(config), theirs)
    assert_same(load_base(config), load_base(toy_bases["sd2"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "prefix", "spelling"),
    [
        ("sd1", TEXT, "cond_stage_model.transformer."),  # before transformers' text_model
        ("sd1", TEXT, "conditioner.embedders.0.transformer.text_model."),
        ("sd1", TEXT, "text_encoders.clip_l.transformer.text_model."),
        ("sd2", OPEN_TEXT, "conditioner.embedders.0.model."),  # SD-Turbo, and all of Stability's generative-models
        ("sd1", "first_stage_model.", "vae."),
    ],
)
def test_other_prefixes_give_the_same_weights(
    kind: str,
    prefix: str,
    spelling: str,
    toy_bases: dict[str, Path],
    files: dict[str, Path],
    configs: Path,
    tmp_path: Path,
) -> None:
    path = written(files[kind], tmp_path / "other.safetensors", lambda name: name.replace(prefix, spelling, 1))
    assert_same(load_base(checkpoint_folder(path, "epsilon", configs=configs)), load_base(toy_bases[kind]))


def test_what_a_file_holds_besides_its_networks_changes_nothing(
    toy_bases: dict[str, Path], files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    beside = {
        "betas": (1000,),
        "model_ema.decay": (1,),
        "model_ema.diffusion_modelout2bias": (4,),
        "first_stage_model.loss.logvar": (1,),
        f"{TEXT}embeddings.position_ids": (1, 32),
        "cond_stage_model.transformer.logit_scale": (1,),
    }
    tensors = {name: torch.zeros(shape) for name, shape in beside.items()}
    path = changed(files["sd1"], tmp_path / "more.safetensors", tensors)
    assert_same(load_base(checkpoint_folder(path, configs=configs)), load_base(toy_bases["sd1"]))
    unused = {
        f"{OPEN_TEXT}transformer.resblocks.2.ln_1.weight": torch.zeros(48),
        f"{OPEN_TEXT}logit_scale": torch.zeros(1),
    }
    path = changed(files["sd2"], tmp_path / "last.safetensors", unused)
    assert_same(load_base(checkpoint_folder(path, "epsilon", configs=configs)), load_base(toy_bases["sd2"]))


def attention_of_two_layouts(name: str) -> str:
    return re.sub(r"(first_stage_model.*attn_1)\.([qkv])\.", r"\1.to_\2.", name)


def half_of_diffusers(name: str) -> str:
    return name.replace("first_stage_model.decoder.mid.attn_1", "first_stage_model.decoder.mid_block.attentions.0")


def averaged_alone(name: str) -> str:
    if not name.startswith("model.diffusion_model.middle_block"):
        return name
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def upper_layer_missing(name: str) -> str:
    return name.replace("model.diffusion_model.output_blocks.0.0", "model.diffusion_model.output_blocks.90.0")


@pytest.mark.parametrize(
    ("renamed", "said"),
    [
        (attention_of_two_layouts, r'its vae lacks 12 of .* It holds "encoder|its vae lacks 12 of .*a name of another'),
        (half_of_diffusers, "its vae lacks 10 of .* a name of another layout"),
        (averaged_alone, r"its unet lacks .* only as averaged \(EMA\) copies"),
        (upper_layer_missing, "its unet lacks"),
    ],
)
def test_where_diffusers_leaves_weights_random_the_file_is_refused(
    renamed: Callable[[str], str], said: str, files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    path = written(files["sd1"], tmp_path / "mixed.safetensors", renamed)
    with pytest.raises(ModelError, match=said) as caught:
        checkpoint_folder(path, configs=configs)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model.diffusion_model.input_blocks.1.0.adapter.weight": (4,)}, "which no layer of its unet reads"),
        ({f"{TEXT}encoder.layers.2.mlp.fc1.weight": (4,)}, "which no layer of its text_encoder reads"),
        ({"model.diffusion_model.time_embed.cond_proj.weight": (4, 4)}, "is a latent consistency model"),
        ({"cond_stage_model.model.ln_final.weight": (4,)}, "holds more than one text encoder"),
        ({"scaled_fp8": (2,)}, "is quantised"),
        ({"model.diffusion_model.out.2.scale_weight": (1,)}, "is quantised"),
        ({"model.diffusion_model.out.2.weight": (4, 32, 5, 5)}, "is 4x32x5x5, where its unet has 4x32x3x3"),
    ],
)
def test_tensors_that_nothing_reads_mean_another_model(
    more: dict[str, tuple[int, ...]], said: str, files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in more.items()}
    with pytest.raises(ModelError, match=said):
        checkpoint_folder(changed(files["sd1"], tmp_path / "other.safetensors", tensors), configs=configs)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_and_nothing_is_kept(
    number: float, files: dict[str, Path], configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = "first_stage_model.decoder.conv_out.bias"
    broken = load_file(files["sd1"])[name].clone()
    broken[1] = number
    with pytest.raises(ModelError, match=f'"{name}" holds NaN or infinity'):
        checkpoint_folder(changed(files["sd1"], tmp_path / "nan.safetensors", {name: broken}), configs=configs)
    assert list((tmp_path / "cache" / "dengine" / "checkpoints").iterdir()) == []


def test_a_marker_says_what_a_file_predicts_and_a_remark_says_so(
    files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    path = changed(files["sd1"], tmp_path / "v.safetensors", {"v_pred": torch.zeros(1)})
    notes: list[str] = []
    folder = checkpoint_folder(path, configs=configs, note=notes.append)
    assert load_base(folder).scheduler_config["prediction_type"] == "v_prediction"
    assert "predicts v" in notes[0]
    folder = checkpoint_folder(path, "epsilon", configs=configs, note=notes.append)
    assert load_base(folder).scheduler_config["prediction_type"] == "epsilon"
    assert any("predicts v_prediction; epsilon is taken" in note for note in notes)


@pytest.mark.parametrize(
    ("renamed", "named"),
    [
        (lambda name: f"module.{name}", '"module.model.diffusion_model."'),
        (lambda name: name.replace("diffusion_model.", "diffusion_model._orig_mod."), "_orig_mod."),
        (lambda name: name.replace("model.diffusion_model.", ""), "a UNet alone"),
        (lambda name: name.replace(TEXT, "te.text_model."), "te.text_model."),
        (lambda name: name.replace("cond_stage_model.", "cond_stage_model.0."), "cond_stage_model.0."),
        (lambda name: name.replace("model.diffusion_model.middle_block", "gone"), "no middle block"),
    ],
)
def test_names_that_are_not_known_are_given_as_the_reason(
    renamed: Callable[[str], str], named: str, files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    path = written(files["sd1"], tmp_path / "renamed.safetensors", renamed)
    with refused(ModelError, None, path, named):
        checkpoint_folder(path, configs=configs)


def test_a_tensor_that_does_not_split_into_query_key_and_value_is_refused(
    files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    name = f"{OPEN_TEXT}transformer.resblocks.0.attn.in_proj_weight"
    longer = torch.cat([load_file(files["sd2"])[name], torch.ones(1, 48)])
    path = changed(files["sd2"], tmp_path / "longer.safetensors", {name: longer})
    with refused(ModelError, None, path, "145x48"):
        checkpoint_folder(path, "epsilon", configs=configs)


@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("LCM_Dreamshaper_v7_4k", True),
        ("dreamshaper_8LCM", True),
        ("hyper_sd15", True),
        ("realistic-TCD", True),
        ("sd15_4step", True),
        ("sd15_8-steps_merged", True),
        ("my_model_5000steps", False),
        ("calcmap", False),
    ],
)
def test_models_for_few_steps_are_told_by_their_names(name: str, few: bool) -> None:
    assert few_steps(name) == few


def test_a_prediction_that_is_not_known_is_remarked_on(files: dict[str, Path], configs: Path, tmp_path: Path) -> None:
    path = changed(files["sd1"], tmp_path / "flow.safetensors", {}, **{"modelspec.prediction_type": "flow"})
    notes: list[str] = []
    checkpoint_folder(path, configs=configs, note=notes.append)
    assert '"flow"' in notes[0]


def test_a_model_distilled_for_few_steps_is_remarked_on(files: dict[str, Path], configs: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    checkpoint_folder(
        Path(shutil.copyfile(files["sd2"], tmp_path / "sd_turbo.safetensors")),
        "epsilon",
        configs=configs,
        note=notes.append,
    )
    assert "few steps" in notes[0]
    notes.clear()
    checkpoint_folder(files["sd1"], configs=configs, note=notes.append)
    assert not any("few steps" in note for note in notes)


def vae_files(base: Path, files: dict[str, Path], root: Path) -> dict[str, Path]:
    """The VAE of a base model in every form that VAEs are shared in."""
    weights = base / "vae" / "diffusion_pytorch_model.safetensors"
    original = {name: value for name, value in load_file(files["sd1"]).items() if name.startswith("first_stage_model.")}
    found = {
        "prefixed": root / "prefixed.safetensors",
        "original": root / "original.safetensors",
        "diffusers": root / "diffusers.safetensors",
        "old names": root / "old.safetensors",
        "folder": root / "my vae",
        "base": base,
        "checkpoint": files["sd1"],
    }
    save_file(original, found["prefixed"])
    save_file({name.removeprefix("first_stage_model."): value for name, value in original.items()}, found["original"])
    shutil.copyfile(weights, found["diffusers"])
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile(r"attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.")
    renamed = {
        pattern.sub(lambda m: f"attentions.0.{old[m[1]]}.", name): value for name, value in load_file(weights).items()
    }
    save_file(renamed, found["old names"])
    shutil.copytree(base / "vae", found["folder"])
    return found


@pytest.mark.slow
def test_a_file_without_a_vae_says_so_and_takes_one_from_anywhere(
    toy_bases: dict[str, Path], files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    expected = load_base(toy_bases["sd1"])
    path = changed(files["sd1"], tmp_path / "none.safetensors", {}, "^first_stage_model")
    with pytest.raises(ModelError, match="has no VAE") as caught:
        checkpoint_folder(path, configs=configs)
    assert caught.value.field == "vae"
    folders: dict[str, Path] = {}
    for form, vae in vae_files(toy_bases["sd1"], files, tmp_path).items():
        folder = checkpoint_folder(path, configs=configs, vae=vae)
        folders[form] = folder
        assert_same(load_base(folder), expected)
    assert len(set(folders.values())) > 1


def test_a_vae_that_is_given_goes_before_the_files_own(
    toy_bases: dict[str, Path], files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    weights = toy_bases["sd1"] / "vae" / "diffusion_pytorch_model.safetensors"
    half = {name: (value * 0.5).half() for name, value in load_file(weights).items()}
    save_file(half, tmp_path / "half.safetensors")
    folder = checkpoint_folder(files["sd1"], configs=configs, vae=tmp_path / "half.safetensors")
    stored = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in half.items())
    assert folder != checkpoint_folder(files["sd1"], configs=configs)


def test_vaes_of_other_families_and_other_files_are_refused(
    toy_bases: dict[str, Path], files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    def refuses(vae: Path, *holds: object) -> None:
        with refused(ModelError, "vae", vae, *holds):
            checkpoint_folder(files["sd1"], configs=configs, vae=vae)

    refuses(tmp_path / "none.safetensors")
    refuses(toy_bases["sd2"], "3 levels")
    other = Path(shutil.copytree(toy_bases["sd1"] / "vae", tmp_path / "xl"))
    config = (other / "config.json").read_text("utf-8")
    (other / "config.json").write_text(config.replace("0.18215", "0.13025"), "utf-8")
    refuses(other, "scaling_factor", "0.13025")
    torch.save({}, tmp_path / "vae.pt")
    refuses(tmp_path / "vae.pt", "a pickle")
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "some.safetensors")
    refuses(tmp_path / "some.safetensors", "some.weight")


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_the_names_of_the_published_models_are_those_of_diffusers_tables(family: str) -> None:
    from diffusers.loaders import single_file_utils as theirs

    unet = empty_network(CONFIGS / family / "unet", "unet")
    named = {
        f"model.diffusion_model.{unet_name(name, unet.config)}": value for name, value in unet.state_dict().items()
    }
    converted = theirs.convert_ldm_unet_checkpoint(named, unet.config)
    assert converted.keys() == unet.state_dict().keys()
    assert all(
        value is named[f"model.diffusion_model.{unet_name(name, unet.config)}"] for name, value in converted.items()
    )
    vae = empty_network(CONFIGS / family / "vae", "vae")
    named = {f"first_stage_model.{vae_name(name, vae.config)}": value for name, value in vae.state_dict().items()}
    assert theirs.convert_ldm_vae_checkpoint(named, vae.config).keys() == vae.state_dict().keys()
    assert len(named) == len(vae.state_dict())
