"""The checks of `dengine doctor --gpu`, run on the CPU: what they accept and catch, and that none stops the rest."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import torch
from typer.testing import CliRunner

from dengine_cli.doctor import describe_gpu
from dengine_cli.main import app
from engines.backends.probe import Device, Probe
from engines.bundle import Bundle, default_bundle, open_bundle
from engines.doctor import Diagnosis, examine
from engines.errors import BackendError, ExportError
from engines.graphs import GRAPH_NAMES
from export import gpu_checks, gpu_report
from export.agreement import Agreement
from export.gpu_checks import (
    FAILED,
    OK,
    SKIPPED,
    Check,
    Speed,
    check_graphs,
    check_labels,
    check_ticks,
    compare_latents,
    compare_outputs,
)
from export.verify import Chain

SIZES = {"B": 2, "h": 8, "w": 12}


def silent(text: str) -> None:
    pass


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fakes.make_bundle(tmp_path)


@pytest.fixture
def chain(bundle: Bundle) -> Chain:
    """The fake networks' own inputs and outputs, in place of PyTorch's on the CPU."""
    made = Chain(bundle, SIZES, 0)
    for graph in GRAPH_NAMES:
        made.run(graph, fakes.as_backend(fakes.FakeBackend()))
    return made


def spoiled(graph: str, output: str, value: float) -> fakes.FakeBackend:
    """A backend whose one output has a wrong first value."""

    def after(ran: str, call: fakes.FakeCall) -> None:
        if ran == graph:
            call.outputs[output] = call.outputs[output].clone()
            call.outputs[output].view(-1)[0] = value

    return fakes.FakeBackend(after=after, precision="f16")


def test_an_engine_that_computes_the_same_passes_on_every_graph(bundle: Bundle, chain: Chain) -> None:
    found = check_graphs(bundle, fakes.as_backend(fakes.FakeBackend()), chain, silent)
    assert [check.name for check in found] == [f"fake f32: {graph}" for graph in GRAPH_NAMES]
    assert {check.outcome for check in found} == {OK}
    assert all("relative error 0.0e+00" in check.text for check in found)


def test_an_overflow_is_named_with_graph_output_and_precision(bundle: Bundle, chain: Chain) -> None:
    backend = fakes.as_backend(spoiled("unet", "div2", float("inf")))
    found = {check.name: check for check in check_graphs(bundle, backend, chain, silent)}
    unet = found.pop("fake f16: unet")
    assert unet.outcome == FAILED
    assert "1 of " in unet.text
    assert "values of div2 are NaN or infinite: f16 overflows" in unet.text
    assert {check.outcome for check in found.values()} == {OK}  # each graph reads the reference's numbers


def test_a_difference_beyond_the_precision_fails_and_one_within_it_passes(bundle: Bundle, chain: Chain) -> None:
    def check(factor: float, precision: str) -> Check:
        expected = chain.outputs["vae_encoder"]
        return compare_outputs("x", {n: value * factor for n, value in expected.items()}, expected, precision)

    assert check(1.002, "f16").outcome == OK
    assert check(1.002, "f32").outcome == FAILED
    assert check(1.01, "f16").outcome == FAILED
    assert check(1.01, "f16").figures["latents"] == pytest.approx(0.01, rel=0.01)


def test_float16_buffers_are_judged_as_float16_whatever_the_arithmetic(chain: Chain) -> None:
    expected = chain.outputs["vae_encoder"]
    rounded = {name: value.half() for name, value in expected.items()}
    found = compare_outputs("x", rounded, expected, "f32")
    assert found.outcome == OK
    assert found.figures["latents"] > 1e-5  # the rounding is there


def test_a_black_image_fails_unless_it_should_be_black(chain: Chain) -> None:
    expected = chain.outputs["vae_decoder"]
    black = {"pixels": torch.full_like(expected["pixels"], -1.0)}
    assert "black" in compare_outputs("x", black, expected, "f16").text
    assert compare_outputs("x", black, expected, "f16").outcome == FAILED
    assert compare_outputs("x", black, black, "f16").outcome == OK


def test_one_black_image_of_a_batch_is_enough(chain: Chain) -> None:
    expected = chain.outputs["vae_decoder"]
    pixels = expected["pixels"].clone()
    pixels[1] = -1.0
    assert "black" in compare_outputs("x", {"pixels": pixels}, expected, "f16").text


def test_boxes_are_compared_as_sets(chain: Chain) -> None:
    expected = dict(chain.outputs["adapter"])
    expected["logits"] = expected["logits"] + 4.0  # well above the score from which boxes count
    turned = {name: value.flip(1) if name in ("logits", "boxes") else value for name, value in expected.items()}
    assert compare_outputs("x", turned, expected, "f32").outcome == OK
    moved = {**expected, "boxes": expected["boxes"] * 0.5}
    found = compare_outputs("x", moved, expected, "f16")
    assert found.outcome == FAILED
    assert "0 of 12 boxes agree" in found.text


def test_a_graph_that_cannot_be_prepared_fails_alone(bundle: Bundle, chain: Chain) -> None:
    backend = fakes.FakeBackend()
    prepare = backend.prepare

    def refuse(
        graph: str, shapes: Mapping[str, tuple[int, ...]], outputs: Any = None, varies: str | None = None
    ) -> fakes.FakeCall:
        if graph == "adapter":
            raise BackendError("GridSample is not there.")
        return prepare(graph, shapes, outputs, varies)

    backend.prepare = refuse  # type: ignore[method-assign]
    outcomes = [check.outcome for check in check_graphs(bundle, fakes.as_backend(backend), chain, silent)]
    assert outcomes == [OK, OK, OK, OK, FAILED]


def test_ticks_are_timed_and_an_engine_that_cannot_be_captured_is_passed_over(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_checks, "RUNS", 2)
    checks, speeds = check_ticks(bundle, fakes.as_backend(fakes.FakeBackend()), silent, steps=3)
    assert [(check.name, check.outcome) for check in checks] == [("fake f32: captured tick", SKIPPED)]
    assert [speed.what for speed in speeds] == ["fake f32: UNet call", "fake f32: tick"]
    assert all(speed.seconds > 0 and speed.rows >= 4 for speed in speeds)


def test_a_capturable_engine_is_run_both_ways_and_compared(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "RUNS", 2)
    monkeypatch.setattr(fakes.FakeCall, "capturable", True)
    replayed = 0

    def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        def replay() -> None:
            nonlocal replayed
            replayed += 1
            step()

        return replay

    checks, speeds = check_ticks(bundle, fakes.as_backend(fakes.FakeBackend()), silent, steps=3, record=record)
    assert checks[0].outcome == OK
    assert "bit for bit, in 4 images" in checks[0].text
    assert [speed.what for speed in speeds][-1] == "fake f32: tick in a CUDA graph"
    assert replayed > 3


def test_a_recording_that_repeats_old_numbers_is_caught(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a capture of memory that moved would do: nothing at all."""
    monkeypatch.setattr(gpu_checks, "RUNS", 2)
    monkeypatch.setattr(fakes.FakeCall, "capturable", True)
    backend = fakes.as_backend(fakes.FakeBackend())
    checks, _ = check_ticks(bundle, backend, silent, steps=3, record=lambda step, device: lambda: None)
    assert checks[0].outcome == FAILED


def test_captured_latents_that_differ_fail_by_more_than_rounding() -> None:
    eager = {0: torch.ones(4, 2, 2), 1: torch.ones(4, 2, 2)}
    close = {0: torch.ones(4, 2, 2), 1: torch.ones(4, 2, 2) * 1.0001}
    wrong = {0: torch.ones(4, 2, 2), 1: torch.ones(4, 2, 2) * 1.1}
    broken = {0: torch.ones(4, 2, 2), 1: torch.full((4, 2, 2), float("nan"))}
    assert compare_latents("x", close, eager).outcome == OK
    assert "bit for bit" not in compare_latents("x", close, eager).text
    assert compare_latents("x", wrong, eager).outcome == FAILED
    assert compare_latents("x", broken, eager).outcome == FAILED


def test_labels_are_judged_by_precision(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def compare(bundle: Bundle, engines: Any, report: Any, **more: Any) -> list[Agreement]:
        asked.update(more)
        return [
            Agreement("torch", "f16", 8, 31.0, 0.9),
            Agreement("torch", "f16", 8, 15.0, 0.9),
            Agreement("tensorrt", "f16", 8, 31.0, 0.5),
            Agreement("onnxruntime", "f32", 8, 31.0, None),
        ]

    monkeypatch.setattr(gpu_checks, "compare_engines", compare)
    found = check_labels(bundle, [("torch", "f16")], "cuda", silent)
    assert asked == {"jobs": 8, "steps": None, "device": "cuda"}
    assert [check.outcome for check in found] == [OK, FAILED, FAILED, FAILED]
    assert "PyTorch found no boxes" in found[-1].text


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
        monkeypatch.setattr("export.to_tensorrt.build_plans", self.build)

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

    def build(self, folder: Path, **_: Any) -> Any:
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
    asked: dict[str, Any] = {}

    def export(base: Path, adapter: Path, out: Path, **options: Any) -> SimpleNamespace:
        asked.update(options, base=base, adapter=adapter)
        shutil.copytree(base, out)
        return SimpleNamespace(folder=out)

    monkeypatch.setattr(gpu_report, "export_bundle", export)
    whole = open_bundle(default_bundle(), verify=False)
    with gpu_report.half_precision(whole, tensorrt, silent) as copy:
        assert copy.folder != whole.folder
        assert copy.folder.is_dir()
    assert not copy.folder.exists()
    assert asked["base"] == whole.folder
    assert asked["adapter"] == whole.folder / "adapter"
    assert (asked["graph_dtype"], asked["opset"], asked["frame"]) == ("float16", opset, whole.frame)
    assert asked["generate"] == whole.generate_defaults


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
