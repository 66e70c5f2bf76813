"""`--dry-run`: what would be done is said, what is wrong is refused, and nothing is written."""

from dataclasses import replace
from pathlib import Path

import pytest
from command_line import assert_fails, dengine
from kill_scenes import write_pictures
from made_worth import TINY
from tiny_preset import small_trainings, tiny_preset

from engines.training import presets
from engines.worth.detectors import config

Words = list[object]
STEPS = ("--steps", 4)


@pytest.fixture
def trainings(tmp_path: Path, toy_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Words]:
    """Commands of the verbs that train, but for where they write."""
    monkeypatch.setattr(presets, "PRESETS", {"tiny": tiny_preset()})
    quick = config.PRESETS["quick"]
    network = replace(quick.options.network, **TINY["network"])
    monkeypatch.setattr(config, "PRESETS", {"quick": replace(quick, options=replace(quick.options, network=network))})
    write_pictures(tmp_path / "val", 3, labels=True)
    compared: Words = ["evaluate", "--real", tmp_path / "data", "--val", tmp_path / "val", "--preset", "quick"]
    compared += ["--seeds", 2, "--short-side", 64, "--batch", 2, "--precision", "f32", "--no-report"]
    return small_trainings(tmp_path, toy_bases["sd1"], checkpoint_minutes=0.0) | {"evaluate": compared}


@pytest.fixture
def painting(toy_bundle: Path) -> Words:
    """A small `generate`, but for where it writes."""
    fast = ("--engine", "torch", "--threads", 1, "--steps", 2, "--guidance", 1, "--keep-empty", "--no-report")
    return ["generate", "--bundle", toy_bundle, *fast]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below one, with its size and when it was changed."""
    return {
        str(path.relative_to(folder)): (0 if path.is_dir() else path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "more", "said"),
    [
        ("train-base", ("--steps-scale", 0.5), ["6 steps of the vae", "10 steps of the unet", "--steps-scale 0.5"]),
        ("train-adapter", STEPS, ["4 steps", "--steps 4", "--frame"]),
        ("evaluate", STEPS, ["2 trainings of 4 steps", "--short-side 64"]),
    ],
)
def test_a_training_is_tried_out_and_not_begun(
    verb: str, more: Words, said: list[str], trainings: dict[str, Words], tmp_path: Path
) -> None:
    before = tree(tmp_path)
    result = dengine(*trainings[verb], *more, "--out", tmp_path / "new" / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert tree(tmp_path) == before
    for words in (*said, "memory  at least", "time    about", "--precision f32"):
        assert words in result.stdout
    assert "next:" not in result.stdout
    begun = dengine(*trainings[verb], *more, "--out", tmp_path / "new" / "out")
    assert begun.exit_code == 0, begun.output
    assert_fails(dengine(*trainings[verb], *more, "--out", tmp_path / "new" / "out", "--dry-run"), 1, "out")


@pytest.mark.slow
def test_a_dry_run_is_refused_where_a_training_does_not_go_on(
    trainings: dict[str, Words], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words: Words = [*trainings["train-adapter"], *STEPS, "--out", out]
    monkeypatch.setattr("engines.training.adapter._thresholds", _stop)
    assert dengine(*words).exit_code == 130
    before = tree(tmp_path)
    assert_fails(dengine(*words, "--dry-run"), 1, "--resume")
    assert_fails(dengine(*words, "--resume", "--lr", "0.5", "--dry-run"), 1, "lr")
    gone_on = dengine(*words, "--resume", "--dry-run")
    assert (gone_on.exit_code, "(4 are done)" in gone_on.stdout) == (0, True), gone_on.output
    assert tree(tmp_path) == before


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_a_run_would_paint_is_said_and_a_run_that_is_there_stays_as_it_is(painting: Words, tmp_path: Path) -> None:
    new = tmp_path / "a" / "new"
    result = dengine(*painting, "--count", 2, "--out", new, "--dry-run")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "a").exists()
    for words in ("2 images", "--engine torch", "--steps 2", "time    not known", "disk    not known"):
        assert words in result.stdout
    assert dengine(*painting, "--count", 2, "--out", new).exit_code == 0
    before = tree(tmp_path)
    more = dengine(*painting, "--count", 3, "--out", new, "--dry-run")
    assert (more.exit_code, "1 image" in more.stdout, "disk    about" in more.stdout) == (0, True, True), more.output
    assert dengine(*painting, "--count", 2, "--out", new, "--dry-run").exit_code == 0
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("more", "words"),
    [(("--size", "63x63"), "--size"), (("--steps", "3"), "--steps"), (("--cluster", "local"), "--cluster")],
)
def test_a_dry_run_finds_the_mistakes_of_a_run(
    more: tuple[str, str], words: str, painting: Words, tmp_path: Path
) -> None:
    if words == "--steps":
        assert dengine(*painting, "--count", 1, "--out", tmp_path / "run").exit_code == 0
    before = tree(tmp_path)
    result = dengine(*painting, *more, "--count", 1, "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code in (1, 2)
    assert_fails(result, result.exit_code, words)
    assert tree(tmp_path) == before


def test_a_dry_run_does_not_outlast_its_command(painting: Words, tmp_path: Path) -> None:
    assert dengine(*painting, "--count", 1, "--out", tmp_path / "run", "--dry-run").exit_code == 0
    assert dengine(*painting, "--count", 1, "--out", tmp_path / "run").exit_code == 0
    assert (tmp_path / "run" / "annotations.json").exists()
