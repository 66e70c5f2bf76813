"""The build and run code of TensorRT, against the vendor's real bindings of one version.

Not collected with the other tests: `test_tensorrt_bindings` runs this file in a process of its own for each version,
whose folder is in the environment. Every call in here that reaches `tensorrt` is checked against that version.
"""

import ast
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from fakes import CLASS_NAMES, FakeBackend
from PIL import Image
from tensorrt_stubs import MODULES, VARIABLE, load_bindings
from tensorrt_stubs_fake import OWN_STREAM, SPECS, FakeStream, FakeTensorRt, PlanBundle

from engines.backends import base
from engines.backends.registry import open_backend
from engines.backends.tensorrt import backend as tensorrt_backend
from engines.backends.tensorrt.backend import TensorRtBackend, library_for
from engines.backends.tensorrt.flavours import load_library
from engines.backends.tensorrt.gpu import Gpu
from engines.backends.tensorrt.plans import Needs, PlanStore, plans_folder
from engines.bundle.bundle import Bundle
from engines.common.events import Event, EventKind
from engines.diffusion.capture import Recorded
from engines.errors import BackendError, ExportError, UsageError
from engines.labelling import LabelSettings, label
from engines.painting.settings import GenerateSettings
from engines.runs.generate import generate
from export.tensorrt import build as to_tensorrt
from export.tensorrt import check_plans
from export.tensorrt.build import BuildPlansSummary, build_here
from export.tensorrt.profiles import Batches, Frames
from export.tensorrt.settings import BuildPlansSettings

FOLDER = Path(os.environ[VARIABLE])  # of the bindings
VERSION = FOLDER.name
classic = pytest.mark.skipif(VERSION == "rtx", reason="TensorRT for RTX has none of this")
FRAME = (48, 32)  # of the fake bundle: 12 x 8 latents
Builder = Callable[..., BuildPlansSummary]


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real bindings, over stub libraries."""
    return load_bindings(FOLDER, VERSION, tmp_path_factory.mktemp("stubs"))


@pytest.fixture
def fake(bindings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRt]:
    """TensorRT for the code under test, on a GPU that is none."""
    yield install_fake(bindings, monkeypatch)
    load_library.cache_clear()


def install_fake(bindings: Any, patch: pytest.MonkeyPatch) -> FakeTensorRt:
    fake = FakeTensorRt(bindings)
    patch.setitem(sys.modules, MODULES.get(VERSION, "tensorrt"), fake.module())
    patch.setattr("engines.backends.tensorrt.backend.find_gpu", lambda device=None: fake.gpu())
    load_library.cache_clear()
    return fake


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanBundle:
    """A bundle in half precision, an empty cache folder, and "PyTorch" to compare plans with."""
    return install_bundle(tmp_path, monkeypatch)


def install_bundle(folder: Path, patch: pytest.MonkeyPatch) -> PlanBundle:
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    bundle = PlanBundle(folder / "bundle")
    patch.setattr("engines.bundle.bundle.open_bundle", lambda folder: bundle)
    patch.setattr(to_tensorrt, "open_bundle", lambda folder: bundle)
    patch.setattr(to_tensorrt, "check_operators", lambda folder, version: None)
    patch.setattr(check_plans, "open_backend", lambda *_, **__: FakeBackend())
    begin: Any = Recorded.__init__
    # A CUDA graph of a CPU's work is that work.
    patch.setattr(Recorded, "__init__", lambda self, *given: begin(self, *given[:3], lambda step, device: step))
    return bundle


@pytest.fixture
def build(fake: FakeTensorRt, bundle: PlanBundle) -> Builder:
    """`build_plans` for the fake bundle."""

    def run(batches: Batches | None = None, sizes: Frames | None = None, **options: Any) -> BuildPlansSummary:
        workspace = options.pop("workspace", None)
        settings = BuildPlansSettings(bundle.folder, batches=batches, sizes=sizes, workspace=workspace)
        return build_here(settings, gpu=fake.gpu(), **options)

    return run


@pytest.fixture(scope="session")
def default_plans(bindings: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the plans that a plain export builds."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        fake, bundle = install_fake(bindings, patch), install_bundle(folder, patch)
        build_here(BuildPlansSettings(bundle.folder), gpu=fake.gpu())
        load_library.cache_clear()
        return plans_folder()


@pytest.fixture
def exported(bundle: PlanBundle, default_plans: Path) -> PlanBundle:
    """The fake bundle after a plain export: its plans are in the cache folder."""
    shutil.copytree(default_plans, plans_folder())
    return bundle


def plan_files() -> list[Path]:
    """What is in the plans' folder, finished or not."""
    return sorted(plans_folder().rglob("*")) if plans_folder().exists() else []


def opened(bundle: PlanBundle, gpu: Gpu, precision: str = "auto") -> TensorRtBackend:
    return TensorRtBackend(cast(Bundle, bundle), precision=precision, threads=1, gpu=gpu)


def test_a_call_that_this_version_does_not_have_fails(fake: FakeTensorRt) -> None:
    trt: Any = fake.module()
    builder: Any = trt.Builder(trt.Logger())
    config = builder.create_builder_config()
    wrong_calls: tuple[Callable[[], Any], ...] = (
        lambda: builder.create_network("flags"),
        lambda: builder.create_network(1, 2),
        lambda: builder.create_network(flag=1),
        lambda: builder.build_serialized_network(config, config),
        lambda: config.set_flag(trt.MemoryPoolType.WORKSPACE),
        lambda: trt.OnnxParser(trt.Logger()),
    )
    for wrong in wrong_calls:
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        builder.build_cuda_engine()
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1
    with pytest.raises(AssertionError, match="no answer"):
        builder.reset()


# --- build: what the real TensorRT for RTX does not show (`test_real_builds`) ---------------------------------------


def test_attention_may_be_taken_apart_in_every_version(bindings: Any) -> None:
    assert bindings.LayerType.ATTENTION_INPUT
    assert hasattr(bindings.IAttentionInputLayer, "attention")
    assert hasattr(bindings.IAttention, "decomposable")


def test_networks_are_strongly_typed_and_no_flag_is_set(fake: FakeTensorRt, build: Builder, bundle: PlanBundle) -> None:
    build()
    flags = fake.trt.BuilderFlag
    assert [each.graph for each in fake.builds] == list(SPECS)
    for each in fake.builds:
        assert each.network_flags == 1 << int(fake.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert each.path == str(bundle.folder / f"{each.graph}.onnx")  # beside its weights
        assert each.set_flags == []
        assert {flags.REFIT, flags.WEIGHT_STREAMING} <= set(each.cleared_flags)
        assert (flags.TF32 in each.cleared_flags) == (each.graph in base.ALWAYS_F32)
        assert each.targets == (["SM89"] if VERSION == "rtx" else [])
    assert len(fake.loggers) == 1  # TensorRT keeps the first logger of a process


@classic
def test_what_was_measured_is_kept_for_the_next_build(fake: FakeTensorRt, build: Builder) -> None:
    build()
    assert fake.builds[0].timing_given == [b""]
    assert fake.builds[1].timing_given == [f"timings of {fake.builds[0].graph}".encode()]
    fake.takes_timings = False  # measured on another GPU
    build((2, 2, 2))
    assert fake.builds[-1].timing_given[0].startswith(b"timings of ")
    assert fake.builds[-1].timing_given[-1] == b""


def test_every_plan_is_compared_with_pytorch(build: Builder) -> None:
    summary = build()
    assert [plan.graph for plan in summary.plans] == list(SPECS)
    assert all(0 < (plan.error or 0) < 5e-3 for plan in summary.plans)
    assert summary.boxes > 0
    assert summary.boxes_missing <= 0.05 * summary.boxes


def _nan(graph: str, outputs: dict[str, torch.Tensor]) -> None:
    if graph == "unet":
        outputs["div2"][0, 0, 0, 0] = torch.nan


def _black(graph: str, outputs: dict[str, torch.Tensor]) -> None:
    if graph == "vae_decoder":
        outputs["pixels"].fill_(-1.0)


def _off(graph: str, outputs: dict[str, torch.Tensor]) -> None:
    if graph == "vae_encoder":
        outputs["latents"] *= 1.02


@pytest.mark.parametrize(
    ("spoil", "graph", "message"),
    [
        (_nan, "unet", "unet: its plan gives div2 with NaN or infinite values"),
        (_black, "vae_decoder", "vae_decoder: its plan paints black"),
        (_off, "vae_encoder", r"vae_encoder on tensorrt: latents differs from PyTorch by 2\.0e-02"),
    ],
)
def test_a_plan_that_is_wrong_is_removed_and_the_others_stay(
    fake: FakeTensorRt, build: Builder, spoil: Any, graph: str, message: str
) -> None:
    fake.spoil = spoil
    with pytest.raises(ExportError, match=rf"{message}.*The plan of {graph} was removed\."):
        build()
    assert [path.name.split("-")[0] for path in plan_files()] == sorted(set(SPECS) - {graph})
    with pytest.raises(ExportError, match="was removed"):
        build()
    assert sum(each.graph == graph for each in fake.builds) == 2  # built again, the others not
    assert len(fake.builds) == len(SPECS) + 1


def prepared(backend: TensorRtBackend, graph: str, batch: int, outputs: list[str] | None = None) -> Any:
    return backend.prepare(graph, SPECS[graph].input_shapes({"B": batch, "h": 8, "w": 12}), outputs)


def test_every_tensor_has_a_shape_and_memory_of_its_own_before_a_plan_runs(
    fake: FakeTensorRt, exported: PlanBundle
) -> None:
    call = prepared(opened(exported, fake.gpu()), "unet", 16, ["model_output"])
    assert list(call.outputs) == ["model_output"]
    assert {name: tensor.dtype for name, tensor in call.inputs.items()} == {
        "sample": torch.float16,
        "timesteps": torch.int64,
        "encoder_hidden_states": torch.float16,
    }
    state = fake.contexts[-1]
    assert state.profile == 0
    assert state.shapes["sample"] == (16, 4, 8, 12)
    assert set(state.addresses) == {x.name for x in (*SPECS["unet"].inputs, *SPECS["unet"].outputs)}
    bound = call.inputs | call.outputs | call.scratch
    assert {name: tensor.data_ptr() for name, tensor in bound.items()} == state.addresses
    call.inputs["sample"].fill_(0.5)
    call.inputs["timesteps"].fill_(1000)
    call.run()
    torch.testing.assert_close(call.outputs["model_output"], torch.full((16, 4, 8, 12), 0.35, dtype=torch.float16))


def test_shapes_of_one_graph_share_an_engine_and_each_has_a_context(fake: FakeTensorRt, exported: PlanBundle) -> None:
    backend, loaded = opened(exported, fake.gpu()), fake.engines_loaded
    calls = [prepared(backend, "unet", 16), prepared(backend, "unet", 8)]
    assert fake.engines_loaded == loaded + 1
    assert [context.profile for context in fake.contexts[-2:]] == [0, 1]
    for batch, call in zip((16, 8), calls, strict=True):
        call.inputs["sample"].fill_(batch / 16)
        call.run()
    assert [float(call.outputs["div1"][0, 0, 0, 0]) for call in calls] == [1.0, 0.5]


def test_a_plan_runs_on_the_current_stream_unless_that_is_the_default_one(
    fake: FakeTensorRt, exported: PlanBundle
) -> None:
    call = prepared(opened(exported, fake.gpu()), "vae_decoder", 8)
    assert call.capturable
    fake.events.clear()
    call.run()
    assert fake.events == [("wait", OWN_STREAM, 0), ("run", OWN_STREAM, "vae_decoder"), ("wait", 0, OWN_STREAM)]
    fake.events.clear()
    fake.current = FakeStream(5, fake.events)  # what torch.cuda.graph captures on
    call.run()
    assert fake.events == [("run", 5, "vae_decoder")]


def test_a_run_that_fails_is_an_error_with_what_tensorrt_said(fake: FakeTensorRt, exported: PlanBundle) -> None:
    call = prepared(opened(exported, fake.gpu()), "vae_decoder", 8)
    fake.runs_fail = True
    library_for(fake.gpu()).log.log(fake.trt.ILogger.ERROR, "an illegal memory access\n was encountered.")
    with pytest.raises(BackendError, match="vae_decoder: an illegal memory access was encountered"):
        call.run()


def test_a_missing_plan_is_an_error_with_the_call_that_builds_it(
    fake: FakeTensorRt, exported: PlanBundle, build: Builder
) -> None:
    backend = opened(exported, fake.gpu())
    with pytest.raises(BackendError) as error:
        backend.prepare("unet", SPECS["unet"].input_shapes({"B": 5, "h": 8, "w": 16}))
    text = str(error.value)
    assert "no TensorRT plan of unet (batch 5, 64x32) for this machine (TensorRT " in text
    sizes = ((64, 32),) * 3
    assert text.endswith(
        f"`build_plans(BuildPlansSettings({str(exported.folder)!r}, batches=(1, 5, 5), sizes={sizes}))`."
    )
    build((1, 5, 5), sizes)  # what it says
    backend.prepare("unet", SPECS["unet"].input_shapes({"B": 5, "h": 8, "w": 16})).run()


@classic
@pytest.mark.parametrize(
    "change",
    [{"name": "Other GPU"}, {"capability": "9.1"}, {"driver": "581.0"}],
    ids=["gpu", "capability", "driver"],
)
def test_a_plan_of_another_machine_is_not_used(
    fake: FakeTensorRt, exported: PlanBundle, change: dict[str, str]
) -> None:
    with pytest.raises(BackendError, match="no TensorRT plan"):
        prepared(opened(exported, replace(fake.gpu(), **cast(Any, change))), "vae_decoder", 8)


@pytest.mark.skipif(VERSION != "rtx", reason="TensorRT compiles a plan to the end")
def test_what_is_compiled_at_load_is_kept_and_stays_the_same_while_a_run_goes_on(
    fake: FakeTensorRt, exported: PlanBundle
) -> None:
    call = prepared(opened(exported, fake.gpu()), "vae_decoder", 8)
    assert fake.kept == []
    call.run()
    call.run()
    backend = opened(exported, fake.gpu())
    prepared(backend, "vae_decoder", 8)
    assert fake.kept == [b"compiled here"]
    (last_step,) = backend._last_steps.values()
    strategy = last_step.config.dynamic_shapes_kernel_specialization_strategy
    assert strategy == fake.trt.DynamicShapesKernelSpecializationStrategy.EAGER
    prepared(opened(exported, replace(fake.gpu(), driver="581.0")), "vae_decoder", 8)  # the plan is for it, too
    assert fake.kept == [b"compiled here"]


@pytest.mark.parametrize("what", ["tensorrt", "weights", "graph"])
def test_a_plan_of_another_version_or_other_weights_is_not_used(
    fake: FakeTensorRt, exported: PlanBundle, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "tensorrt":
        monkeypatch.setattr(sys.modules[MODULES.get(VERSION, "tensorrt")], "__version__", "99.0.0")
    else:
        exported.manifest.files["weights.safetensors" if what == "weights" else "vae_decoder.onnx"] = "1" * 64
    with pytest.raises(BackendError, match="no TensorRT plan"):
        prepared(opened(exported, fake.gpu()), "vae_decoder", 8)


def test_a_damaged_plan_is_not_used_and_is_said_so(fake: FakeTensorRt, exported: PlanBundle, build: Builder) -> None:
    (path,) = plans_folder().glob("vae_decoder-*.plan")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    loaded = fake.engines_loaded
    with pytest.raises(BackendError, match=r"vae_decoder-\w+\.plan is damaged and was not used"):
        prepared(opened(exported, fake.gpu()), "vae_decoder", 8)
    assert fake.engines_loaded == loaded
    build()
    prepared(opened(exported, fake.gpu()), "vae_decoder", 8).run()


def test_a_plan_that_tensorrt_does_not_load_or_that_has_other_tensors_is_refused(
    fake: FakeTensorRt, exported: PlanBundle
) -> None:
    fake.wrong_dtype = "latents"
    with pytest.raises(BackendError, match="latents is not what the graph vae_decoder has"):
        prepared(opened(exported, fake.gpu()), "vae_decoder", 8)
    fake.wrong_dtype = None
    (path,) = plans_folder().glob("vae_decoder-*.plan")
    with path.open("rb") as file:
        header = json.loads(file.readline())
    profiles = [{size: tuple(bounds) for size, bounds in profile.items()} for profile in header["profiles"]]
    PlanStore().write(header["key"], profiles, b"whole, but no plan")
    with pytest.raises(BackendError, match=r"Magic tag does not match\. Remove it and build it again"):
        prepared(opened(exported, fake.gpu()), "vae_decoder", 8)


def test_precision_is_the_graphs_own(fake: FakeTensorRt, bundle: PlanBundle) -> None:
    backend = opened(bundle, fake.gpu(), precision="f16")
    assert (backend.name, backend.precision) == ("tensorrt", "f16")
    assert backend.description == f"{library_for(fake.gpu())} on Fake GPU, f16"
    with pytest.raises(UsageError, match="f16 in this bundle, not f32"):
        opened(bundle, fake.gpu(), precision="f32")


def test_doctor_learns_whether_tensorrt_starts(fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_backend, "find_gpu", lambda device=None: fake.gpu())
    found = tensorrt_backend.probe()
    assert (found.version, found.ready, found.devices[0].precisions) == (fake.trt.__version__, True, ("f16",))

    def broken(logger: Any) -> Any:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(sys.modules[MODULES.get(VERSION, "tensorrt")], "Runtime", broken)
    found = tensorrt_backend.probe()
    assert not found.ready
    assert "nullptr" in found.devices[0].problem


def painted(bundle: PlanBundle, out: Path, events: list[Event] | None = None, **options: Any) -> Any:
    told: list[Event] = [] if events is None else events
    asked: dict[str, Any] = {"engine": "tensorrt", "count": 3} | options
    settings = GenerateSettings(out=out, bundle=bundle.folder, **asked)
    return generate(settings, report=told.append)


def test_generate_finds_every_plan_of_a_plain_export(fake: FakeTensorRt, exported: PlanBundle, tmp_path: Path) -> None:
    fake.events.clear()
    summary = painted(exported, tmp_path / "run")
    assert summary.dataset.images == 3
    assert summary.backend == f"{library_for(fake.gpu())} on Fake GPU, f16"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["engine"] == "tensorrt"
    assert {event[2] for event in fake.events if event[0] == "run"} == set(SPECS) - {"vae_encoder"}


@pytest.mark.skipif(VERSION != "11", reason="what is asked for is the same in every version")
@pytest.mark.parametrize(
    "options",
    [
        {"slots": 3},
        {"size": (64, 48)},
        {"rows": 11},
        {"slots": 2, "rows": 3, "size": (32, 32)},
        {"guidance": 1.0, "slots": 6},
    ],
)
def test_the_call_that_an_error_names_builds_what_generate_needs(
    fake: FakeTensorRt, exported: PlanBundle, build: Builder, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(BackendError, match="no TensorRT plan") as error:
        painted(exported, tmp_path / "run", **options)
    call = cast(ast.Call, ast.parse(str(error.value).split("`")[-2], mode="eval").body)
    assert ast.unparse(call.func) == "build_plans"
    (call,) = cast(list[ast.Call], call.args)
    assert ast.unparse(call.func) == "BuildPlansSettings"
    assert [ast.literal_eval(argument) for argument in call.args] == [str(exported.folder)]
    build(**{str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords})
    assert painted(exported, tmp_path / "run", **options).dataset.images == 3


def test_auto_passes_over_tensorrt_with_one_line_while_a_plan_is_missing(
    fake: FakeTensorRt, bundle: PlanBundle, build: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("engines.backends.registry.importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("engines.backends.torch.TorchBackend", lambda *_, **__: FakeBackend(name="torch"))
    events: list[Event] = []
    painted(bundle, tmp_path / "first", events, engine="auto")
    lines = [event.text for event in events if event.kind is EventKind.NOTE and "tensorrt" in event.text]
    assert len(lines) == 1
    assert lines[0].startswith("tensorrt is passed over: There is no TensorRT plan of text_encoder (batch 1), unet ")
    build()
    painted(bundle, tmp_path / "second", events, engine="auto")
    assert json.loads((tmp_path / "second" / "run.json").read_text())["engine"] == "tensorrt"
    found = open_backend(cast(Bundle, bundle), "auto", needs=Needs(()), precision="f32")
    assert found.name == "torch"  # plans are f16


def test_label_finds_its_plans_and_says_what_other_sizes_need(
    fake: FakeTensorRt, exported: PlanBundle, build: Builder, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(images / f"{number}.png")
    settings = LabelSettings(images=images, out=tmp_path / "a", bundle=exported.folder, engine="tensorrt")
    assert label(settings).images == 3
    Image.fromarray(rng.integers(0, 255, (32, 64, 3), dtype=np.uint8)).save(images / "wide.png")
    with pytest.raises(BackendError, match=r"unet \(batch 8, 64x32\).*sizes=\(\(48, 32\), \(64, 32\), \(64, 32\)\)"):
        label(replace(settings, out=tmp_path / "b"))
    build(sizes=((48, 32), (64, 32), (64, 32)))
    assert label(replace(settings, out=tmp_path / "b")).images == 4
    assert set(label(replace(settings, out=tmp_path / "c")).boxes_by_class) == set(CLASS_NAMES)
