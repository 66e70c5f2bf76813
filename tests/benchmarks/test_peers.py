"""The peers' benchmark: its jobs are those of `generate`, every kind of setting is tried, and the fastest counts."""

import json
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from painting import make_references
from PIL import Image

from benchmarks import peer_runner as runner
from benchmarks import peers
from engines.errors import UsageError
from engines.measure.workload import Workload, jobs_of
from engines.painting.crops import read_crop


@pytest.fixture
def references(tmp_path: Path) -> Path:
    return make_references(tmp_path / "references", 3)


def test_the_peers_get_the_jobs_and_crops_of_generate(
    references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "write_model", lambda bundle, folder: None)
    bundle = fakes.make_bundle(tmp_path)
    workload = Workload(frame=fakes.FRAME, jobs=5, steps=10)
    path = peers.write_jobs(tmp_path / "work", workload, bundle, references)
    written = json.loads(path.read_text())
    made = jobs_of(workload, bundle, references)
    assert (written["steps"], written["guidance"], written["frame"]) == (10, 4.0, list(fakes.FRAME))
    assert len(written["jobs"]) == 5
    for job, entry in zip(made.jobs, written["jobs"], strict=True):
        assert (entry["index"], entry["prompt"], entry["strength"]) == (job.index, job.prompt, job.strength)
        assert entry["steps"] == made.steps(job)
        crop = np.asarray(Image.open(path.parent / entry["crop"]))
        np.testing.assert_array_equal(crop, read_crop(made.source, job))


def test_peers_paint_every_job_once_in_batches_of_equal_steps() -> None:
    jobs = [{"index": index, "steps": 10 + index % 3, "strength": 0.5} for index in range(11)]
    for static in (True, False):
        setting = runner.Setting("f32", static, 4)
        batches = list(runner.batches_of(jobs, setting))
        assert sorted(job["index"] for batch, wanted in batches for job in batch[:wanted]) == list(range(11))
        assert all(len({job["steps"] for job in batch}) == 1 for batch, _ in batches)
        assert {len(batch) for batch, _ in batches} == ({4} if static else {4, 3})
    # Groups of 4, 4 and 3 jobs, of 10, 11 and 12 steps; a batch of 4 takes 2 s for 10 steps.
    assert runner.predicted_seconds(jobs, runner.Setting("f32", True, 4), 2.0, 10) == pytest.approx(6.6)
    assert runner.predicted_seconds(jobs, runner.Setting("f32", False, 4), 2.0, 10) == pytest.approx(6.0)


def test_a_peer_is_tried_in_every_precision_of_its_own() -> None:
    assert runner.kinds_of("onnxruntime", True, False) == [("f32", False)]
    assert runner.kinds_of("openvino", False, False) == [("f32", True), ("f32", False)]
    assert {precision for precision, _ in runner.kinds_of("openvino", True, False)} == {"bf16", "f32"}
    assert {precision for precision, _ in runner.kinds_of("openvino", True, True)} == {"int8 hybrid", "int8 full"}
    results = [{"int8": int8, "images_per_second": 1.0 + int8} for int8 in (False, True)]
    assert [peers.fastest(results, int8=int8) for int8 in (False, True)] == results


def test_the_search_for_a_peers_batch_ends_where_it_gets_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {1: 1.0, 2: 1.9, 4: 4.6, 8: 1.0}

    def load(peer: str, exported: Path, setting: runner.Setting, known: dict[str, Any]) -> str:
        if setting.precision == "bf16":
            raise RuntimeError("no\nbf16")
        return "pipeline"

    monkeypatch.setattr("gc.collect", lambda: 0)  # of all that earlier tests left it would take seconds
    monkeypatch.setattr(runner, "BATCHES", tuple(seconds))
    monkeypatch.setattr(runner, "load", load)
    monkeypatch.setattr(runner, "paint", lambda *_: [])
    monkeypatch.setattr(runner, "_timed", lambda pipeline, batch, *_: seconds[len(batch)])
    known = {"frame": [8, 8], "jobs": [{"index": index, "steps": 10, "strength": 0.5} for index in range(8)]}
    found = runner.search("openvino", Path(), known, Path(), [("bf16", False), ("f32", False)])
    assert [entry["batch"] for entry in found if "error" not in entry] == [1, 2, 4]
    assert [entry["predicted_seconds"] for entry in found if "error" not in entry] == pytest.approx([8.0, 7.6, 9.2])
    assert [entry["error"] for entry in found if "error" in entry] == ["RuntimeError: no bf16"] * 4


def test_a_peer_paints_everything_with_its_two_best_kinds_of_settings_and_the_faster_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    folder = str(tmp_path)
    given = {"peer": "openvino", "jobs": f"{folder}/jobs.json", "work": folder, "images": folder}
    asked: dict[str, Any] = given | {"bf16": True, "int8": True}
    result = runner.measure(asked)
    assert (result["precision"], result["batch"], result["images_per_second"]) == ("hybrid", 4, 3.7)
    assert [(one["precision"], one["batch"]) for one in result["painted"]] == [("full", 8), ("hybrid", 4)]
    del rates["hybrid"]
    assert runner.measure(asked)["precision"] == "full"
    rates.clear()
    assert runner.measure(asked)["error"] == "RuntimeError: no memory"


def test_a_peer_without_an_environment_is_listed_with_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(peer: Any, folder: Path) -> Path:
        raise UsageError("pip install failed: no such version")

    monkeypatch.setattr(peers, "environment", fail)
    found = peers.run_peer(peers.PEERS[0], tmp_path / "jobs.json", tmp_path)
    assert "no such version" in found["error"]
    row = "\n".join(peers.report([found]))
    assert "optimum-intel[openvino,diffusers]==2.2.0" in row
    assert "does not run: pip install failed" in row
    assert peers.fastest([found], int8=True) is None
