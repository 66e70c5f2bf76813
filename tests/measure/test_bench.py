"""`dengine bench`: what follows from several measurements, engines that fail, and what the command prints."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from dengine_cli import main as program
from dengine_cli.bench import describe
from engines.common.events import Event, EventKind
from engines.errors import BackendError
from engines.measure import bench as module
from engines.measure.bench import bench, derived
from engines.measure.settings import BenchSettings, BenchSummary

Figures = dict[str, Any]


def dengine(*arguments: object) -> Result:
    """Run a command line in this process."""
    return CliRunner().invoke(program.app, [str(argument) for argument in arguments])


def engine_figures(**changes: Any) -> Figures:
    """What `run.engine_task` returns of one engine."""
    seconds = {"median": 0.5, "p10": 0.4, "p90": 0.6, "calls": 20}
    graph = {"calls": 10, "seconds": seconds, "precision": "bf16", "graph": "unet", "batch": 8}
    return {
        "engine": "openvino",
        "precision": "bf16",
        "threads": 2,
        "backend": "openvino 1 on CPU",
        "device": "cpu",
        "slots": 4,
        "rows": 8,
        "load_seconds": 1.0,
        "first_image_seconds": 3.0,
        "images": 32,
        "seconds": 16.0,
        "images_per_second": 2.0,
        "outside_share": 0.03,
        "memory": {"rss": 1, "rss_peak": 2 * 10**9, "vram_peak": 0},
        "graphs": {"unet": graph, "adapter": graph | {"graph": "adapter", "precision": "f32", "batch": 4}},
        "tick": {"slots": 4, "rows": 8, "seconds": seconds | {"median": 0.8}},
    } | changes


def baseline_figures(role: str, speed: float) -> Figures:
    """What `baseline.run_baseline` returns."""
    memory = {"rss": 1, "rss_peak": 10**9, "vram_peak": 0}
    figures = {"load_seconds": 2.0, "first_image_seconds": 9.0, "images_per_second": speed, "memory": memory}
    return {"role": role, "batch": 1, "precision": "f32", **figures}


ROOFLINE: Figures = {
    "flops": {"unet": 10**9, "adapter": 10**8},
    "best": {
        "f32": {"precision": "f32", "runtime": "torch", "size": 2048, "flops_per_second": 4e10},
        "bf16": {"precision": "bf16", "runtime": "openvino", "size": 4096, "flops_per_second": 1e11},
    },
}


def test_shares_and_speedups_follow_from_the_other_measurements() -> None:
    baseline = [baseline_figures("batch 1", 0.5), baseline_figures("best batch", 0.8), {"role": "x", "error": "no"}]
    found = derived(engine_figures(), {"cpu": ROOFLINE}, baseline)
    assert found["speedup"] == {"batch 1": 4.0, "best batch": 2.5}
    assert found["graphs"]["unet"]["flops"] == 8 * 10**9
    assert found["graphs"]["unet"]["roofline_share"] == pytest.approx(8e9 / 0.5 / 1e11)
    assert found["graphs"]["adapter"]["roofline_share"] == pytest.approx(4e8 / 0.5 / 4e10)
    assert found["tick"]["roofline_share"] == pytest.approx(8e9 / 0.8 / 1e11)
    assert found["roofline_share"] == pytest.approx((8e9 * 10 / 1e11 + 4e8 * 10 / 4e10) / 16)
    assert (found["roofline_precision"], found["graphs"]["adapter"]["roofline_precision"]) == ("bf16", "f32")


def test_without_a_rate_there_is_no_share() -> None:
    found = derived(engine_figures(), {"cpu": ROOFLINE | {"best": {}}}, [])
    assert found["graphs"]["unet"]["roofline_share"] is None
    assert found["tick"]["roofline_share"] is None
    assert found["roofline_share"] is None
    assert found["speedup"] == {}


def test_a_matmul_rate_that_fails_costs_only_the_shares(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(task: str, arguments: Mapping[str, Any], tell: object) -> Figures:
        if task.endswith("roofline_task"):
            raise BackendError("killed.")
        return engine_figures()

    monkeypatch.setattr(module, "run_alone", run)
    found = bench(BenchSettings(bundle=toy_bundle, engines=("openvino",), baseline=False)).to_json()
    assert found["engines"][0]["images_per_second"] == 2.0
    assert "roofline_share" not in found["engines"][0]
    assert found["roofline"] == {"cpu": {"best": {}, "error": "killed."}}
    text = describe(fake_report(engines=found["engines"], roofline=found["roofline"]))
    assert "matmul rate on cpu was not measured: killed." in text.splitlines()


def test_a_share_of_another_precisions_rate_says_so_and_memory_that_is_unknown_is_a_dash() -> None:
    memory = {"rss": 1, "rss_peak": 2 * 10**9, "vram_peak": None}
    taken = derived(engine_figures(memory=memory | {"vram_taken": 3 * 10**9}), {"cpu": ROOFLINE}, [])
    assert "  3.00 (whole GPU)  " in describe(fake_report(engines=[taken]))
    figures = engine_figures(precision="int8", memory=memory)
    figures["graphs"]["unet"]["precision"] = "int8"
    lines = describe(fake_report(engines=[derived(figures, {"cpu": ROOFLINE}, [])])).splitlines()
    (speed,) = [line for line in lines if line.startswith("openvino  ")]
    assert speed.split()[-6:] == ["2.00", "-", "3.0%", "5.6%", "(of", "bf16)"]
    found = {line.split()[0]: line for line in lines if line.startswith(("unet", "adapter", "tick"))}
    assert [found[name].endswith("% (of bf16)") for name in ("unet", "tick", "adapter")] == [True, True, False]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measurements in this process, where starting them costs no seconds; the tasks that were run, by name.

    OpenVINO fails, and so does torch.compile.
    """
    tasks: list[str] = []

    def run(task: str, arguments: Mapping[str, Any], tell: Callable[[str], None]) -> Figures:
        name, _, function = task.partition(":")
        tasks.append(function)
        given = json.loads(json.dumps(arguments))
        if given.get("engine") == "openvino" or given.get("compiled") is True:
            raise BackendError("it does not load here.")
        return dict(getattr(importlib.import_module(name), function)(given, tell))

    monkeypatch.setattr(module, "run_alone", run)
    return tasks


def test_an_engine_that_fails_is_listed_and_the_others_go_on(toy_bundle: Path, alone: list[str]) -> None:
    told: list[Event] = []
    settings = BenchSettings(
        bundle=toy_bundle, engines=("openvino", "torch"), count=2, size=(64, 48), steps=2, threads=1, slots=2,
        precision="f32", matmul_sizes=(32,),
    )  # fmt: skip
    report = json.loads(json.dumps(bench(settings, report=told.append).to_json()))
    failed, measured = report["engines"]
    assert failed == {"engine": "openvino", "error": "it does not load here."}
    assert measured["images"] == 2
    assert 0 < measured["graphs"]["unet"]["roofline_share"] < 1
    assert measured["first_start"]["load_seconds"] > 0
    roles = {row["role"]: row for row in report["baseline"]}
    assert roles["batch 1"]["images"] == 2
    compiled = {role: row for role, row in roles.items() if role.startswith("torch.compile")}
    assert all(row == {"role": role, "error": "it does not load here."} for role, row in compiled.items())
    assert set(compiled) - {"torch.compile, best batch"} == {"torch.compile, batch 1"}
    assert ("torch.compile, best batch" in compiled) == ("best batch" in roles)
    speed = measured["images_per_second"] / roles["batch 1"]["images_per_second"]
    assert measured["speedup"]["batch 1"] == pytest.approx(speed)
    assert report["roofline"]["cpu"]["best"]["f32"]["flops_per_second"] > 0
    assert report["settings"]["workload"]["frame"] == [64, 48]
    assert alone[:4] == ["engine_task", "engine_task", "engine_task", "baseline_task"]
    assert alone[-1] == "roofline_task"
    assert [told[0].text, told[-1].text] == ["openvino, first start", "done"]
    assert told[-1].done == told[-1].total


def test_where_no_batch_size_can_be_tried_batch_1_is_compiled_all_the_same(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(task: str, arguments: Mapping[str, Any], tell: Callable[[str], None]) -> Figures:
        if task.endswith("batches_task"):
            raise BackendError("killed.")
        figures = {"baseline_task": baseline_figures("", 0.5), "engine_task": engine_figures()}
        found = figures.get(task.rpartition(":")[2], ROOFLINE)
        return {key: value for key, value in found.items() if key != "role"}

    told: list[Event] = []
    monkeypatch.setattr(module, "run_alone", run)
    settings = BenchSettings(bundle=toy_bundle, engines=("torch",), matmul_sizes=(32,))
    found = bench(settings, report=told.append).to_json()["baseline"]
    assert [row["role"] for row in found] == ["batch 1", "best batch", "torch.compile, batch 1"]
    assert found[1]["error"] == "killed."
    assert max(event.done or 0 for event in told) == told[-1].total


def test_every_installed_engine_is_measured_unless_named(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fail(task: str, arguments: Mapping[str, Any], tell: object) -> Figures:
        asked.append(arguments["engine"])
        raise BackendError("no")

    monkeypatch.setattr(module, "run_alone", fail)
    report = bench(BenchSettings(bundle=toy_bundle, baseline=False)).to_json()
    assert set(asked) >= {"torch", "openvino", "onnxruntime"}
    assert report["baseline"] == []
    assert report["roofline"] == {}


def test_onnxruntime_is_measured_on_a_gpu_too_where_there_is_one_and_nobody_says_where(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def fail(task: str, arguments: Mapping[str, Any], tell: object) -> Figures:
        asked.append((arguments["engine"], arguments["options"]["device"]))
        raise BackendError("no")

    monkeypatch.setattr(module, "run_alone", fail)
    monkeypatch.setattr(module, "find_device", lambda name: torch.device(name or "cuda:0"))
    engines = ("torch", "onnxruntime")
    report = bench(BenchSettings(bundle=toy_bundle, engines=engines, baseline=False)).to_json()
    assert asked == [("torch", None), ("onnxruntime", None), ("onnxruntime", "cuda")]
    assert [row["engine"] for row in report["engines"]] == ["torch", "onnxruntime", "onnxruntime on cuda"]
    asked.clear()
    report = bench(BenchSettings(bundle=toy_bundle, engines=engines, baseline=False, device="cpu")).to_json()
    assert asked == [("torch", "cpu"), ("onnxruntime", "cpu")]
    assert [row["engine"] for row in report["engines"]] == ["torch", "onnxruntime"]


def fake_report(**changes: Any) -> Figures:
    """A whole report."""
    baseline = [baseline_figures("batch 1", 0.5), {"role": "torch.compile, batch 1", "error": "no compiler"}]
    workload = {"frame": [64, 48], "jobs": 32, "steps": 25, "guidance": 4.0}
    return {
        "format": 1,
        "machine": {"processor": "a processor", "cores": 2, "memory_gib": 24.0, "gpus": []},
        "versions": {},
        "settings": {"references": None, "workload": workload},
        "engines": [derived(engine_figures(), {"cpu": ROOFLINE}, baseline), {"engine": "torch", "error": "no torch"}],
        "baseline": baseline,
        "roofline": {"cpu": ROOFLINE},
    } | changes


def test_a_baseline_whose_batches_were_smaller_than_asked_says_so() -> None:
    row = baseline_figures("best batch", 0.8) | {"batch": 8, "mean_batch": 2.91}
    lines = describe(fake_report(baseline=[row])).splitlines()
    (speed,) = [line for line in lines if line.startswith("diffusers, best batch")]
    assert "8 (mean 2.9)" in speed


def test_the_command_prints_tables_and_one_json_line_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[BenchSettings] = []

    def measure(settings: BenchSettings, *, report: Callable[[Event], None]) -> BenchSummary:
        asked.append(settings)
        report(Event(EventKind.PROGRESS, "bench", "torch", 0, 1))
        return BenchSummary(**fake_report())

    monkeypatch.setattr(module, "bench", measure)
    out = tmp_path / "report.json"
    result = dengine(
        *("bench", "a-bundle", "--engine", "torch", "--engine", "openvino", "--count", 8, "--size", "64x48"),
        *("--no-baseline", "--threads", 2, "--slots", 3, "--precision", "bf16", "--steps", 7, "--out", out),
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert json.loads(lines[-1]) == fake_report() == json.loads(out.read_text("utf-8"))
    assert "a processor, 2 cores, 24 GiB" in lines
    assert "torch was not measured: no torch" in lines
    assert "baseline, torch.compile, batch 1 was not measured: no compiler" in lines
    (speed,) = [line.split() for line in lines if line.startswith("openvino  ")]
    assert speed == ["openvino", "bf16", "4", "1.0", "3.0", "2.000", "4.00", "4.00", "2.00", "0.00", "3.0%", "5.6%"]
    assert asked == [
        BenchSettings(
            Path("a-bundle"), engines=("torch", "openvino"), count=8, size=(64, 48), baseline=False, threads=2,
            slots=3, precision="bf16", steps=7,
        )
    ]  # fmt: skip

    faster = fake_report(machine=fake_report()["machine"] | {"cores": 4})
    faster["engines"][0]["images_per_second"] = 3.0
    monkeypatch.setattr(module, "bench", lambda settings, report: BenchSummary(**faster))
    result = dengine("bench", "--compare", out)
    assert "openvino / images_per_second" in result.stdout
    assert "+50.0%" in result.stdout
    assert "machine differ: cores was 2, and is 4" in result.stdout.splitlines()
    assert json.loads(result.stdout.splitlines()[-1]) == faster


def test_when_nothing_could_be_measured_the_command_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = fake_report(engines=[{"engine": "torch", "error": "no torch"}], baseline=[], roofline={})
    monkeypatch.setattr(module, "bench", lambda settings, report: BenchSummary(**nothing))
    result = dengine("bench")
    assert result.exit_code == 1
    assert "torch was not measured: no torch" in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--engine", "cuda"),
            "--engine holds cuda, which is unknown; tensorrt, torch, openvino, onnxruntime are known.",
        ),
        (("--count", "0"), "--count is 0; 1 or more was expected."),
        (("--precision", "f8"), "--precision is f8; one of auto, f32"),
        (("--device", "gpu"), 'Unknown device "gpu"'),
        (("--size", "50x48"), "--size 50x48: both must be multiples of 16"),
        (("--steps", "0"), "--steps is 0"),
        (("--references", "/nowhere"), "/nowhere does not exist"),
        (("--compare", "/nowhere.json"), "/nowhere.json is missing"),
        (("--out", "/nowhere/report.json"), "its folder does not exist"),
    ],
)
def test_bad_input_is_one_clear_line(toy_bundle: Path, options: tuple[str, ...], words: str) -> None:
    result = dengine("bench", toy_bundle, *options)
    assert result.exit_code in (1, 2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert result.stdout == ""


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    result = dengine("bench", tmp_path)
    assert result.exit_code == 1
    assert "has no manifest.json" in result.stderr
