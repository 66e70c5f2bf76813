"""The proof's script: what it trains, in which order, and what its table says."""

import argparse
import json
from collections.abc import Sequence
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

    def do(log: str, words: Sequence[object]) -> None:
        every.append([str(word) for word in words[1:]])
        done = {"train-base": "model_index.json", "train-adapter": "adapter.json", "export": "manifest.json"}
        path = Path(every[-1][every[-1].index("--out") + 1], done.get(every[-1][1], "annotations.json"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")

    monkeypatch.setattr(making, "_do", do)
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
    monkeypatch.setattr(worth, "FEW", 3)
    making.detector("all", "copy-paste", "rt_detr", 1)
    assert [words[1] for words in commands] == [
        "train-base",
        "train-adapter",
        "export",
        "generate",
        "evaluate",
        "evaluate",
    ]
    pasted = commands[3]
    assert "--compose" in pasted
    assert pasted[pasted.index("--strength") + 1] == "0:0"
    alone, arm = making.detectors("all", "real", "rt_detr"), making.detectors("all", "copy-paste", "rt_detr")
    assert (arm / "trainings" / "real-seed0").resolve() == alone / "trainings" / "real-seed0"
    few = open_dataset(making.dataset("pbc-few"))
    assert [record.name for record in few.records] == ["0.png", "1.png", "2.png"]
    assert sorted(path.name for path in making.dataset("pbc-photographs").iterdir()) == ["3.png", "4.png"]
    making.detector("all", "copy-paste", "rt_detr", 1)
    assert [words[1] for words in commands[6:]] == ["evaluate", "evaluate"]  # which go on from what they hold


def test_the_table_holds_each_arm_against_its_controls(making: Making) -> None:
    val = open_dataset(making.dataset("pbc-val"))
    truth = instances_of(val.records)
    nothing = [Instances.of([], [], []) for _ in truth]
    for arm, training, found in (("real", "real", nothing), ("composed", "generated5", truth)):
        folder = making.detectors("all", arm, "rt_detr") / "trainings" / f"{training}-seed0"
        folder.mkdir(parents=True)
        lists = [[one.boxes.tolist(), [0.9] * len(one), one.labels.tolist()] for one in found]
        stored = {"val": str(making.dataset("pbc-val")), "detections": lists}
        (folder / "measured-0.json").write_text(json.dumps(stored))
    real, composed = rows(making, "all", "rt_detr")
    assert real[:4] == ("pbc-val", "real", "1", "0.0")
    assert composed[:4] == ("pbc-val", "composed", "1", "100.0")
    assert (real[5], composed[5], composed[6]) == ("", "+100.0 [+100.0, +100.0]", "-")  # no copy-paste is there
