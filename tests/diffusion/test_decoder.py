"""A small decoder in the VAE's place: read from diffusers' AutoencoderTiny layout, exported, and refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from refusals import refused
from rtx import export_unchecked
from safetensors.torch import load_file, save_file

from engines.diffusion.base_model import base_hash, load_base
from engines.errors import ModelError

SHAPE = {"decoder_block_out_channels": (16,) * 4, "num_decoder_blocks": (1, 1, 1, 0)}


@pytest.fixture
def base(toy_bases: dict[str, Path], tmp_path: Path) -> Path:
    """The sd1 base with a decoder as TAESD's folders have it: whole, with the half that encodes."""
    from diffusers import AutoencoderTiny

    folder = Path(shutil.copytree(toy_bases["sd1"], tmp_path / "base"))
    torch.manual_seed(0)
    AutoencoderTiny(**SHAPE).save_pretrained(folder / "decoder")
    return folder


def change(folder: Path, **changes: Any) -> None:
    path = folder / "decoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_it_decodes_as_diffusers_does_and_adapters_still_fit(base: Path, toy_bases: dict[str, Path]) -> None:
    from diffusers import AutoencoderTiny

    loaded, latents = load_base(base), torch.randn(2, 4, 3, 5)
    expected = AutoencoderTiny.from_pretrained(base / "decoder").decode(latents).sample
    assert torch.equal(loaded.decode_latents(latents), expected)
    assert base_hash(base) == base_hash(toy_bases["sd1"])


@pytest.mark.slow
def test_a_bundle_decodes_by_it_and_stores_its_half_alone(
    base: Path, toy_adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = export_unchecked(base, toy_adapters["sd1"], tmp_path / "bundle", "float32", 23, ("vae_decoder",))
    stored = load_file(folder / "decoder" / "diffusion_pytorch_model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"decoder"}
    graph = onnx.load(str(folder / "vae_decoder.onnx"), load_external_data=False).graph
    places = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    assert places == {"decoder/diffusion_pytorch_model.safetensors"}
    latents = torch.randn(2, 4, 3, 5)
    session = onnxruntime.InferenceSession(folder / "vae_decoder.onnx", providers=["CPUExecutionProvider"])
    (pixels,) = session.run(None, {"latents": latents.numpy()})
    np.testing.assert_allclose(pixels, load_base(folder).decode_latents(latents), atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_block_out_channels": [16, 16, 16, 32]},
        {"num_decoder_blocks": [1, 1, 0]},
        {"num_decoder_blocks": [1, 1, 1, 10**9]},
        {"latent_channels": 16},
        {"upsample_fn": "bicubic"},
        {"act_fn": "sine"},
        {"scaling_factor": float("nan")},
        {"latent_magnitude": "large", "num_decoder_blocks": [[]]},
    ],
)
def test_a_decoder_that_cannot_be_is_refused_by_name(base: Path, changes: dict[str, Any]) -> None:
    change(base, **changes)
    with refused(ModelError, None, base / "decoder"):
        load_base(base)


def test_a_decoder_of_other_latents_is_refused(base: Path) -> None:
    from diffusers import AutoencoderTiny

    AutoencoderTiny(**{name: value[1:] for name, value in SHAPE.items()}).save_pretrained(base / "decoder")
    with refused(ModelError, None, base / "decoder"):
        load_base(base)


def test_weights_that_are_missing_are_refused(base: Path) -> None:
    file = base / "decoder" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("decoder.layers.0.weight")
    save_file(weights, file)
    with refused(ModelError, None, base / "decoder"):
        load_base(base)


def test_a_pickle_is_refused_with_a_command_for_this_kind_of_network(base: Path) -> None:
    file = base / "decoder" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with refused(ModelError, None, base / "decoder", "AutoencoderTiny"):
        load_base(base)
