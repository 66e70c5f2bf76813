"""Graph specs, and the PyTorch modules that they describe."""

import json
from pathlib import Path

import pytest
import torch

from engines.bundle.graphs import GRAPH_NAMES, GraphSpec, ModelShape, graph_specs
from engines.errors import BackendError, BundleError

SHAPE = ModelShape(
    latent_channels=4,
    vae_stride=8,
    pyramid=(32, 64, 96),
    text_length=77,
    hidden_size=16,
    vocabulary=100,
    train_timesteps=1000,
    queries=10,
    classes=3,
)
SPECS = graph_specs(SHAPE)


def test_every_graph_has_a_spec_with_the_agreed_names() -> None:
    assert tuple(SPECS) == GRAPH_NAMES
    names = {graph: [tensor.name for tensor in (*spec.inputs, *spec.outputs)] for graph, spec in SPECS.items()}
    pyramid = ["div1", "div2", "div4"]
    assert names == {
        "text_encoder": ["input_ids", "encoder_hidden_states"],
        "vae_encoder": ["pixels", "latents"],
        "vae_decoder": ["latents", "pixels"],
        "unet": ["sample", "timesteps", "encoder_hidden_states", "model_output", *pyramid],
        "adapter": [*pyramid, "logits", "boxes", "encoder_logits", "encoder_boxes"],
    }


def test_shapes_follow_from_sizes() -> None:
    sizes = {"B": 2, "h": 8, "w": 12}
    assert SPECS["vae_encoder"].input_shapes(sizes) == {"pixels": (2, 3, 64, 96)}
    assert SPECS["unet"].output_shapes(sizes) == {
        "model_output": (2, 4, 8, 12),
        "div1": (2, 32, 8, 12),
        "div2": (2, 64, 4, 6),
        "div4": (2, 96, 2, 3),
    }
    assert SPECS["adapter"].output_shapes(sizes)["encoder_logits"] == (2, None, 3)


@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_sizes_are_recovered_from_input_shapes(graph: str) -> None:
    sizes = {"B": 5, "h": 8, "w": 12}
    spec = SPECS[graph]
    assert spec.sizes(spec.input_shapes(sizes)) == {size: sizes[size] for size in spec.multiples}


@pytest.mark.parametrize(
    ("graph", "shapes", "complaint"),
    [
        ("vae_decoder", {"latents": (1, 3, 8, 8)}, '"latents"'),
        ("vae_decoder", {"latents": (1, 4, 8)}, '"latents"'),
        ("vae_decoder", {"latents": (0, 4, 8, 8)}, '"latents"'),
        ("vae_decoder", {"pixels": (1, 4, 8, 8)}, "its inputs are latents"),
        ("vae_encoder", {"pixels": (1, 3, 60, 64)}, '"pixels"'),
        ("adapter", {"div1": (1, 32, 8, 8), "div2": (1, 64, 4, 4), "div4": (1, 96, 2, 3)}, '"div4"'),
        ("adapter", {"div1": (1, 32, 8, 8), "div2": (2, 64, 4, 4), "div4": (1, 96, 2, 2)}, '"div2"'),
        (
            "unet",
            {"sample": (1, 4, 6, 8), "timesteps": (1,), "encoder_hidden_states": (1, 77, 16)},
            "h is 6; it must be a multiple of 4",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(
    graph: str, shapes: dict[str, tuple[int, ...]], complaint: str
) -> None:
    with pytest.raises(BackendError, match=graph) as caught:
        SPECS[graph].sizes(shapes)
    assert complaint in str(caught.value)


def test_examples_repeat_and_integers_stay_in_range() -> None:
    sizes = {"B": 64, "h": 4, "w": 4}
    first, again, other = (SPECS["unet"].example(sizes, key) for key in (1, 1, 2))
    assert (first["sample"] == again["sample"]).all()
    assert (first["sample"] != other["sample"]).any()
    assert first["timesteps"].min() >= 0
    assert 500 < first["timesteps"].max() < 1000
    assert str(first["timesteps"].dtype) == "int64"


def test_half_precision_changes_floats_and_tolerance_and_nothing_else() -> None:
    half = graph_specs(SHAPE, "float16")
    for graph, spec in half.items():
        tensors = (*spec.inputs, *spec.outputs)
        assert {tensor.dtype for tensor in tensors if tensor.below is None} == {"float16"}
        assert {tensor.dtype for tensor in tensors if tensor.below is not None} <= {"int64"}
        assert (spec.dtype, SPECS[graph].dtype) == ("float16", "float32")
        assert (spec.tolerance, SPECS[graph].tolerance) == (5e-3, 1e-4)
        assert spec.as_dtype("float32") == SPECS[graph]
        assert GraphSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert str(half["unet"].example({"B": 1, "h": 4, "w": 4}, 1)["sample"].dtype) == "float16"


@pytest.mark.parametrize("graph", GRAPH_NAMES)
def test_a_spec_survives_json(graph: str) -> None:
    assert GraphSpec.from_json(json.loads(json.dumps(SPECS[graph].to_json()))) == SPECS[graph]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"inputs": [{"name": "x", "dtype": "object", "axes": ["B"], "below": None}]},
        {"inputs": [{"name": "x", "dtype": "float32", "axes": ["B+1"], "below": None}]},
        {"inputs": "x"},
        {"multiples": {"B": 0}},
        {"multiples": {}},
        {"tolerance": float("nan")},
        {"tolerance": None},
    ],
)
def test_a_spoilt_spec_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="Export the bundle again"):
        GraphSpec.from_json(SPECS["unet"].to_json() | change)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_modules_give_what_the_specs_say(toy_bases: dict[str, Path], toy_adapters: dict[str, Path], kind: str) -> None:
    from engines.adapter.model import load_adapter
    from engines.backends.modules import graph_modules, run_module
    from engines.diffusion.base_model import load_base
    from export.write_graphs import model_shape

    base = load_base(toy_bases[kind])
    adapter, info = load_adapter(toy_adapters[kind])
    specs = graph_specs(model_shape(base, info))
    modules = graph_modules(base, adapter)
    multiple = base.latent_multiple
    for sizes in ({"B": 1, "h": 3 * multiple, "w": 4 * multiple}, {"B": 3, "h": 4 * multiple, "w": 2 * multiple}):
        for graph, spec in specs.items():
            inputs = tuple(torch.from_numpy(array) for array in spec.example(sizes).values())
            outputs = run_module(modules[graph], inputs)
            expected = spec.output_shapes(sizes)
            assert len(outputs) == len(expected)
            for tensor, (name, shape) in zip(outputs, expected.items(), strict=True):
                assert len(tensor.shape) == len(shape), name
                known = [length for length in shape if length is not None]
                assert [n for n, length in zip(tensor.shape, shape, strict=True) if length is not None] == known, name


def test_the_vae_graphs_agree_with_the_base_model(toy_bases: dict[str, Path]) -> None:
    from engines.backends.modules import VaeDecoder, VaeEncoder, run_module
    from engines.diffusion.base_model import load_base

    base = load_base(toy_bases["sd1"])
    pixels = torch.rand(2, 3, 32, 16) * 2 - 1
    (latents,) = run_module(VaeEncoder(base.vae), (pixels,))
    assert torch.equal(latents, base.encode_images(pixels))
    (painted,) = run_module(VaeDecoder(base.vae), (latents,))
    assert torch.equal(painted, base.decode_latents(latents))
