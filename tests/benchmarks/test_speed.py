"""The speed benchmark: what every row has to reach, how runs are timed and judged, and a report that is plain."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from made_runs import make_run
from painting import make_paint, make_references

from benchmarks import speed, speed_report, speed_tasks
from benchmarks.speed_bars import bars
from engines.errors import BackendError
from engines.labels.boxes import join
from engines.measure.workload import Workload


def known_steps() -> dict[str, Any]:
    """Figures of a run that reaches some bars and not others."""
    run: dict[str, Any] = {"steps": 25, "precision": "bf16", "slots": 4, "seconds": 62.4, "rates": [4.1]}
    middle = {"images_per_second": 4.1, "rates": [4.05, 4.3, 4.1]}
    baseline = {"seconds": 256.0, "batch": 1, "precision": "f32"}
    judged = {"ap50": 0.70, "low": 0.65, "high": 0.75, "labels": 16.5, "images": 256}
    return {
        "baseline-1": baseline | {"images_per_second": 1.0},
        "baseline-best": baseline | {"images_per_second": 1.5, "batch": 8},
        "ours-auto": run | {"images_per_second": 3.0},
        "ours-auto-slots8": run | {"images_per_second": 4.2},
        "final-auto": run | middle,
        "labels-auto": {"ap50": 0.993, "psnr": 51.2, "images": 96},
        "ours-int8": {"error": "int8 is not here"},
        "ours-f32": run | {"images_per_second": 2.0, "precision": "f32"},
        "settings-usual": run | {"images_per_second": 8.0, "rates": [8.0], "steps": 8},
        "settings-fast-4": run | {"images_per_second": 15.5, "rates": [15.5], "steps": 4},
        "settings-fast-3": run | {"images_per_second": 17.0, "rates": [17.0], "steps": 3},
        "judged-ours-f32": judged,
        "judged-usual": judged | {"ap50": 0.71},
        "judged-fast-4": judged | {"ap50": 0.685},
        "judged-fast-3": judged | {"ap50": 0.66},
    }


def test_every_bar_says_whether_it_was_reached() -> None:
    met = {what: reached for what, _, _, reached in bars(known_steps())}
    assert met["bundled model, bf16, against eager diffusers at batch 1"] is True
    assert met["bundled model, bf16, against eager diffusers at its best batch"] is False
    assert not any("int8" in what for what in met)
    # The faster one has labels that are less right.
    fast = "settings whose labels are as right (4 steps, bf16, 4 slots), against eager diffusers at its best batch"
    assert met[fast] is True
    unjudged = {name: step for name, step in known_steps().items() if not name.startswith("judged-")}
    assert not any(what.startswith("settings") for what, *_ in bars(unjudged))
    peer = {"peer": "openvino", "title": "optimum-intel", "precision": "bf16", "images_per_second": 4.0}
    other = peer | {"title": "optimum-intel, int8", "precision": "int8 full", "int8": True, "images_per_second": 50.0}
    int8 = known_steps()["settings-usual"] | {"precision": "int8"}
    more = bars(known_steps() | {"settings-usual-int8": int8, "peers": {"peers": [peer, other]}})
    against = {what: reached for what, _, _, reached in more if "fastest peer" in what}
    told = "`generate` where nobody says, {}, against the fastest peer, pictures alone ({})"
    assert against == {  # like beside like
        told.format("bf16", "optimum-intel, bf16"): True,
        told.format("int8", "optimum-intel, int8, int8 full"): False,
    }


def test_the_report_holds_every_figure_and_every_failure() -> None:
    value = {
        "machine": {"processor": "a CPU", "cores": 2, "memory_gib": 24.0, "system": "Linux x86_64", "gpus": []},
        "versions": {"python": "3.11"},
        "origins": "17 measurements.",
        "workload": Workload().to_json(),
        "steps": known_steps(),
    }
    text = "\n".join(speed_report.report(value))
    assert (
        "| bundled model, bf16, against eager diffusers at batch 1 | 4x | 4.10x (4.10 / 1.00 images/s) | met |" in text
    )
    assert "**not met**" in text
    assert "| 25 steps, bf16, 4 slots | 4.20 | 62.4 | 99.3 | 51.2 |" in text
    assert "| 25 steps, bf16, 4 slots; the middle of 4.05, 4.30, 4.10 | 4.10 | 62.4 | 99.3 | 51.2 |" in text
    assert "| ours-int8 | int8 is not here |" in text
    assert "| fast-4 | 4 steps, bf16, 4 slots | 15.50 | 68.5 [65.0, 75.0] | 16.5 |" in text
    assert (
        "| ours-f32 | 25 steps, f32, 4 slots; the middle of 4.10 | 2.00 | 70.0 [65.0, 75.0] | 16.5 |".replace(
            "; the middle of 4.10", ""
        )
        in text
    )
    empty = "\n".join(speed_report.report(value | {"steps": {}}))
    assert "not measured" in empty
    assert "met |" not in empty


def alone(task: str, arguments: dict[str, Any], *_: Any) -> dict[str, Any]:
    """In the place of a process: figures of the kind that the task gives."""
    name = task.partition(":")[2]
    known: dict[str, dict[str, Any]] = {
        "batches_task": {"1": 1.0, "2": 2.0},
        "baseline_task": {"seconds": 1.0, "images_per_second": 1.0, "batch": 1, "precision": "f32"},
        "paint_task": {"seconds": 1.0, "images_per_second": 4.0, "steps": 25, "precision": "bf16", "slots": 4},
        "same_labels_task": {"ap50": 0.99, "psnr": 50.0},
        "peers_task": {"peers": [], "error": "no peer is here"},
    }
    json.dumps(arguments)
    return known.get(name, {"seconds": 1.0, "precision": "bf16"})


def test_a_run_does_what_is_missing_and_rows_that_are_named_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def run_alone(task: str, arguments: dict[str, Any], *more: Any) -> dict[str, Any]:
        asked.append(task.partition(":")[2])
        if task.endswith(":engine_task"):
            raise BackendError("not on this machine")
        return alone(task, arguments, *more)

    def run(*options: str) -> dict[str, Any]:
        asked.clear()
        words = ["speed.py", "--work", str(tmp_path / "work"), "--jobs", "4", *options]
        monkeypatch.setattr("sys.argv", words)
        speed.main()
        value: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return value

    monkeypatch.setattr(speed, "run_alone", run_alone)
    monkeypatch.setattr("benchmarks.records.commit", lambda: "a commit")
    first = run()
    assert {"baseline_task", "paint_task", "same_labels_task", "peers_task"} < set(asked)
    failed = {name for name, step in first["steps"].items() if "error" in step}
    assert failed == {"inside-auto", "inside-int8", "peers"}
    second = run()
    assert set(asked) == {"engine_task", "peers_task"}  # what failed, and nothing else
    assert second["steps"] == first["steps"]
    run("--rows", "settings", "--detector", str(tmp_path))
    assert asked == ["paint_task"] * 4 * len(speed.SETTINGS) + ["judged_task"] * (1 + len(speed.SETTINGS))


def test_of_several_measurements_the_middle_one_counts() -> None:
    runs = iter([{"images_per_second": rate, "run": name} for name, rate in (("a", 5.3), ("b", 4.7), ("c", 5.1))])
    found = speed.middle(lambda: next(runs), 3)
    assert found == {"images_per_second": 5.1, "run": "c", "rates": [5.3, 4.7, 5.1]}


def test_a_run_is_timed_from_the_end_of_loading_and_a_warm_up_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_paint(tmp_path, monkeypatch)(tmp_path / "first", jobs=1)  # the bundle and the fakes
    references = make_references(tmp_path / "references", 3)
    workload = Workload(frame=fakes.FRAME, jobs=3, steps=10, strength=(0.5, 0.5))
    asked = {"workload": workload.to_json(), "bundle": str(tmp_path / "bundle"), "references": str(references)}
    asked |= {"out": str(tmp_path / "run"), "options": {"engine": "torch", "guidance_interval": [0.4, 1.0]}}
    found = speed_tasks.paint_task(json.loads(json.dumps(asked)), lambda line: None)
    assert (found["images"], found["steps"]) == (3, 10)
    assert found["images_per_second"] == pytest.approx(3 / found["seconds"])
    monkeypatch.setattr(speed_tasks, "WARM_JOBS", 2)
    assert speed_tasks.paint_task(json.loads(json.dumps(asked | {"warm_up": True})), lambda line: None)["images"] == 2


def test_the_same_labels_agree(tmp_path: Path) -> None:
    one, other = (make_run(tmp_path / name, keep_empty=True) for name in ("one", "other"))
    found = speed_tasks.same_labels_task({"run": str(one), "reference": str(other)}, lambda line: None)
    assert (found["images"], found["ap50"]) == (7, pytest.approx(1.0))
    assert found["psnr"] > 60


def test_labels_are_judged_by_what_a_detector_is_sure_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", keep_empty=True)
    _, labels = speed_tasks.read_labels(run)

    class Detector:
        """Finds every label, and half of them once more, unsurely."""

        def predict(self, images: Any) -> list[Any]:
            assert len(list(images)) == len(labels)
            sure, unsure = (
                [replace(one, scores=np.full(len(one), score, dtype=np.float32)) for one in labels]
                for score in (0.9, 0.4)
            )
            return [join(pair) for pair in zip(sure, unsure, strict=True)]

    monkeypatch.setattr("engines.worth.detectors.model.load_detector", lambda folder, device: Detector())
    found = speed_tasks.judged_task({"run": str(run), "detector": "it"}, lambda line: None)
    assert (found["images"], found["ap50"]) == (7, pytest.approx(1.0))
    assert found["low"] <= found["ap50"] <= found["high"] + 1e-9
