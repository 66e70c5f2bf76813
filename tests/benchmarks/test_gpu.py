"""The GPU benchmark: its rows at toy size on a CPU, its arithmetic, and what it does when the time is up."""

import ast
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks import gpu_parts as parts
from benchmarks import gpu_rows as rows
from engines.measure.alone import ROOT
from engines.measure.timing import time_calls

CPU = torch.device("cpu")
OTHERS = ("openvino", "onnx", "onnxscript", "onnxruntime", "tensorrt", "typer", "rich", "faster_coco_eval")
PLACE = {"processor": "a CPU", "cores": 2, "memory_gib": 24.0, "system": "Linux x86_64", "gpus": []}
IDENTITY = {"machine": PLACE, "versions": {"torch": "2"}, "toy": True, "device": "cpu"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    gpu.steps_of(folder, IDENTITY).do("models", lambda: rows.make_models(folder, rows.TOY), needed=True)
    return folder


@pytest.fixture
def work(models: Path, tmp_path: Path) -> Path:
    """A folder with the models and what was kept of them, for stages that have all the time."""
    (tmp_path / "base").symlink_to(models / "base")
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "models.json").write_bytes((models / "steps" / "models.json").read_bytes())
    asked(tmp_path, time.time() + 600)
    return tmp_path


def asked(work: Path, deadline: float) -> None:
    (work / "asked.json").write_text(json.dumps({"identity": IDENTITY, "deadline": deadline}), "utf-8")


@pytest.mark.slow
def test_a_sitting_keeps_every_row_with_its_figures(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages but the compiled ones and the checks of a GPU, at toy size on the CPU."""
    monkeypatch.setattr(rows, "counted_images", lambda batch: batch)
    for module in (rows, parts):
        once = lambda run, device, **_: time_calls(run, device, warm_up=1, calls=1)  # noqa: E731
        monkeypatch.setattr(module, "time_calls", once)
    for stage in ("models", "peaks", "diffusers", "ticks", "finisher", "dengine", "small", "doctor"):
        gpu.run_stage(stage, work)
    steps = gpu.steps_of(work, IDENTITY)
    result = gpu.summary(steps.all(), {}) | IDENTITY | {"minutes": 1.0, "origins": steps.origins()}
    assert [row["row"] for row in result["rows"]] == [
        "reference's way, batch 1", "reference's way, batch 2",
        "dengine, 4 steps, batch 2", "dengine, 2 steps, batch 2", "dengine, 2 steps, batch 1",
    ]  # fmt: skip
    assert result["left_out"] == {}
    for row in result["rows"]:
        assert (row["images"], row["unet_rows"]) == (row["batch"], 2 * row["batch"])
        assert row["boxes"] > 0
        assert min(row["images_per_second"], row["unet_seconds"], row["against_reference"]) > 0
    assert result["rows"][0]["against_reference"] == 1.0
    found = {part["row"]: part for part in result["parts"]}
    assert list(found) == [
        "product (64, 32, 32), half",
        "UNet call, 2 rows, as it was", "UNet call, 2 rows, rewritten", "kernels, rewritten",
        "label pass, 2 images, as it was", "vae_decoder, 2 images, as it was", "adapter, 2 images, as it was",
        "label pass, 2 images, rewritten", "vae_decoder, 2 images, rewritten", "adapter, 2 images, rewritten",
        "boxes of 2 images", "bundled model, 1 slots",
    ]  # fmt: skip
    assert all(part["ms"] > 0 for part in found.values() if "found" not in part)
    assert found["UNet call, 2 rows, rewritten"]["peak_share"] > 0
    assert "conv" in found["kernels, rewritten"]["found"]
    assert "images/s" in found["bundled model, 1 slots"]["found"]
    text = "\n".join(gpu.report(result))
    assert "no figure below means anything" in text
    assert text.count("\n| ") == 2 + 5 + 2 + len(found)


def test_both_sides_paint_as_many_images_and_stages_share_the_time() -> None:
    assert [rows.counted_images(batch) for batch in (1, 2, 8, 16, 32, 64)] == [6, 6, 24, 48, 64, 128]
    assert gpu.ends(["models", "dengine"]) == [("models", pytest.approx(0.5)), ("dengine", 1.0)]
    every = dict(gpu.ends(list(gpu.PARTS)))
    assert every["diffusers"] == pytest.approx(0.2)
    assert list(every.values()) == sorted(every.values())


@pytest.mark.slow
def test_rows_that_cannot_run_say_why_and_do_not_stop_the_others(work: Path) -> None:
    gpu.run_stage("dengine-compiled", work)
    result = gpu.summary(gpu.steps_of(work, IDENTITY).all(), {})
    assert list(result["left_out"]) == [f"dengine, compiled, {steps} steps, batch 2" for steps in (4, 2)]
    assert all("CUDA" in reason for reason in result["left_out"].values())


def test_a_stage_that_is_late_says_so_and_the_next_start_does_what_is_left(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "rows_of", lambda *_: iter([("a", lambda: {"rate": 1}), ("b", lambda: {"rate": 2})]))
    asked(work, 0.0)
    with pytest.raises(SystemExit) as done:
        gpu.run_stage("diffusers", work)
    assert done.value.code == gpu.TIME_UP
    assert gpu.summary(gpu.steps_of(work, IDENTITY).all(), {})["left_out"] == {
        "a": "the time was up",
        "b": "the time was up",
    }
    asked(work, time.time() + 600)
    gpu.run_stage("diffusers", work)
    monkeypatch.setattr(rows, "rows_of", lambda *_: iter([("a", lambda: {"rate": 3})]))
    gpu.run_stage("diffusers", work)
    found = gpu.steps_of(work, IDENTITY).all()
    assert (found["row a"], found["row b"]) == ({"rate": 1}, {"rate": 2})


@pytest.mark.slow
def test_the_reference_compiles_its_unet_and_its_decoder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "counted_images", lambda batch: batch)
    seen: list[Any] = []

    def compile_nothing(function: Any, **options: Any) -> Any:
        seen.append((getattr(function, "__name__", type(function).__name__), options))
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    ((name, measure),) = rows.rows_of("diffusers-compiled", models, rows.TOY, CPU)
    assert name == "diffusers, compiled (reduce-overhead), batch 2"
    assert measure()["boxes"] > 0
    wanted = {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False}
    assert seen == [("UNet2DConditionModel", wanted), ("decode", wanted)]


def is_running(stat: Path) -> bool:
    """Whether the process of a `/proc/<pid>/stat` still runs: it is there, and no zombie."""
    try:
        return stat.read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_a_stage_whose_time_is_up_is_ended_with_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(worker.pid))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu, "_STAGE", child)
    begun = time.time()
    assert gpu.run_apart("dengine", tmp_path, begun + 3) == "the time was up"
    assert time.time() - begun < 30
    worker = Path(f"/proc/{(tmp_path / 'pid').read_text('utf-8')}/stat")
    patience = time.time() + 20  # a killed process that is nobody's child here ends a little later
    while is_running(worker) and time.time() < patience:
        time.sleep(0.05)
    assert not is_running(worker)
    for code, words in ((0, ""), (gpu.TIME_UP, "the time was up"), (3, "it ended with exit code 3")):
        monkeypatch.setattr(gpu, "_STAGE", f"raise SystemExit({code})")
        assert gpu.run_apart("dengine", tmp_path, time.time() + 60) == words


def test_shares_are_of_the_peak_of_the_same_precision_and_missing_rows_are_named() -> None:
    def row(precision: str, rate: float) -> dict[str, Any]:
        memory = {"vram_peak": 5e9}
        return {"precision": precision, "steps": 50, "images_per_second": rate, "unet_seconds": 0.01, "unet_rows": 16,
                "memory": memory}  # fmt: skip

    steps: dict[str, dict[str, Any]] = {
        "models": {"unet": 5e11},
        "peak": {"precision": "f16", "flops_per_second": 1e15, "size": 8192},
        "planned diffusers": {"rows": ["reference's way, batch 1"]},
        "planned dengine": {"rows": ["dengine, batch 8", "dengine, batch 64"]},
        "row reference's way, batch 1": row("f32", 0.5),
        "row dengine, batch 8": row("f16", 6.0),
    }
    result = gpu.summary(steps, {"dengine": "the time was up"})
    assert [found["peak_share"] for found in result["rows"]] == [None, pytest.approx(0.8)]
    assert result["rows"][1]["against_reference"] == pytest.approx(12.0)
    assert result["left_out"] == {"dengine, batch 64": "the time was up", "stage dengine": "the time was up"}
    more = IDENTITY | {"minutes": 1.0, "origins": ""}
    text = "\n".join(gpu.report(result | more))
    assert "| dengine, batch 8 | f16 | 50 | 6.00 | 12.0x | 10.0 | 16 | 80% | 5.0 |" in text
    assert "- left out: dengine, batch 64: the time was up." in text
    del steps["models"], steps["peak"]
    result = gpu.summary(steps, {})
    assert [found["peak_share"] for found in result["rows"]] == [None, None]
    assert "| 16 | - | 5.0 |" in "\n".join(gpu.report(result | more))


def test_models_that_cannot_be_made_end_the_run_with_a_table_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages: list[str] = []

    def run_apart(stage: str, *_: Any) -> str:
        stages.append(stage)
        return "it ended with exit code 1"

    monkeypatch.setattr(gpu, "run_apart", run_apart)
    monkeypatch.setattr(gpu, "run_alone", lambda *_: {"machine": PLACE, "versions": {}})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out" / "gpu.md")])
    assert gpu.main() == 1
    assert stages == ["models"]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["left_out"] == {"stage models": "it ended with exit code 1"}
    assert json.loads((tmp_path / "out" / "gpu.json").read_text("utf-8")) == result
    assert "left out: stage models" in (tmp_path / "out" / "gpu.md").read_text("utf-8")


def imported(module: str, seen: set[str]) -> Iterator[str]:
    """Names of the modules that are imported when `module` of ours is, here and in those of ours that it imports."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    if module in seen or not (path.is_file() or (path := path.with_suffix("") / "__init__.py").is_file()):
        return
    seen.add(module)
    waiting: list[ast.AST] = list(ast.parse(path.read_text("utf-8")).body)
    while waiting:
        node = waiting.pop()
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
        for name in names:
            yield name.partition(".")[0]
            yield from imported(name, seen)
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not isinstance(node, ast.FunctionDef) and not is_typing:
            waiting += ast.iter_child_nodes(node)


def test_nothing_on_its_path_imports_another_runtime_or_the_cli() -> None:
    found = {name for module in ("benchmarks.gpu", "benchmarks.gpu_rows") for name in imported(module, set())}
    assert {"torch", "engines"} < found
    assert found & {*OTHERS, "dengine_cli"} == set()
