"""PyTorch module to ONNX graph, with the weights left where they are.

Knows: how to export a module by its spec, and how to point the graph's initializers at the tensors of a safetensors
file, so that a bundle stores every weight once. Does not know what a graph computes, or whether it is right
(`export.verify`).

Precision is in the graph: a module in half (`engines.bundle.islands`) becomes a graph in half. Nothing downstream is
asked to choose; TensorRT 11 has no flag for it any more.

Opset 23 is the default: it keeps GroupNormalization and Attention whole, so that a runtime can put its fused kernels
in their place, and its GroupNormalization says that statistics are float32 in a half graph (stash_type). TensorRT
reads it from 10.14, and ONNX Runtime 1.31 and OpenVINO 2026.4 do. Opset 18 is for older TensorRT: both are decomposed
there, into plain operators and InstanceNormalization, of whose precision the standard says nothing. Measured on a 16
M parameter UNet (one thread, 8 rows of 24x32 latents, float32), 23 and 18 are equally exact and equally fast on ONNX
Runtime CPU and OpenVINO, within the noise of 5 runs; the graph of 23 has half the nodes. In half, on random models of
both Stable Diffusion shapes, every output before a top-k is within 6e-4 of float32 at either opset (ONNX Runtime
CPU).
"""

import contextlib
import gc
import hashlib
import json
import logging
import struct
import warnings
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer

from engines.bundle.graphs import GraphSpec
from engines.errors import ExportError

OPSETS = {"default": 23, "TensorRT before 10.14": 18}
INLINE_LIMIT = 1 << 20  # bytes of constants that a graph may hold itself; weights belong into the weights file
# safetensors dtype -> torch dtype and ONNX dtype
_STORED = {
    "F32": (torch.float32, "FLOAT"),
    "F16": (torch.float16, "FLOAT16"),
    "BF16": (torch.bfloat16, "BFLOAT16"),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in a safetensors file."""

    name: str
    dtype: str  # F32, F16 or BF16
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    length: int  # bytes


def read_layout(path: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file and where their bytes are: 8 bytes of header length, JSON header, data."""
    with path.open("rb") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_length))
    start = 8 + header_length
    return [
        StoredTensor(
            name,
            entry["dtype"],
            tuple(entry["shape"]),
            start + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    ]


class _Positional(torch.nn.Module):
    """Calls a module with a plain tuple of inputs, so that all five graphs are exported by the same lines."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.module(*inputs)


def export_graph(
    module: torch.nn.Module, spec: GraphSpec, path: Path, weights: str, *, opset: int = OPSETS["default"]
) -> None:
    """Export `module` to the ONNX file `path`, its initializers pointing into a weights file beside it.

    Args:
        module: on the CPU, in float32 or as `engines.bundle.islands.apply_islands` left it, holding exactly the values
            that the weights file stores; its `forward` takes the spec's inputs in order and returns its outputs in
            order.
        spec: names, axes and dtypes; batch, height and width stay dynamic.
        path: the .onnx file to write.
        weights: the safetensors file, a POSIX path relative to the folder of `path`, and inside it.
        opset: one of the values of OPSETS.

    Raises ExportError when the module cannot be exported, or its weights are not those in the file.
    """
    wrapper = _Positional(module)
    parameters = {name for name, _ in (*wrapper.named_parameters(), *wrapper.named_buffers())}
    model = _trace(wrapper, spec, opset)
    _simplify(model, parameters)
    _clean(model, spec)
    _point_at_weights(model, parameters, path.parent, weights)
    inline = {name: _bytes(value) for name, value in model.graph.initializers.items() if not _is_external(value)}
    if sum(inline.values()) > INLINE_LIMIT:
        largest = max(inline, key=lambda name: inline[name])
        raise ExportError(
            f'{spec.name}: {sum(inline.values()) / 2**20:.1f} MiB of weights are not in {weights}, "{largest}" first. '
            f"The file does not hold what the network was loaded with; export from the folder it was loaded from."
        )
    ir.save(model, path)


def _trace(wrapper: _Positional, spec: GraphSpec, opset: int) -> ir.Model:
    """The module as an onnx_ir model: every parameter an initializer under its own name, in its own dtype."""
    arguments = tuple(torch.from_numpy(array) for array in spec.example(_example_sizes(spec)).values())
    # Plain dynamic axes: named ones (Dim("B")) are refused where a kernel's choice in PyTorch bounds the batch.
    dynamic = tuple(
        {place: torch.export.Dim.DYNAMIC for place, axis in enumerate(tensor.axes) if isinstance(axis, str)}
        for tensor in spec.inputs
    )
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                wrapper,
                arguments,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                opset_version=opset,
                dynamic_shapes=(dynamic,),
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    except Exception as cause:  # the exporter raises its own, torch.export's and the module's errors
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ExportError(f"{spec.name}: PyTorch could not export it to ONNX: {line}") from cause
    assert program is not None
    return program.model


def _example_sizes(spec: GraphSpec) -> dict[str, int]:
    """Batch 2, since the exporter takes 1 for a constant; about 16 latents, since the adapter needs at least as many
    tokens as queries; all different, so that no size is taken for another.
    """
    sizes = {"B": 2}
    for size, extra in (("h", 0), ("w", 1)):
        if multiple := spec.multiples.get(size):
            sizes[size] = multiple * (max(16 // multiple, 3) + extra)
    return sizes


def _simplify(model: ir.Model, parameters: Set[str]) -> None:
    """Fold the arithmetic on shapes, and the sequences that TensorRT does not know, but no weight.

    onnxscript's own optimiser would also fold batch norms into weights, which then are no longer the stored ones.
    """

    def should_fold(node: ir.Node) -> bool | None:
        uses_weight = any(value is not None and value.name in parameters for value in node.inputs)
        return False if uses_weight else None  # None: the folder's own judgement

    passes.InlinePass()(model)
    for _ in range(2):  # what is folded first lets more be folded
        optimizer.fold_constants_ir(model, onnx_shape_inference=True, should_fold=should_fold)
        passes.RemoveUnusedNodesPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.IdentityEliminationPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.OutputFixPass()(model)


def _clean(model: ir.Model, spec: GraphSpec) -> None:
    """Name the axes of inputs and outputs as the spec does; drop stack traces, which hold paths of this machine."""
    passes.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    for node in graph:
        for value in node.outputs:
            value.shape = None  # symbols of the exporter's own; runtimes infer shapes themselves
    for values, tensors in ((graph.inputs, spec.inputs), (graph.outputs, spec.outputs)):
        if [value.name for value in values] != [tensor.name for tensor in tensors]:
            names = ", ".join(str(value.name) for value in values)
            raise ExportError(f"{spec.name}: the exported graph has {names}, not what its spec names.")
        for value, tensor in zip(values, tensors, strict=True):
            value.shape = ir.Shape(tensor.axes)
    model.producer_name, model.producer_version = "dengine", None
    graph.name = spec.name


def _point_at_weights(model: ir.Model, parameters: Set[str], folder: Path, weights: str) -> None:
    """Replace each float parameter by the stored tensor of the same shape and value, with a Cast where the graph
    computes in another dtype than is stored: float32 from stored halves, in a float32 graph or an island.

    Tensors are found by content and not by name, so that what a graph reads is by construction what it was exported
    with, whatever prefixes the two sides use.
    """
    graph = model.graph
    stored = _Contents(folder / weights)
    sources: dict[str, ir.Value] = {}
    casts: dict[tuple[str, ir.DataType], ir.Node] = {}
    for name in sorted(parameters & set(graph.initializers)):
        value = graph.initializers[name]
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or value.const_value is None:
            continue
        found = stored.find(torch.from_numpy(np.array(value.const_value.numpy())))
        if found is None:
            continue
        source = sources.setdefault(found.name, _external(found, weights, folder))
        replacement = source
        if source.dtype != value.dtype:
            key = (found.name, value.dtype)
            if key not in casts:
                casts[key] = ir.node("Cast", [source], {"to": value.dtype.value})
                casts[key].outputs[0].name = f"{found.name}.{value.dtype.name.lower()}"
                casts[key].outputs[0].type = ir.TensorType(value.dtype)
            replacement = casts[key].outputs[0]
        ir.convenience.replace_all_uses_with(value, replacement)
        graph.initializers.pop(name)
    for source in sources.values():
        graph.register_initializer(source)
    graph.insert_before(graph[0], tuple(casts.values()))


def _external(found: StoredTensor, weights: str, folder: Path) -> ir.Value:
    """A stored tensor as a value of a graph."""
    dtype = getattr(ir.DataType, _STORED[found.dtype][1])
    shape = ir.Shape(found.shape)
    tensor = ir.ExternalTensor(
        weights, found.offset, found.length, dtype, shape=shape, name=found.name, base_dir=str(folder)
    )
    return ir.Value(name=found.name, type=ir.TensorType(dtype), shape=shape, const_value=tensor)


class _Contents:
    """The tensors of a safetensors file by dtype, shape and content."""

    def __init__(self, path: Path) -> None:
        self._by_content: dict[tuple[str, tuple[int, ...], bytes], StoredTensor] = {}
        with path.open("rb") as file:
            for tensor in read_layout(path):
                if tensor.dtype in _STORED:
                    file.seek(tensor.offset)
                    digest = hashlib.sha256(file.read(tensor.length)).digest()
                    self._by_content.setdefault((tensor.dtype, tensor.shape, digest), tensor)
        self._dtypes = {dtype for dtype, _, _ in self._by_content}

    def find(self, tensor: torch.Tensor) -> StoredTensor | None:
        """The stored tensor that, read in the dtype of `tensor`, equals it bit for bit."""
        for dtype in sorted(self._dtypes):
            stored = tensor.to(_STORED[dtype][0])
            if torch.equal(stored.to(tensor.dtype), tensor):
                digest = hashlib.sha256(stored.contiguous().flatten().view(torch.uint8).numpy().tobytes()).digest()
                if found := self._by_content.get((dtype, tuple(tensor.shape), digest)):
                    return found
        return None


def _is_external(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.nbytes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself: optional packages it lacks, and its own deprecations.

    Python's garbage collector rests meanwhile: tracing keeps all it makes, and searching it took a fifth of the time.
    """
    logger = logging.getLogger("torch.onnx")
    level, collecting = logger.level, gc.isenabled()
    logger.setLevel(logging.ERROR)
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if collecting:
            gc.enable()
