"""The report of `dengine doctor --gpu`, run on the CPU: what it checks, and that no failure stops the rest."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dengine_cli.doctor import describe_gpu
from dengine_cli.main import app
from engines.backends.probe import Device, Probe
from engines.bundle.bundle import default_bundle, open_bundle
from engines.bundle.graphs import GRAPH_NAMES
from engines.doctor import Diagnosis, examine
from engines.errors import ExportError
from export.gpu import checks as gpu_checks
from export.gpu import report as gpu_report
from export.gpu.checks import FAILED, OK, SKIPPED, Check, Speed
from export.settings import ExportSettings


def silent(text: str) -> None:
    pass


@cache
def this_machine() -> Diagnosis:
    return examine()


class Flow:
    """`gpu_report` with every check replaced: what it calls, and what it makes of what they raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, graph_dtype: str = "float32") -> None:
        self.opened: list[tuple[str, str, str]] = []
        self.bundle = SimpleNamespace(folder=folder, manifest=SimpleNamespace(graph_dtype=graph_dtype))
        self.copies = 0
        self.runtimes = [Probe("tensorrt", "10.14.1", (Device("GPU", True, ("f16",)),))]
        plans = tuple(SimpleNamespace(graph=graph, seconds=3.0, bytes=10**6, error=1e-3) for graph in GRAPH_NAMES)
        self.summary = SimpleNamespace(plans=plans, boxes=20, boxes_missing=0)
        self.diagnosis = this_machine()
        self.raised: dict[str, Exception] = {}
        replaced = {
            "open_bundle": lambda folder: self.bundle,
            "examine": self.examine,
            "open_backend": self.open,
            "run_reference": lambda bundle, report: "chain",
            "check_graphs": lambda bundle, backend, chain, report: self.check("graphs", backend),
            "check_ticks": lambda bundle, backend, report: (
                self.check("ticks", backend),
                [Speed(f"{backend}: tick", 8, 0.01)],
            ),
            "check_labels": lambda bundle, engines, device, report: [
                check for engine, _ in engines for check in self.check("labels", engine)
            ],
            "half_precision": self.half,
            "_release": lambda: None,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(gpu_report, name, value)
        monkeypatch.setattr("export.tensorrt.build.build_plans", self.build)

    def examine(self) -> Diagnosis:
        return dataclasses.replace(self.diagnosis, runtimes=tuple(self.runtimes))

    def open(self, bundle: Any, engine: str, *, precision: str, device: str) -> str:
        self.opened.append((engine, precision, device))
        if engine in self.raised:
            raise self.raised[engine]
        return engine

    def check(self, kind: str, engine: str) -> list[Check]:
        if engine in self.raised:
            raise self.raised[engine]
        return [Check(f"{engine}: {kind}", OK, "fine")]

    @contextlib.contextmanager
    def half(self, bundle: Any, version: str, report: Any) -> Iterator[Any]:
        self.copies += bundle.manifest.graph_dtype != "float16"
        yield bundle if bundle.manifest.graph_dtype == "float16" else SimpleNamespace(folder=bundle.folder / "half")

    def build(self, settings: Any, **_: Any) -> Any:
        if "build" in self.raised:
            raise self.raised["build"]
        return self.summary

    def run(self) -> gpu_report.GpuReport:
        return gpu_report.gpu_report(self.bundle.folder, device="cuda")


def test_every_engine_is_checked_and_tensorrt_on_a_copy_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Flow(monkeypatch, tmp_path)
    found = flow.run()
    assert found.failed == 0
    assert flow.copies == 1
    assert set(flow.opened) == {
        ("torch", "f32", "cuda"),
        ("torch", "f16", "cuda"),
        ("onnxruntime", "f32", "cuda"),
        ("onnxruntime", "f16", "cuda"),  # the copy's graphs
        ("tensorrt", "f16", "cuda"),
    }
    names = [check.name for check in found.checks]
    assert names[-7:] == [
        *(f"tensorrt f16: {graph}" for graph in GRAPH_NAMES[1:]),
        "tensorrt f16: labels of the same latents",
        "tensorrt: ticks",
        "tensorrt: labels",
    ]
    assert [speed.what for speed in found.speeds] == ["torch: tick", "onnxruntime: tick", "tensorrt: tick"]


def test_a_bundle_in_half_precision_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Flow(monkeypatch, tmp_path, "float16")
    assert flow.run().failed == 0
    assert flow.copies == 0
    assert flow.opened.count(("onnxruntime", "f16", "cuda")) == 2  # graphs and ticks, once each
    assert ("onnxruntime", "f32", "cuda") not in flow.opened


def test_without_tensorrt_the_report_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Flow(monkeypatch, tmp_path)
    flow.runtimes = [Probe("tensorrt", advice="tensorrt is not installed.")]
    found = flow.run()
    assert found.checks[-1] == Check("tensorrt", SKIPPED, "tensorrt is not installed.")
    assert found.failed == 0
    assert all(engine != "tensorrt" for engine, _, _ in flow.opened)


def test_an_engine_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Flow(monkeypatch, tmp_path)
    flow.raised = {
        "onnxruntime": RuntimeError("libcudnn.so.9:\ncannot open"),
        "build": ExportError("unet: its plan is wrong."),
    }
    found = flow.run()
    failed = {check.name: check.text for check in found.checks if check.outcome == FAILED}
    assert failed["onnxruntime f32"] == "RuntimeError: libcudnn.so.9: cannot open"
    assert failed["tensorrt"] == "unet: its plan is wrong."
    assert failed["onnxruntime f32: labels"] == "RuntimeError: libcudnn.so.9: cannot open"
    assert {"torch: ticks", "torch: labels"} <= {check.name for check in found.checks if check.outcome == OK}


def test_labels_of_plans_that_disagree_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Flow(monkeypatch, tmp_path)
    flow.summary.boxes_missing = 5
    (failed,) = [check for check in flow.run().checks if check.outcome == FAILED]
    assert failed.text == "15 of 20 boxes agree with PyTorch's"


def test_the_report_is_text_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Flow(monkeypatch, tmp_path)
    flow.summary.boxes_missing = 20
    found = flow.run()
    text = describe_gpu(found)
    assert "tensorrt f16: unet" in text
    assert f"{len(found.checks)} checks, 1 failed" in text
    stored = json.loads(json.dumps(found.to_json()))
    assert stored["failed"] == 1
    assert stored["diagnosis"]["runtimes"][0]["name"] == "tensorrt"


@pytest.mark.parametrize(("tensorrt", "opset"), [("10.14.1.48", 23), ("10.12.0.36", 18)])
def test_the_copy_in_half_precision_has_the_newest_opset_that_tensorrt_reads(
    tensorrt: str, opset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ExportSettings] = []

    def export(settings: ExportSettings, **_: Any) -> SimpleNamespace:
        asked.append(settings)
        shutil.copytree(Path(settings.base), settings.out)
        return SimpleNamespace(folder=settings.out)

    monkeypatch.setattr(gpu_report, "export", export)
    whole = open_bundle(default_bundle(), verify=False)
    with gpu_report.half_precision(whole, tensorrt, silent) as copy:
        assert copy.folder != whole.folder
        assert copy.folder.is_dir()
    assert not copy.folder.exists()
    (settings,) = asked
    assert (settings.base, settings.adapter) == (whole.folder, whole.folder / "adapter")
    assert (settings.graph_dtype, settings.opset, settings.frame) == ("float16", opset, whole.frame)
    assert settings.generate == whole.generate_defaults


def test_the_whole_report_runs_on_a_cpu(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "RUNS", 2)
    found = gpu_report.gpu_report(toy_bundle, device="cpu")
    outcomes = {check.name: check.outcome for check in found.checks}
    for graph in GRAPH_NAMES:
        assert outcomes[f"torch f32: {graph}"] == OK
        assert outcomes[f"onnxruntime f32: {graph}"] == OK
    assert outcomes["onnxruntime f32: 8 jobs"] == OK
    assert found.failed == 0, [check for check in found.checks if check.outcome == FAILED]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_doctor_gpu_without_a_gpu_is_one_line_and_exit_code_1() -> None:
    result = CliRunner().invoke(app, ["doctor", "--gpu"])
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: There is no NVIDIA GPU")


def test_doctor_gpu_exits_with_1_when_a_check_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Flow(monkeypatch, tmp_path)
    monkeypatch.setattr(gpu_report, "need_gpu", lambda: None)
    result = CliRunner().invoke(app, ["doctor", "--gpu", "--bundle", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "0 failed" in result.stdout
    flow.raised = {"torch": RuntimeError("CUDA error: no kernel image")}
    result = CliRunner().invoke(app, ["doctor", "--gpu", "--bundle", str(tmp_path)])
    assert result.exit_code == 1
    assert "RuntimeError: CUDA error: no kernel image" in result.stdout
    assert "error:" not in result.stderr


def test_bundle_without_gpu_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["doctor", "--bundle", "x"])
    assert result.exit_code == 2
    assert "--bundle goes with --gpu" in result.stderr
