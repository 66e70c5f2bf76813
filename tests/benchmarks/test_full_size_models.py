"""Full-size models: they have the published sizes, and tiny ones of the same kind load and fit each other."""

from pathlib import Path

import pytest
import torch

from benchmarks import full_size_models as models
from engines.adapter.model import load_adapter
from engines.diffusion.base_model import load_base
from engines.diffusion.origin import read_origin
from engines.measure.flops import count_flops
from export.fit import check_fit

PARAMETERS = {  # as published
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_the_shapes_have_the_published_numbers_of_parameters(name: str) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prediction"), [("sd15", "epsilon"), ("sd21", "v_prediction")])
def test_reduced_models_load_and_fit_each_other(tmp_path: Path, name: str, prediction: str) -> None:
    shape = models.reduced(models.SHAPES[name])
    models.make_base(tmp_path / "base", shape)
    base = load_base(tmp_path / "base")
    assert base.scheduler_config.get("prediction_type", "epsilon") == prediction
    assert (base.text_length, base.vae_stride) == (77, 8)
    assert base.text_encoder.config.vocab_size == 49_408
    models.make_adapter(tmp_path / "adapter", tmp_path / "base", shape)
    adapter, info = load_adapter(tmp_path / "adapter")
    check_fit(base, read_origin(base.folder), info)
    assert (info.config.head, info.config.extra_levels) == ("deformable_detr", 1)
    with torch.no_grad():
        logits, boxes, _, _ = adapter(
            torch.randn(1, info.config.channels[0], 16, 16), torch.randn(1, info.config.channels[1], 8, 8)
        )
    assert logits.sigmoid().std() > 0.01
    assert boxes.std() > 0.05


@pytest.mark.slow
def test_a_row_of_the_full_size_unet_is_counted_with_its_attention() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**models.SD2_BASE.unet)
        inputs = torch.zeros(1, 4, 64, 64), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 77, 1024)
    # 0.678e12 without attention's products, as counters give it that do not know the fused kernel.
    assert count_flops(lambda: unet(*inputs)) == pytest.approx(0.804e12, rel=0.01)
