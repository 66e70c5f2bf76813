"""OpenVINO as a backend, on the CPU.

Knows: compiling a bundle's ONNX graphs for fixed shapes, where bf16 must not reach, and keeping compiled models.
Does not know: PyTorch modules, or where compiled models are kept (`cache`).
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engines.backends import cache
from engines.backends.base import (
    ALWAYS_F32,
    Call,
    Shapes,
    Tensors,
    counted,
    cpu_has_bf16,
    cpu_name,
    cpu_precision,
    import_runtime,
    new_buffers,
    resolve_threads,
    wanted_outputs,
)
from engines.backends.probe import Probe, tiny_input, tiny_onnx, try_device
from engines.bundle import Bundle
from engines.errors import BackendError
from engines.graphs import GraphSpec, TensorSpec


class OpenVinoBackend:
    """Executes a bundle's ONNX graphs with OpenVINO."""

    name = "openvino"
    device = torch.device("cpu")

    def __init__(self, bundle: Bundle, *, precision: str, threads: int | None, keep: bool) -> None:
        """Find the runtime; graphs are compiled when prepared, and kept in the user's cache folder if `keep`.

        Raises BackendError without the runtime.
        """
        self._ov: Any = import_runtime("openvino", "openvino")
        self._core = self._ov.Core()
        self.precision = cpu_precision(precision, self.name)
        self.threads = resolve_threads(threads)
        self._bundle = bundle
        self._keep = keep
        exceptions = f" ({' and '.join(ALWAYS_F32)} f32)" if self.precision == "bf16" else ""
        self.description = (
            f"openvino {self._ov.__version__.split('-')[0]} on CPU ({cpu_name()}), "
            f"{counted(self.threads, 'thread')}, {self.precision}{exceptions}"
        )

    def prepare(self, graph: str, shapes: Shapes, outputs: Sequence[str] | None = None) -> Call:
        """See `Backend.prepare`. The compiled model is taken from the user's cache, or made and put there."""
        spec = self._bundle.specs[graph]
        spec.sizes(shapes)
        wanted = wanted_outputs(spec, outputs)
        precision = "f32" if graph in ALWAYS_F32 else self.precision
        config = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        key = self._key(graph, shapes, wanted, config)
        compiled = self._from_cache(key, config) if self._keep else None
        fresh = compiled is None
        if compiled is None:
            try:
                compiled = self._compile(spec, shapes, wanted, config)
            except RuntimeError as cause:
                path = self._bundle.graph_path(graph)
                raise BackendError(f"openvino does not compile {path} at {dict(shapes)}: {cause}") from cause
        if fresh and self._keep:
            exported = compiled.export_model()
            cache.store(key, exported.getvalue() if isinstance(exported, io.BytesIO) else exported)
        return self._call(compiled, spec, shapes, wanted)

    def _key(self, graph: str, shapes: Shapes, wanted: Sequence[TensorSpec], config: dict[str, Any]) -> str:
        """Everything that decides a compiled model's bytes."""
        return cache.cache_key(
            {
                "runtime": f"openvino {self._ov.__version__}",
                "cpu": [self._core.get_property("CPU", "FULL_DEVICE_NAME"), dict(torch.cpu.get_capabilities())],
                "files": self._bundle.manifest.files,
                "graph": graph,
                "shapes": {name: list(shape) for name, shape in shapes.items()},
                "outputs": [tensor.name for tensor in wanted],
                "config": config,
            }
        )

    def _from_cache(self, key: str, config: dict[str, Any]) -> Any | None:
        blob = cache.load(key)
        if blob is None:
            return None
        try:
            return self._core.import_model(blob, "CPU", config)
        except RuntimeError:
            return None  # whole, but not to this runtime's liking: it is made again and replaced

    def _compile(self, spec: GraphSpec, shapes: Shapes, wanted: Sequence[TensorSpec], config: dict[str, Any]) -> Any:
        model = self._core.read_model(str(self._bundle.graph_path(spec.name)))
        results = [model.output(tensor.name).get_node() for tensor in wanted]
        model = self._ov.Model(results, model.get_parameters(), spec.name)
        if config["INFERENCE_PRECISION_HINT"] != "f32":
            self._tabulate_timesteps(model, spec)
        model.reshape({name: list(shape) for name, shape in shapes.items()})
        return self._core.compile_model(model, "CPU", config)

    def _tabulate_timesteps(self, model: Any, spec: GraphSpec) -> None:
        """Replace what a UNet computes from its timesteps alone, up to the first matrix product, by a table.

        In bf16, OpenVINO would round t * frequency before its sine: t = 501 would become 500, and the model output's
        error at large t four times that at t = 1 (0.054 against 0.013 for a random UNet of 11 M parameters).
        Graphs without an integer input of one axis, or of another build, stay as they are.
        """
        timesteps = next((x for x in spec.inputs if x.below is not None and len(x.axes) == 1), None)
        embedding = None if timesteps is None else _first_product_input(model, timesteps.name)
        if timesteps is None or timesteps.below is None or embedding is None:
            return
        sizes = {**spec.multiples, str(timesteps.axes[0]): timesteps.below}
        shapes = spec.input_shapes(sizes)
        head = self._ov.Model([embedding], model.get_parameters(), "timestep_embedding").clone()
        head.reshape({name: list(shape) for name, shape in shapes.items()})
        compiled = self._core.compile_model(
            head, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": self.threads}
        )
        inputs = {x.name: np.zeros(shapes[x.name], dtype=x.dtype) for x in spec.inputs}
        inputs[timesteps.name] = np.arange(timesteps.below)
        table = np.array(compiled(inputs)[0])
        operations = self._ov.opset13
        rows = next(node for node in model.get_parameters() if timesteps.name in node.output(0).get_names())
        gather = operations.gather(operations.constant(table), rows, operations.constant(0))
        for port in embedding.get_target_inputs():
            port.replace_source_output(gather.output(0))

    def _call(self, compiled: Any, spec: GraphSpec, shapes: Shapes, wanted: Sequence[TensorSpec]) -> Call:
        found = {tensor.name: tuple(compiled.output(tensor.name).shape) for tensor in wanted}
        inputs = new_buffers(spec.inputs, shapes, self.device)
        outputs = new_buffers(wanted, found, self.device)
        request = compiled.create_infer_request()
        for name, tensor in (inputs | outputs).items():
            request.set_tensor(name, self._ov.Tensor(tensor.numpy(), shared_memory=True))
        return _OpenVinoCall(inputs, outputs, request)


@dataclass(frozen=True)
class _OpenVinoCall:
    inputs: Tensors
    outputs: Tensors
    request: Any

    @property
    def capturable(self) -> bool:
        return False

    def run(self) -> None:
        self.request.start_async()
        self.request.wait()


def _first_product_input(model: Any, timesteps: str) -> Any | None:
    """The output that feeds the first matrix product and depends on `timesteps`, constants and shapes alone."""
    pure: set[str] = set()
    from_timesteps: set[str] = set()
    for node in model.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        sources = [node.input_value(i) for i in range(node.get_input_size())]
        feeding = [source.get_node().get_friendly_name() for source in sources]
        if kind == "MatMul":
            if feeding[0] in from_timesteps:
                return sources[0]
        elif kind in ("Constant", "ShapeOf"):
            pure.add(name)
        elif kind == "Parameter":
            if timesteps in node.output(0).get_names():
                pure.add(name)
                from_timesteps.add(name)
        elif all(source in pure for source in feeding):
            pure.add(name)
            if any(source in from_timesteps for source in feeding):
                from_timesteps.add(name)
    return None


def probe() -> Probe:
    """What OpenVINO can do here: a tiny graph is really compiled and run on the CPU. Raises nothing."""
    try:
        ov: Any = import_runtime("openvino", "openvino")
    except BackendError as cause:
        return Probe("openvino", advice=str(cause))

    def run(precision: str) -> Any:
        core = ov.Core()
        config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        compiled = core.compile_model(core.read_model(io.BytesIO(tiny_onnx())), "CPU", config)
        return compiled(tiny_input())[0]

    device = try_device("CPU", ("f32", "bf16") if cpu_has_bf16() else ("f32",), run)
    advice = (
        "" if device.works else f"it fails ({device.problem}); reinstall it: pip install --force-reinstall openvino"
    )
    return Probe("openvino", ov.__version__.split("-")[0], (device,), advice)
