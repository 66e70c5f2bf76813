"""Base models: what loads, what is refused and how it says so, and the hash that names the weights."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file

from engines.diffusion.base_model import BaseModel, base_hash, load_base, local_folder
from engines.diffusion.noise import alphas_cumprod
from engines.errors import ModelError, UsageError


@pytest.fixture
def folder(toy_bases: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_bases["sd1"], tmp_path / "base"))


def test_both_stable_diffusion_shapes_load_and_know_their_numbers(toy_bases: dict[str, Path]) -> None:
    first, second = load_base(toy_bases["sd1"]), load_base(toy_bases["sd2"])
    assert [base.scheduler_config["prediction_type"] for base in (first, second)] == ["epsilon", "v_prediction"]
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
    with refused(ModelError, None, "/unet ", ".safetensors"):
        load_base(folder)


def test_a_folder_of_pickles_is_told_how_to_convert_them(folder: Path) -> None:
    weights = next((folder / "vae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        ModelError, match=r"Convert diffusion_pytorch_model\.bin where you trust it: python -c"
    ) as caught:
        load_base(folder)
    assert f"{folder} new-folder" in str(caught.value)


def save_again(base: BaseModel, folder: Path, **how: Any) -> None:
    """Write the networks' weights anew, in another of the libraries' ways."""
    for part in ("unet", "vae", "text_encoder"):
        for weights in (folder / part).glob("*.safetensors"):
            weights.unlink()
        getattr(base, part).save_pretrained(folder / part, **how)


def assert_equal_weights(found: BaseModel, expected: BaseModel) -> None:
    for part in ("unet", "vae", "text_encoder"):
        for name, value in getattr(expected, part).state_dict().items():
            assert torch.equal(getattr(found, part).state_dict()[name], value), f"{part}.{name}"


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fp16", "ema"])
@pytest.mark.parametrize("shards", ["1TB", "30KB"])
def test_shards_and_variants_load(folder: Path, toy_bases: dict[str, Path], variant: str | None, shards: str) -> None:
    expected = load_base(toy_bases["sd1"])
    save_again(expected, folder, variant=variant, max_shard_size=shards)
    assert (len(list((folder / "unet").glob("*.safetensors"))) > 1) == (shards == "30KB")
    assert_equal_weights(load_base(folder), expected)


def test_full_weights_are_taken_before_a_variant_and_alone_count_in_the_hash(
    folder: Path, toy_bases: dict[str, Path]
) -> None:
    expected = load_base(toy_bases["sd1"])
    for part in ("unet", "vae", "text_encoder"):
        half = getattr(load_base(toy_bases["sd1"]), part)
        half.to(torch.float16).save_pretrained(folder / part, variant="fp16")
    assert_equal_weights(load_base(folder), expected)
    for path in folder.rglob("*.fp16.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])  # not read, so not missed
    for part in ("unet", "vae", "text_encoder"):  # the libraries wrote dtypes and versions into them
        shutil.copyfile(toy_bases["sd1"] / part / "config.json", folder / part / "config.json")
    assert base_hash(folder) == base_hash(toy_bases["sd1"])


def test_a_missing_shard_and_one_cut_short_are_named(folder: Path, toy_bases: dict[str, Path]) -> None:
    save_again(load_base(toy_bases["sd1"]), folder, max_shard_size="30KB")
    shard = sorted((folder / "unet").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with refused(ModelError, None, f"unet/{shard.name}"):
        load_base(folder)
    shard.unlink()
    with refused(ModelError, None, "unet", shard.name, "index.json"):
        load_base(folder)


def test_an_index_that_leads_outside_is_refused(folder: Path, toy_bases: dict[str, Path]) -> None:
    save_again(load_base(toy_bases["sd1"]), folder, max_shard_size="30KB")
    index = next((folder / "unet").glob("*.index.json"))
    listing = json.loads(index.read_text())
    name = next(iter(listing["weight_map"]))
    listing["weight_map"][name] = "../vae/" + sorted((folder / "vae").glob("*.safetensors"))[0].name
    index.write_text(json.dumps(listing))
    with refused(ModelError, None, "../vae/"):
        load_base(folder)


def test_several_variants_without_a_full_one_must_be_cleared_up(folder: Path) -> None:
    weights = next((folder / "unet").glob("*.safetensors"))
    for variant in ("ema", "bf16"):
        shutil.copyfile(weights, weights.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    weights.unlink()
    with refused(ModelError, None, "unet", "bf16, ema"):
        load_base(folder)


def test_weights_that_a_file_lacks_are_not_left_random(folder: Path) -> None:
    for part, said in (("text_encoder", "final_layer_norm.weight"), ("unet", "conv_out.bias")):
        path = next((folder / part).glob("*.safetensors"))
        save_file({name: value for name, value in load_file(path).items() if not name.endswith(said)}, path)
        with pytest.raises(ModelError, match=rf'{part} is not whole: its weights lack ".*{said}" \(1 of '):
            load_base(folder)


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
        ("StableDiffusionXLImg2ImgPipeline", "Stable Diffusion XL"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("FluxPipeline", "Flux"),
        ("QwenImagePipeline", "another model"),
    ],
)
def test_folders_of_other_families_are_refused_by_name(folder: Path, pipeline: str, said: str) -> None:
    change(folder / "model_index.json", _class_name=pipeline)
    with pytest.raises(ModelError, match=rf"is {said} \({pipeline} in .* 1\.x and 2\.x text-to-image models are supp"):
        load_base(folder)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("unet", {"in_channels": 9}, "a Stable Diffusion inpainting model"),
        ("unet", {"_class_name": "UNet2DModel"}, "a model whose unet is of the kind UNet2DModel"),
        ("unet", {"class_embed_type": "projection"}, "class_embed_type in unet/config.json"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "a model whose vae is of the kind AutoencoderTiny"),
        ("text_encoder", {"model_type": "xlm-roberta"}, "a model whose text_encoder is of the kind xlm-roberta"),
    ],
)
def test_a_part_of_another_kind_is_named(folder: Path, part: str, changes: dict[str, Any], said: str) -> None:
    change(folder / part / "config.json", **changes)
    with pytest.raises(ModelError, match=said):
        load_base(folder)


@pytest.mark.parametrize(("part", "said"), [("transformer", "such as Stable Diffusion 3"), ("text_encoder_2", "XL")])
def test_parts_that_other_families_have_are_named(folder: Path, part: str, said: str) -> None:
    (folder / "model_index.json").unlink()
    (folder / part).mkdir()
    with pytest.raises(ModelError, match=said):
        load_base(folder)


def test_zero_terminal_snr_is_refused_at_the_start(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    before = path.read_text()
    change(path, rescale_betas_zero_snr=True)
    with refused(ModelError, None, "rescale_betas_zero_snr"):
        load_base(folder)
    path.write_text(before)
    change(path, trained_betas=[0.1] * 200)
    with refused(ModelError, None, "7.1e-10"):
        load_base(folder)


def test_a_prediction_type_that_contradicts_the_folder_is_refused(folder: Path) -> None:
    assert local_folder(folder, "epsilon") == local_folder(folder) == folder
    with refused(UsageError, "prediction_type", "v_prediction", "epsilon", folder):
        local_folder(folder, "v_prediction")


class Hub:
    """Stands for the hub: gives the files of a folder that are asked for, and remembers which those were."""

    def __init__(self, source: Path, cache: Path, online: bool = True) -> None:
        self.source, self.cache, self.online = source, cache, online
        self.names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]

    def list_repo_files(self, name: str) -> list[str]:
        if not self.online:
            raise ConnectionError("no route to host")
        return self.names

    def snapshot_download(
        self, name: str, *, allow_patterns: list[str] | None = None, local_files_only: bool = False
    ) -> str:
        if local_files_only and not self.cache.is_dir():
            raise FileNotFoundError(f"{name} is not in the cache")
        for wanted in self.names if not local_files_only else ():
            if any(fnmatch(wanted, pattern) for pattern in allow_patterns or ()):
                (self.cache / wanted).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.source / wanted, self.cache / wanted)
        return str(self.cache)

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: self)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot_download)


def test_from_the_hub_come_the_weights_that_are_read_and_no_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "v1-5.ckpt"):
        (folder / name).write_bytes(b"gigabytes")
    hub = Hub(folder, tmp_path / "snapshot")
    hub.stand_in(monkeypatch)
    assert load_base("someone/model").folder == tmp_path / "snapshot"
    assert [path.name for path in (tmp_path / "snapshot" / "unet").iterdir() if path.suffix != ".json"] == [
        "diffusion_pytorch_model.safetensors"
    ]
    hub.online = False
    assert load_base("someone/model").folder == tmp_path / "snapshot"


def test_another_family_on_the_hub_is_refused_before_its_weights_come(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder / "model_index.json", _class_name="FluxPipeline")
    Hub(folder, tmp_path / "snapshot").stand_in(monkeypatch)
    with refused(ModelError, None, "Flux"):
        load_base("someone/model")
    assert not list((tmp_path / "snapshot").rglob("*.safetensors"))


def test_a_hub_that_cannot_be_reached_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub(folder, tmp_path / "none", online=False).stand_in(monkeypatch)
    with refused(ModelError, None, '"someone/model"'):
        load_base("someone/model")


def test_a_missing_part_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    with refused(ModelError, None, " vae/;"):
        load_base(folder)


def test_a_file_and_a_wrong_path_say_what_was_expected(folder: Path) -> None:
    with refused(ModelError, None, "model_index.json"):
        load_base(folder / "model_index.json")
    with refused(ModelError, None, "no/such/folder"):
        load_base("./no/such/folder")


def test_an_unknown_prediction_type_is_refused(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "sample"}))
    with refused(ModelError, None, '"sample"'):
        load_base(folder)


def test_a_damaged_weight_file_is_a_model_error(folder: Path) -> None:
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with refused(ModelError, None, "unet/diffusion_pytorch_model.safetensors"):
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
    with refused(ModelError, None, '"cosine"'):
        alphas_cumprod({**config, "beta_schedule": "cosine"})
