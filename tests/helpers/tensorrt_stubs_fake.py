"""A TensorRT that answers: the bindings' own classes, with the graphs of `fakes` behind them.

Knows: enough to build a "plan" (a few words of JSON), load it and run it in the caller's memory, and to refuse what the
real ones refuse: a context that runs before every shape and address is set, a shape outside its profile, the default
stream. What it was told is kept. Every call goes through `tensorrt_stubs.specced`.
"""

import ctypes
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from fakes import GRAPHS, FakeBundle
from fakes import SPECS as FLOAT_SPECS
from tensorrt_stubs import constructor, specced

from engines.backends.tensorrt.gpu import Gpu
from engines.bundle.graphs import GraphSpec

SPECS = {name: spec.as_dtype("float16") for name, spec in FLOAT_SPECS.items()}
DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}
OWN_STREAM = 77  # handle of the backend's own stream
Shape = tuple[int, ...]
Answers = dict[str, Callable[..., Any]]


@dataclass
class PlanBundle(FakeBundle):
    """A fake bundle in half precision, with as much on disk as the key of a plan needs."""

    specs: Any = field(default_factory=lambda: SPECS)
    manifest: Any = None

    def __post_init__(self) -> None:
        files = {"weights.safetensors": "0" * 64}
        self.folder.mkdir(parents=True, exist_ok=True)
        for graph in SPECS:
            (self.folder / f"{graph}.onnx").write_bytes(f"{graph} reads weights.safetensors".encode())
            files[f"{graph}.onnx"] = graph.encode().hex().ljust(64, "0")
        self.manifest = self.manifest or SimpleNamespace(graph_dtype="float16", files=files)

    def graph_path(self, graph: str) -> Path:
        return self.folder / f"{graph}.onnx"


@dataclass
class FakeStream:
    """A stream that keeps what was ordered on it, in a list that streams share."""

    cuda_stream: int
    events: list[tuple[Any, ...]]

    def wait_stream(self, stream: Any, /) -> None:
        self.events.append(("wait", self.cuda_stream, stream.cuda_stream))


@dataclass
class Build:
    """One plan being built: what the builder was told."""

    network: Any = None
    network_flags: int = 0
    path: str = ""  # that the parser read
    config: Any = None
    set_flags: list[Any] = field(default_factory=list)
    cleared_flags: list[Any] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)  # compute capabilities
    profiles: list[dict[str, tuple[Shape, Shape, Shape]]] = field(default_factory=list)
    timing_given: list[bytes] = field(default_factory=list)

    @property
    def graph(self) -> str:
        return Path(self.path).stem


@dataclass
class Context:
    """One execution context: what it was told."""

    profile: int | None = None
    shapes: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)


class FakeTensorRt:
    """The module that code under test imports as `tensorrt`, and all that was done with it."""

    def __init__(self, trt: ModuleType) -> None:
        self.trt = trt
        self.rtx = hasattr(trt, "IRuntimeCache")
        self.kept: list[bytes] = []  # runtime caches that were given
        self.events: list[tuple[Any, ...]] = []  # on streams, in order
        self.builds: list[Build] = []
        self.contexts: list[Context] = []
        self.engines_loaded = 0
        self.current = FakeStream(0, self.events)  # PyTorch's current stream
        self.loggers: set[int] = set()
        # What tests change:
        self.spoil: Callable[[str, dict[str, torch.Tensor]], None] = lambda graph, outputs: None
        self.takes_timings = True
        self.runs_fail = False
        self.wrong_dtype: str | None = None  # tensor whose type in the plan is another

    def module(self) -> ModuleType:
        """A copy of the bindings in which the classes that need the libraries are these."""
        module = ModuleType("tensorrt")
        module.__dict__.update({name: value for name, value in vars(self.trt).items() if not name.startswith("__")})
        module.__dict__["__version__"] = self.trt.__version__
        for name, make in (("Builder", self._builder), ("OnnxParser", self._parser), ("Runtime", self._runtime)):
            module.__dict__[name] = constructor(self.trt, name, make)
        return module

    def gpu(self, **changes: Any) -> Gpu:
        """A "GPU" whose memory is the CPU's."""
        parts: dict[str, Any] = {
            "device": torch.device("cpu"),
            "name": "Fake GPU",
            "capability": "8.9" if self.rtx else "9.0",
            "driver": "580.1",
            "cuda": (13, 0),
            "own_stream": FakeStream(OWN_STREAM, self.events),
            "current_stream": lambda: self.current,
            "free_memory": lambda: 3 * 10**9,
        }
        return Gpu(**parts | changes)

    def _make(self, name: str, answers: Answers, **attributes: Any) -> Any:
        return specced(self.trt, name, answers, **attributes)

    # --- building ------------------------------------------------------------------------------------------------

    def _builder(self, logger: Any) -> Any:
        self.loggers.add(id(logger))
        build = Build()
        self.builds.append(build)

        def create_network(flags: int = 0) -> Any:
            build.network_flags = flags
            build.network = self._make("INetworkDefinition", {}, num_layers=0)
            return build.network

        def create_builder_config() -> Any:
            build.config = self._config(build)
            return build.config

        answers: Answers = {
            "create_network": create_network,
            "create_builder_config": create_builder_config,
            "create_optimization_profile": lambda: self._profile(build),
            "build_serialized_network": lambda network, config: self._serialized(build, network, config),
        }
        return self._make("Builder", answers)

    def _config(self, build: Build) -> Any:
        def set_timing_cache(cache: Any, ignore_mismatch: bool) -> bool:
            return self.takes_timings or build.timing_given[-1] == b""

        def create_timing_cache(serialized_timing_cache: Any) -> Any:
            build.timing_given.append(bytes(serialized_timing_cache))
            return self._make("ITimingCache", {"serialize": lambda: f"timings of {build.graph}".encode()})

        def add_optimization_profile(profile: Any) -> int:
            return len(build.profiles) - 1

        def set_target(target: Any, index: int) -> bool:
            build.targets.append(target.name)
            return index + 1 == len(build.targets)

        answers: Answers = {
            "set_flag": build.set_flags.append,
            "clear_flag": build.cleared_flags.append,
            "add_optimization_profile": add_optimization_profile,
        }
        if self.rtx:
            answers["set_compute_capability"] = set_target
        else:
            answers |= {"create_timing_cache": create_timing_cache, "set_timing_cache": set_timing_cache}
        return self._make("IBuilderConfig", answers)

    def _profile(self, build: Build) -> Any:
        profile: dict[str, tuple[Shape, Shape, Shape]] = {}
        build.profiles.append(profile)

        def set_shape(input: str, min: Shape, opt: Shape, max: Shape) -> None:
            profile[input] = (tuple(min), tuple(opt), tuple(max))

        return self._make("IOptimizationProfile", {"set_shape": set_shape})

    def _parser(self, network: Any, logger: Any) -> Any:
        build = self.builds[-1]
        assert network is build.network
        self.loggers.add(id(logger))

        def parse_from_file(model: str) -> bool:
            assert Path(model).is_file()
            build.path = model
            return True

        return self._make("OnnxParser", {"parse_from_file": parse_from_file})

    def _serialized(self, build: Build, network: Any, config: Any) -> bytes:
        assert (network, config) == (build.network, build.config)
        assert set(build.profiles[0]) == {tensor.name for tensor in SPECS[build.graph].inputs}
        assert isinstance(config.progress_monitor, self.trt.IProgressMonitor)
        plan = {"graph": build.graph, "profiles": build.profiles, "weights": "0" * 1000}
        return json.dumps(plan).encode()

    # --- running -------------------------------------------------------------------------------------------------

    def _runtime(self, logger: Any) -> Any:
        self.loggers.add(id(logger))

        def deserialize_cuda_engine(serialized_engine: Any) -> Any:
            self.engines_loaded += 1
            try:
                plan = json.loads(bytes(serialized_engine))
            except ValueError:
                logger.log(self.trt.ILogger.ERROR, "Magic tag does not match.")
                return None
            return self._engine(plan)

        answers: Answers = {"deserialize_cuda_engine": deserialize_cuda_engine}
        return self._make("Runtime", answers | ({"get_engine_validity": lambda buffer: (2, 32)} if self.rtx else {}))

    def _engine(self, plan: dict[str, Any]) -> Any:
        spec = SPECS[plan["graph"]]
        names = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
        dtypes = {tensor.name: DTYPES[tensor.dtype] for tensor in (*spec.inputs, *spec.outputs)}
        if self.wrong_dtype in dtypes:
            dtypes[str(self.wrong_dtype)] = "BF16"
        modes = self.trt.TensorIOMode
        inputs = {tensor.name for tensor in spec.inputs}
        answers: Answers = {
            "get_tensor_name": lambda index: names[index],
            "get_tensor_mode": lambda name: modes.INPUT if name in inputs else modes.OUTPUT,
            "get_tensor_dtype": lambda name: getattr(self.trt.DataType, dtypes[name]),
            "create_execution_context": lambda *config: self._context(spec, plan["profiles"]),
        }
        if self.rtx:
            answers["create_runtime_config"] = self._runtime_config
        return self._make("ICudaEngine", answers, num_io_tensors=len(names))

    def _runtime_config(self) -> Any:
        def deserialize(blob: Any) -> bool:
            self.kept.append(bytes(blob))
            return True

        answers: Answers = {"deserialize": deserialize, "serialize": lambda: b"compiled here"}
        cache = self._make("IRuntimeCache", answers)
        return self._make(
            "IRuntimeConfig",
            {"create_runtime_cache": lambda: cache, "set_runtime_cache": lambda given: given is cache},
        )

    def _context(self, spec: GraphSpec, profiles: list[dict[str, Any]]) -> Any:
        state = Context()
        self.contexts.append(state)
        inputs = [tensor.name for tensor in spec.inputs]

        def set_profile(profile_index: int, stream_handle: int) -> bool:
            assert stream_handle != 0
            state.profile = profile_index
            return 0 <= profile_index < len(profiles)

        def set_input_shape(name: str, shape: Shape) -> bool:
            assert state.profile is not None, "a shape before the profile"
            low, _, high = profiles[state.profile][name]
            state.shapes[name] = tuple(shape)
            return all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))

        def output_shape(name: str) -> Any:
            assert set(state.shapes) == set(inputs), "a shape asked for before all inputs have one"
            tensors = {tensor.name: torch.zeros(state.shapes[tensor.name]) for tensor in spec.inputs}
            return self.trt.Dims(tuple(GRAPHS[spec.name](tensors)[name].shape))

        def set_tensor_address(name: str, memory: int) -> bool:
            state.addresses[name] = memory
            return True

        answers: Answers = {
            "set_optimization_profile_async": set_profile,
            "set_input_shape": set_input_shape,
            "infer_shapes": lambda: [name for name in inputs if name not in state.shapes],
            "get_tensor_shape": output_shape,
            "set_tensor_address": set_tensor_address,
            "execute_async_v3": lambda stream_handle: self._execute(spec, state, stream_handle),
        }
        return self._make("IExecutionContext", answers)

    def _execute(self, spec: GraphSpec, state: Context, stream_handle: int) -> bool:
        assert stream_handle != 0, "TensorRT synchronises the device on the default stream"
        self.events.append(("run", stream_handle, spec.name))
        names = {tensor.name for tensor in (*spec.inputs, *spec.outputs)}
        assert set(state.addresses) == names, "a tensor without an address"
        assert len(set(state.addresses.values())) == len(names), "two tensors in one place"
        if self.runs_fail:
            return False
        inputs = {}
        for tensor in spec.inputs:
            value = _memory(state.addresses[tensor.name], state.shapes[tensor.name], getattr(torch, tensor.dtype))
            inputs[tensor.name] = value.float() if value.is_floating_point() else value
        outputs = {name: value.half() for name, value in GRAPHS[spec.name](inputs).items()}
        self.spoil(spec.name, outputs)
        for name, value in outputs.items():
            _memory(state.addresses[name], tuple(value.shape), value.dtype).copy_(value)
        return True


def _memory(address: int, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """What lies at an address, as a tensor over that very memory."""
    count = int(torch.Size(shape).numel())
    raw = (ctypes.c_char * (count * torch.empty((), dtype=dtype).element_size())).from_address(address)
    return torch.frombuffer(raw, dtype=dtype, count=count).reshape(shape)
