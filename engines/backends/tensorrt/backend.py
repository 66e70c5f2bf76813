"""TensorRT as a backend, on an NVIDIA GPU.

Knows: loading the plans that `plans` found, and running one in PyTorch's memory and streams (`gpu` has the rule). Does
not know how a plan is built (`export.tensorrt.build`), or where it is kept (`plans`). No other file at run time imports
TensorRT.

TensorRT readies itself for new shapes at the first `run` of a Call, which must therefore come before a capture.

Two builds of one graph may choose different kernels, and their results differ in the last bits: bytes repeat with the
same plan, not with a plan that was built again.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from engines.backends.base import Call, OpenOptions, Role, Shapes, Tensors, import_runtime, new_buffers, wanted_outputs
from engines.backends.probe import Device, Probe, has_nvidia, one_line
from engines.backends.tensorrt.gpu import Gpu, find_gpu
from engines.backends.tensorrt.plans import (
    Machine,
    Needs,
    Plan,
    PlanStore,
    missing_line,
    missing_plans,
    plan_key,
    shown_sizes,
)
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GraphSpec
from engines.common.devices import resolve_threads
from engines.errors import BackendError, UsageError

OLDEST = (10, 12)  # the first TensorRT whose networks must be strongly typed
INSTALL = "tensorrt"


def import_tensorrt() -> Any:
    """The tensorrt package. Raises BackendError where it is missing, broken or too old, with what to install."""
    trt: Any = import_runtime("tensorrt", INSTALL)
    if version_of(trt.__version__) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise BackendError(
            f"TensorRT {trt.__version__} is installed; {needed} or newer is needed. "
            f'Upgrade it with "pip install --upgrade {INSTALL}".'
        )
    return trt


def version_of(text: str) -> tuple[int, ...]:
    """`10.14.1.48.post1` as numbers: (10, 14, 1, 48)."""
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def machine_of(gpu: Gpu) -> Machine:
    """What plans that are made here are bound to."""
    return Machine(str(import_tensorrt().__version__), gpu.name, gpu.capability, gpu.driver)


@cache
def log() -> Any:
    """The logger of this process: TensorRT keeps the first one it is given for everything that comes later.

    It is silent; its `messages` are the last warnings and errors, as (severity, text).
    """
    trt: Any = import_tensorrt()

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: deque[tuple[Any, str]] = deque(maxlen=1000)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.messages.append((severity, " ".join(str(message).split())))

    return Log()


def last_error() -> str:
    """What TensorRT last called an error, as the end of a message of ours; says so where it gave no reason."""
    trt = import_tensorrt()
    errors = [text for severity, text in log().messages if severity != trt.ILogger.WARNING]
    return errors[-1].rstrip(".") if errors else "TensorRT gives no reason"


def open_bundle(bundle: Bundle, options: OpenOptions) -> "TensorRtBackend":
    """See `registry.open_backend`. Raises BackendError where a plan for `options.needs` is missing."""
    backend = TensorRtBackend(
        bundle, precision=options.precision, threads=options.threads, gpu=find_gpu(options.device)
    )
    if options.needs is not None and (missing := backend.missing(options.needs)):
        raise BackendError(missing)
    return backend


class TensorRtBackend:
    """Executes a bundle's graphs from plans that were built on this machine."""

    name = "tensorrt"
    precision = "f16"

    def __init__(
        self, bundle: Bundle, *, precision: str, threads: int | None, gpu: Gpu, store: PlanStore | None = None
    ) -> None:
        """Find the runtime; a plan is loaded when its graph is first prepared.

        `store` None is the user's own. Raises UsageError for a precision other than f16, BackendError for a bundle in
        float32 and without the runtime.
        """
        check_bundle(bundle)
        if precision not in ("auto", self.precision):
            raise UsageError(
                f"tensorrt computes in the graphs' own precision, f16 in this bundle, not {precision}. "
                f"Use `precision=f16`, or another `engine`.",
                field="precision",
            )
        self._trt = import_tensorrt()
        self.device = gpu.device
        self.threads = resolve_threads(threads)
        self.description = f"tensorrt {self._trt.__version__} on {gpu.name}, f16"
        self._gpu = gpu
        self._machine = machine_of(gpu)
        self._bundle = bundle
        self._store = store or PlanStore()
        self._runtime: Any = None
        self._engines: dict[Path, Any] = {}

    def missing(self, needs: Needs) -> str | None:
        """Which plans for `needs` are missing, with the command that builds them, in one line; None if none is."""
        return missing_plans(self._store, self._bundle, self._machine, needs)

    def prepare(
        self,
        graph: str,
        shapes: Shapes,
        outputs: Sequence[str] | None = None,
        varies: str | None = None,
        role: Role | None = None,
    ) -> Call:
        """See `Backend.prepare`. Raises BackendError with the command that builds the plan, where there is none."""
        spec = self._bundle.specs[graph]
        sizes = spec.sizes(shapes)
        wanted = wanted_outputs(spec, outputs)
        found = self._store.find(plan_key(self._bundle, graph, self._machine), sizes)
        if found is None:
            shown = f"{graph} ({shown_sizes(self._bundle, sizes)})"
            raise BackendError(
                missing_line(self._store, self._bundle, self._machine, [shown], _build(self._bundle, sizes))
            )
        plan, profile = found
        with self._gpu.active():
            engine = self._engine(plan)
            self._check_tensors(engine, spec, plan)
            context = self._context(engine, profile, shapes, plan)
            inputs = new_buffers(spec.inputs, shapes, self.device)
            results = new_buffers(spec.outputs, _output_shapes(context, spec, plan), self.device)
            for name, tensor in (inputs | results).items():
                _expect(context.set_tensor_address(name, tensor.data_ptr()), f"{plan.path}: the buffer of {name}")
        read = {tensor.name: results.pop(tensor.name) for tensor in wanted}
        return _TensorRtCall(graph, inputs, read, results, context, self._gpu)

    def _engine(self, plan: Plan) -> Any:
        """The plan on the GPU; all its shapes share it, and its weights."""
        if plan.path not in self._engines:
            if self._runtime is None:
                self._runtime = self._trt.Runtime(log())
            log().messages.clear()
            with plan.data() as data:
                engine = self._runtime.deserialize_cuda_engine(data)
            if engine is None:
                raise BackendError(f"TensorRT does not load {plan.path}: {last_error()}. Remove it and build it again.")
            self._engines[plan.path] = engine
        return self._engines[plan.path]

    def _check_tensors(self, engine: Any, spec: GraphSpec, plan: Plan) -> None:
        """Raise BackendError unless a plan's tensors are the spec's: they are about to be read and written as such."""
        types, modes = self._trt.DataType, self._trt.TensorIOMode
        dtypes = {"float32": types.FLOAT, "float16": types.HALF, "int64": types.INT64}
        expected = {tensor.name: (modes.INPUT, dtypes[tensor.dtype]) for tensor in spec.inputs}
        expected |= {tensor.name: (modes.OUTPUT, dtypes[tensor.dtype]) for tensor in spec.outputs}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        found = {name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name)) for name in names}
        if found != expected:
            wrong = sorted(name for name in found | expected if found.get(name) != expected.get(name))
            raise BackendError(
                f"{plan.path}: {', '.join(wrong)} is not what the graph {spec.name} has. Build it again."
            )

    def _context(self, engine: Any, profile: int, shapes: Shapes, plan: Plan) -> Any:
        """An execution context for these shapes alone."""
        context = engine.create_execution_context()
        _expect(context is not None, f"{plan.path}: its memory on the GPU (fewer `slots` need less)")
        # Each context is told its profile: only the first one of an engine would take profile 0 by itself.
        set_profile = self._gpu.enqueue(lambda stream: bool(context.set_optimization_profile_async(profile, stream)))
        _expect(set_profile, f"{plan.path}: profile {profile}")
        for name, shape in shapes.items():
            _expect(context.set_input_shape(name, tuple(shape)), f"{plan.path}: the shape {list(shape)} of {name}")
        try:
            unknown = context.infer_shapes()
        except RuntimeError as cause:
            raise BackendError(f"{plan.path}: TensorRT cannot infer its shapes: {cause}. Build it again.") from cause
        _expect(not unknown, f"{plan.path}: the shapes of {', '.join(unknown)}")
        return context


@dataclass(frozen=True)
class _TensorRtCall:
    graph: str
    inputs: Tensors
    outputs: Tensors
    # Outputs that nobody reads. Each has memory of its own: a plan may use an output again further on.
    scratch: Tensors
    context: Any
    gpu: Gpu

    @property
    def capturable(self) -> bool:
        return True

    def run(self) -> None:
        with self.gpu.active():
            if not self.gpu.enqueue(self.context.execute_async_v3):
                raise BackendError(f"TensorRT does not run {self.graph}: {last_error()}.")


def check_bundle(bundle: Bundle) -> None:
    """Raise BackendError unless a bundle's graphs are in half precision."""
    if bundle.manifest.graph_dtype != "float16":
        folder = str(bundle.folder)
        raise BackendError(
            f"The graphs of {bundle.folder} are in {bundle.manifest.graph_dtype}; TensorRT plans are made of graphs in "
            f"float16. Make such a bundle with `export_bundle({folder!r}, {folder + '/adapter'!r}, "
            f"{folder + '-fp16'!r}, graph_dtype='float16')`.",
            field="bundle",
        )


def probe(device: torch.device | None = None) -> Probe:
    """What `dengine doctor` says of TensorRT on this machine: whether it starts there; raises nothing.

    No tiny graph is run, as the other engines do: a plan would have to be built first. `export.gpu.checks` does that.
    """
    try:
        trt = import_tensorrt()
    except BackendError as cause:
        return Probe("tensorrt", advice=str(cause) if has_nvidia() else "it needs an NVIDIA GPU, and none is here")
    version = str(trt.__version__)
    try:
        gpu = find_gpu(device)
    except Exception as cause:  # a driver that is broken raises errors of PyTorch's
        return Probe("tensorrt", version, advice=one_line(cause))
    try:
        with gpu.active():
            trt.Runtime(log())
            trt.Builder(log())
    except Exception as cause:  # what the bindings raise where the libraries do not start
        problem = one_line(cause)
        return Probe("tensorrt", version, (Device(gpu.name, False, (), problem),), f"it does not start: {problem}")
    return Probe("tensorrt", version, (Device(gpu.name, True, ("f16",)),), details={"driver": gpu.driver})


def _expect(taken: Any, what: str) -> None:
    """Raise BackendError, with TensorRT's own reason, unless it took what it was given."""
    if not taken:
        raise BackendError(f"TensorRT does not take {what}: {last_error()}.")


def _output_shapes(context: Any, spec: GraphSpec, plan: Plan) -> dict[str, tuple[int, ...]]:
    shapes = {tensor.name: tuple(context.get_tensor_shape(tensor.name)) for tensor in spec.outputs}
    for name, shape in shapes.items():
        if min(shape) < 0:
            raise BackendError(f"{plan.path}: the shape of {name} is known only when it has run. Build it again.")
    return shapes


def _build(bundle: Bundle, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Arguments of `build_plans` whose plans serve these sizes, whichever graph they are of."""
    if "w" not in sizes:
        return {}
    frame = (sizes["w"] * bundle.vae_stride, sizes["h"] * bundle.vae_stride)
    size = {} if frame == bundle.frame else {"sizes": (frame,) * 3}
    return {"batches": (1, sizes["B"], sizes["B"])} | size
