"""ONNX Runtime as a backend, on the CPU or a CUDA GPU.

Knows: sessions, and binding PyTorch memory to them. Does not know: PyTorch modules.

One session a graph serves all shapes: on a CPU a session fixed to one shape was no faster (0.340 s against 0.338 s
for a UNet of 11 M parameters), and each would hold the weights again. Arithmetic is the graph's own.

On a CPU, what a session allocated for one run is given back after it where the bundle is of full size: sessions keep
it otherwise, 4.2 GB for a VAE decoder at 768x768 while the UNet runs. It took no longer (35 s a decode at 384x384).

On CUDA every graph at every shape has a session of its own, with that shape as constants, and so weights of its own:
then no node is left that computes shapes on the CPU, and nothing moves between the two. Each session has a stream of
its own. A run waits on the GPU for what PyTorch's current stream held before it, and what that stream gets after it
waits for the run; the host waits for neither. The sampler's UNet is recorded by ONNX Runtime into a CUDA graph of its
own when it is prepared, and replayed after that. ONNX Runtime keeps a recording for the thread that made it, and takes
a graph apart from PyTorch's: hence only this call, and `capturable` is False. Where it cannot record, the same kernels
run one by one. Convolutions are chosen by rule, not by trying them out, so that bytes repeat.

Sources: ONNX Runtime's pages on its CUDA provider and on I/O binding; `cuda_execution_provider.cc`,
`inference_session.cc` and `onnxruntime_run_options_config_keys.h` of microsoft/onnxruntime.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engines.backends.base import (
    Call,
    OpenOptions,
    Role,
    Shapes,
    Tensors,
    import_runtime,
    known_shapes,
    new_buffers,
    wanted_outputs,
)
from engines.backends.probe import Probe, one_line, tiny_input, tiny_onnx, try_device
from engines.backends.rows import is_full_size
from engines.bundle.bundle import Bundle
from engines.common.devices import cpu_name, resolve_threads
from engines.common.plurals import counted
from engines.common.quote import shorten
from engines.errors import BackendError, UsageError

CUDA_PROVIDER = "CUDAExecutionProvider"
_ERRORS_ONLY = 3  # ONNX Runtime's log level
_NO_RECORDING = "graph capture"  # what ONNX Runtime says of a session that it cannot record
_SILENT = 4  # fatal errors only: what goes wrong is said in the probe


def open_bundle(bundle: Bundle, options: OpenOptions) -> "OrtBackend":
    """See `registry.open_backend`."""
    return OrtBackend(bundle, precision=options.precision, threads=options.threads, device=options.device)


class OrtBackend:
    """Executes a bundle's ONNX graphs with ONNX Runtime."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, precision: str, threads: int | None, device: torch.device) -> None:
        """Find the runtime; sessions are made when a graph is first prepared.

        Raises UsageError for a precision that is not the graphs' own, BackendError without the runtime.
        """
        own = {"float32": "f32", "float16": "f16"}[bundle.manifest.graph_dtype]
        if precision not in ("auto", own):
            raise UsageError(
                f"onnxruntime computes in the graphs' own precision, {own} in this bundle, not {precision}. "
                f"Use `precision={own}`, or another `engine`.",
                field="precision",
            )
        self._ort: Any = import_runtime("onnxruntime", "onnxruntime-gpu")
        self.device = device
        self.precision = own
        self.threads = resolve_threads(threads)
        self._folder = bundle.folder
        self._gives_back = device.type == "cpu" and is_full_size(bundle)
        self._specs = bundle.specs
        self._sessions: dict[str, _Session] = {}
        place = f"CPU ({cpu_name()}), {counted(self.threads, 'thread')}"
        if device.type == "cuda":
            if CUDA_PROVIDER not in self._ort.get_available_providers():
                raise BackendError(
                    'This onnxruntime has no CUDA provider. Install it with "pip install onnxruntime-gpu", '
                    "or use `device=cpu`.",
                    field="device",
                )
            place = torch.cuda.get_device_name(device)
        self.description = f"onnxruntime {self._ort.__version__} on {place}, {own}"

    def prepare(
        self,
        graph: str,
        shapes: Shapes,
        outputs: Sequence[str] | None = None,
        varies: str | None = None,
        role: Role | None = None,
    ) -> Call:
        """See `Backend.prepare`."""
        spec = self._specs[graph]
        sizes = spec.sizes(shapes)
        wanted = wanted_outputs(spec, outputs)
        inputs = new_buffers(spec.inputs, shapes, self.device)
        session = self._session(graph, shapes, record=role == "sampler")
        known = known_shapes(wanted, sizes) or _observed(session.runs, inputs)
        results = new_buffers(wanted, known, self.device)
        binding = session.runs.io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, results)):
            for name, tensor in tensors.items():
                dtype = np.dtype(str(tensor.dtype).removeprefix("torch.")).type
                bind(name, self.device.type, self.device.index or 0, dtype, tuple(tensor.shape), tensor.data_ptr())
        options = self._ort.RunOptions()
        options.only_execute_path_to_fetches = True
        if self._gives_back:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        if session.stream is None:
            return _OrtCall(inputs, results, session.runs, binding, options)
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", "1" if session.recorded else "-1")
        call = _CudaCall(inputs, results, session, binding, options, self.device)
        if session.recorded:
            try:
                call.run()  # this is when it is recorded
            except Exception as cause:  # of the runtime's own kinds
                raise BackendError(
                    f"onnxruntime does not record {graph} into a CUDA graph: {one_line(cause)}. Take `engine=torch`.",
                    field="engine",
                ) from cause
            session.stream.synchronize()
        return call

    def _session(self, graph: str, shapes: Shapes, record: bool) -> "_Session":
        """The session of a graph: on a CPU one for all shapes, on CUDA one for each use."""
        if self.device.type == "cpu":
            if graph not in self._sessions:
                self._sessions[graph] = _Session(self._open(graph, self._options(), ["CPUExecutionProvider"]))
            return self._sessions[graph]
        stream = torch.cuda.Stream(self.device)
        options = self._options()
        options.use_deterministic_compute = True
        for tensor in self._specs[graph].inputs:
            for axis, length in zip(tensor.axes, shapes[tensor.name], strict=True):
                if isinstance(axis, str):  # graphs name their axes as the specs do
                    options.add_free_dimension_override_by_name(axis, length)
        settings = {
            "device_id": self.device.index or 0,
            "use_tf32": 0,  # f32 is f32
            "user_compute_stream": str(stream.cuda_stream),
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
        }
        if record:
            try:
                providers = [(CUDA_PROVIDER, settings | {"enable_cuda_graph": 1}), "CPUExecutionProvider"]
                return _Session(self._open(graph, options, providers), stream, recorded=True)
            except BackendError as cause:
                if _NO_RECORDING not in str(cause):
                    raise
        return _Session(self._open(graph, options, [(CUDA_PROVIDER, settings), "CPUExecutionProvider"]), stream)

    def _options(self) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        return options

    def _open(self, graph: str, options: Any, providers: list[Any]) -> Any:
        path = self._folder / f"{graph}.onnx"
        try:
            session = self._ort.InferenceSession(str(path), options, providers=providers)
        except Exception as cause:  # ONNX Runtime's errors share no base class of their own
            raise BackendError(f"onnxruntime does not load {path}: {shorten(cause, 300)}") from cause
        if self.device.type == "cuda" and session.get_providers()[0] != CUDA_PROVIDER:
            raise BackendError(
                "onnxruntime could not start its CUDA provider. Use `device=cpu`, or another `engine`.", field="device"
            )
        return session


@dataclass(frozen=True)
class _Session:
    runs: Any  # onnxruntime.InferenceSession
    stream: Any = None  # the torch.cuda.Stream that it computes on; None on a CPU
    recorded: bool = False  # whether it replays a CUDA graph of its own


def _observed(session: Any, inputs: Tensors) -> Shapes:
    """Shapes of all outputs, by running once."""
    arrays = session.run(None, {name: tensor.cpu().numpy() for name, tensor in inputs.items()})
    names = [output.name for output in session.get_outputs()]
    return {name: tuple(array.shape) for name, array in zip(names, arrays, strict=True)}


@dataclass(frozen=True)
class _OrtCall:
    inputs: Tensors
    outputs: Tensors
    session: Any
    binding: Any
    options: Any

    @property
    def capturable(self) -> bool:
        return False

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding, self.options)


@dataclass(frozen=True)
class _CudaCall:
    inputs: Tensors
    outputs: Tensors
    session: _Session
    binding: Any
    options: Any
    device: torch.device

    @property
    def capturable(self) -> bool:
        return False

    def run(self) -> None:
        current = torch.cuda.current_stream(self.device)
        self.session.stream.wait_stream(current)  # what PyTorch still writes into the inputs
        self.session.runs.run_with_iobinding(self.binding, self.options)
        current.wait_stream(self.session.stream)


def probe() -> Probe:
    """What ONNX Runtime can do here: a tiny graph really runs on the CPU and on every GPU. Raises nothing."""
    try:
        ort: Any = import_runtime("onnxruntime", "onnxruntime-gpu")
    except BackendError as cause:
        return Probe("onnxruntime", advice=str(cause))
    own = ("f32", "f16")  # the graphs' own precision; a bundle has one
    providers = ort.get_available_providers()
    devices = [try_device("CPU", own, _tiny_on(ort, "CPUExecutionProvider", {}))]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    advice = ""
    if count and CUDA_PROVIDER not in providers:
        advice = "for the GPU: pip uninstall -y onnxruntime; pip install --force-reinstall onnxruntime-gpu"
    elif count:
        for index in range(count):
            run = _tiny_on(ort, CUDA_PROVIDER, {"device_id": index})
            devices.append(try_device(torch.cuda.get_device_name(index), own, run))
        broken = next((device for device in devices[1:] if not device.works), None)
        if broken is not None:
            advice = (
                f"its CUDA provider does not start ({broken.problem}); it must be built for the CUDA that PyTorch "
                f"has, {torch.version.cuda}: pip install --force-reinstall onnxruntime-gpu"
            )
    return Probe("onnxruntime", ort.__version__, tuple(devices), advice, {"providers": ", ".join(providers)})


def _tiny_on(ort: Any, provider: str, settings: dict[str, Any]) -> Callable[[str], Any]:
    def run(precision: str) -> Any:
        dtype = {"f32": "float32", "f16": "float16"}[precision]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = _SILENT
        session = ort.InferenceSession(tiny_onnx(dtype), options, providers=[(provider, settings)])
        if session.get_providers()[0] != provider:
            raise BackendError(f"{provider} could not be started")
        return session.run(None, {"x": tiny_input().astype(dtype)})[0]

    return run
