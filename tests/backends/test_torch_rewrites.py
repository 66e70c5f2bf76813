"""What the torch backend changes in modules to save arithmetic: the same numbers, of less work."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from engines.adapter.inference import detections
from engines.adapter.model import load_adapter
from engines.adapter.pyramid import PyramidUNet, label_pass
from engines.backends.modules import VaeDecoder
from engines.backends.pairs import before_text, share_pairs
from engines.backends.torch import TorchBackend
from engines.backends.upsampling import FoldedUpsampling, fold_modules
from engines.bundle.bundle import Bundle, default_bundle, open_bundle
from engines.bundle.islands import apply_islands
from engines.common.tokenizer import tokenize
from engines.diffusion.base_model import encode_pixels, load_base
from engines.diffusion.latents import label_latents, to_pixels
from engines.diffusion.noise import alphas_cumprod
from engines.labels.boxes import Instances, iou_matrix

CPU = torch.device("cpu")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# --- folded upsampling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)])
def test_a_convolution_of_a_doubled_image_is_one_of_the_image_itself(bias: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    convolution = nn.Conv2d(5, 7, 3, padding=1, bias=bias)
    image = torch.randn(2, 5, *size)
    expected = convolution(nn.functional.interpolate(image, scale_factor=2.0, mode="nearest"))
    folded = FoldedUpsampling(convolution)
    assert relative_error(folded(image), expected) < 1e-6
    assert relative_error(folded(image, (2 * size[0], 2 * size[1])), expected) < 1e-6
    assert folded.conv.weight.shape == (28, 5, 2, 2)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_every_upsampling_of_unet_and_decoder_is_folded(kind: str, toy_bases: dict[str, Path]) -> None:
    from diffusers.models.upsampling import Upsample2D

    base, plain = load_base(toy_bases[kind]), load_base(toy_bases[kind])
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 4, 8, 16, generator=generator)
    states = torch.randn(2, 5, base.unet.config.cross_attention_dim, generator=generator)
    cases: list[tuple[Any, Any, Callable[[Any], torch.Tensor]]] = [
        (base.unet, plain.unet, lambda module: module(latents, torch.tensor([1, 500]), states).sample),
        (VaeDecoder(base.vae), VaeDecoder(plain.vae), lambda module: module(latents)),
    ]
    for network, before, call in cases:
        count = sum(isinstance(part, Upsample2D) for part in before.modules())
        assert fold_modules(network) == count > 0
        assert not any(isinstance(part, Upsample2D) for part in network.modules())
        assert relative_error(call(network), call(before)) < 1e-5


@pytest.mark.parametrize("options", [{"use_conv": False}, {"use_conv": True, "kernel_size": 5, "padding": 2}])
def test_other_upsamplings_stay_as_they_are(options: dict[str, Any]) -> None:
    from diffusers.models.upsampling import Upsample2D

    kind: Any = Upsample2D
    network = nn.Sequential(kind(4, **options))
    assert fold_modules(network) == 0
    assert isinstance(network[0], kind)


# --- pairs of rows -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_pairs_compute_once_what_comes_before_the_first_text(kind: str, toy_bases: dict[str, Path]) -> None:
    unet: Any = load_base(toy_bases[kind]).unet
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 16, generator=generator).repeat_interleave(2, dim=0)
    states = torch.randn(4, 5, unet.config.cross_attention_dim, generator=generator)
    timesteps = torch.tensor([1, 1, 500, 500])
    expected = unet(latents, timesteps, states).sample
    seen: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, named, output: seen.update({name: len((*inputs, *named.values())[0])})

    names = list(before_text(unet))
    for name in (*names, "conv_out"):
        unet.get_submodule(name).register_forward_hook(note(name), with_kwargs=True)
    paired = share_pairs(unet)
    found = paired(latents, timesteps, states, return_dict=False)[0]
    assert relative_error(found, expected) < 1e-5
    assert seen == {**dict.fromkeys(names, 2), "conv_out": 4}
    assert names[0] == "conv_in"
    assert any(name.endswith("attn1") for name in names)
    assert {id(one) for one in paired.parameters()} == {id(one) for one in unet.parameters()}
    torch._dynamo.reset()
    compiled = torch.compile(paired, fullgraph=True, dynamic=False, backend="eager")
    assert torch.equal(compiled(latents, timesteps, states, return_dict=False)[0], found)


# --- the backend -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(default_bundle(), verify=False)


@pytest.mark.slow
def test_a_rewritten_backend_gives_the_same_ticks_and_pictures_and_on_a_cpu_none_is(bundle: Bundle) -> None:
    plain = TorchBackend(bundle, precision="f32", threads=1, device=CPU)
    rewritten = TorchBackend(bundle, precision="f32", threads=1, device=CPU, rewritten=True)
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(2, 4, 16, 24, generator=generator)
    results = []
    for backend in (plain, rewritten):
        shapes = bundle.specs["unet"].input_shapes({"B": 4, "h": 16, "w": 24})
        tick = backend.prepare("unet", shapes, ["model_output"], "encoder_hidden_states", "sampler")
        tick.inputs["sample"].copy_(latents.repeat_interleave(2, dim=0))
        tick.inputs["timesteps"].copy_(torch.tensor([1, 1, 700, 700]))
        states = torch.Generator().manual_seed(5)
        tick.inputs["encoder_hidden_states"].normal_(generator=states)
        decoder = backend.prepare("vae_decoder", bundle.specs["vae_decoder"].input_shapes({"B": 2, "h": 16, "w": 24}))
        decoder.inputs["latents"].copy_(latents)
        for call in (tick, decoder):
            call.run()
        results.append((tick.outputs["model_output"].clone(), decoder.outputs["pixels"].clone()))
    for found, expected in zip(*reversed(results), strict=True):
        assert relative_error(found, expected) < 1e-5
    kinds = [{type(part).__name__ for part in backend.vae("vae_decoder").modules()} for backend in (plain, rewritten)]
    assert ["FoldedUpsampling" in found for found in kinds] == [False, True]


def test_two_calls_for_labels_do_not_share_their_taps(bundle: Bundle) -> None:
    backend = TorchBackend(bundle, precision="f32", threads=1, device=CPU)
    shapes = bundle.specs["unet"].input_shapes({"B": 1, "h": 8, "w": 8})
    one, two = (backend.prepare("unet", shapes, ["div1"], role="labels") for _ in range(2))
    networks: list[Any] = [call.module for call in (one, two)]  # type: ignore[attr-defined]
    assert networks[0] is not networks[1]
    assert networks[0]._taps is not networks[1]._taps
    assert networks[0].unet is networks[1].unet


# --- the adapter in half -----------------------------------------------------------------------------------------


def cells() -> Image.Image:
    """Discs that the bundled adapter takes for red blood cells."""
    image = Image.new("RGB", (320, 256), (236, 226, 224))
    pen, rng = ImageDraw.Draw(image), np.random.default_rng(0)
    for x, y in rng.integers((20, 20), (300, 236), (14, 2)).tolist():
        pen.ellipse((x - 20, y - 20, x + 20, y + 20), fill=(214, 150, 150))
        pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill=(226, 180, 178))
    return image


@pytest.mark.slow
def test_labels_of_an_adapter_in_half_are_those_of_float32(bundle: Bundle) -> None:
    """Without an island: top-k, anchors and box arithmetic of the bundled adapter stand half precision."""
    base = load_base(bundle.folder)
    latents = encode_pixels(base.vae, to_pixels(np.array(cells()))[None])
    noisy = label_latents(latents[0], 0, 0, alphas_cumprod(bundle.scheduler_config), 1)[None]
    states = base.text_encoder(tokenize(bundle.tokenizer(), [f"a {bundle.style}"])).last_hidden_state
    pyramid = label_pass(PyramidUNet(base.unet), noisy, states, 1)
    found: list[Instances] = []
    for dtype in (torch.float32, torch.float16):
        adapter = load_adapter(bundle.folder / "adapter")[0]
        network = apply_islands(adapter, ()) if dtype == torch.float16 else adapter
        logits, boxes = (value[0].float().numpy() for value in network(*(level.to(dtype) for level in pyramid))[:2])
        found.append(detections(logits, boxes, (320, 256), 1.0, (320, 256)))
    sure = found[0].take(found[0].scores >= 0.3)
    assert len(sure) >= 8
    overlaps = iou_matrix(sure.boxes, found[1].boxes) * (sure.labels[:, None] == found[1].labels[None])
    assert overlaps.max(axis=1).min() > 0.95
    assert np.abs(sure.scores - found[1].scores[overlaps.argmax(axis=1)]).max() < 0.02
