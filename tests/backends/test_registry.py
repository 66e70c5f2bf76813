"""The registry: what is known of each engine is true of its module, and a bundle is opened as was asked."""

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from refusals import refused
from small_graphs import small_bundle

import engines.backends.rows as rows_module
from engines.backends import registry
from engines.backends.base import OpenOptions
from engines.backends.probe import Probe
from engines.backends.registry import BACKENDS, ENGINES, BackendInfo, backend_info, open_backend, probe_backend
from engines.backends.rows import RowBackend
from engines.backends.tensorrt.plans import Needs
from engines.bundle.bundle import Bundle
from engines.errors import BackendError, UsageError

NAMES = [info.name for info in BACKENDS]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, OpenOptions]]:
    """What each engine's module was opened with; no runtime is."""
    found: list[tuple[str, OpenOptions]] = []
    for info in BACKENDS:

        def open_bundle(bundle: Bundle, options: OpenOptions, name: str = info.name) -> Any:
            found.append((name, options))
            return SimpleNamespace(
                name=name, description=name, device=options.device, precision="f32", threads=options.threads or 1
            )

        monkeypatch.setattr(f"{info.module}.open_bundle", open_bundle)
    return found


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path)


def in_half(bundle: Bundle) -> Bundle:
    """As bundles for GPUs are, which alone have plans."""
    cast(Any, bundle.manifest).graph_dtype = "float16"
    return bundle


# --- what is known of an engine ----------------------------------------------------------------------------------


def test_every_engine_is_known_by_its_name() -> None:
    assert list(ENGINES) == ["auto", *NAMES]
    assert len(set(ENGINES)) == len(ENGINES)
    assert [backend_info(name) for name in NAMES] == list(BACKENDS)
    for name in ("tensorflow", "auto", ""):
        with refused(UsageError, "engine", f'"{name}"', *NAMES):
            backend_info(name)


@pytest.mark.parametrize("info", BACKENDS, ids=NAMES)
def test_every_engines_module_can_open_and_be_asked(info: BackendInfo) -> None:
    module: Any = importlib.import_module(info.module)
    assert callable(module.open_bundle)
    found = probe_backend(info)
    assert isinstance(found, Probe)
    assert found.name == info.name
    assert info.devices
    assert set(info.devices) <= {"cpu", "cuda"}


def test_the_package_of_an_engine_is_what_auto_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    present = {info.package for info in BACKENDS}
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: name if name in present else None)  # type: ignore[attr-defined]
    assert registry.auto_engine() == "openvino"
    for gone, taken in (("openvino", "onnxruntime"), ("onnxruntime", "torch")):
        present.remove(backend_info(gone).package)
        assert registry.auto_engine() == taken


# --- where it runs -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("engine", "device", "place"),
    [
        ("tensorrt", None, "cuda:0"),
        ("tensorrt", "cuda:1", "cuda:1"),
        ("torch", None, "cuda:0"),
        ("torch", "cpu", "cpu"),
        ("torch", "cuda:1", "cuda:1"),
        ("openvino", None, "cpu"),
        ("onnxruntime", None, "cpu"),
        ("onnxruntime", "cuda", "cuda:0"),
        ("auto", None, "cuda:0"),
    ],
)
def test_an_engine_runs_where_it_was_asked_to_or_where_it_is_fastest(
    bundle: Bundle, opened: list[tuple[str, OpenOptions]], engine: str, device: str | None, place: str
) -> None:
    open_backend(bundle, engine, device=device)
    ((name, options),) = opened
    assert name == ("torch" if engine == "auto" else engine)
    assert options.device == torch.device(place)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_torch_runs_on_the_cpu_and_tensorrt_is_left_to_say_what_it_needs(
    bundle: Bundle, opened: list[tuple[str, OpenOptions]]
) -> None:
    for engine in ("torch", "tensorrt"):
        open_backend(bundle, engine)
    assert [(name, options.device.type) for name, options in opened] == [("torch", "cpu"), ("tensorrt", "cuda")]


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize(
    ("engine", "device", "advice"),
    [("openvino", "cuda", "`engine=torch or onnxruntime`"), ("tensorrt", "cpu", "`engine=torch or openvino")],
)
def test_a_device_that_an_engine_never_runs_on_is_refused_with_the_engines_that_do(
    bundle: Bundle,
    opened: list[tuple[str, OpenOptions]],
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    engine: str,
    device: str,
    advice: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(gpu))
    with refused(UsageError, "device", engine, device, advice):
        open_backend(bundle, engine, device=device)
    assert opened == []


# --- what it is opened with --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpus")
def test_options_reach_the_engine(bundle: Bundle, opened: list[tuple[str, OpenOptions]]) -> None:
    needs = Needs(())
    open_backend(bundle, "torch", precision="bf16", threads=3, device="cuda:1", compiled=True)
    open_backend(bundle, "openvino", precision="int8", keep_compiled=False)
    open_backend(bundle, "tensorrt", precision="f16", needs=needs)
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert opened == [
        ("torch", OpenOptions("bf16", 3, torch.device("cuda", 1), compiled=True)),
        ("openvino", OpenOptions("int8", None, cpu, keep_compiled=False)),
        ("tensorrt", OpenOptions("f16", None, cuda, needs=needs)),
    ]


@pytest.mark.usefixtures("gpus")
def test_where_it_is_left_open_torch_on_cuda_compiles_if_the_compiler_is_here(
    bundle: Bundle, opened: list[tuple[str, OpenOptions]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, here = importlib.util.find_spec, True

    def find(name: str) -> Any:
        return (object() if here else None) if name == "triton" else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    for engine, device in (("torch", None), ("torch", "cpu"), ("openvino", None), ("onnxruntime", "cuda")):
        open_backend(bundle, engine, device=device, compiled=None)
    here = False
    open_backend(bundle, "torch", compiled=None)
    assert [options.compiled for _, options in opened] == [True, False, False, False, False]


@pytest.mark.parametrize("info", BACKENDS, ids=NAMES)
def test_what_only_some_engines_have_is_refused_elsewhere(
    bundle: Bundle, opened: list[tuple[str, OpenOptions]], info: BackendInfo
) -> None:
    for field, options, has in (
        ("precision", {"precision": "int8"}, info.int8),
        ("compiled", {"compiled": True}, info.compiles),
    ):
        opened.clear()
        if has:
            open_backend(bundle, info.name, **cast(Any, options))
            assert [name for name, _ in opened] == [info.name]
        else:
            with refused(UsageError, field, info.name):
                open_backend(bundle, info.name, **cast(Any, options))
            assert opened == []


@pytest.mark.usefixtures("no_gpu")
def test_a_full_size_bundle_runs_by_rows_and_keeps_no_model_but_not_from_plans_or_when_asked_for_whole(
    bundle: Bundle, opened: list[tuple[str, OpenOptions]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "is_full_size", lambda bundle: True)
    assert isinstance(open_backend(bundle, "openvino"), RowBackend)
    assert not isinstance(open_backend(bundle, "openvino", whole=True), RowBackend)
    assert not isinstance(open_backend(bundle, "tensorrt"), RowBackend)
    assert [options.keep_compiled for _, options in opened] == [False, False, True]


# --- auto and plans ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpus")
def test_auto_takes_plans_where_they_are_and_says_in_one_line_where_not(
    bundle: Bundle, opened: list[tuple[str, OpenOptions]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: name)  # type: ignore[attr-defined]
    told: list[str] = []
    needs, half = Needs(()), in_half(bundle)
    assert open_backend(half, device="cuda:1", needs=needs, told=told.append).name == "tensorrt"
    assert opened == [("tensorrt", OpenOptions("auto", None, torch.device("cuda", 1), needs=needs))]
    assert open_backend(half, told=told.append).name == "torch", "nobody says what is going to be prepared"
    assert told == []

    def missing(bundle: Bundle, options: OpenOptions) -> Any:
        raise BackendError("There is no plan of unet.")

    monkeypatch.setattr(f"{backend_info('tensorrt').module}.open_bundle", missing)
    assert open_backend(half, needs=needs, told=told.append).name == "torch"
    assert told == ["tensorrt is passed over: There is no plan of unet."]
    with refused(BackendError, None, "unet"):
        open_backend(half, "tensorrt", needs=needs)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    "options", [{"device": "cpu"}, {"precision": "f32"}, {"compiled": True}], ids=["cpu", "f32", "compiled"]
)
def test_auto_does_not_think_of_plans_where_they_would_not_be_what_was_asked_for(
    bundle: Bundle,
    opened: list[tuple[str, OpenOptions]],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: name)  # type: ignore[attr-defined]
    told: list[str] = []
    found = open_backend(in_half(bundle), needs=Needs(()), told=told.append, **options)
    assert found.name == ("openvino" if "device" in options else "torch")
    assert told == []


def test_an_engine_of_another_kind_is_a_row_and_a_module(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    added = replace(backend_info("onnxruntime"), name="other", module="engines.backends.other")
    module = SimpleNamespace(open_bundle=lambda bundle, options: (added.name, options), probe=lambda: Probe("other"))
    load = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: module if name == added.module else load(name))
    monkeypatch.setattr(registry, "BACKENDS", (*BACKENDS, added))
    name, options = cast(Any, open_backend(bundle, "other"))
    assert (name, options.device) == ("other", torch.device("cpu"))
    assert probe_backend(added).name == "other"
