"""Upsampling that is folded: the same numbers, without a large image that repeats every pixel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.backends.openvino.int8 import quantize
from engines.backends.openvino.upsampling import fold_upsampling
from engines.backends.upsampling import part_of
from engines.bundle.bundle import open_bundle
from engines.common.rng import generator

ov: Any = pytest.importorskip("openvino")
IN, OUT, H, W = 3, 5, 4, 6


def upsampler(
    *,
    dtype: type = np.float32,
    bias: bool = True,
    twice: bool = False,
    nearest_mode: str = "floor",
    coordinates: str = "asymmetric",
    factor: float = 2.0,
    stride: int = 1,
    side: int = 3,
    border: int = 1,
) -> Any:
    """x [2, IN, H, W] -> relu(conv(x doubled) + bias); `twice`: the convolution's own result is an output, too."""
    operations, rng = ov.opset13, generator(5)
    x = operations.parameter([2, IN, H, W], dtype, "x")
    doubled = operations.interpolate(
        x,
        operations.constant(np.array([factor, factor], dtype=np.float32)),
        mode="nearest",
        shape_calculation_mode="scales",
        coordinate_transformation_mode=coordinates,
        nearest_mode=nearest_mode,
        axes=operations.constant([2, 3]),
    )
    stored = operations.constant(rng.normal(size=(OUT, IN, side, side)).astype(np.float16))
    stored.set_friendly_name("conv.weight")
    weight = stored if dtype is np.float16 else operations.convert(stored, dtype)
    borders = [border, border]
    found = operations.convolution(doubled, weight, [stride, stride], borders, borders, [1, 1])
    outputs = [found] if twice else []
    if bias:
        found = operations.add(found, operations.constant(rng.normal(size=(1, OUT, 1, 1)).astype(dtype)))
    return ov.Model([operations.relu(found), *outputs], [x], "upsampler")


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


def run(model: Any) -> list[np.ndarray[Any, Any]]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    dtype = model.input(0).get_element_type().to_dtype()
    return list(compiled({0: generator(6).normal(size=(2, IN, H, W)).astype(dtype)}).values())


@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": False}, {"twice": True}, {"nearest_mode": "round_prefer_floor"}, {"dtype": np.float16}],
    ids=lambda x: str(x),
)
def test_a_convolution_of_a_doubled_image_becomes_four_of_the_image_itself(changes: dict[str, Any]) -> None:
    model, before = upsampler(**changes), run(upsampler(**changes))
    assert fold_upsampling(ov, model) == 1
    assert "Interpolate" not in kinds(model)
    assert kinds(model).count("Convolution") == 4
    for expected, found in zip(before, run(model), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2 if changes.get("dtype") else 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"nearest_mode": "round_prefer_ceil"},
        {"coordinates": "align_corners"},
        {"factor": 3.0},
        {"stride": 2},
        {"side": 5},
        {"border": 0},
    ],
    ids=lambda x: str(x),
)
def test_any_other_convolution_stays(changes: dict[str, Any]) -> None:
    model = upsampler(**changes)
    before = kinds(model)
    assert fold_upsampling(ov, model) == 0
    assert kinds(model) == before


def test_the_four_kernels_give_what_pytorch_gives_at_every_border() -> None:
    kernel = generator(7).normal(size=(OUT, IN, 3, 3)).astype(np.float32)
    image = torch.from_numpy(generator(8).normal(size=(1, IN, 2, 3)).astype(np.float32))
    doubled = torch.nn.functional.interpolate(image, scale_factor=2.0, mode="nearest")
    expected = torch.nn.functional.conv2d(doubled, torch.from_numpy(kernel), padding=1)
    for row in (0, 1):
        for column in (0, 1):
            part = torch.from_numpy(part_of(kernel, row, column))
            padded = torch.nn.functional.pad(image, (1 - column, column, 1 - row, row))
            found = torch.nn.functional.conv2d(padded, part)
            torch.testing.assert_close(found, expected[:, :, row::2, column::2], rtol=1e-4, atol=1e-5)


def test_the_exported_graphs_have_it(toy_bundle: Path) -> None:
    bundle = open_bundle(toy_bundle, verify=False)
    for graph in ("unet", "vae_decoder"):
        model = ov.Core().read_model(str(bundle.graph_path(graph)))
        side = 8 * bundle.manifest.latent_multiple
        shapes = bundle.specs[graph].input_shapes({"B": 1, "h": side, "w": side})
        model.reshape({name: list(shape) for name, shape in shapes.items()})
        upsamplers = kinds(model).count("Interpolate")
        assert fold_upsampling(ov, model) == upsamplers > 0, graph


def test_an_output_keeps_its_name() -> None:
    model = upsampler(bias=False)
    convolution = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution")
    model = ov.Model([convolution], model.get_parameters(), "alone")
    model.output(0).get_tensor().set_names({"large"})
    assert fold_upsampling(ov, model) == 1
    assert list(model.output("large").get_shape()) == [2, OUT, 2 * H, 2 * W]


def test_the_four_are_in_int8_where_the_one_was() -> None:
    model, exact = upsampler(), run(upsampler())[0]
    fold_upsampling(ov, model)
    quantize(ov, model, {"conv.weight": (-4.0, 4.0)})
    assert kinds(model).count("FakeQuantize") == 4
    found = run(model)[0]
    assert 0 < np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)
