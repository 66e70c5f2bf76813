"""OpenVINO as a backend, on the CPU.

Knows: compiling a bundle's ONNX graphs for fixed shapes, where bf16 must not reach, and keeping compiled models.
Does not know: PyTorch modules, where compiled models are kept (`cache`), or how a model gets int8 (`openvino_int8`).

int8 is for what paints: the sampler's calls of the UNet, and the VAE. The label pass, the adapter and the text encoder,
on which boxes hang, are in bf16 where the processor has it and they stand it, else in f32. On two cores with AVX-512
VNNI and no AMX, a guided tick of SD 2.1's UNet (2 rows of 64x64 latents, random weights) took 3.8 s in bf16 and 2.5 in
int8.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engines.backends.base import (
    ALWAYS_F32,
    Call,
    OpenOptions,
    Role,
    Shapes,
    Tensors,
    cpu_precision,
    import_runtime,
    new_buffers,
    wanted_outputs,
)
from engines.backends.openvino.core import open_core
from engines.backends.openvino.halves import cut_products
from engines.backends.openvino.int8 import Ranges, quantize, ranges_of
from engines.backends.openvino.pairs import share_pairs
from engines.backends.openvino.signal_stack import same_signal_stack
from engines.backends.openvino.upsampling import fold_upsampling
from engines.backends.probe import Probe, tiny_input, tiny_onnx, try_device
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GraphSpec, TensorSpec
from engines.common import cache, quote
from engines.common.devices import cpu_has_bf16, cpu_has_int8, cpu_name, resolve_threads
from engines.common.plurals import counted
from engines.errors import BackendError

_MADE = 3  # raised whenever a model is changed in another way before it is compiled: part of the cache's keys
STREAM_ROWS = 2  # of a batch, at least, for each part that is computed beside others


def open_bundle(bundle: Bundle, options: OpenOptions) -> "OpenVinoBackend":
    """See `registry.open_backend`."""
    return OpenVinoBackend(bundle, precision=options.precision, threads=options.threads, keep=options.keep_compiled)


class OpenVinoBackend:
    """Executes a bundle's ONNX graphs with OpenVINO."""

    name = "openvino"
    device = torch.device("cpu")

    def __init__(self, bundle: Bundle, *, precision: str, threads: int | None, keep: bool) -> None:
        """Find the runtime; graphs are compiled when prepared, and kept in the user's cache folder if `keep`.

        Raises BackendError without the runtime; for int8, on a processor without it and for a bundle without ranges.
        """
        self._ov: Any = import_runtime("openvino", "openvino")
        self._ov.Type.f32.to_dtype()  # sets its bindings up for numpy, which deadlocks when two threads do it at once
        self._int8 = precision == "int8"
        if self._int8:
            _check_int8(bundle)
        self._wide = cpu_precision("auto" if self._int8 else precision, self.name)  # of all that is not in int8
        self.precision = "int8" if self._int8 else self._wide
        self.threads = resolve_threads(threads)
        self._core = open_core(self._ov, self.threads)
        self._bundle = bundle
        self._keep = keep
        exceptions = f" ({' and '.join(ALWAYS_F32)} f32)" if self._wide == "bf16" else ""
        if self._int8:
            vae = [graph for graph in ("vae_encoder", "vae_decoder") if ranges_of(graph, bundle.manifest.activations)]
            narrow = ", ".join(["the sampler's unet", *vae])
            exceptions = f" ({narrow}; the rest {self._wide}{exceptions})"
        self.description = (
            f"openvino {self._ov.__version__.split('-')[0]} on CPU ({cpu_name()}), "
            f"{counted(self.threads, 'thread')}, {self.precision}{exceptions}"
        )

    def prepare(
        self,
        graph: str,
        shapes: Shapes,
        outputs: Sequence[str] | None = None,
        varies: str | None = None,
        role: Role | None = None,
    ) -> Call:
        """See `Backend.prepare`. The compiled model is taken from the user's cache, or made and put there."""
        with same_signal_stack():
            return self._prepare(graph, shapes, outputs, varies, role)

    def _prepare(
        self, graph: str, shapes: Shapes, outputs: Sequence[str] | None, varies: str | None, role: Role | None
    ) -> Call:
        spec = self._bundle.specs[graph]
        batch = spec.sizes(shapes)["B"]
        streams = count_streams(batch, self.threads)
        varies = None if batch // streams % 2 else varies  # a stream is worth more than what pairs share
        whole, shapes = shapes, {name: (shape[0] // streams, *shape[1:]) for name, shape in shapes.items()}
        wanted = wanted_outputs(spec, outputs)
        precision = "f32" if graph in ALWAYS_F32 else self._wide
        in_int8 = self._int8 and role != "labels"
        ranges = ranges_of(graph, self._bundle.manifest.activations) if in_int8 else {}
        config = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        }
        key = self._key(graph, shapes, wanted, config | {"int8": ranges, "varies": varies})
        compiled = self._from_cache(key, config) if self._keep else None
        if compiled is None:
            try:
                compiled = self._compile(spec, shapes, wanted, config, ranges, varies)
            except RuntimeError as cause:
                path, said = self._bundle.graph_path(graph), quote.shorten(cause, 300)
                raise BackendError(f"openvino does not compile {path} at {dict(shapes)}: {said}") from cause
            if self._keep:
                exported = compiled.export_model()
                cache.store(key, exported.getvalue() if isinstance(exported, io.BytesIO) else exported)
        return self._call(compiled, spec, whole, wanted, streams)

    def _key(self, graph: str, shapes: Shapes, wanted: Sequence[TensorSpec], config: dict[str, Any]) -> str:
        """Everything that decides a compiled model's bytes."""
        return cache.cache_key(
            {
                "runtime": f"openvino {self._ov.__version__}",
                "made": _MADE,
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

    def _compile(
        self,
        spec: GraphSpec,
        shapes: Shapes,
        wanted: Sequence[TensorSpec],
        config: dict[str, Any],
        ranges: Ranges,
        varies: str | None,
    ) -> Any:
        model = self._core.read_model(str(self._bundle.graph_path(spec.name)))
        results = [model.output(tensor.name).get_node() for tensor in wanted]
        model = self._ov.Model(results, model.get_parameters(), spec.name)
        if config["INFERENCE_PRECISION_HINT"] != "f32":
            self._tabulate_timesteps(model, spec)
        model.reshape({name: list(shape) for name, shape in shapes.items()})
        rewrite(self._ov, model, varies)
        quantize(self._ov, model, ranges)
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

    def _call(self, compiled: Any, spec: GraphSpec, shapes: Shapes, wanted: Sequence[TensorSpec], streams: int) -> Call:
        """A call whose requests share its buffers, each a run of rows of every one of them."""
        found = {tensor.name: tuple(compiled.output(tensor.name).shape) for tensor in wanted}
        inputs = new_buffers(spec.inputs, shapes, self.device)
        outputs = new_buffers(wanted, {name: (x[0] * streams, *x[1:]) for name, x in found.items()}, self.device)
        requests = [compiled.create_infer_request() for _ in range(streams)]
        for name, buffer in (inputs | outputs).items():
            for request, rows in zip(requests, buffer.chunk(streams), strict=True):
                request.set_tensor(name, self._ov.Tensor(rows.numpy(), shared_memory=True))
        return _OpenVinoCall(inputs, outputs, tuple(requests))


@dataclass(frozen=True)
class _OpenVinoCall:
    inputs: Tensors
    outputs: Tensors
    requests: tuple[Any, ...]  # one a stream

    @property
    def capturable(self) -> bool:
        return False

    def run(self) -> None:
        for request in self.requests:
            request.start_async()
        for request in self.requests:
            request.wait()


def count_streams(batch: int, threads: int) -> int:
    """Into how many parts a batch is cut, each with its share of the threads.

    As many as leave every part STREAM_ROWS rows and as many threads as any other. On two cores, two parts of 8 rows of
    the bundled UNet took 7.6 ms a row in bf16 and 5.8 in int8, where one part of 16 took 8.2 and 6.6 or more.
    """
    fitting = (n for n in range(1, threads + 1) if threads % n == 0 and batch % n == 0 and batch // n >= STREAM_ROWS)
    return max(fitting, default=1)


def rewrite(ov: Any, model: Any, varies: str | None) -> None:
    """Spare a model of fixed shapes arithmetic and copies, in place; `varies` as `Backend.prepare` has it."""
    if varies is not None:
        share_pairs(ov, model, varies)
    cut_products(ov, model)
    fold_upsampling(ov, model)


def _check_int8(bundle: Bundle) -> None:
    if not cpu_has_int8():
        raise BackendError(
            "This processor has no int8 arithmetic (AMX or VNNI). Use `precision=auto`.", field="precision"
        )
    if not bundle.manifest.activations:
        raise BackendError(
            f"{bundle.folder} has no ranges for int8. Export it again with `int8=True`, or use `precision=auto`.",
            field="precision",
        )


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
        core = open_core(ov, 1)
        config = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        compiled = core.compile_model(core.read_model(io.BytesIO(tiny_onnx())), "CPU", config)
        return compiled(tiny_input())[0]

    device = try_device("CPU", ("f32", "bf16") if cpu_has_bf16() else ("f32",), run)
    advice = (
        "" if device.works else f"it fails ({device.problem}); reinstall it: pip install --force-reinstall openvino"
    )
    return Probe("openvino", ov.__version__.split("-")[0], (device,), advice)
