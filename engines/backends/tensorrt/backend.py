"""TensorRT as a backend, on an NVIDIA GPU.

Knows: loading the plans that `plans` found, and running one in PyTorch's memory and streams (`gpu` has the rule). Does
not know how a plan is built (`export.tensorrt.build`), where it is kept (`plans`), or where the two TensorRTs differ
(`flavours`, `last_step`).

TensorRT readies itself for new shapes at the first `run` of a Call, which must therefore come before a capture.

Two builds of one graph may choose different kernels, and their results differ in the last bits: bytes repeat with the
same plan, not with a plan that was built again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.backends.base import Call, OpenOptions, Role, Shapes, Tensors, new_buffers, wanted_outputs
from engines.backends.probe import Device, Probe, has_nvidia, one_line
from engines.backends.tensorrt.flavours import (
    FLAVOURS,
    Library,
    check_driver,
    flavour_for,
    is_installed,
    load_library,
    target_name,
)
from engines.backends.tensorrt.gpu import Gpu, find_gpu
from engines.backends.tensorrt.last_step import LastStep
from engines.backends.tensorrt.plans import Machine, Needs, Plan, PlanStore, missing_line, missing_plans, plan_key
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GraphSpec
from engines.common.devices import resolve_threads
from engines.errors import BackendError, UsageError


def library_for(gpu: Gpu) -> Library:
    """The TensorRT that runs on a GPU, loaded. Raises BackendError where there is none, or the driver is too old."""
    flavour = flavour_for(gpu.capability)
    check_driver(flavour, gpu.cuda)
    return load_library(flavour)


def machine_of(library: Library, gpu: Gpu) -> Machine:
    """What plans that are made here are bound to."""
    if library.flavour.ahead:
        return Machine(library.flavour.title, library.version, gpu.capability)
    return Machine(library.flavour.title, library.version, gpu.capability, gpu.name, gpu.driver)


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
        self._library = library_for(gpu)
        self.device = gpu.device
        self.threads = resolve_threads(threads)
        self.description = f"{self._library} on {gpu.name}, f16"
        self._gpu = gpu
        self._machine = machine_of(self._library, gpu)
        self._bundle = bundle
        self._store = store or PlanStore()
        self._runtime: Any = None
        self._engines: dict[Path, Any] = {}
        self._last_steps: dict[Path, LastStep] = {}

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
            needed, build = [(graph, sizes)], _build(self._bundle, sizes)
            raise BackendError(missing_line(self._store, self._bundle, self._machine, needed, build))
        plan, profile = found
        with self._gpu.active():
            engine = self._engine(plan)
            self._check_tensors(engine, spec, plan)
            context = self._context(engine, profile, shapes, plan)
            inputs = new_buffers(spec.inputs, shapes, self.device)
            results = new_buffers(spec.outputs, _output_shapes(context, spec, plan), self.device)
            for name, tensor in (inputs | results).items():
                self._expect(context.set_tensor_address(name, tensor.data_ptr()), f"{plan.path}: the buffer of {name}")
        read = {tensor.name: results.pop(tensor.name) for tensor in wanted}
        return _TensorRtCall(graph, inputs, read, results, context, self._gpu, self._library, self._last_step(plan))

    def _engine(self, plan: Plan) -> Any:
        """The plan on the GPU; all its shapes share it, and its weights."""
        if plan.path not in self._engines:
            if self._runtime is None:
                self._runtime = self._library.trt.Runtime(self._library.log)
            self._library.log.messages.clear()
            with plan.data() as data:
                engine = self._runtime.deserialize_cuda_engine(data)
                objections = "" if engine is not None else self._library.objections(self._runtime, data)
            if engine is None:
                said = f"{objections}: " * bool(objections) + self._library.last_error()
                mend = "Upgrade the NVIDIA driver" if "driver" in objections else "Remove it and build it again"
                raise BackendError(f"TensorRT does not load {plan.path}: {said}. {mend}.")
            self._engines[plan.path] = engine
        return self._engines[plan.path]

    def _last_step(self, plan: Plan) -> LastStep | None:
        """What was compiled when the plan was loaded, for the flavour that does so."""
        if self._library.flavour.ahead and plan.path not in self._last_steps:
            config = self._engines[plan.path].create_runtime_config()
            self._last_steps[plan.path] = LastStep(self._library, config, self._machine, self._gpu, plan)
        return self._last_steps.get(plan.path)

    def _check_tensors(self, engine: Any, spec: GraphSpec, plan: Plan) -> None:
        """Raise BackendError unless a plan's tensors are the spec's: they are about to be read and written as such."""
        types, modes = self._library.trt.DataType, self._library.trt.TensorIOMode
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
        last_step = self._last_step(plan)
        context = engine.create_execution_context(last_step.config) if last_step else engine.create_execution_context()
        self._expect(context is not None, f"{plan.path}: its memory on the GPU (fewer `slots` need less)")
        # Each context is told its profile: only the first one of an engine would take profile 0 by itself.
        set_profile = self._gpu.enqueue(lambda stream: bool(context.set_optimization_profile_async(profile, stream)))
        self._expect(set_profile, f"{plan.path}: profile {profile}")
        for name, shape in shapes.items():
            self._expect(context.set_input_shape(name, tuple(shape)), f"{plan.path}: the shape {list(shape)} of {name}")
        try:
            unknown = context.infer_shapes()
        except RuntimeError as cause:
            raise BackendError(f"{plan.path}: TensorRT cannot infer its shapes: {cause}. Build it again.") from cause
        self._expect(not unknown, f"{plan.path}: the shapes of {', '.join(unknown)}")
        return context

    def _expect(self, taken: Any, what: str) -> None:
        """Raise BackendError, with TensorRT's own reason, unless it took what it was given."""
        if not taken:
            raise BackendError(f"TensorRT does not take {what}: {self._library.last_error()}.")


@dataclass
class _TensorRtCall:
    graph: str
    inputs: Tensors
    outputs: Tensors
    # Outputs that nobody reads. Each has memory of its own: a plan may use an output again further on.
    scratch: Tensors
    context: Any
    gpu: Gpu
    library: Library
    last_step: LastStep | None  # until the first run

    @property
    def capturable(self) -> bool:
        return True

    def run(self) -> None:
        with self.gpu.active():
            if not self.gpu.enqueue(self.context.execute_async_v3):
                raise BackendError(f"TensorRT does not run {self.graph}: {self.library.last_error()}.")
        if self.last_step is not None:
            self.last_step.keep()
            self.last_step = None


def check_bundle(bundle: Bundle) -> None:
    """Raise BackendError unless a bundle's graphs are in half precision."""
    if bundle.manifest.graph_dtype != "float16":
        folder = str(bundle.folder)
        raise BackendError(
            f"The graphs of {bundle.folder} are in {bundle.manifest.graph_dtype}; TensorRT plans are made of graphs in "
            f"float16. Make such a bundle with `export(ExportSettings({folder!r}, {folder + '/adapter'!r}, "
            f"{folder + '-fp16'!r}, graph_dtype='float16'))`.",
            field="bundle",
        )


def probe(device: torch.device | None = None) -> Probe:
    """What `dengine doctor` says of TensorRT on this machine: whether it starts there; raises nothing.

    No tiny graph is run, as the other engines do: a plan would have to be built first. `export.gpu.checks` does that.
    """
    try:
        gpu = find_gpu(device)
    except Exception as cause:  # a driver that is broken raises errors of PyTorch's
        return _probe_without_gpu(one_line(cause))
    try:
        library = library_for(gpu)
    except BackendError as cause:
        return Probe("tensorrt", advice=str(cause))
    try:
        with gpu.active():
            library.trt.Runtime(library.log)
            library.trt.Builder(library.log)
    except Exception as cause:  # what the bindings raise where the libraries do not start
        problem = one_line(cause)
        return Probe(
            "tensorrt", library.version, (Device(gpu.name, False, (), problem),), f"it does not start: {problem}"
        )
    details = {"flavour": library.flavour.title, "driver": gpu.driver}
    return Probe("tensorrt", library.version, (Device(gpu.name, True, ("f16",)),), details=details)


def _probe_without_gpu(problem: str) -> Probe:
    """What is installed, and what it can be used for all the same."""
    advice = problem if has_nvidia() else "it needs an NVIDIA GPU, and none is here"
    for flavour in FLAVOURS:
        if is_installed(flavour):
            try:
                library = load_library(flavour)
            except BackendError as cause:
                return Probe("tensorrt", advice=str(cause))
            details = {"flavour": flavour.title}
            if flavour.ahead:
                details["builds plans for"] = ", ".join(map(target_name, flavour.capabilities))
            return Probe("tensorrt", library.version, advice=advice, details=details)
    return Probe("tensorrt", advice=advice)


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
