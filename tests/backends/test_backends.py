"""Backends: the same numbers from every runtime, in buffers that stay, and which one is taken."""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from refusals import refused
from small_graphs import SIZES, expected_unet, fill, open_small, prepare_unet, small_bundle, small_specs

from engines.backends.base import Backend, Tensors
from engines.backends.registry import auto_engine, open_backend
from engines.bundle.bundle import Bundle, open_bundle
from engines.bundle.graphs import GRAPH_NAMES
from engines.common.devices import cpu_has_bf16
from engines.common.rng import generator
from engines.errors import BackendError, UsageError

GRAPH_ENGINES = ("openvino", "onnxruntime")
needs_bf16 = pytest.mark.skipif(not cpu_has_bf16(), reason="this processor has no bf16 arithmetic")


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dengine"


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# --- one graph, two runtimes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_two_shapes_of_one_graph_live_side_by_side(small: Bundle, engine: str) -> None:
    backend = open_small(small, engine)
    calls = [prepare_unet(backend, sizes) for sizes in SIZES]
    examples = [small_specs()["unet"].example(sizes, key) for key, sizes in enumerate(SIZES)]
    for call, inputs in zip(calls, examples, strict=True):
        fill(call, inputs)
        call.run()
    for call, inputs in zip(calls, examples, strict=True):
        for name, value in expected_unet(inputs).items():
            np.testing.assert_allclose(call.outputs[name].numpy(), value, atol=1e-5)


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_buffers_stay_where_they_are_and_hold_the_latest_run(small: Bundle, engine: str) -> None:
    call = prepare_unet(open_small(small, engine), SIZES[0])
    places = [tensor.data_ptr() for tensor in (*call.inputs.values(), *call.outputs.values())]
    held = call.outputs["model_output"]
    for key in range(3):
        inputs = small_specs()["unet"].example(SIZES[0], key)
        fill(call, inputs)
        call.run()
        np.testing.assert_allclose(held.numpy(), expected_unet(inputs)["model_output"], atol=1e-5)
    assert [tensor.data_ptr() for tensor in (*call.inputs.values(), *call.outputs.values())] == places
    assert call.capturable is False


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
@pytest.mark.parametrize("outputs", [["model_output"], ["div2", "div1"]])
def test_a_subset_of_outputs_comes_alone_and_right(small: Bundle, engine: str, outputs: list[str]) -> None:
    call = prepare_unet(open_small(small, engine), SIZES[0], outputs)
    assert set(call.outputs) == set(outputs)
    inputs = small_specs()["unet"].example(SIZES[0], 7)
    fill(call, inputs)
    call.run()
    for name in outputs:
        np.testing.assert_allclose(call.outputs[name].numpy(), expected_unet(inputs)[name], atol=1e-5)


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_an_axis_that_only_the_graph_knows_is_found(small: Bundle, engine: str) -> None:
    call = open_small(small, engine).prepare("adapter", {"div1": (2, 2, 4, 6)})
    div1 = generator(5).standard_normal((2, 2, 4, 6), dtype=np.float32)
    fill(call, {"div1": div1})
    call.run()
    np.testing.assert_array_equal(call.outputs["encoder_logits"].numpy(), div1.reshape(2, 2, 24).transpose(0, 2, 1))


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_what_does_not_fit_a_graph_is_named(small: Bundle, engine: str) -> None:
    backend = open_small(small, engine)
    shapes = small_specs()["unet"].input_shapes(SIZES[0])
    with pytest.raises(BackendError, match="unet has no output div4; its outputs are model_output, div1, div2"):
        backend.prepare("unet", shapes, ["div4"])
    with pytest.raises(BackendError, match="sample"):
        backend.prepare("unet", shapes | {"sample": (2, 5, 4, 6)})
    with pytest.raises(BackendError, match="multiple of 2"):
        backend.prepare("unet", shapes | {"sample": (2, 2, 3, 6)})


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_a_broken_graph_is_named(small: Bundle, engine: str) -> None:
    small.graph_path("unet").write_bytes(b"not an ONNX graph")
    with pytest.raises(BackendError, match=r"unet\.onnx"):
        prepare_unet(open_small(small, engine), SIZES[0])


@needs_bf16
def test_bf16_does_not_round_timesteps(small: Bundle) -> None:
    call = prepare_unet(open_small(small, precision="bf16"), {"B": 2, "h": 2, "w": 2}, ["model_output"])
    for t in (1, 501, 999):
        inputs = small_specs()["unet"].example({"B": 2, "h": 2, "w": 2}, t)
        inputs["timesteps"][:] = (t, t - 1)
        fill(call, inputs)
        call.run()
        np.testing.assert_allclose(
            call.outputs["model_output"].numpy(), expected_unet(inputs)["model_output"], atol=0.03
        )


# --- choosing ----------------------------------------------------------------------------------------------------


def test_a_backend_says_what_it_is(small: Bundle) -> None:
    backend = open_small(small)
    assert (backend.name, backend.precision, backend.threads) == ("openvino", "f32", 1)
    assert backend.device == torch.device("cpu")
    assert backend.description.startswith("openvino 2")
    assert backend.description.endswith("1 thread, f32")


def test_auto_precision_is_bf16_where_runtime_and_processor_have_it(small: Bundle) -> None:
    assert open_small(small, "openvino", "auto").precision == ("bf16" if cpu_has_bf16() else "f32")
    assert open_small(small, "onnxruntime", "auto").precision == "f32"


def test_bf16_is_refused_where_the_processor_has_none(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert open_small(small, "openvino", "auto").precision == "f32"
    with refused(BackendError, "precision", "`precision=f32`"):
        open_small(small, "openvino", "bf16")


@pytest.mark.parametrize(
    ("engine", "options", "field"),
    [
        ("tensorflow", {}, "engine"),
        ("openvino", {"precision": "f64"}, "precision"),
        ("openvino", {"threads": 0}, "threads"),
        ("openvino", {"device": "tpu"}, "device"),
        ("openvino", {"device": "cuda"}, "device"),
        ("onnxruntime", {"precision": "bf16"}, "precision"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    small: Bundle, engine: str, options: dict[str, Any], field: str
) -> None:
    with refused(UsageError, field, *options.values()):
        open_backend(small, engine, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("engine", ["auto", "torch", "onnxruntime"])
def test_a_gpu_that_is_not_there_is_said_so(small: Bundle, engine: str) -> None:
    with refused(BackendError, "device", "`device=cpu`"):
        open_backend(small, engine, device="cuda")


@pytest.mark.parametrize(("engine", "install"), [("openvino", "openvino"), ("onnxruntime", "onnxruntime-gpu")])
def test_a_missing_runtime_comes_with_what_to_install(
    small: Bundle, monkeypatch: pytest.MonkeyPatch, engine: str, install: str
) -> None:
    load = importlib.import_module

    def missing(name: str) -> Any:
        if name == engine:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return load(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BackendError, match=f'Install it with "pip install {install}"'):
        open_small(small, engine)


def test_auto_takes_cuda_then_openvino_then_onnxruntime_then_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"openvino", "onnxruntime"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in present else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (auto_engine(), auto_engine("cuda:0"), auto_engine("cpu")) == ("torch", "torch", "openvino")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert auto_engine() == "openvino"
    present.remove("openvino")
    assert auto_engine() == "onnxruntime"
    present.clear()
    assert auto_engine() == "torch"


# --- the real networks -------------------------------------------------------------------------------------------


def run_graph(backend: Backend, graph: str, inputs: Tensors, outputs: list[str] | None = None) -> dict[str, Any]:
    call = backend.prepare(graph, {name: tuple(value.shape) for name, value in inputs.items()}, outputs)
    for name, value in inputs.items():
        call.inputs[name].copy_(value)
    call.run()
    return {name: value.clone() for name, value in call.outputs.items()}


def graph_inputs(bundle: Bundle, reference: Backend, sizes: Mapping[str, int], graph: str) -> dict[str, torch.Tensor]:
    """Example inputs of a graph; the adapter's are the pyramid of an example."""
    source = "unet" if graph == "adapter" else graph
    inputs = {name: torch.from_numpy(x) for name, x in bundle.specs[source].example(sizes, 11).items()}
    if graph != "adapter":
        return inputs
    pyramid = run_graph(reference, "unet", inputs)
    return {spec.name: pyramid[spec.name] for spec in bundle.specs["adapter"].inputs}


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return open_bundle(toy_bundle, verify=False)


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Backend:
    return open_small(bundle, "torch")


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_runtimes_agree_with_torch_on_every_graph(bundle: Bundle, reference: Backend, engine: str) -> None:
    backend = open_small(bundle, engine)
    side = 8 * bundle.manifest.latent_multiple
    for sizes in ({"B": 2, "h": side, "w": side}, {"B": 1, "h": side, "w": 2 * side}):
        for graph in GRAPH_NAMES:
            inputs = graph_inputs(bundle, reference, sizes, graph)
            expected = run_graph(reference, graph, inputs)
            found = run_graph(backend, graph, inputs)
            for name in [name for name in expected if name not in ("logits", "boxes")]:  # these follow a top-k's ties
                assert relative_error(found[name], expected[name]) < 1e-4, (graph, name)


def test_torch_gives_the_model_output_alone_and_fixed_buffers(bundle: Bundle, reference: Backend) -> None:
    side = 8 * bundle.manifest.latent_multiple
    inputs = graph_inputs(bundle, reference, {"B": 2, "h": side, "w": side}, "unet")
    call = reference.prepare("unet", {name: tuple(value.shape) for name, value in inputs.items()}, ["model_output"])
    place = call.outputs["model_output"].data_ptr()
    for name, value in inputs.items():
        call.inputs[name].copy_(value)
    call.run()
    assert list(call.outputs) == ["model_output"]
    assert torch.equal(call.outputs["model_output"], run_graph(reference, "unet", inputs)["model_output"])
    call.inputs["timesteps"].zero_()
    call.run()
    assert call.outputs["model_output"].data_ptr() == place


@needs_bf16
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_bf16_is_close_to_f32_and_leaves_text_and_boxes_alone(bundle: Bundle, reference: Backend, engine: str) -> None:
    backend = open_small(bundle, engine, "bf16")
    assert "bf16" in backend.description
    side = 8 * bundle.manifest.latent_multiple
    for graph in GRAPH_NAMES:
        inputs = graph_inputs(bundle, reference, {"B": 2, "h": side, "w": side}, graph)
        expected, found = run_graph(reference, graph, inputs), run_graph(backend, graph, inputs)
        name = "encoder_boxes" if graph == "adapter" else next(iter(expected))
        error = relative_error(found[name], expected[name])
        if graph in ("text_encoder", "adapter"):
            assert error < 1e-5, graph
        else:
            assert 1e-4 < error < 0.05, graph


# --- half precision ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(toy_bundle_fp16: Path) -> Bundle:
    return open_bundle(toy_bundle_fp16, verify=False)


@pytest.mark.parametrize("engine", GRAPH_ENGINES)
def test_every_backend_runs_a_float16_bundle_in_float16_buffers(half: Bundle, engine: str) -> None:
    torch_f32 = open_backend(half, "torch", precision="f32", threads=1, device="cpu")
    backend = open_backend(half, engine, precision="auto" if engine == "onnxruntime" else "f32", threads=1)
    assert backend.precision == ("f16" if engine == "onnxruntime" else "f32")
    side = 8 * half.manifest.latent_multiple
    for graph in GRAPH_NAMES:
        inputs = graph_inputs(half, torch_f32, {"B": 2, "h": side, "w": side}, graph)
        expected, found = run_graph(torch_f32, graph, inputs), run_graph(backend, graph, inputs)
        for name in [name for name in expected if name not in ("logits", "boxes")]:
            assert found[name].dtype == expected[name].dtype == torch.float16
            assert relative_error(found[name].float(), expected[name].float()) < 5e-3, (graph, name)


def test_onnxruntime_runs_float16_graphs_in_nothing_but_float16(half: Bundle) -> None:
    with refused(UsageError, "precision", "`precision=f16`"):
        open_backend(half, "onnxruntime", precision="f32")


def test_torch_in_half_keeps_the_islands_of_the_bundle(half: Bundle) -> None:
    from engines.backends.modules import run_module
    from engines.backends.torch import _load_modules

    modules = _load_modules(half, torch.float16, torch.device("cpu"))
    dtypes = {name: value.dtype for name, value in modules["unet"].named_parameters()}
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == {name for name in dtypes if name.startswith(f"{toy.OVERFLOWING}.")}
    assert {value.dtype for value in modules["vae_decoder"].parameters()} == {torch.float16}
    assert {value.dtype for value in modules["text_encoder"].parameters()} == {torch.float32}
    inputs = half.specs["unet"].example({"B": 1, "h": 4, "w": 4}, 7)
    outputs = run_module(modules["unet"], tuple(torch.from_numpy(array) for array in inputs.values()))
    assert all(bool(output.isfinite().all()) for output in outputs)
