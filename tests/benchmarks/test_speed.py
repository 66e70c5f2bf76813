"""The speed benchmark: its jobs and command lines are those of `generate`, it resumes, and its report is plain."""

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fakes
import numpy as np
import pytest
from painting import make_paint, make_references
from PIL import Image

from dengine_cli.main import app
from engines.errors import BackendError, UsageError
from engines.measure.workload import Workload, jobs_of
from engines.painting.painter import read_crop
from engines.painting.settings import GenerateSettings
from engines.runs.events import DatasetSummary, RunSummary

MODULES = (
    "ablation",
    "peer_runner",
    "peers",
    "speed",
    "speed_bars",
    "speed_report",
    "speed_store",
    "speed_tasks",
    "sd2_tick",
)


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules by name, found as a script finds its neighbours."""
    before = list(sys.path)
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path[:] = before


@pytest.fixture
def references(tmp_path: Path) -> Path:
    return make_references(tmp_path / "references", 3)


def test_the_peers_get_the_jobs_and_crops_of_generate(
    scripts: dict[str, ModuleType], references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts["peers"], "write_model", lambda bundle, folder: None)
    bundle = fakes.make_bundle(tmp_path)
    workload = Workload(frame=fakes.FRAME, jobs=5, steps=10)
    path = scripts["peers"].write_jobs(tmp_path / "work", workload, bundle, references)
    written = json.loads(path.read_text())
    made = jobs_of(workload, bundle, references)
    assert (written["steps"], written["guidance"], written["frame"]) == (10, 4.0, list(fakes.FRAME))
    assert len(written["jobs"]) == 5
    for job, entry in zip(made.jobs, written["jobs"], strict=True):
        assert (entry["index"], entry["prompt"], entry["strength"]) == (job.index, job.prompt, job.strength)
        assert entry["steps"] == made.steps(job)
        crop = np.asarray(Image.open(path.parent / entry["crop"]))
        np.testing.assert_array_equal(crop, read_crop(made.plan, job))


def test_peers_paint_every_job_once_in_batches_of_equal_steps(scripts: dict[str, ModuleType]) -> None:
    runner = scripts["peer_runner"]
    jobs = [{"index": index, "steps": 10 + index % 3} for index in range(11)]
    for static in (True, False):
        setting = runner.Setting("f32", static, 4)
        batches = list(runner.batches_of(jobs, setting))
        assert sorted(job["index"] for batch, wanted in batches for job in batch[:wanted]) == list(range(11))
        assert all(len({job["steps"] for job in batch}) == 1 for batch, _ in batches)
        assert {len(batch) for batch, _ in batches} == ({4} if static else {4, 3})
    # Groups of 4, 4 and 3 jobs, of 10, 11 and 12 steps; a batch of 4 takes 2 s for 10 steps.
    assert runner.predicted_seconds(jobs, runner.Setting("f32", True, 4), 2.0, 10) == pytest.approx(6.6)
    assert runner.predicted_seconds(jobs, runner.Setting("f32", False, 4), 2.0, 10) == pytest.approx(6.0)


def test_a_peer_is_tried_in_every_precision_of_its_own(scripts: dict[str, ModuleType]) -> None:
    def tried(*arguments: Any) -> set[tuple[str, bool]]:
        settings = scripts["peer_runner"].settings_of(arguments[0], [1, 2], *arguments[1:])
        return {(setting.precision, setting.static) for setting in settings}

    assert tried("onnxruntime", True, False) == {("f32", False)}
    assert tried("openvino", False, False) == {("f32", True), ("f32", False)}
    assert {precision for precision, _ in tried("openvino", True, False)} == {"bf16", "f32"}
    assert {precision for precision, _ in tried("openvino", True, True)} == {"int8 hybrid", "int8 full"}
    results = [{"int8": int8, "images_per_second": 1.0 + int8} for int8 in (False, True)]
    assert [scripts["peers"].fastest(results, int8=int8) for int8 in (False, True)] == results


def test_the_search_for_a_peers_batch_ends_where_it_gets_slower(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = scripts["peer_runner"]
    seconds = {1: 1.0, 2: 1.9, 4: 4.6, 8: 1.0}

    def load(peer: str, exported: Path, setting: Any, known: dict[str, Any]) -> str:
        if setting.precision == "bf16":
            raise RuntimeError("no\nbf16")
        return "pipeline"

    monkeypatch.setattr(runner, "load", load)
    monkeypatch.setattr(runner, "paint", lambda *_: [])
    monkeypatch.setattr(runner, "_timed", lambda pipeline, batch, *_: seconds[len(batch)])
    known = {"frame": [8, 8], "jobs": [{"index": index, "steps": 10} for index in range(8)]}
    settings = [runner.Setting(precision, False, batch) for precision in ("bf16", "f32") for batch in seconds]
    found = runner.search("openvino", Path(), known, Path(), settings)
    assert [entry["batch"] for entry in found if "error" not in entry] == [1, 2, 4]
    assert [entry["predicted_seconds"] for entry in found if "error" not in entry] == pytest.approx([8.0, 7.6, 9.2])
    assert {entry["error"] for entry in found if "error" in entry} == {"RuntimeError: no bf16"}


def test_a_peer_paints_everything_with_its_two_best_kinds_of_settings_and_the_faster_counts(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = scripts["peer_runner"]
    predicted = {
        ("full", False, 8): 59.5,
        ("full", False, 16): 60.7,
        ("hybrid", True, 4): 61.3,
        ("full", True, 4): 75.0,
    }
    found = [
        {"precision": precision, "static": static, "batch": batch, "predicted_seconds": seconds}
        for (precision, static, batch), seconds in predicted.items()
    ]
    rates = {"full": 3.0, "hybrid": 3.7}

    def run(*given: Any) -> dict[str, Any]:
        setting = given[4]
        if setting.precision not in rates:
            raise RuntimeError("no memory")
        return {"precision": setting.precision, "batch": setting.batch, "images_per_second": rates[setting.precision]}

    monkeypatch.setattr(runner, "export", lambda *_: None)
    monkeypatch.setattr(runner, "search", lambda *_: [{"error": "no such kernel"}, *found])
    monkeypatch.setattr(runner, "run", run)
    (tmp_path / "jobs.json").write_text(json.dumps({"model": "model"}))
    given = SimpleNamespace(
        jobs=tmp_path / "jobs.json", bf16=True, int8=True, work=tmp_path, peer="openvino", batches="1", images=tmp_path
    )
    result = runner.measure(given)
    assert (result["precision"], result["batch"], result["images_per_second"]) == ("hybrid", 4, 3.7)
    assert [(one["precision"], one["batch"]) for one in result["painted"]] == [("full", 8), ("hybrid", 4)]
    del rates["hybrid"]
    assert runner.measure(given)["precision"] == "full"
    rates.clear()
    assert runner.measure(given)["error"] == "RuntimeError: no memory"


def test_a_peer_without_an_environment_is_listed_with_what_was_tried(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = scripts["peers"]

    def fail(peer: Any, folder: Path) -> Path:
        raise UsageError("pip install failed: no such version")

    monkeypatch.setattr(peers, "environment", fail)
    found = peers.run_peer(peers.PEERS[0], tmp_path / "jobs.json", tmp_path)
    assert "no such version" in found["error"]
    row = peers.table([found], 0.1).splitlines()[-1]
    assert "optimum-intel[openvino,diffusers]==2.2.0" in row
    assert "does not run: pip install failed" in row
    assert peers.fastest([found], int8=True) is None


def test_the_command_line_asks_for_the_workloads_settings(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[GenerateSettings] = []

    def generate(settings: GenerateSettings, **_: Any) -> RunSummary:
        seen.append(settings)
        dataset = DatasetSummary(tmp_path, tmp_path / "annotations.json", None, 0, 0, {}, 0)
        return RunSummary(dataset, 0, 0.0, 0.0, None, False, "fake")

    monkeypatch.setattr("engines.runs.generate.generate", generate)
    workload = Workload()
    changed: dict[str, Any] = {"sampler": "dpmpp", "steps": 10, "guidance_interval": (0.4, 1.0), "precision": "f32"}
    changed["device"] = "cpu"
    for ours in ({}, changed):
        asked = workload.generate_settings(tmp_path / "out", references=tmp_path, **ours)
        with pytest.raises(SystemExit) as done:
            app(["generate", *scripts["speed_store"].generate_arguments(asked)])
        assert done.value.code == 0
        assert seen[-1] == asked


def test_finished_measurements_are_kept_and_failed_ones_tried_again(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    calls: list[str] = []

    def steps(jobs: int) -> Any:
        return scripts["speed_store"].Steps(tmp_path, {"jobs": jobs}, say=calls.append)

    def fail() -> dict[str, Any]:
        raise BackendError("no such runtime")

    assert steps(1).do("good", lambda: {"seconds": 1.0}) == {"seconds": 1.0}
    assert steps(1).do("bad", fail) == {"error": "no such runtime"}
    assert steps(1).do("good", lambda: {"seconds": 2.0}) == {"seconds": 1.0}
    assert steps(1).do("bad", lambda: {"seconds": 3.0}) == {"seconds": 3.0}
    assert calls == ["good", "bad", "bad"]
    assert steps(2).all() == {}
    assert steps(2).do("good", lambda: {"seconds": 4.0}) == {"seconds": 4.0}
    kept = steps(2).origins()["good"]
    assert set(kept) == {"commit", "ended"}
    assert kept["ended"] <= time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    path = tmp_path / "good.json"
    path.write_text(json.dumps({key: json.loads(path.read_text())[key] for key in ("identity", "result")}))
    assert steps(2).origins() == {"good": {"commit": None, "ended": None}}  # as an earlier form kept it
    again = steps(1)
    again.forget("ba")
    assert again.all() == {} == again.origins()


def known_steps() -> dict[str, Any]:
    """Figures of a run that reaches some bars and not others."""
    run: dict[str, Any] = {
        "sampler": "ddim",
        "steps": 25,
        "guidance_interval": [0.0, 1.0],
        "precision": "bf16",
        "slots": 4,
    }
    baseline = {"seconds": 256.0, "batch": 1, "precision": "f32", "compiled": False}
    seconds = {"median": 8.0, "p10": 8.0, "p90": 8.0}
    judged = {"images": 256, "labels": 12.0, "judged": {"label_ap50_interval": [0.771, 0.834], "unet_rows": 9.25}}
    return {
        "baseline-1": baseline | {"images_per_second": 1.0},
        "baseline-best": baseline | {"images_per_second": 1.5, "batch": 8},
        "ours-auto": run | {"images_per_second": 3.0, "seconds": 85.3, "wall_seconds": 94.0, "command": "dengine x"},
        "ours-auto-slots8": run
        | {"images_per_second": 4.2, "seconds": 61.0, "wall_seconds": 70.0, "command": "dengine x"},
        "final-auto": run
        | {"images_per_second": 4.1, "seconds": 62.4, "wall_seconds": 71.0, "command": "dengine x"}
        | {"rates": [4.05, 4.3, 4.1]},
        "labels-auto": {"ap50": 0.993, "psnr": 51.2, "images": 96},
        "ours-int8": {"error": "int8 is not here"},
        "best-reference": {"images": 256, "labels": 12.0, "label_ap50": 0.80, "label_ap50_interval": [0.79, 0.81]},
        "best-own": judged | run | {"label_ap50": 0.81, "images_per_second": 4.1, "rates": [4.05, 4.3, 4.1]},
        "best-final-a": judged | run | {"label_ap50": 0.79, "images_per_second": 9.0, "sampler": "dpmpp", "steps": 10},
        "best-final-b": judged | run | {"label_ap50": 0.70, "images_per_second": 20.0, "sampler": "dpmpp", "steps": 4},
        "tick-diffusers": {"seconds": seconds},
        "tick-ours-auto": {
            "precision": "bf16",
            "relative_error": 0.01,
            "seconds": seconds | {"median": 2.0},
            "flops": 10**12,
            "rates": {"bf16": {"runtime": "torch", "flops_per_second": 10**12}},
        },
    }


def test_every_bar_says_whether_it_was_reached(scripts: dict[str, ModuleType]) -> None:
    found = {bar.what: bar for bar in scripts["speed_bars"].bars(known_steps())}
    met = {what: bar.met for what, bar in found.items()}
    assert met["bundled model, bf16, against eager diffusers at batch 1"] is True
    assert met["bundled model, bf16, against eager diffusers at its best batch"] is False
    assert met["SD2-size UNet tick, bf16, against diffusers float32"] is True
    assert met["SD2-size UNet tick, bf16, share of the bf16 matmul rate"] is False
    assert met["load to one finished image"] is None
    assert not any("int8" in what for what in met)
    peer = {"peer": "openvino", "title": "optimum-intel", "precision": "bf16", "images_per_second": 1.0}
    other = peer | {"title": "optimum-intel, int8", "precision": "int8 full", "int8": True, "images_per_second": 50.0}
    int8 = known_steps()["final-auto"] | {"precision": "int8"}
    more = scripts["speed_bars"].bars(known_steps() | {"final-int8": int8, "peers": {"peers": [peer, other]}})
    against = {bar.what: bar.met for bar in more if "fastest peer" in bar.what}
    assert against == {  # like beside like
        "bundled model, bf16, against the fastest peer, pictures alone (optimum-intel, bf16)": True,
        "bundled model, int8, against the fastest peer, pictures alone (optimum-intel, int8, int8 full)": False,
    }
    (best,) = (bar for what, bar in found.items() if what.startswith("best settings"))
    assert best.met is False
    assert best.found.startswith("6.00x")  # 9.0 / 1.5: the faster setting lost 10 points


def test_the_report_holds_every_figure_and_every_failure(scripts: dict[str, ModuleType]) -> None:
    value = {
        "machine": {"processor": "a CPU", "cores": 2, "memory_gib": 24.0, "system": "Linux x86_64", "gpus": []},
        "versions": {"python": "3.11"},
        "command": "python benchmarks/speed.py",
        "toy": False,
        "workload": Workload().to_json(),
        "candidates": {},
        "steps": known_steps(),
        "origins": {
            "baseline-1": {"commit": "old", "ended": "2026-01-01 09:00"},
            "final-auto": {"commit": "new", "ended": "2026-01-02 10:00"},
            "tick-ours-auto": {"commit": "new", "ended": "2026-01-02 10:30"},
            "profile-before": {"commit": "older", "ended": "2025-01-01 10:30"},
        },
    }
    text = scripts["speed_report"].report(value)
    assert (
        "| bundled model, bf16, against eager diffusers at batch 1 | 4x | 4.10x (4.10 / 1.00 images/s) | met |" in text
    )
    assert "**not met**" in text
    assert "| DDIM 25 steps, bf16, 4 slots | 4.20 | 61.0 | 70.0 | 99.3 | 51.2 |" in text
    assert "| DDIM 25 steps, bf16, 4 slots; the middle of 4.05, 4.30, 4.10 | 4.10 | 62.4 | 71.0 | 99.3 | 51.2 |" in text
    row = "| 256 | 20.00 | 70.0 [77.1, 83.4] | -10.0 | 12.0 | 9.2 |"
    assert f"| the whole workload: DPM++ 2M 4 steps, bf16, 4 slots {row}" in text
    assert "| 256 | - | 80.0 [79.0, 81.0] | - | 12.0 | - |" in text
    assert "the middle of 4.05, 4.30, 4.10 | 256 | 4.10 | 81.0 [77.1, 83.4] | +1.0 | 12.0 | 9.2 |" in text
    assert (
        "3 measurements, ended from 2026-01-01 09:00 to 2026-01-02 10:30 UTC: 2 by commit new, 1 by commit old." in text
    )
    assert "All of them at this processor's bf16 rate take 1.00 s, 8.00x as fast as diffusers." in text
    assert "| ours-int8 | int8 is not here |" in text
    empty = scripts["speed_report"].report(value | {"steps": {}, "origins": {}})
    assert "not measured" in empty
    assert "met |" not in empty


def test_of_several_measurements_the_middle_one_counts(scripts: dict[str, ModuleType]) -> None:
    runs = iter([{"images_per_second": rate, "run": name} for name, rate in (("a", 5.3), ("b", 4.7), ("c", 5.1))])
    found = scripts["speed_store"].middle(lambda: next(runs), 3)
    assert found == {"images_per_second": 5.1, "run": "c", "rates": [5.3, 4.7, 5.1]}


@pytest.mark.parametrize(("interval", "rows"), [((0.0, 1.0), 10.0), ((0.4, 1.0), 6.0)])
def test_a_guided_step_takes_two_rows_of_the_unet(
    scripts: dict[str, ModuleType], references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    interval: tuple[float, float], rows: float,
) -> None:  # fmt: skip
    paint = make_paint(tmp_path, monkeypatch)
    options = {"steps": 10, "strength": (0.5, 0.5), "guidance": 4.0, "guidance_interval": interval}  # t = 401 ... 1
    paint(tmp_path / "run", jobs=3, reference=references, **options)
    monkeypatch.setattr(scripts["speed_tasks"], "open_bundle", lambda *_, **__: fakes.make_bundle(tmp_path / "bundle"))
    assert scripts["speed_tasks"].unet_rows(tmp_path / "run") == rows


def test_every_setting_of_the_search_is_one_that_generate_takes(scripts: dict[str, ModuleType]) -> None:
    speed = scripts["speed"]
    for changes in speed.CANDIDATES.values():
        Workload().generate_settings(Path(), references=Path(), **changes)
    assert len({speed._file_name(name) for name in speed.CANDIDATES}) == len(speed.CANDIDATES)


def test_a_row_of_the_full_size_unet_is_counted_with_its_attention(scripts: dict[str, ModuleType]) -> None:
    tick = scripts["sd2_tick"]
    # 0.678e12 without attention's products, as counters give it that do not know the fused kernel.
    assert tick._flops(tick.full_size_models.SHAPES["sd21"], 64) == pytest.approx(0.804e12, rel=0.01)
