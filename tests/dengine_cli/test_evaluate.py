"""`dengine evaluate` on the command line: what it hands on, what it prints, and how it refuses."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_fails, dengine, next_command
from made_worth import TINY, make_arms, make_dataset, make_run

from engines.worth import evaluate as worth
from engines.worth.data import WorthData
from engines.worth.evaluate import COMPARISON, PLOT, EvaluateSummary, SetFigures
from engines.worth.settings import EvaluateSettings, Times


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """What the verb needs, by option."""
    return {
        "--real": make_dataset(tmp_path / "real", range(4)),
        "--synthetic": make_run(tmp_path / "run", range(10, 16)),
        "--val": make_dataset(tmp_path / "val", range(20, 23)),
        "--out": tmp_path / "out",
    }


def arguments(folders: dict[str, Path], *more: object) -> list[object]:
    return ["evaluate", *(part for option in folders.items() for part in option), *more]


def make_summary(folder: Path) -> EvaluateSummary:
    data = WorthData(("a",), [], [], (), 48, (0, 20, 40), 10, (), ((), ()))
    found = SetFigures("val", 3, ("7.png nearly repeats 8.png (0.980)",), tuple(make_arms()))
    return EvaluateSummary((found,), data, (0, 1), folder / COMPARISON, None, 1.0)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[EvaluateSettings]:
    """What `evaluate` was asked for, which does nothing but report."""
    seen: list[EvaluateSettings] = []

    def evaluate(settings: EvaluateSettings, *, report: Any) -> EvaluateSummary:
        seen.append(settings)
        return make_summary(tmp_path)

    monkeypatch.setattr(worth, "evaluate", evaluate)
    return seen


def test_every_option_arrives(folders: dict[str, Path], asked: list[EvaluateSettings]) -> None:
    more = (
        "--synthetic", "other", "--split", "train", "--val", "again", "--val-split", "val", "--images", "list.txt",
        "--detector", "retinanet", "--preset", "quick", "--seeds", 4, "--seed", 7, "--mix", "0.3:0", "--amounts",
        "0, 1x,2x", "--weights", "w", "--short-side", 128, "--steps", 50, "--batch", 6, "--lr", 0.01, "--rotate",
        "--device", "cuda", "--precision", "f32", "--resume", "--skip-bad",
    )  # fmt: skip
    result = dengine(*arguments(folders, *more))
    assert result.exit_code == 0, result.output
    assert asked == [
        EvaluateSettings(
            real=folders["--real"],
            synthetic=(folders["--synthetic"], Path("other")),
            val=(folders["--val"], Path("again")),
            out=folders["--out"],
            split="train",
            val_split="val",
            images=Path("list.txt"),
            detector="retinanet",
            preset="quick",
            seeds=4,
            seed=7,
            mix=(0.3, 0.0),
            amounts=(0, Times(1.0), Times(2.0)),
            weights=Path("w"),
            short_side=128,
            changes={
                "steps": 50, "batch": 6, "lr": 0.01, "rotate": True, "device": "cuda", "precision": "f32",
            },
            resume=True,
            skip_bad=True,
        )
    ]  # fmt: skip


def test_what_is_left_out_is_the_presets(folders: dict[str, Path], asked: list[EvaluateSettings]) -> None:
    dengine(*arguments(folders))
    assert (asked[0].changes, asked[0].amounts, asked[0].seeds, asked[0].preset) == ({}, (), None, "small")
    assert asked[0].mix == (0.5, 0.5)


def test_the_table_and_the_images_left_out_are_printed(folders: dict[str, Path], asked: list[EvaluateSettings]) -> None:
    result = dengine(*arguments(folders))
    lines = result.stdout.splitlines()
    columns = ["figure", "real", "real + 20 generated (2x)", "difference", "real + 40 generated (4x)", "difference"]
    assert re.split(r"\s{2,}", lines[0]) == columns
    assert "0.500 ± 0.010" in lines[1]
    assert "+0.021 [-0.010, +0.050]" in lines[1]
    assert "2 trainings of each arm" in result.stdout
    assert "left out of the validation images: 7.png nearly repeats 8.png" in result.stderr
    assert "matplotlib is not installed" in result.stderr


@pytest.mark.slow
def test_a_whole_comparison_from_the_command_line(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    options = worth._options
    monkeypatch.setattr(worth, "_options", lambda settings: options(_with(settings, changes=(TINY | {"steps": 1}))))
    result = dengine(*arguments(folders, "--preset", "quick"))
    assert result.exit_code == 0, result.output
    assert "real + 6 generated (1.5x)" in result.stdout
    assert "One training of each arm" in result.stdout
    assert f"picture  {folders['--out'] / PLOT}" in result.stdout
    assert json.loads((folders["--out"] / COMPARISON).read_text())["seeds"] == [0]


@pytest.mark.slow
def test_without_generated_images_the_real_ones_are_measured(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = worth._options
    monkeypatch.setattr(worth, "_options", lambda settings: options(_with(settings, changes=(TINY | {"steps": 1}))))
    del folders["--synthetic"]
    result = dengine(*arguments(folders, "--preset", "quick"))
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[:2] == ["figure", "real"]
    assert "real + " not in result.stdout
    assert next_command(result)[-5:] == ["--short-side", "192", "--synthetic", "RUN", "--resume"]


def _with(settings: EvaluateSettings, **changes: Any) -> EvaluateSettings:
    return EvaluateSettings(**{**vars(settings), **changes})


def test_bad_data_is_one_line_and_leaves_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    classes = make_run(tmp_path / "classes", range(30, 32), ("a", "c"))
    assert_fails(dengine(*arguments(folders | {"--synthetic": classes})), 1, "classes a, c")
    empty = make_run(tmp_path / "empty", [])
    assert_fails(dengine(*arguments(folders | {"--synthetic": empty})), 1, "kept no image")
    bare = make_dataset(tmp_path / "bare", range(40, 42), boxes=0)
    assert_fails(dengine(*arguments(folders | {"--val": bare})), 1, "has no boxes")
    assert_fails(dengine(*arguments(folders | {"--val": folders["--real"]})), 1, "copies of training images")
    assert not folders["--out"].exists()


def test_wrong_options_are_one_line(folders: dict[str, Path]) -> None:
    assert_fails(dengine(*arguments(folders, "--mix", 2)), 2, "--mix is 2;")
    assert_fails(dengine(*arguments(folders, "--amounts", "1x,lots")), 2, '"lots"')
    assert_fails(dengine(*arguments(folders, "--detector", "yolo")), 2, "rt_detr, retinanet, faster_rcnn")
    assert_fails(dengine(*arguments(folders, "--batch", 1)), 2, "batch must be 2 or more")
    assert_fails(dengine("evaluate", "--real", folders["--real"]), 2, "--val")
    alone = {name: value for name, value in folders.items() if name != "--synthetic"}
    assert_fails(dengine(*arguments(alone, "--amounts", "1x")), 2, "--amounts counts generated images")
    assert not folders["--out"].exists()


def test_a_missing_torchvision_is_one_line(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    result = dengine(*arguments(folders, "--detector", "faster_rcnn"))
    assert_fails(result, 1, "torchvision", "pip install torchvision")
    assert not folders["--out"].exists()
