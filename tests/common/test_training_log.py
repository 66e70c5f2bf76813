"""The log of a training: what stays of it when one goes on, and what is refused."""

import json
from pathlib import Path

import pytest
from refusals import refused

from engines.common.training_log import LOG, TrainingLog, read_log
from engines.errors import TrainingError


def steps(folder: Path) -> dict[str, list[float]]:
    return {stage: [row["step"] for row in rows] for stage, rows in read_log(folder).items()}


def written(folder: Path) -> TrainingLog:
    """A log of two stages."""
    log = TrainingLog(folder, ("vae", "unet"))
    for stage in ("vae", "unet"):
        log.begin(stage, 0)
        for step in (10, 20):
            log.add(stage, step, {"loss": 1 / 3, "lr": 1.23456789e-7, "kl": float("inf")})
    return log


def test_a_line_is_an_object_of_finite_figures(tmp_path: Path) -> None:
    written(tmp_path).sync()
    lines = (tmp_path / LOG).read_text("utf-8").splitlines()
    assert json.loads(lines[0]) == {"stage": "vae", "step": 10, "loss": 0.333333, "lr": 1.23457e-07}
    assert len(lines) == 4


def test_a_resume_keeps_what_its_checkpoint_holds(tmp_path: Path) -> None:
    log = written(tmp_path)
    whole = (tmp_path / LOG).read_bytes()
    log.begin("vae", 20)
    assert (tmp_path / LOG).read_bytes() == whole, "a stage that is done takes nothing from the next"
    log.begin("unet", 10)
    assert steps(tmp_path) == {"vae": [10, 20], "unet": [10]}
    log.add("unet", 20, {"loss": 1 / 3, "lr": 1.23456789e-7})
    assert (tmp_path / LOG).read_bytes() == whole
    TrainingLog(tmp_path, ("unet",)).begin("unet", 0)
    assert (tmp_path / LOG).read_bytes() == b"", "another training"


def test_a_last_line_that_is_torn_is_none(tmp_path: Path) -> None:
    log = written(tmp_path)
    whole = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(whole[:-9])
    assert steps(tmp_path) == {"vae": [10, 20], "unet": [10]}
    log.begin("unet", 10)
    assert (tmp_path / LOG).read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])


def test_a_checkpoint_of_before_brings_its_rows(tmp_path: Path) -> None:
    TrainingLog(tmp_path, ("adapter",)).begin("adapter", 20, ({"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.25}))
    assert steps(tmp_path) == {"adapter": [10, 20]}


@pytest.mark.parametrize(
    "line", ['{"stage": "vae", "step": 1}', '{"step": 1, "loss": 2}', '{"stage": "vae", "step": 1, "loss": NaN}', "[]"]
)
def test_what_is_no_log_is_refused_by_its_file(tmp_path: Path, line: str) -> None:
    (tmp_path / LOG).write_text(line + "\n", "utf-8")
    with refused(TrainingError, None, LOG):
        read_log(tmp_path)
    with refused(TrainingError, None, LOG):
        TrainingLog(tmp_path, ("vae",)).begin("vae", 0)
    assert (tmp_path / LOG).read_text("utf-8") == line + "\n"
