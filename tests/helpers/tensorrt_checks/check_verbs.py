"""`generate`, `label` and `doctor` on TensorRT: they find an export's plans, and say what else they need."""

import ast
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from fakes import CLASS_NAMES, FakeBackend
from PIL import Image
from tensorrt_checks.scene import MODULE, VERSION, Builder, opened
from tensorrt_stubs_fake import SPECS, FakeTensorRt, PlanBundle

from engines.backends.registry import open_backend
from engines.backends.tensorrt import backend as tensorrt_backend
from engines.backends.tensorrt.backend import library_for
from engines.backends.tensorrt.plans import Needs
from engines.bundle.bundle import Bundle
from engines.common.events import Event, EventKind
from engines.errors import BackendError, UsageError
from engines.labelling import LabelSettings, label
from engines.painting.settings import GenerateSettings
from engines.runs.generate import generate

pytest_plugins = ["tensorrt_checks.fixtures"]


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

    monkeypatch.setattr(sys.modules[MODULE], "Runtime", broken)
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
