"""The backends on CUDA, with stand-ins for the GPU: what they ask of PyTorch and ONNX Runtime, and in which order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from refusals import refused
from torch import nn

import engines.backends.torch as torch_backend
from engines.backends import onnxruntime as ort_backend
from engines.backends.base import Role, new_buffers
from engines.backends.onnxruntime import CUDA_PROVIDER, OrtBackend
from engines.backends.registry import open_backend
from engines.bundle.bundle import Bundle, default_bundle, open_bundle
from engines.diffusion import capture
from engines.errors import BackendError, UsageError
from engines.painting.settings import GenerateSettings
from engines.runs.generate import generate

CUDA = torch.device("cuda", 0)
CANNOT_RECORD = "This session cannot use the graph capture feature as requested by the user"


class FakeStream:
    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log, self.cuda_stream = name, log, 4711

    def wait_stream(self, other: "FakeStream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.log.append(f"host waits for {self.name}")


class Config:
    """SessionOptions and RunOptions: what was set, and what was added."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.use_deterministic_compute = False

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add_free_dimension_override_by_name(self, name: str, value: int) -> None:
        self.sizes[name] = value


class FakeRuntime:
    """onnxruntime on a GPU: notes sessions, bindings and runs."""

    __version__ = "9"
    SessionOptions = RunOptions = Config

    def __init__(self, log: list[Any], refuses: str = "") -> None:
        self.log, self.refuses = log, refuses
        self.sessions: list[SimpleNamespace] = []

    def get_available_providers(self) -> list[str]:
        return [CUDA_PROVIDER, "CPUExecutionProvider"]

    def InferenceSession(self, path: str, options: Config, providers: Sequence[Any]) -> SimpleNamespace:  # noqa: N802
        settings = dict(providers[0][1])
        if self.refuses and settings.get("enable_cuda_graph"):
            raise RuntimeError(self.refuses)
        bound: dict[str, Any] = {}

        def bind(name: str, *place: Any) -> None:
            bound[name] = place

        session = SimpleNamespace(
            path=Path(path),
            options=options,
            settings=settings,
            bound=bound,
            runs=[],
            get_providers=lambda: [providers[0][0]],
            io_binding=lambda: SimpleNamespace(bind_input=bind, bind_output=bind),
        )

        def run(binding: Any, options: Config) -> None:
            self.log.append("run")
            session.runs.append(options)

        session.run_with_iobinding = run
        self.sessions.append(session)
        return session


@pytest.fixture
def log() -> list[Any]:
    return []


def ort_on_cuda(
    bundle: Bundle, log: list[Any], monkeypatch: pytest.MonkeyPatch, refuses: str = ""
) -> tuple[OrtBackend, FakeRuntime]:
    """The backend on a GPU that is not there, whose buffers are on the CPU."""
    runtime = FakeRuntime(log, refuses)
    default = FakeStream("default", log)
    monkeypatch.setattr(ort_backend, "import_runtime", lambda module, install: runtime)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("own", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: default)
    monkeypatch.setattr(
        ort_backend, "new_buffers", lambda specs, shapes, device: new_buffers(specs, shapes, torch.device("cpu"))
    )
    return OrtBackend(bundle, precision="auto", threads=1, device=CUDA), runtime


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(default_bundle(), verify=False)


def unet_shapes(bundle: Bundle, rows: int) -> Mapping[str, tuple[int, ...]]:
    return bundle.specs["unet"].input_shapes({"B": rows, "h": 4, "w": 8})


def test_the_samplers_unet_is_recorded_when_prepared_with_its_shapes_fixed(
    bundle: Bundle, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, runtime = ort_on_cuda(bundle, log, monkeypatch)
    call = backend.prepare("unet", unet_shapes(bundle, 6), ["model_output"], role="sampler")
    (session,) = runtime.sessions
    assert session.settings["enable_cuda_graph"] == 1
    assert session.settings["user_compute_stream"] == "4711"
    assert session.settings["cudnn_conv_algo_search"] == "HEURISTIC"
    assert session.options.use_deterministic_compute
    assert session.options.sizes == {"B": 6, "h": 4, "w": 8}
    assert session.runs[0].entries == {"disable_synchronize_execution_providers": "1", "gpu_graph_id": "1"}
    assert log == ["own waits for default", "run", "default waits for own", "host waits for own"]
    assert not call.capturable
    for name, tensor in (*call.inputs.items(), *call.outputs.items()):
        device, index, _, shape, pointer = session.bound[name]
        assert (device, index, shape, pointer) == ("cuda", 0, tuple(tensor.shape), tensor.data_ptr())


def test_a_run_on_cuda_orders_itself_among_pytorchs_work_and_the_host_does_not_wait(
    bundle: Bundle, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _ = ort_on_cuda(bundle, log, monkeypatch)
    call = backend.prepare("unet", unet_shapes(bundle, 2), ["model_output"], role="sampler")
    log.clear()
    call.run()
    assert log == ["own waits for default", "run", "default waits for own"]


@pytest.mark.parametrize(
    ("graph", "outputs", "role"),
    [
        ("unet", ["div1", "div2", "div4"], "labels"),
        ("unet", ["model_output"], None),  # of whoever computes it once
        ("vae_decoder", None, None),
    ],
)
def test_other_calls_are_not_recorded_and_do_not_run_when_prepared(
    bundle: Bundle,
    log: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    graph: str,
    outputs: list[str] | None,
    role: Role | None,
) -> None:
    backend, runtime = ort_on_cuda(bundle, log, monkeypatch)
    shapes = bundle.specs[graph].input_shapes({"B": 2, "h": 4, "w": 4})
    backend.prepare(graph, shapes, outputs, role=role).run()
    (session,) = runtime.sessions
    assert "enable_cuda_graph" not in session.settings
    assert [options.entries["gpu_graph_id"] for options in session.runs] == ["-1"]


def test_each_shape_has_a_session_and_a_stream_of_its_own(
    bundle: Bundle, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, runtime = ort_on_cuda(bundle, log, monkeypatch)
    for rows in (2, 4):
        backend.prepare("unet", unet_shapes(bundle, rows), ["model_output"], role="sampler")
    assert [session.options.sizes["B"] for session in runtime.sessions] == [2, 4]


def test_where_onnxruntime_cannot_record_the_same_kernels_run_one_by_one(
    bundle: Bundle, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, runtime = ort_on_cuda(bundle, log, monkeypatch, CANNOT_RECORD)
    backend.prepare("unet", unet_shapes(bundle, 2), ["model_output"], role="sampler").run()
    (session,) = runtime.sessions
    assert [options.entries["gpu_graph_id"] for options in session.runs] == ["-1"]


def test_any_other_failure_to_load_is_told(bundle: Bundle, log: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = ort_on_cuda(bundle, log, monkeypatch, "out of memory")
    with pytest.raises(BackendError, match=r"does not load .*unet\.onnx: out of memory"):
        backend.prepare("unet", unet_shapes(bundle, 2), ["model_output"], role="sampler")


@pytest.mark.parametrize("graph", ["adapter", "vae_encoder"])
def test_onnxruntime_takes_the_axes_of_a_spec_by_name_and_leaves_no_size_open(
    bundle: Bundle, log: list[Any], monkeypatch: pytest.MonkeyPatch, graph: str
) -> None:
    import onnxruntime

    backend, runtime = ort_on_cuda(bundle, log, monkeypatch)
    shapes = bundle.specs[graph].input_shapes({"B": 2, "h": 8, "w": 12})
    outputs = [tensor.name for tensor in bundle.specs[graph].outputs[:2]]
    backend.prepare(graph, shapes, outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, size in runtime.sessions[0].options.sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    path = bundle.graph_path(graph)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert {value.name: tuple(value.shape) for value in session.get_inputs()} == shapes


# --- PyTorch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "device", "advice"),
    [
        ("openvino", None, "`engine=torch`"),
        ("onnxruntime", "cpu", "`engine=torch`"),
        ("torch", "cpu", "`engine=openvino`"),
        ("auto", "cpu", "`engine=openvino`"),
    ],
)
def test_compile_is_refused_where_it_makes_no_sense(
    bundle: Bundle, engine: str, device: str | None, advice: str
) -> None:
    with refused(UsageError, "compiled", advice):
        open_backend(bundle, engine, device=device, compiled=True)


def test_a_run_asked_to_compile_on_a_cpu_is_refused_before_it_begins(tmp_path: Path) -> None:
    settings = GenerateSettings(out=tmp_path / "run", jobs=1, device="cpu", compiled=True)
    with refused(UsageError, "compiled", "`engine=openvino`"):
        generate(settings)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.fixture
def compiling(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[nn.Module, dict[str, Any]]]]:
    """A backend on the CPU that is told to compile, and what it gave to torch.compile."""
    given: list[tuple[nn.Module, dict[str, Any]]] = []

    def compile(module: nn.Module, **settings: Any) -> nn.Module:
        given.append((module, settings))
        return module

    monkeypatch.setattr(torch, "compile", compile)
    backend = torch_backend.TorchBackend(bundle, precision="f32", threads=1, device=torch.device("cpu"))
    backend._compiled = True
    return backend, given


def test_what_a_run_calls_all_the_time_is_compiled_without_graphs_of_its_own_and_by_no_clock(
    bundle: Bundle, compiling: tuple[Any, list[tuple[nn.Module, dict[str, Any]]]]
) -> None:
    backend, given = compiling
    for graph, outputs, role in (
        ("text_encoder", None, None),
        ("unet", ["div1"], "labels"),
        ("unet", ["model_output"], None),
        ("unet", ["model_output"], "sampler"),
        ("vae_decoder", None, None),
        ("adapter", None, None),
    ):
        side = 16 if graph == "adapter" else 4
        shapes = bundle.specs[graph].input_shapes({"B": 2, "h": side, "w": side})
        backend.prepare(graph, shapes, outputs, role=role)
    assert [type(module).__name__ for module, _ in given] == [
        "PyramidUNet", "_NoPyramid", "VaeDecoder", "DetectionAdapter"
    ]  # fmt: skip
    wanted = {"fullgraph": True, "dynamic": False, "options": {"deterministic": True}}
    assert all(settings == wanted for _, settings in given)


def test_what_cannot_be_compiled_is_told_with_the_graphs_name(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def __init__(self, module: nn.Module, **settings: Any) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no compiler\nis here")

    monkeypatch.setattr(torch, "compile", Broken)
    backend = torch_backend.TorchBackend(bundle, precision="f32", threads=1, device=torch.device("cpu"))
    backend._compiled = True
    shapes = bundle.specs["vae_decoder"].input_shapes({"B": 1, "h": 4, "w": 4})
    with refused(BackendError, "compiled", "vae_decoder", "no compiler is here"):
        backend.prepare("vae_decoder", shapes)


def test_a_recording_lets_other_threads_use_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    class Recording:
        def __init__(self, graph: Any, **settings: Any) -> None:
            events.append(settings)

        def __enter__(self) -> None:
            events.append("begin")

        def __exit__(self, *error: object) -> None:
            events.append("end")

    monkeypatch.setattr(torch.cuda, "device", lambda device: cast(Any, _Nothing()))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: events.append("replay")))
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    replay = capture.capture(lambda: events.append("step"), CUDA)
    replay()
    assert events == [{"capture_error_mode": "thread_local"}, "begin", "step", "end", "replay"]


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None
