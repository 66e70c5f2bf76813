"""TensorRT plans as far as they go without TensorRT: their files and keys, how they are checked, and what is said."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from command_line import dengine
from refusals import refused

from dengine_cli.flags import with_flags
from engines.backends.registry import open_backend
from engines.backends.tensorrt import gpu as gpu_module
from engines.backends.tensorrt import plans
from engines.backends.tensorrt.backend import check_bundle, probe
from engines.backends.tensorrt.gpu import find_gpu
from engines.backends.tensorrt.plans import Bounds, Machine, Needs, PlanStore, missing_plans, plan_key, plans_folder
from engines.bundle.bundle import Bundle, open_bundle
from engines.common.events import Report
from engines.errors import BackendError, UsageError
from export import assemble
from export.assemble import ExportSummary
from export.tensorrt import build as to_tensorrt
from export.tensorrt.build import BuildPlansSummary, PlanSummary
from export.tensorrt.check_plans import PlanCheck
from export.tensorrt.profiles import wanted_profiles
from export.tensorrt.progress import building
from export.tensorrt.settings import BuildPlansSettings

MACHINE = Machine("TensorRT", "11.4.0", "9.0", "Some GPU", "580.1")
STATIC: Bounds = {"B": (8, 8, 8), "h": (8, 8, 8), "w": (12, 12, 12)}
RANGE: Bounds = {"B": (1, 4, 16), "h": (8, 8, 16), "w": (8, 12, 16)}
KEY = {"graph": "unet", "tensorrt": "11.4.0"}
SIZES = {"B": 8, "h": 8, "w": 12}


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache folder for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def half_bundle(folder: Path) -> Bundle:
    """As much of a bundle as a plan's key reads."""
    folder.mkdir(exist_ok=True)
    (folder / "unet.onnx").write_bytes(b"reads unet/weights.safetensors")
    files = {"unet.onnx": "a", "vae.onnx": "b", "unet/weights.safetensors": "c", "vae/weights.safetensors": "d"}
    parts = SimpleNamespace(
        folder=folder,
        vae_stride=8,
        manifest=SimpleNamespace(files=files, graph_dtype="float16", weights_dtype="float16"),
        graph_path=lambda graph: folder / f"{graph}.onnx",
    )
    return cast(Bundle, parts)


# --- files -------------------------------------------------------------------------------------------------------


def test_a_plan_comes_back_whole_and_only_for_its_key_and_shapes() -> None:
    store = PlanStore()
    path = store.write(KEY, [STATIC], b"the plan")
    assert path.parent == plans_folder()
    found = PlanStore().find(KEY, SIZES)
    assert found is not None
    with found[0].data() as data:
        assert bytes(data) == b"the plan"
    assert (found[0].path, found[0].bytes, found[1]) == (path, 8, 0)
    assert PlanStore().find(KEY | {"tensorrt": "11.5.0"}, SIZES) is None
    assert PlanStore().find(KEY, SIZES | {"B": 7}) is None
    assert PlanStore().find(KEY | {"graph": "adapter"}, SIZES) is None
    assert [file.name for file in plans_folder().iterdir()] == [path.name]


def test_a_static_plan_comes_before_a_range_and_a_profile_before_a_wider_one() -> None:
    store = PlanStore()
    wide = store.write(KEY, [RANGE], b"range")
    narrow = store.write(KEY, [RANGE, STATIC], b"both")
    found = store.find(KEY, SIZES)
    assert found is not None
    assert (found[0].path, found[1]) == (narrow, 1)
    other = store.find(KEY, SIZES | {"B": 3})
    assert other is not None
    assert other[1] == 0
    held = store.holding(KEY, STATIC)
    assert held is not None
    assert held.path == narrow
    only = PlanStore(only=[wide]).find(KEY, SIZES)
    assert only is not None
    assert only[0].path == wide


@pytest.mark.parametrize("damage", ["cut", "changed", "header", "empty", "no header", "infinite", "deep"])
def test_a_damaged_plan_is_not_found_and_is_noted(damage: str) -> None:
    path = PlanStore().write(KEY, [STATIC], b"the plan, of some length")
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-5],
            "changed": whole[:-1] + b"x",
            "header": whole.replace(b"[8, 8, 8]", b"[1, 8, 9]", 1),
            "empty": b"",
            "no header": b"\x00\xff" * 50,
            "infinite": whole.replace(b"[8, 8, 8]", b"[8, 8, Infinity]", 1),
            "deep": b"[" * 100_000 + b"\n",
        }[damage]
    )
    store = PlanStore()
    assert store.find(KEY, SIZES) is None
    assert store.damaged == [path]


def test_what_a_folder_of_damaged_and_foreign_plans_says_is_one_short_line(tmp_path: Path) -> None:
    bundle = half_bundle(tmp_path / "b")
    key = plan_key(bundle, "unet", MACHINE)
    for gpu in ("x" * 100_000, "a\nb", "\ud800"):
        PlanStore().write(key | {"gpu": gpu}, [STATIC], b"x")
    for number in range(100):
        (plans_folder() / f"unet-{number}.plan").write_bytes(b"")
    text = missing_plans(PlanStore(), bundle, MACHINE, Needs((("unet", SIZES),), {}))
    assert text is not None
    assert len(text.encode("utf-8").splitlines()) == 1
    assert str(plans_folder() / "unet-0.plan") in text
    assert len(text) < 1000


def test_what_is_no_file_among_the_plans_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    path = PlanStore().write(KEY, [STATIC], b"the plan")
    (plans_folder() / "unet-folder.plan").mkdir()
    (plans_folder() / "unet-link.plan").symlink_to("/nowhere/at all")
    assert PlanStore().find(KEY, SIZES) is not None
    monkeypatch.setattr(plans, "LIMIT_BYTES", 0)
    plans.remove_unused(plans_folder(), keep=[])
    assert not path.exists()
    assert len(list(plans_folder().iterdir())) == 2


def test_a_plan_that_cannot_be_written_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        PlanStore().write(KEY, [STATIC], b"the plan")
    assert list(plans_folder().iterdir()) == []


def test_the_plans_that_were_not_used_for_longest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    store = PlanStore()
    paths = [store.write(KEY | {"n": n}, [STATIC], bytes(100)) for n in range(3)]
    for age, path in enumerate(paths):
        os.utime(path, (1000 + age, 1000 + age))
    assert store.find(KEY | {"n": 0}, SIZES) is not None  # used now
    monkeypatch.setattr(plans, "LIMIT_BYTES", sum(path.stat().st_size for path in paths) - 1)
    plans.remove_unused(plans_folder(), keep=[paths[2]])
    assert [path.exists() for path in paths] == [True, False, True]


def test_a_key_holds_the_graph_its_weights_and_the_machine(tmp_path: Path) -> None:
    bundle = half_bundle(tmp_path / "b")
    key = plan_key(bundle, "unet", MACHINE)
    assert key["files"] == {"unet.onnx": "a", "unet/weights.safetensors": "c"}
    assert (key["precision"], key["tensorrt"], key["gpu"]) == ("float16", "11.4.0", "Some GPU")
    assert (key["capability"], key["driver"]) == ("9.0", "580.1")


def test_what_is_missing_is_one_line_with_the_call_and_the_command(tmp_path: Path) -> None:
    bundle = half_bundle(tmp_path / "my bundle")
    needs = Needs((("unet", SIZES), ("unet", SIZES | {"B": 16})), {"batches": (8, 8, 8)})
    PlanStore().write(plan_key(bundle, "unet", MACHINE), [STATIC], b"x")
    text = missing_plans(PlanStore(), bundle, MACHINE, needs)
    assert text is not None
    assert "unet (batch 16, 96x64)" in text
    assert str(MACHINE) in text
    assert f"`build_plans(BuildPlansSettings('{bundle.folder}', batches=(8, 8, 8)))`" in text
    assert f"\"dengine export --bundle '{bundle.folder}' --engine tensorrt --batch 8\"" in with_flags(text, {})
    assert len(text.splitlines()) == 1
    assert missing_plans(PlanStore(), bundle, MACHINE, Needs(needs.graphs[:1])) is None


# --- against the real networks, and from the command line ------------------------------------------------------


def test_plans_are_compared_with_the_real_networks_at_every_shape(toy_bundle_fp16: Path) -> None:
    bundle = open_bundle(toy_bundle_fp16)
    width, height = bundle.frame
    profiles = wanted_profiles(bundle, (1, 1, 3), ((width, height), (width, height), (width + width, height)))
    tested = open_backend(bundle, "onnxruntime", threads=1, device="cpu")  # in place of TensorRT
    check = PlanCheck(bundle, tested)
    for graph, bounds in profiles.items():
        assert 0 < check.check(graph, bounds) < 5e-3, graph
    boxes, missing = check.labels(profiles["adapter"][0])
    assert boxes > 0
    assert missing <= 0.05 * boxes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "b"], "--bundle, --for, --batch, --size and --workspace are for --engine tensorrt"),
        (["--engine", "openvino", "--bundle", "b"], 'Unknown engine "openvino"; only tensorrt'),
        (["--engine", "tensorrt", "--bundle", "b", "--out", "x"], "all that shapes a new one"),
        (["--engine", "tensorrt", "--bundle", "b", "--lora", "style.safetensors"], "all that shapes a new one"),
        (["--engine", "tensorrt", "--bundle", "b", "--opset", "18"], "all that shapes a new one"),
        (["--engine", "tensorrt", "--bundle", "b", "--batch", "9:3:1"], "three rising numbers"),
        (
            [
                *[
                    "--engine",
                    "tensorrt",
                    "--model",
                    "m",
                    "--adapter",
                    "a",
                    "--out",
                    "o",
                    "--graph-dtype",
                    "float16",
                    "--workspace",
                    "0",
                ]
            ],
            "a number of GB above 0",
        ),
        (["--engine", "tensorrt"], "--model, --adapter and --out are needed"),
        (["--engine", "tensorrt", "--model", "m", "--adapter", "a", "--out", "o"], "add --graph-dtype float16"),
    ],
)
def test_options_of_plans_that_contradict_each_other_are_refused(arguments: list[str], message: str) -> None:
    result = dengine("export", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("in_one_go", [False, True])
def test_export_builds_plans_as_asked_and_prints_how_close_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_go: bool
) -> None:
    asked: list[BuildPlansSettings] = []

    def build(settings: BuildPlansSettings, *, report: Report) -> BuildPlansSummary:
        asked.append(settings)
        report(building("unet", "Timing kernels", 25.0, 30.0))
        plans = (PlanSummary("unet", 75.0, 1_700_000_000, 1.5e-3), PlanSummary("adapter", 0.0, 9_000_000, 1e-4))
        return BuildPlansSummary(plans, 40, 1, "TensorRT 11.4.0", "Some GPU", tmp_path / "plans")

    made = ExportSummary(tmp_path / "made", 1, (), (), {}, None)
    monkeypatch.setattr(to_tensorrt, "build_plans", build)
    monkeypatch.setattr(to_tensorrt, "check_ready", lambda *_: None)
    monkeypatch.setattr(assemble, "export", lambda *_, **__: made)
    monkeypatch.setattr("engines.diffusion.base_model.local_folder", lambda *_: tmp_path)
    source: list[object] = ["--bundle", tmp_path / "b"]
    if in_one_go:
        source = ["--model", "m", "--adapter", "a", "--out", tmp_path / "made", "--graph-dtype", "float16"]
    options = ["--batch", "1:8:16", "--size", "512x512", "--workspace", "8"]
    result = dengine("export", *source, "--engine", "tensorrt", *options)
    assert result.exit_code == 0, result.output
    folder = tmp_path / ("made" if in_one_go else "b")
    sizes = ((512, 512), (512, 512), (512, 512))
    assert asked == [BuildPlansSettings(folder, batches=(1, 8, 16), sizes=sizes, workspace=8.0)]
    assert "unet: 25/100, Timing kernels, 30 s left" in result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert {"plan of built in MB relative error", "unet 75 s 1700.0 1.5e-03", "adapter found 9.0 1.0e-04"} <= set(lines)
    assert "labels 39 of 40 boxes as PyTorch's" in lines
    assert f"plans {tmp_path / 'plans'} (TensorRT 11.4.0, Some GPU)" in lines


@pytest.mark.parametrize("debug", [False, True])
def test_export_with_debug_says_which_layer_of_a_wrong_plan_is_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    def build(settings: BuildPlansSettings, **_: Any) -> BuildPlansSummary:
        raise to_tensorrt.PlanError("unet: its plan gives div2 with NaN.", ["unet"])

    monkeypatch.setattr(to_tensorrt, "build_plans", build)
    monkeypatch.setattr("engines.bundle.bundle.open_bundle", lambda folder: folder)
    monkeypatch.setattr("engines.backends.tensorrt.gpu.find_gpu", lambda: "the GPU")
    monkeypatch.setattr("export.tensorrt.layers.explain_plan", lambda *found: f"first is conv_3 {found[1:3]}")
    result = dengine(*["--debug"] * debug, "export", "--bundle", tmp_path, "--engine", "tensorrt")
    assert result.exit_code == 1
    assert ("unet: first is conv_3 ('unet', 'the GPU')" in result.stderr) == debug


# --- without a GPU -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_tensorrt_without_a_gpu_says_what_is_needed(tmp_path: Path) -> None:
    with refused(BackendError, "engine", "NVIDIA GPU"):
        open_backend(half_bundle(tmp_path), "tensorrt")
    with refused(BackendError, "engine", "NVIDIA GPU"):
        find_gpu()
    found = probe()
    assert not found.ready
    assert found.advice


def test_tensorrt_on_the_cpu_is_a_usage_error(tmp_path: Path) -> None:
    with refused(UsageError, "device", "tensorrt", "`engine="):
        open_backend(half_bundle(tmp_path), "tensorrt", device="cpu")


def test_auto_is_silent_where_tensorrt_was_never_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = half_bundle(tmp_path)
    told: list[str] = []
    monkeypatch.setattr("engines.backends.openvino.backend.OpenVinoBackend", lambda *_, **__: "openvino")
    assert cast(Any, open_backend(bundle, "auto", device="cpu", needs=Needs(()), told=told.append)) == "openvino"
    bundle.manifest.graph_dtype = "float32"  # type: ignore[misc]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("engines.backends.torch.TorchBackend", lambda *_, **__: "torch")
    assert cast(Any, open_backend(bundle, "auto", needs=Needs(()), told=told.append)) == "torch"
    assert told == []
    with refused(BackendError, "bundle", bundle.folder, "graph_dtype='float16'))`"):
        check_bundle(bundle)


def test_the_drivers_version_is_read_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Management:
        def nvmlInit_v2(self) -> int:  # noqa: N802  the library's own name
            return 0

        def nvmlSystemGetDriverVersion(self, text: Any, length: int) -> int:  # noqa: N802
            text.value = b"580.65.06"
            return 0

    class Cuda:
        def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
            number._obj.value = 13010
            return 0

    def library(present: dict[str, Callable[[], Any]]) -> Callable[[str], Any]:
        def load(name: str) -> Any:
            if name not in present:
                raise OSError(f"{name}: cannot open shared object file")
            return present[name]()

        return load

    monkeypatch.setattr(ctypes, "CDLL", library({"libnvidia-ml.so.1": Management, "libcuda.so.1": Cuda}))
    assert gpu_module._driver_version() == "580.65.06"
    monkeypatch.setattr(ctypes, "CDLL", library({"libcuda.so.1": Cuda}))
    assert gpu_module._driver_version() == "CUDA 13.1"
    monkeypatch.setattr(ctypes, "CDLL", library({}))
    with refused(BackendError, "engine", "driver"):
        gpu_module._driver_version()


def test_a_driver_that_is_too_old_for_pytorch_is_said_so() -> None:
    text = gpu_module._why_none((12, 4), "13.0")
    assert "supports CUDA 12.4" in text
    assert "built for CUDA 13.0. Upgrade the NVIDIA driver" in text
    for supported, built in (((0, 0), "13.0"), ((13, 1), "13.0"), ((12, 4), "")):  # that is not the reason
        assert "Upgrade" not in gpu_module._why_none(supported, built)
