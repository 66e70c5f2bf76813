"""Backends: the same numbers from every runtime, in buffers that stay, and compiled models that come back whole."""

import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
import toy
from onnx import TensorProto, helper, numpy_helper

from engines.backends import auto_engine, cache, open_backend
from engines.backends.base import Backend, Call, Tensors, cpu_has_bf16
from engines.backends.openvino_backend import OpenVinoBackend
from engines.bundle import Bundle, open_bundle
from engines.errors import BackendError, UsageError
from engines.graphs import GRAPH_NAMES, GraphSpec, TensorSpec
from engines.rng import generator

Float = npt.NDArray[np.float32]
GRAPH_ENGINES = ("openvino", "onnxruntime")
SIZES = ({"B": 2, "h": 4, "w": 6}, {"B": 3, "h": 8, "w": 4})
FREQUENCIES = np.array([[1.0, 0.1, 0.01, 0.001]], dtype=np.float32)
PROJECTION = np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)

needs_bf16 = pytest.mark.skipif(not cpu_has_bf16(), reason="this processor has no bf16 arithmetic")


def small_specs() -> dict[str, GraphSpec]:
    """A UNet and an adapter in name: what they compute is `expected_unet`, and the cells of div1 as tokens."""

    def tensor(name: str, *axes: int | str, dtype: str = "float32", below: int | None = None) -> TensorSpec:
        return TensorSpec(name, dtype, axes, below)

    div1 = tensor("div1", "B", 2, "h", "w")
    multiples = {"B": 1, "h": 2, "w": 2}
    unet_inputs = (
        tensor("sample", "B", 2, "h", "w"),
        tensor("timesteps", "B", dtype="int64", below=1000),
        tensor("encoder_hidden_states", "B", 3, 4),
    )
    unet_outputs = (tensor("model_output", "B", 2, "h", "w"), div1, tensor("div2", "B", 2, "h/2", "w/2"))
    tokens = (tensor("logits", "B", 2), tensor("encoder_logits", "B", "S", 2))
    return {
        "unet": GraphSpec("unet", unet_inputs, unet_outputs, multiples),
        "adapter": GraphSpec("adapter", (div1,), tokens, multiples),
    }


def write_small_graphs(folder: Path) -> None:
    """The graphs of `small_specs` as ONNX; the UNet makes its timestep embedding as diffusers does."""

    def value(spec: TensorSpec) -> Any:
        dtype = TensorProto.INT64 if spec.dtype == "int64" else TensorProto.FLOAT
        return helper.make_tensor_value_info(spec.name, dtype, spec.axes)

    def save(name: str, nodes: list[Any], constants: Mapping[str, npt.NDArray[Any]]) -> None:
        spec = small_specs()[name]
        initializers = [numpy_helper.from_array(array, key) for key, array in constants.items()]
        inputs, outputs = [value(x) for x in spec.inputs], [value(x) for x in spec.outputs]
        graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, str(folder / f"{name}.onnx"))

    node = helper.make_node
    save(
        "unet",
        [
            node("Cast", ["timesteps"], ["t"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["t", "one"], ["column"]),
            node("Mul", ["column", "frequencies"], ["angle"]),
            node("Sin", ["angle"], ["sin"]),
            node("Cos", ["angle"], ["cos"]),
            node("Concat", ["sin", "cos"], ["embedding"], axis=1),
            node("MatMul", ["embedding", "projection"], ["projected"]),
            node("Unsqueeze", ["projected", "two_three"], ["shift"]),
            node("Add", ["sample", "shift"], ["model_output"]),
            node("ReduceMean", ["encoder_hidden_states", "one_two"], ["mean"], keepdims=1),
            node("Unsqueeze", ["mean", "three"], ["scale"]),
            node("Mul", ["sample", "scale"], ["div1"]),
            node("AveragePool", ["sample"], ["div2"], kernel_shape=[2, 2], strides=[2, 2]),
        ],
        {
            "frequencies": FREQUENCIES,
            "projection": PROJECTION,
            "one": np.array([1]),
            "three": np.array([3]),
            "one_two": np.array([1, 2]),
            "two_three": np.array([2, 3]),
        },
    )
    save(
        "adapter",
        [
            node("Reshape", ["div1", "tokens"], ["rows"]),
            node("Transpose", ["rows"], ["encoder_logits"], perm=[0, 2, 1]),
            node("ReduceMax", ["encoder_logits", "one"], ["logits"], keepdims=0),
        ],
        {"tokens": np.array([0, 2, -1]), "one": np.array([1])},
    )


def expected_unet(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, Float]:
    """What the small UNet computes, in numpy."""
    sample, states = inputs["sample"], inputs["encoder_hidden_states"]
    angle = inputs["timesteps"].astype(np.float32)[:, None] * FREQUENCIES
    shift = np.concatenate([np.sin(angle), np.cos(angle)], axis=1) @ PROJECTION
    batch, channels, height, width = sample.shape
    quarters = sample.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return {
        "model_output": sample + shift[:, :, None, None],
        "div1": sample * states.mean(axis=(1, 2))[:, None, None, None],
        "div2": quarters.mean(axis=(3, 5)),
    }


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dengine"


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    """As much of a bundle as a backend reads, with the small graphs."""
    write_small_graphs(tmp_path)
    parts = SimpleNamespace(
        folder=tmp_path,
        specs=small_specs(),
        manifest=SimpleNamespace(graph_dtype="float32", weights_dtype="float16", files={"unet.onnx": "0" * 64}),
        graph_path=lambda graph: tmp_path / f"{graph}.onnx",
    )
    return cast(Bundle, parts)


def open_small(bundle: Bundle, engine: str = "openvino", precision: str = "f32", **options: Any) -> Backend:
    return open_backend(bundle, engine, precision=precision, threads=1, device="cpu", **options)


def fill(call: Call, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
    for name, array in inputs.items():
        call.inputs[name].copy_(torch.from_numpy(array))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def prepare_unet(backend: Backend, sizes: Mapping[str, int], outputs: list[str] | None = None) -> Call:
    return backend.prepare("unet", small_specs()["unet"].input_shapes(sizes), outputs)


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


# --- compiled models ---------------------------------------------------------------------------------------------


def run_once(bundle: Bundle) -> Float:
    """The small UNet's outputs for fixed inputs, from a fresh OpenVINO backend."""
    call = prepare_unet(open_small(bundle), SIZES[0])
    fill(call, small_specs()["unet"].example(SIZES[0], 1))
    call.run()
    return np.concatenate([tensor.numpy().ravel() for tensor in call.outputs.values()])


def no_compiling(*_: Any, **__: Any) -> Any:
    raise AssertionError("compiled again")


def test_a_cached_model_is_not_compiled_again_and_gives_the_same_bytes(
    small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_once(small)
    monkeypatch.setattr(OpenVinoBackend, "_compile", no_compiling)
    assert run_once(small).tobytes() == first.tobytes()


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "foreign"])
def test_a_damaged_entry_is_made_again(small: Bundle, cache_home: Path, damage: str) -> None:
    first = run_once(small)
    (entry,) = cache_home.iterdir()
    whole = entry.read_bytes()
    if damage == "foreign":
        assert cache.store(entry.stem, b"whole, but no compiled model")
    else:
        changed = whole[:-1] + bytes([whole[-1] ^ 1])
        entry.write_bytes({"cut": whole[: len(whole) // 2], "changed": changed, "empty": b""}[damage])
    assert run_once(small).tobytes() == first.tobytes()
    assert len(entry.read_bytes()) == len(whole)


def test_everything_that_matters_makes_another_entry(small: Bundle, cache_home: Path) -> None:
    backend = open_small(small)
    prepare_unet(backend, SIZES[0])
    prepare_unet(backend, SIZES[0])
    assert len(list(cache_home.iterdir())) == 1
    prepare_unet(backend, SIZES[1])
    prepare_unet(backend, SIZES[0], ["div1"])
    prepare_unet(open_backend(small, "openvino", precision="f32", threads=2), SIZES[0])
    cast(Any, small.manifest).files = {"unet.onnx": "1" * 64}
    prepare_unet(backend, SIZES[0])
    assert len(list(cache_home.iterdir())) == 5


def test_nothing_is_kept_when_told_so(small: Bundle, cache_home: Path) -> None:
    prepare_unet(open_small(small, keep_compiled=False), SIZES[0])
    assert not cache_home.exists()


def test_a_cache_folder_that_cannot_be_written_stops_nothing(
    small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert np.isfinite(run_once(small)).all()
    assert not cache.store("key", b"value")


def test_the_cache_gives_back_what_was_stored_and_nothing_else(cache_home: Path) -> None:
    assert cache.load("key") is None
    assert cache.store("key", b"value")
    assert cache.load("key") == b"value"
    assert cache.store("key", b"other")
    assert cache.load("key") == b"other"
    assert [path.name for path in cache_home.iterdir()] == ["key.blob"]


def test_the_cache_forgets_what_was_not_used_for_longest(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT_BYTES", 2 * (32 + 10))
    for age, key in enumerate(("b", "a")):
        cache.store(key, bytes(10))
        path = cache_home / f"{key}.blob"
        os.utime(path, (1000 + age, 1000 + age))
    assert cache.load("b") is not None  # used now, so a is the older one
    cache.store("c", bytes(10))
    assert sorted(path.stem for path in cache_home.iterdir()) == ["b", "c"]


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_the_cache_is_in_the_home_folder_unless_told_otherwise(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "dengine"


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
    with pytest.raises(BackendError, match="no bf16 arithmetic"):
        open_small(small, "openvino", "bf16")


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("tensorflow", {}, 'Unknown engine "tensorflow"; one of auto, tensorrt, torch'),
        ("openvino", {"precision": "f64"}, 'Unknown precision "f64"'),
        ("openvino", {"threads": 0}, "threads is 0"),
        ("openvino", {"device": "tpu"}, 'Unknown device "tpu"'),
        ("openvino", {"device": "cuda"}, "openvino runs on the CPU"),
        ("onnxruntime", {"precision": "bf16"}, "f32 in this bundle, not bf16"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    small: Bundle, engine: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        open_backend(small, engine, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("engine", ["auto", "torch", "onnxruntime"])
def test_a_gpu_that_is_not_there_is_said_so(small: Bundle, engine: str) -> None:
    with pytest.raises(BackendError, match="no CUDA device 0 that PyTorch can use"):
        open_backend(small, engine, device="cuda")


@pytest.mark.parametrize(("engine", "install"), [("openvino", "openvino"), ("onnxruntime", "onnxruntime-gpu")])
def test_a_missing_runtime_comes_with_what_to_install(
    small: Bundle, monkeypatch: pytest.MonkeyPatch, engine: str, install: str
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

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
    with pytest.raises(UsageError, match="f16 in this bundle, not f32"):
        open_backend(half, "onnxruntime", precision="f32")


def test_torch_in_half_keeps_the_islands_of_the_bundle(half: Bundle) -> None:
    from engines.backends.torch_backend import _load_modules
    from engines.modules import run_module

    modules = _load_modules(half, torch.float16, torch.device("cpu"))
    dtypes = {name: value.dtype for name, value in modules["unet"].named_parameters()}
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == {name for name in dtypes if name.startswith(f"{toy.OVERFLOWING}.")}
    assert {value.dtype for value in modules["vae_decoder"].parameters()} == {torch.float16}
    assert {value.dtype for value in modules["text_encoder"].parameters()} == {torch.float32}
    inputs = half.specs["unet"].example({"B": 1, "h": 4, "w": 4}, 7)
    outputs = run_module(modules["unet"], tuple(torch.from_numpy(array) for array in inputs.values()))
    assert all(bool(output.isfinite().all()) for output in outputs)
