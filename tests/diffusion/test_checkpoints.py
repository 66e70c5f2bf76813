"""Single-file checkpoints: conversion without a network, what is told apart, and what is refused."""

import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ldm import changed
from refusals import refused
from safetensors.torch import load_file, save_file

from engines.common.cache import cache_folder
from engines.common.weight_file import read_header
from engines.diffusion import checkpoints
from engines.diffusion.architecture import empty_network
from engines.diffusion.base_model import base_hash, load_base, local_folder
from engines.diffusion.checkpoints import CONFIGS, checkpoint_folder
from engines.diffusion.clip_vocabulary import write_clip_tokenizer
from engines.errors import ModelError, UsageError


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "prediction"), [("sd1", None), ("sd2", "v_prediction"), ("sd2", "epsilon")])
def test_a_converted_file_is_the_model_it_was_made_of(
    kind: str,
    prediction: str | None,
    files: dict[str, Path],
    configs: Path,
    toy_bases: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = load_base(checkpoint_folder(files[kind], prediction, configs=configs))
    expected = load_base(toy_bases[kind])
    for part in ("unet", "vae", "text_encoder"):
        state = getattr(found, part).state_dict()
        assert state.keys() == getattr(expected, part).state_dict().keys()
        for name, value in getattr(expected, part).state_dict().items():
            assert torch.equal(state[name], value), f"{part}.{name}"
    assert found.scheduler_config["prediction_type"] == (prediction or "epsilon")
    assert torch.equal(
        found.encode_prompts(["a photo with many rbc"]), expected.encode_prompts(["a photo with many rbc"])
    )


def test_a_file_is_converted_once_and_a_damaged_folder_again(
    files: dict[str, Path], configs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint_folder(files["sd1"], configs=configs)
    before = base_hash(folder)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_convert", lambda *_: pytest.fail("converted twice"))
        assert checkpoint_folder(files["sd1"], configs=configs, note=pytest.fail) == folder
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    notes: list[str] = []
    assert checkpoint_folder(files["sd1"], configs=configs, note=notes.append) == folder
    assert len(notes) == 1
    assert str(folder) in notes[0]
    assert base_hash(folder) == before
    assert checkpoint_folder(files["sd1"], "v_prediction", configs=configs) != folder


def test_a_half_precision_file_stays_as_small_and_as_exact(
    files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    stored = {name: value.half() for name, value in load_file(files["sd1"]).items()}
    save_file(stored, tmp_path / "half.safetensors")
    folder = checkpoint_folder(tmp_path / "half.safetensors", configs=configs)
    found = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.float16}
    assert torch.equal(found["conv_in.weight"], stored["model.diffusion_model.input_blocks.0.0.weight"])
    assert load_base(folder).unet.dtype == torch.float32


def test_a_failed_conversion_leaves_nothing_behind(
    files: dict[str, Path], configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with refused(ModelError, None, "sd1.safetensors", "XDG_CACHE_HOME"):
        checkpoint_folder(files["sd1"], configs=configs)
    assert list((cache_folder() / "checkpoints").iterdir()) == []


def test_a_second_process_that_was_faster_is_no_error(
    files: dict[str, Path], configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    convert = checkpoints._convert

    def twice(*how: Any) -> None:
        convert(*how)
        monkeypatch.setattr(checkpoints, "_convert", convert)
        checkpoint_folder(files["sd1"], configs=configs)

    monkeypatch.setattr(checkpoints, "_convert", twice)
    folder = checkpoint_folder(files["sd1"], configs=configs)
    assert [path.name for path in (cache_folder() / "checkpoints").iterdir()] == [folder.name]
    load_base(folder)


def test_sd2_must_say_what_it_predicts_unless_its_notes_do(
    files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    with refused(ModelError, "prediction_type", "`prediction_type=epsilon`", "`prediction_type=v_prediction`"):
        checkpoint_folder(files["sd2"], configs=configs)
    with refused(UsageError, "prediction_type", "sample"):
        checkpoint_folder(files["sd2"], "sample", configs=configs)
    noted = changed(files["sd2"], tmp_path / "noted.safetensors", {}, **{"modelspec.prediction_type": "v"})
    assert load_base(checkpoint_folder(noted, configs=configs)).scheduler_config["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("more", "less", "said"),
    [
        ({"conditioner.embedders.1.model.ln_final.weight": (8,)}, "cond_stage", "a Stable Diffusion XL checkpoint"),
        (
            {"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (64, 1280)},
            "attn2",
            "a Stable Diffusion XL refiner: its UNet reads text that is 1280 wide",
        ),
        ({}, "attn2", "its UNet reads no text"),
        ({"model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": (8,)}, "", "a Stable Diffusion 3 checkpoint"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (8,)}, "", "a Flux checkpoint"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (32, 9, 3, 3)}, "", "a Stable Diffusion inpainting model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (32, 8, 3, 3)}, "", "an InstructPix2Pix model"),
        ({"model.diffusion_model.label_emb.0.0.weight": (8, 8)}, "", "more conditions than the prompt"),
        ({"ztsnr": (1,)}, "", "zero terminal SNR"),
        ({"control_model.time_embed.0.weight": (8,)}, "", "a ControlNet"),
        ({"lora_unet_mid_block.lora_down.weight": (8,)}, "", "a LoRA and not a base model"),
        ({}, "cond_stage", "a UNet without the text encoder"),
        ({}, "model.diffusion_model|cond_stage", r"an autoencoder \(VAE\) alone"),
        ({}, "model.diffusion_model|first_stage", "a text encoder alone"),
        ({"some.tensor": (8,)}, ".", "no checkpoint of a kind"),
        ({"down_blocks.0.resnets.0.conv1.weight": (8,)}, ".", "one part of a diffusers folder"),
    ],
)
def test_other_families_are_refused_by_name(
    more: dict[str, tuple[int, ...]], less: str, said: str, files: dict[str, Path], tmp_path: Path
) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in more.items()}
    path = changed(files["sd1"], tmp_path / "other.safetensors", tensors, less or "^$")
    with pytest.raises(ModelError, match=said) as caught:
        load_base(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("less", "part"),
    [
        ("middle_block.1.norm.weight", "unet"),
        ("first_stage_model.decoder.conv_in.bias", "vae"),
        ("text_model.encoder.layers.1.mlp.fc1.weight", "text_encoder"),
    ],
)
def test_a_file_that_lacks_a_weight_is_refused_before_it_is_read(
    less: str, part: str, files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    path = changed(files["sd1"], tmp_path / "part.safetensors", {}, re.escape(less))
    with pytest.raises(ModelError, match=f"is not whole: its {part} lacks 1 of "):
        checkpoint_folder(path, configs=configs)


def test_weights_in_eight_bits_are_refused(files: dict[str, Path], configs: Path, tmp_path: Path) -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    small = {name: load_file(files["sd1"])[name].to(torch.float8_e4m3fn)}
    with refused(ModelError, None, "F8_E4M3"):
        checkpoint_folder(changed(files["sd1"], tmp_path / "f8.safetensors", small), configs=configs)


def test_damaged_files_say_what_is_wrong(files: dict[str, Path], tmp_path: Path) -> None:
    whole = files["sd1"].read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, "8"]}}'
    cases = {
        "is empty": b"",
        "is no safetensors file": b"\x00" * 5,
        "cut short: its header alone": whole[: 8 + length // 2],
        "cut short: its header speaks of": whole[:-1000],
        "is damaged: its header speaks of": whole + b"\0",
        "its safetensors header is not readable": whole[:8] + b"x" * (len(whole) - 8),
        "header is not readable": struct.pack("<Q", len(header)) + header + b"\0" * 8,
        "is a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265146304\n",
        "is a web page": b"<!DOCTYPE html><html><body>Sign in to download</body></html>",
        "is a pickle under another name": b"PK\x03\x04" + b"\0" * 100,
    }
    path = tmp_path / "damaged.safetensors"
    for said, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(ModelError, match=said) as caught:
            load_base(path)
        assert "\n" not in str(caught.value), said


@pytest.mark.slow
def test_a_pickle_is_refused_with_a_command_that_converts_it(
    files: dict[str, Path], configs: Path, tmp_path: Path
) -> None:
    pickled = tmp_path / "model.ckpt"
    torch.save({"global_step": 7, "state_dict": load_file(files["sd1"])}, pickled)
    with pytest.raises(ModelError, match="is a pickle, which can run code") as caught:
        load_base(pickled)
    command = shlex.split(str(caught.value).partition("Convert it with: ")[2])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=120)
    assert base_hash(checkpoint_folder(tmp_path / "model.safetensors", configs=configs)) == base_hash(
        checkpoint_folder(files["sd1"], configs=configs)
    )


def test_missing_files_and_other_kinds_of_files_say_what_was_expected(tmp_path: Path) -> None:
    with refused(ModelError, None, "no/model.safetensors"):
        local_folder("no/model.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    with refused(ModelError, None, "notes.txt"):
        local_folder(tmp_path / "notes.txt")


def test_the_shipped_vocabulary_is_clips(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    for family, padding in (("sd1", 49407), ("sd2", 0)):  # SD 2 pads with "!"
        folder = tmp_path / family
        shutil.copytree(CONFIGS / family / "tokenizer", folder)
        write_clip_tokenizer(folder)
        assert len(json.loads((folder / "vocab.json").read_text("utf-8"))) == 49408
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        ids = tokenizer(["a photo of a cat"], padding="max_length", truncation=True).input_ids[0]
        assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
        assert ids[7:] == 70 * [padding]
        assert tokenizer("A PHOTO, of café 10%").input_ids == [49406, 320, 1125, 267, 539, 15304, 272, 271, 260, 49407]


def test_the_shipped_configurations_are_those_of_the_published_models() -> None:
    parameters = {
        "unet": (859_520_964, 865_910_724),
        "vae": (83_653_863,) * 2,
        "text_encoder": (123_060_480, 340_387_840),
    }
    for family, place in (("sd1", 0), ("sd2", 1), ("sd2_v", 1)):
        for part, expected in parameters.items():
            network = empty_network(CONFIGS / family / part, part)
            assert sum(value.numel() for value in network.parameters()) == expected[place], (family, part)
        scheduler = json.loads((CONFIGS / family / "scheduler" / "scheduler_config.json").read_text())
        assert scheduler["prediction_type"] == ("v_prediction" if family == "sd2_v" else "epsilon")


def test_a_header_gives_shapes_dtypes_and_notes(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4).half()}, path, metadata={"made": "here"})
    header = read_header(path)
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F16", (4,)),
    }
    assert header.metadata == {"made": "here"}
