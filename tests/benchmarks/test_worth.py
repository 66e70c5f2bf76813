"""The proof's script: what it trains, in which order, and what its table says."""

import argparse
import json
from pathlib import Path

import pytest
from made_data import make_data

from benchmarks import worth
from benchmarks.worth import BUNDLES, PSEUDO, RUNS, SETTINGS, Making, rows
from engines.datasets.dataset import instances_of, open_dataset
from engines.labels.boxes import Instances


@pytest.fixture
def making(tmp_path: Path) -> Making:
    """Toy sets under the smears' names."""
    for name in ("bccd-train", "pbc-train", "pbc-val", "raabin-train"):
        make_data(tmp_path / "smears" / name)
    given = argparse.Namespace(smears=tmp_path / "smears", bccd=tmp_path / "bccd", work=tmp_path / "work", out=None)
    return Making(given)


@pytest.fixture
def commands(making: Making, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The verbs that are called, each of which but leaves the file by which it is known to be done."""
    every: list[list[str]] = []

    def do(log: str, *words: object) -> None:
        every.append([str(word) for word in words])
        done = {"train-base": "model_index.json", "train-adapter": "adapter.json", "export": "manifest.json"}
        path = Path(every[-1][every[-1].index("--out") + 1], done.get(every[-1][0], "annotations.json"))
        path.parent.mkdir(parents=True, exist_ok=True)
        count = int(every[-1][every[-1].index("--count") + 1]) if "--count" in every[-1] else 0
        path.write_text(json.dumps({"images": [{}] * count}))

    monkeypatch.setattr(making, "_verb", do)
    return every


def test_every_name_of_the_plan_leads_somewhere() -> None:
    known = {*RUNS, *PSEUDO, "own", "completed", "pbc-few", "pbc-photographs", "raabin-photographs"}
    sets = {f"{source}-{part}" for source in ("bccd", "pbc", "raabin") for part in ("train", "val")}
    for setting in SETTINGS.values():
        assert setting.controls[0] == "real"
        assert set(setting.controls) <= set(setting.arms)
        assert set(setting.val) <= sets
        for arm in setting.arms.values():
            assert {arm.real, *arm.more} <= known | sets
            assert any(one.real == arm.real and not one.more for one in setting.arms.values())
    assert {run.bundle for run in RUNS.values()} | {bundle for bundle, _ in PSEUDO.values()} == set(BUNDLES)


def test_an_arm_is_made_from_the_base_on_and_its_real_detector_is_shared(
    making: Making, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(worth.PARTS, "pbc-few", ("pbc-train", slice(3), True))
    monkeypatch.setitem(worth.PARTS, "pbc-photographs", ("pbc-train", slice(3, None), False))
    making.detector("all", "copy-paste", "rt_detr", 1)
    assert [words[0] for words in commands] == ["train-adapter", "export", "generate", "evaluate", "evaluate"]
    pasted = commands[2]
    assert "--compose" in pasted
    assert pasted[pasted.index("--strength") + 1] == "0:0"
    alone, arm = (making.work / "detectors/rt_detr/all" / name for name in ("real", "copy-paste"))
    assert (arm / "trainings" / "real-seed0").resolve() == alone / "trainings" / "real-seed0"
    few = open_dataset(making.dataset("pbc-few"))
    assert [record.name for record in few.records] == ["0.png", "1.png", "2.png"]
    assert sorted(path.name for path in making.dataset("pbc-photographs").iterdir()) == ["3.png", "4.png"]
    making.detector("all", "copy-paste", "rt_detr", 1)
    assert [words[0] for words in commands[5:]] == ["evaluate", "evaluate"]  # which go on from what they hold
    (making.work / "runs/all-pasted/annotations.json").write_text(json.dumps({"images": [{}] * 899}))
    making.detector("all", "copy-paste", "rt_detr", 1)
    assert [words[0] for words in commands[7:]] == [
        "generate",
        "evaluate",
        "evaluate",
    ]  # a run that was stopped goes on


def test_the_table_holds_each_arm_against_its_controls_on_the_images_of_both(
    making: Making, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(worth, "RECORDS", tmp_path / "records")
    val = open_dataset(making.dataset("pbc-val"))
    truth = instances_of(val.records)
    nothing = [Instances.of([], [], []) for _ in truth]
    for arm, training, found, skipped in (("real", "real", nothing, 0), ("composed", "generated5", truth, 1)):
        folder = making.work / "detectors/rt_detr/all" / arm / "trainings" / f"{training}-seed0"
        folder.mkdir(parents=True)
        lists = [[one.boxes.tolist(), [0.9] * len(one), one.labels.tolist()] for one in found[skipped:]]
        names = [record.name for record in val.records[skipped:]]
        stored = {"val": str(making.dataset("pbc-val")), "images": names, "detections": lists}
        (folder / "measured-0.json").write_text(json.dumps(stored))
        making.detector("all", arm, "rt_detr", 1)
    real, composed = rows(making, "all", "rt_detr")
    assert real[:4] == ("pbc-val", "real", "1", "0.0")
    assert composed[:4] == ("pbc-val", "composed", "1", "100.0")
    assert (real[5], composed[5]) == ("0.0", "100.0")
    assert (real[6], composed[6], composed[7]) == ("", "+100.0 [+100.0, +100.0]", "-")  # no copy-paste is there
