"""The full-size benchmark: its models have the published sizes, and a broken-off run goes on where it stopped."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scripts import load

from engines.adapter.model import load_adapter
from engines.diffusion.base_model import load_base
from export.fit import check_fit, read_origin

PARAMETERS = {  # as published
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
}


@pytest.fixture(scope="module")
def models() -> ModuleType:
    return load("full_size_models")


@pytest.fixture
def benchmark_script(models: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds the repository
    load("full_size_report")
    return load("full_size")


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_the_shapes_have_the_published_numbers_of_parameters(models: ModuleType, name: str) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    shape = models.SHAPES[name]
    with torch.device("meta"):
        networks = {
            "unet": UNet2DConditionModel(**shape.unet),
            "vae": AutoencoderKL(**shape.vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=models.VOCABULARY, **shape.text_encoder)),
        }
    found = {part: sum(value.numel() for value in network.parameters()) for part, network in networks.items()}
    assert found == PARAMETERS[name]


@pytest.mark.parametrize(("name", "prediction"), [("sd15", "epsilon"), ("sd21", "v_prediction")])
def test_reduced_models_load_fit_each_other_and_repeat(
    models: ModuleType, tmp_path: Path, name: str, prediction: str
) -> None:
    shape = models.reduced(models.SHAPES[name])
    for folder in ("one", "two"):
        models.make_base(tmp_path / folder, shape)
    base = load_base(tmp_path / "one")
    assert base.scheduler_config.get("prediction_type", "epsilon") == prediction
    assert (base.text_length, base.vae_stride) == (77, 8)
    assert base.text_encoder.config.vocab_size == 49_408
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() == (tmp_path / "two" / weights).read_bytes()
    models.make_adapter(tmp_path / "adapter", tmp_path / "one", shape)
    adapter, info = load_adapter(tmp_path / "adapter")
    check_fit(base, read_origin(base.folder), info)
    assert (info.config.head, info.config.extra_levels) == ("deformable_detr", 1)
    with torch.no_grad():
        logits, boxes, _, _ = adapter(
            torch.randn(1, info.config.channels[0], 16, 16), torch.randn(1, info.config.channels[1], 8, 8)
        )
    assert logits.sigmoid().std() > 0.01
    assert boxes.std() > 0.05


def test_a_run_that_was_broken_off_does_only_what_is_left(
    benchmark_script: ModuleType,
    toy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script: Any = benchmark_script
    work = tmp_path / "sd15"
    for name in ("base", "adapter"):
        (work / name).mkdir(parents=True)
    shutil.copytree(toy_bundle, work / "float32")
    half_done = work / "float32-128x128"
    half_done.mkdir()
    (half_done / "left over").write_text("x", "utf-8")
    parameters = {"unet": 1_000_000, "vae": 1, "text_encoder": 1, "adapter": 1}
    exported = script.exported(toy_bundle) | {"minutes": 1.0, "peak_gb": 2.0, "steps": []}
    done = {"models": {"parameters": parameters, "bytes": 5, "frame": [128, 128]}, "export float32": exported}
    (work / "steps.json").write_text(json.dumps(done), "utf-8")
    monkeypatch.setattr(script, "TOY_SIZES", ("128x128",))
    out = tmp_path / "full_size.md"
    arguments = ["full_size.py", "--toy", "--shape", "sd15", "--work", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--graph-dtypes", "float32"])
    assert script.main() == 0
    said = capsys.readouterr()
    assert "sd15: export float32 is done" in said.err
    record = json.loads(said.out.splitlines()[-1])["shapes"]["sd15"]["generate float32 128x128"]
    assert [image["size"] for image in record["images"]] == [[128, 128]] * 2
    assert all(image["spread"] > 1 and image["bytes"] > 1000 for image in record["images"])
    assert not (half_done / "left over").exists()
    assert 0.1 < record["peak_gb"] < 8
    assert record["minutes"] > 0
    text = out.read_text("utf-8")
    assert "| SD 1.5 | float32 | onnxruntime |" in text
    assert "| SD 1.5 | generate float32 128x128 |" in text
    assert script.main() == 0
    assert "generate float32 128x128 is done" in capsys.readouterr().err


def test_a_command_that_fails_stops_the_run_with_its_last_line(benchmark_script: ModuleType, tmp_path: Path) -> None:
    command = ["generate", "--bundle", tmp_path / "missing", "--out", tmp_path / "out", "--count", 1]
    with pytest.raises(SystemExit, match=r"failed: error: .*missing does not exist"):
        benchmark_script.measured(command, tmp_path)


@pytest.mark.parametrize(("peak", "minutes", "kept"), [(13.9, 29.9, True), (14.1, 5.0, False), (5.0, 30.1, False)])
def test_an_export_beyond_its_limits_is_told(
    benchmark_script: ModuleType, peak: float, minutes: float, kept: bool
) -> None:
    export = {"relative_error": {}, "peak_gb": peak, "minutes": minutes}
    assert benchmark_script.within_limits(export) is kept
    assert benchmark_script.within_limits({"peak_gb": peak, "minutes": minutes}) is True
