"""Two graphs of a few nodes whose outputs are known, in as much of a bundle as a backend reads."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from engines.backends.base import Backend, Call
from engines.backends.registry import open_backend
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GraphSpec, TensorSpec

Float = npt.NDArray[np.float32]
SIZES = ({"B": 2, "h": 4, "w": 6}, {"B": 3, "h": 8, "w": 4})
FREQUENCIES = np.array([[1.0, 0.1, 0.01, 0.001]], dtype=np.float32)
PROJECTION = np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)


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


def small_bundle(folder: Path) -> Bundle:
    """As much of a bundle as a backend reads, with the small graphs in `folder`."""
    write_small_graphs(folder)
    parts = SimpleNamespace(
        folder=folder,
        specs=small_specs(),
        manifest=SimpleNamespace(graph_dtype="float32", weights_dtype="float16", files={"unet.onnx": "0" * 64}),
        graph_path=lambda graph: folder / f"{graph}.onnx",
    )
    return cast(Bundle, parts)


def open_small(bundle: Bundle, engine: str = "openvino", precision: str = "f32", **options: Any) -> Backend:
    return open_backend(bundle, engine, precision=precision, threads=1, device="cpu", **options)


def fill(call: Call, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
    for name, array in inputs.items():
        call.inputs[name].copy_(torch.from_numpy(array))


def prepare_unet(backend: Backend, sizes: Mapping[str, int], outputs: list[str] | None = None) -> Call:
    return backend.prepare("unet", small_specs()["unet"].input_shapes(sizes), outputs)


def stores(path: Path) -> dict[str, int]:
    """What an ONNX file's initializers are, and how many casts it makes."""
    graph = onnx.load(str(path), load_external_data=False).graph
    outside = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert {tensor.data_type for tensor in outside} == {onnx.TensorProto.FLOAT16}
    stored = {tensor.name for tensor in outside}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored]
    return {"weights": len(outside), "cast weights": len(casts)}
