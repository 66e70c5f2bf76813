"""The GPU benchmark: its rows at toy size on a CPU, its arithmetic, and what it does when the time is up."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")
OTHERS = ("openvino", "onnx", "onnxscript", "onnxruntime", "tensorrt", "typer", "rich", "faster_coco_eval")


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows() -> Any:
    load("full_size_models")
    load("gpu_reference")
    return load("gpu_rows")


@pytest.fixture
def script(rows: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds the repository
    return load("gpu")


@pytest.fixture(scope="module")
def work(rows: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    rows.make_models(folder, rows.TOY)
    return folder


def test_a_stage_notes_every_row_with_its_figures(script: Any, rows: Any, work: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(work / "base")
    script.note(tmp_path, {"flops": rows.image_flops(tmp_path, rows.TOY)})
    for stage in ("diffusers", "dengine"):
        script.run_stage(stage, tmp_path, "cpu", True, time.time() + 600)
    result = script.summary(script.read_notes(tmp_path), True, 1.0)
    assert [record["planned"] for record in script.read_notes(tmp_path) if "planned" in record] == [
        ["reference's way, batch 1", "reference's way, batch 2"],
        ["dengine, 4 steps, batch 2", "dengine, 2 steps, batch 2", "dengine, 2 steps, batch 1"],
    ]
    assert len(result["rows"]) == 5
    assert list(script.PARTS) == ["models", *rows.STAGES]
    assert (*script.USUAL, "diffusers-tuned") == tuple(script.PARTS)
    assert result["left_out"] == {}
    for row in result["rows"]:
        assert (row["images"], row["unet_rows"]) == (6, 2 * row["batch"])
        assert row["boxes"] > 0
        assert min(row["images_per_second"], row["unet_seconds"], row["against_reference"]) > 0
    assert result["rows"][0]["against_reference"] == 1.0
    text = script.markdown(result)
    assert "no figure below means anything" in text
    assert text.count("\n| ") == 1 + 5


def test_both_sides_paint_as_many_images_and_stages_share_the_time(script: Any, rows: Any) -> None:
    assert [rows.counted_images(batch) for batch in (1, 2, 8, 16, 32, 64)] == [6, 6, 24, 48, 64, 128]
    assert script.ends(["models", "dengine"]) == [("models", pytest.approx(0.625)), ("dengine", 1.0)]
    usual = dict(script.ends(script.USUAL))
    assert usual["diffusers"] == pytest.approx(0.4)
    assert list(usual.values()) == sorted(usual.values())


def test_rows_that_cannot_run_say_why_and_do_not_stop_the_others(script: Any, work: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(work / "base")
    script.run_stage("dengine-compiled", tmp_path, "cpu", True, time.time() + 600)
    result = script.summary(script.read_notes(tmp_path), True, 1.0)
    assert list(result["left_out"]) == [f"dengine, compiled, {steps} steps, batch 2" for steps in (4, 2)]
    assert all("--compile is for --engine torch on CUDA" in reason for reason in result["left_out"].values())
    assert "Left out: dengine, compiled, 4 steps, batch 2: UsageError" in script.markdown(result)


def test_the_reference_compiles_its_unet_and_its_decoder_in_the_mode_that_is_asked_for(
    rows: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def compile_nothing(function: Any, **options: Any) -> Any:
        asked.append((getattr(function, "__name__", type(function).__name__), options))
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    pipeline = rows.Diffusers(rows.unexported(work, rows.TOY), 2, CPU, "reduce-overhead")
    wanted = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}
    assert asked == [("UNet2DConditionModel", wanted), ("decode", wanted)]
    assert pipeline.paint_all(2, 2) > 0
    for stage, mode in (("diffusers-compiled", "reduce-overhead"), ("diffusers-tuned", "max-autotune")):
        ((name, measure),) = rows.STAGES[stage](work, rows.TOY, CPU)
        assert name == f"diffusers, compiled ({mode}), batch 2"
        asked.clear()
        measure()
        assert {options["mode"] for _, options in asked} == {mode}


def test_the_references_label_reads_the_conditional_half_of_the_last_call(rows: Any, work: Path) -> None:
    from engines.adapter.pyramid import PyramidUNet

    pipeline = rows.Diffusers(rows.unexported(work, rows.TOY), rows.TOY.steps, CPU)
    seen: list[tuple[Any, ...]] = []
    unet = pipeline._pipe.unet
    hook = unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((*args, kwargs["encoder_hidden_states"])), with_kwargs=True
    )
    pipeline.paint_all(2, 2)
    hook.remove()
    found = pipeline._last_pyramid()
    assert len(seen) == rows.TOY.steps
    sample, timestep, states = seen[-1]
    assert int(timestep) == 1
    with torch.no_grad():
        expected = PyramidUNet(unet)(sample[2:], timestep.expand(2), states[2:])[1:]
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


def test_the_full_model_has_the_published_size_and_counts_its_products(rows: Any) -> None:
    from diffusers import UNet2DConditionModel

    from engines.measure.flops import count_flops

    with torch.device("meta"):
        unet = UNet2DConditionModel(**rows.SD2_BASE.unet)
        inputs = torch.zeros(1, 4, 64, 64), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 77, 1024)
    assert sum(value.numel() for value in unet.parameters()) == 865_910_724
    assert count_flops(lambda: unet(*inputs)) == pytest.approx(0.804e12, rel=0.01)  # with attention's products


def is_running(stat: Path) -> bool:
    """Whether the process of a `/proc/<pid>/stat` still runs: it is there, and no zombie."""
    try:
        return stat.read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_stage_whose_time_is_up_is_ended_with_all_its_processes(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import os, subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(worker.pid))\n"
        "time.sleep(60)\n",
        "utf-8",
    )
    monkeypatch.setattr(script, "__file__", str(child))
    begun = time.time()
    assert script.run_apart("dengine", tmp_path, "cpu", True, begun + 3) == "the time was up"
    assert time.time() - begun < 30
    worker = Path(f"/proc/{(tmp_path / 'pid').read_text('utf-8')}/stat")
    patience = time.time() + 20  # a killed process that is nobody's child here ends a little later
    while is_running(worker) and time.time() < patience:
        time.sleep(0.05)
    assert not is_running(worker)


def test_shares_are_of_the_peak_of_the_same_precision_and_missing_rows_are_named(script: Any) -> None:
    def row(name: str, precision: str, rate: float) -> dict[str, Any]:
        memory = {"vram_peak": 5e9}
        return {"row": name, "precision": precision, "steps": 50, "images_per_second": rate, "unet_seconds": 0.01,
                "unet_rows": 16, "memory": memory}  # fmt: skip

    records = [
        {"machine": {"gpus": ["GPU"]}, "versions": {"torch": "2"}, "flops": {"unet": 5e11}},
        {"peak": {"precision": "f16", "flops_per_second": 1e15, "size": 8192}},
        {"planned": ["reference's way, batch 1", "dengine, batch 8", "dengine, batch 64"]},
        row("reference's way, batch 1", "f32", 0.5),
        row("dengine, batch 8", "f16", 6.0),
        {"stage": "dengine", "problem": "the time was up"},
    ]
    result = script.summary(records, False, 400.0)
    assert [found["peak_share"] for found in result["rows"]] == [None, pytest.approx(0.8)]
    assert result["rows"][1]["against_reference"] == pytest.approx(12.0)
    assert result["left_out"] == {"dengine, batch 64": "the time was up", "stage dengine": "the time was up"}
    assert "| dengine, batch 8 | f16 | 50 | 6.00 | 12.0x | 10.0 | 16 | 80% | 5.0 |" in script.markdown(result)
    result = script.summary(records[1:], False, 400.0)  # --stages without models
    assert [found["peak_share"] for found in result["rows"]] == [None, None]
    assert "| 16 | - | 5.0 |" in script.markdown(result)


def test_a_note_that_was_cut_short_is_none(script: Any, tmp_path: Path) -> None:
    script.note(tmp_path, {"row": "a"})
    with (tmp_path / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"row": "b"')
    assert script.read_notes(tmp_path) == [{"row": "a"}]


def test_models_that_cannot_be_made_end_the_run_with_a_table_that_says_so(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages: list[str] = []

    def run_apart(stage: str, *_: Any) -> str:
        stages.append(stage)
        return "it ended with exit code 1"

    monkeypatch.setattr(script, "run_apart", run_apart)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    assert script.main() == 1
    assert stages == ["models"]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["left_out"] == {"stage models": "it ended with exit code 1"}
    assert json.loads((tmp_path / "out" / "gpu.json").read_text("utf-8")) == result
    assert "Left out: stage models" in (tmp_path / "out" / "gpu.md").read_text("utf-8")


def test_nothing_on_its_path_imports_another_runtime_or_the_cli() -> None:
    code = f"import sys; sys.path[:0] = {[str(FOLDER.parent), str(FOLDER)]}; import gpu_rows; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & set(OTHERS) == set()
