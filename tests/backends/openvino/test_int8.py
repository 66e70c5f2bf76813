"""Int8 on OpenVINO, and batches cut into streams."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn

from engines.backends.base import Backend, Role
from engines.backends.openvino.backend import count_streams
from engines.backends.openvino.int8 import grid, quantize, quantized_weight, ranges_of
from engines.backends.registry import open_backend
from engines.backends.rows import RowBackend
from engines.bundle.bundle import Bundle, default_bundle, open_bundle
from engines.common.devices import cpu_has_int8
from engines.errors import BackendError, UsageError
from export.activations import measure_activations, watched

needs_int8 = pytest.mark.skipif(not cpu_has_int8(), reason="this processor has no VNNI")


@pytest.mark.parametrize("span", [(-0.28, 7.9), (-6.0, 5.3), (0.0, 3.0), (-0.1, 0.11), (-2.0, -1.0), (0.0, 0.0)])
def test_zero_is_on_the_grid_and_the_range_within_a_step_of_it(span: tuple[float, float]) -> None:
    lowest, highest = grid(*span)
    step = (highest - lowest) / 255
    unsigned = round(-lowest / step) != 128
    assert abs(lowest / step - round(lowest / step)) < 1e-9
    assert lowest - step <= min(span[0], 0)
    assert highest + step >= max(span[1], 0)
    assert unsigned == (span in [(-0.28, 7.9), (0.0, 3.0)])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_quantized_weight_is_within_half_a_step_of_its_channels_own_scale(axis: int) -> None:
    weight = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    weight *= np.array([[1], [10], [0.1], [0]], dtype=np.float32)
    whole, scale = quantized_weight(weight, axis)
    assert whole.dtype == np.int8
    assert scale.shape == ((4, 1) if axis == 0 else (1, 6))
    assert np.all(np.abs(whole * scale - weight) <= scale / 2 + 1e-7)


def _product(kind: str, weight: np.ndarray[Any, Any], transpose_b: bool = False) -> tuple[Any, Any]:
    """OpenVINO, and a model of one product with the weight "w"."""
    ov = pytest.importorskip("openvino")
    operations = ov.opset13
    stored = operations.constant(weight)
    stored.set_friendly_name("w")
    if kind == "conv":
        x = operations.parameter([2, weight.shape[1], 6, 6], np.float32, name="x")
        node = operations.convolution(x, stored, [1, 1], [0, 0], [0, 0], [1, 1])
    else:
        x = operations.parameter([2, 5, weight.shape[1 if transpose_b else 0]], np.float32, name="x")
        node = operations.matmul(x, stored, False, transpose_b)
    return ov, ov.Model([operations.result(node)], [x], "product")


@needs_int8
@pytest.mark.parametrize(("kind", "transpose_b"), [("conv", False), ("matmul", False), ("matmul", True)])
def test_a_quantized_product_is_that_of_its_rounded_numbers(kind: str, transpose_b: bool) -> None:
    random = np.random.default_rng(2)
    shape = (8, 16, 3, 3) if kind == "conv" else ((8, 16) if transpose_b else (16, 8))
    weight = random.normal(size=shape).astype(np.float32)
    x = random.uniform(-1, 1, size=(2, 16, 6, 6) if kind == "conv" else (2, 5, 16)).astype(np.float32)
    ov, model = _product(kind, weight, transpose_b)
    quantize(ov, model, {"w": (-1.0, 1.0)})
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = {node.get_rt_info()["primitiveType"].astype(str) for node in compiled.get_runtime_model().get_ops()}
    assert any("I8" in name or "i8" in name for name in kinds), kinds  # it really is an int8 kernel

    whole, scale = quantized_weight(weight, 1 if (kind, transpose_b) == ("matmul", False) else 0)
    read, rounded = torch.from_numpy(np.rint(x * 127) / 127).float(), torch.from_numpy(whole * scale)
    if kind == "conv":
        expected = nn.functional.conv2d(read, rounded)
    else:
        expected = read @ (rounded.T if transpose_b else rounded)
    assert np.allclose(compiled([x])[0], expected.numpy(), atol=2e-3)


def test_ranges_of_another_graph_are_refused_by_name() -> None:
    ov, model = _product("matmul", np.ones((4, 4), np.float32))
    with refused(BackendError, "precision", "other.weight", "1 of 1"):
        quantize(ov, model, {"other.weight": (0.0, 1.0)})


def test_what_products_read_is_kept_by_weight_but_not_of_the_ends_and_the_conditions() -> None:
    unet = nn.ModuleDict({"conv_in": nn.Conv2d(1, 1, 1), "body": nn.Conv2d(1, 2, 1), "time_embedding": nn.Linear(1, 1)})
    with watched(unet) as ranges:
        for value in (2.0, -3.0):
            for name in ("conv_in", "body"):
                unet[name](torch.full((1, 1, 2, 2), value))
            unet["time_embedding"](torch.zeros(1))
    unet["body"](torch.full((1, 1, 2, 2), 9.0))
    assert ranges == {"body.weight": (-3.0, 2.0)}


# --- on a whole bundle -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(toy_bundle: Path) -> Bundle:
    return open_bundle(toy_bundle, verify=False)


@pytest.fixture(scope="module")
def measured(plain: Bundle) -> Bundle:
    """The toy bundle with the ranges that an export with --int8 measures."""
    manifest = dataclasses.replace(plain.manifest, activations=measure_activations(plain, 1))
    return dataclasses.replace(plain, manifest=type(manifest).from_json(manifest.to_json()))


PREDICTION = ["model_output"]


def run_unet(
    backend: Backend, bundle: Bundle, batch: int, outputs: list[str] | None, role: Role | None = None
) -> dict[str, torch.Tensor]:
    side = 8 * bundle.manifest.latent_multiple
    sizes = {"B": batch, "h": side, "w": side}
    spec = bundle.specs["unet"]
    call = backend.prepare("unet", spec.input_shapes(sizes), outputs, role=role)
    for name, array in spec.example({**sizes, "B": 8}, 7).items():
        call.inputs[name].copy_(torch.from_numpy(array[:batch]))
    call.run()
    return {name: value.clone() for name, value in call.outputs.items()}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@needs_int8
def test_the_sampler_is_in_int8_and_the_label_pass_is_not(plain: Bundle, measured: Bundle) -> None:
    exact = run_unet(open_backend(plain, "openvino", precision="f32", threads=1), plain, 2, None)
    backend = open_backend(measured, "openvino", precision="int8", threads=1, keep_compiled=False)
    assert backend.precision == "int8"
    assert "int8 (the sampler's unet, vae_encoder, vae_decoder; the rest" in backend.description
    sampled = run_unet(backend, measured, 2, PREDICTION, "sampler")["model_output"]
    labelled = run_unet(backend, measured, 2, None, "labels")["model_output"]
    assert 1e-3 < error(sampled, exact["model_output"]) < 0.2
    assert error(labelled, exact["model_output"]) < error(sampled, exact["model_output"]) / 2


def round_trip(backend: Backend, bundle: Bundle, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] through the VAE and back."""
    for graph, read, written in (("vae_encoder", "pixels", "latents"), ("vae_decoder", "latents", "pixels")):
        h, w = (side // (bundle.vae_stride if graph == "vae_encoder" else 1) for side in pixels.shape[-2:])
        call = backend.prepare(graph, bundle.specs[graph].input_shapes({"B": len(pixels), "h": h, "w": w}))
        call.inputs[read].copy_(pixels)
        call.run()
        pixels = call.outputs[written].clone()
    return pixels


def smears(count: int) -> torch.Tensor:
    """Pale pictures with soft discs [count, 3, 64, 64], as blood cells have them: the ranges are of such."""
    random = np.random.default_rng(5)
    rows, columns = np.mgrid[:64, :64]
    pictures = np.full((count, 3, 64, 64), 0.6, dtype=np.float32)
    for picture in pictures:
        for _ in range(6):
            away = np.hypot(rows - random.uniform(0, 64), columns - random.uniform(0, 64)) - random.uniform(6, 12)
            picture -= np.array([0.1, 0.6, 0.3]).reshape(3, 1, 1) / (1 + np.exp(away))
    return torch.from_numpy(pictures.clip(-1, 1))


@pytest.mark.slow
@needs_int8
def test_the_vae_of_the_bundled_model_stands_int8() -> None:
    bundle = open_bundle(default_bundle(), verify=False)
    backends = [
        open_backend(bundle, "openvino", precision=precision, threads=1, keep_compiled=False)
        for precision in ("f32", "int8")
    ]
    assert "int8 (the sampler's unet, vae_encoder, vae_decoder; the rest" in backends[1].description
    exact, found = (round_trip(backend, bundle, smears(2)) for backend in backends)
    ratio = 10 * float(torch.log10(4 / (found.clip(-1, 1) - exact.clip(-1, 1)).square().mean()))
    assert 40 < ratio < 60  # dB; in bf16 it is above


def test_a_bundle_of_before_has_its_unet_alone_in_int8(plain: Bundle, measured: Bundle) -> None:
    of_unet = ranges_of("unet", measured.manifest.activations)
    before = dataclasses.replace(measured, manifest=dataclasses.replace(measured.manifest, activations=dict(of_unet)))
    if cpu_has_int8():
        backend = open_backend(before, "openvino", precision="int8", threads=1, keep_compiled=False)
        assert "int8 (the sampler's unet; the rest" in backend.description
        wide = open_backend(plain, "openvino", precision="auto", threads=1, keep_compiled=False)
        pixels = smears(1)
        assert torch.equal(round_trip(backend, before, pixels), round_trip(wide, plain, pixels))


def test_every_range_is_one_graphs(measured: Bundle) -> None:
    ranges = measured.manifest.activations
    parts = [ranges_of(graph, ranges) for graph in ("unet", "vae_encoder", "vae_decoder")]
    assert all(parts)
    assert {name.partition(".")[0] for name in parts[2]} == {"decoder"}
    assert set().union(*parts) == {*ranges}
    assert sum(len(part) for part in parts) == len(ranges)
    assert ranges_of("text_encoder", ranges) == ranges_of("adapter", ranges) == {}


@needs_int8
def test_row_by_row_the_sampler_is_in_int8_too(measured: Bundle) -> None:
    backend = open_backend(measured, "openvino", precision="int8", threads=1, keep_compiled=False)
    rows = RowBackend(backend, measured.specs)
    cases: tuple[tuple[list[str] | None, Role], ...] = ((PREDICTION, "sampler"), (None, "labels"))
    found = {}
    for outputs, role in cases:
        whole = run_unet(backend, measured, 2, outputs, role)["model_output"]
        found[role] = run_unet(rows, measured, 2, outputs, role)["model_output"]
        assert error(found[role], whole) < 1e-5
    assert error(found["sampler"], found["labels"]) > 1e-3


def test_int8_without_ranges_or_on_another_engine_is_refused(plain: Bundle, measured: Bundle) -> None:
    with refused(UsageError, "precision", "`engine=openvino`"):
        open_backend(measured, "torch", precision="int8")
    if cpu_has_int8():
        with refused(BackendError, "precision", "`int8=True`", "`precision=auto`"):
            open_backend(plain, "openvino", precision="int8")


def test_int8_is_refused_on_a_processor_without_it(measured: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with refused(BackendError, "precision", "`precision=auto`"):
        open_backend(measured, "openvino", precision="int8")


@pytest.mark.parametrize(
    ("batch", "threads", "streams"), [(16, 2, 2), (2, 2, 1), (5, 2, 1), (16, 1, 1), (16, 6, 2), (64, 32, 32), (1, 8, 1)]
)
def test_a_batch_is_cut_into_equal_parts_of_some_rows(batch: int, threads: int, streams: int) -> None:
    assert count_streams(batch, threads) == streams


def test_a_batch_in_streams_gives_what_one_in_a_piece_gives(plain: Bundle) -> None:
    together, apart = (open_backend(plain, "openvino", precision="f32", threads=n, keep_compiled=False) for n in (1, 2))
    for outputs in (PREDICTION, None):
        expected, found = (run_unet(backend, plain, 8, outputs) for backend in (together, apart))
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name].shape == value.shape
            assert error(found[name], value) < 1e-5, name
