"""The training loop: exact resume, the average, the best weights, refusals."""

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import nn

from engines.common.devices import resolve_precision
from engines.common.events import Event, silent
from engines.common.rng import generator
from engines.common.training_log import LOG, TrainingLog, read_log
from engines.errors import Interrupted, TrainingError, UsageError
from engines.training.stopping import INDEX, finished, steps_done, told_what_is_kept
from engines.training.trainer import FitOptions, LossAt, fit, learning_rate

OPTIONS = FitOptions(steps=12, lr=1e-2, warmup=3, precision="f32", checkpoint_minutes=0.0)


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 1))


def _loss_at(module: nn.Module, stop_at: int | None = None) -> LossAt:
    def loss_at(step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        if step == stop_at:
            raise KeyboardInterrupt
        inputs = torch.from_numpy(generator(1, step).standard_normal((16, 4), dtype=np.float32))
        return (module(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean(), {}

    return loss_at


def _fit(module: nn.Module, folder: Path, *, resume: bool = False, stop_at: int | None = None) -> list[Event]:
    seen: list[Event] = []
    fit(
        module,
        _loss_at(module, stop_at),
        OPTIONS,
        folder,
        stage="toy",
        identity={"data": "a"},
        resume=resume,
        report=seen.append,
        log=TrainingLog(folder, ("toy",)),
    )
    return seen


def _weights(module: nn.Module) -> list[float]:
    return [float(value) for parameter in module.parameters() for value in parameter.detach().flatten()]


def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    straight, broken, resumed = _module(), _module(), _module()
    _fit(straight, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        _fit(broken, tmp_path / "broken", stop_at=7)
    _fit(resumed, tmp_path / "broken", resume=True)
    assert _weights(resumed) == _weights(straight)
    logs = [(tmp_path / name / LOG).read_bytes() for name in ("straight", "broken")]
    assert logs[0] == logs[1]


def test_the_log_has_every_tenth_step_and_every_evaluation_and_loses_what_a_resume_does_again(tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=24, evaluate_every=8)

    def train(folder: Path, stop: int | None = None, minutes: float = 0.0, resume: bool = False) -> bytes:
        def told(event: Event) -> None:
            if stop is not None and event.done == stop:
                raise KeyboardInterrupt  # of a report: the step is half taken

        module = _module()
        fit(
            module, _loss_at(module), replace(options, checkpoint_minutes=minutes), folder, stage="toy", identity={},
            resume=resume, report=told, evaluate=lambda step: {"AP": step / 100}, score="AP",
            log=TrainingLog(folder.parent, ("toy",)),
        )  # fmt: skip
        return (folder.parent / LOG).read_bytes()

    whole = train(tmp_path / "whole" / "training")
    rows = read_log(tmp_path / "whole")["toy"]
    assert [row["step"] for row in rows] == [8, 10, 16, 20, 24]
    assert [row.get("AP") for row in rows] == [0.08, None, 0.16, None, 0.24]
    assert [row["lr"] for row in rows] == pytest.approx(
        [learning_rate(int(row["step"]) - 1, options) for row in rows], rel=1e-5
    )
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut" / "training", stop=16)
    assert read_log(tmp_path / "cut")["toy"][-1]["step"] == 16 > steps_done(tmp_path / "cut" / "training")
    assert train(tmp_path / "cut" / "training", resume=True) == whole
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "unsaved" / "training", stop=20, minutes=60.0)
    assert train(tmp_path / "unsaved" / "training") == whole, "nothing was saved: it begins anew"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_asked_to_stop_ends_its_step_and_goes_on_behind_it(tmp_path: Path, number: int) -> None:
    def stopping(step: int) -> tuple[torch.Tensor, Mapping[str, float | torch.Tensor]]:
        if step == 6:
            os.kill(os.getpid(), number)
        taken.append(step)
        return _loss_at(module)(step)

    straight, module, taken = _module(), _module(), list[int]()
    told = _fit(straight, tmp_path / "straight")
    rare = replace(OPTIONS, checkpoint_minutes=60.0)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="toy, step 7 of 12") as stop, told_what_is_kept(tmp_path / "asked", "none"):
        fit(
            module, stopping, rare, tmp_path / "asked", stage="toy", identity={"data": "a"}, resume=False, report=silent
        )  # fmt: skip
    assert stop.value.kept
    assert (taken[-1], signal.getsignal(number)) == (6, before)
    resumed = _module()
    again = _fit(resumed, tmp_path / "asked", resume=True)
    assert _weights(resumed) == _weights(straight)
    assert [event.figures for event in again] == [event.figures for event in told], "the mean loss, too"


def test_a_training_that_is_stopped_while_a_step_is_prepared_stops_at_once(tmp_path: Path) -> None:
    def prepare(step: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    for stop_at, said in ((0, "before anything was saved"), (5, "toy, step 5 of 12")):
        module = _module()
        with pytest.raises(Interrupted, match=said) as stop, told_what_is_kept(tmp_path, "none"):
            fit(
                module, _loss_at(module), replace(OPTIONS, checkpoint_minutes=60.0), tmp_path / "asked",
                stage="toy", identity={}, resume=False, report=silent, prepare=prepare,
            )  # fmt: skip
        assert stop.value.kept == (stop_at > 0)


def test_a_resume_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _fit(_module(), tmp_path, stop_at=7)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    module = _module()
    with pytest.raises(TrainingError):
        fit(module, _loss_at(module), OPTIONS, tmp_path, stage="toy", identity={}, resume=True, report=silent)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("damage", ["gone", "cut", "other shape", "nan", "no step", "a step too many"])
def test_a_damaged_checkpoint_is_refused_by_its_file(tmp_path: Path, damage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        _fit(_module(), tmp_path, stop_at=7)
    index, (weights,) = tmp_path / INDEX, tmp_path.glob("checkpoint-*.safetensors")
    tensors, said = load_file(weights), json.loads(index.read_text("utf-8"))
    if damage == "gone":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif damage in ("other shape", "nan"):
        tensors["average.0.bias"] = torch.zeros(9) if damage == "other shape" else torch.full((8,), torch.nan)
        save_file(tensors, weights)
    else:
        index.write_text(json.dumps({**said, "step": None if damage == "no step" else 13}), "utf-8")
    with refused(TrainingError, None, index.name if "step" in damage else weights.name):
        _fit(_module(), tmp_path, resume=True)


def test_training_lowers_the_loss_and_reports_the_last_step(tmp_path: Path) -> None:
    module = _module()
    loss_at = _loss_at(module)
    before = float(loss_at(0)[0].detach())
    seen = _fit(module, tmp_path)
    assert seen[-1].done == OPTIONS.steps
    assert float(loss_at(0)[0].detach()) < before


def test_resuming_with_other_settings_names_the_difference(tmp_path: Path) -> None:
    _fit(_module(), tmp_path)
    module = _module()
    with refused(TrainingError, None, "options.lr"):
        fit(
            module,
            _loss_at(module),
            replace(OPTIONS, lr=0.02),
            tmp_path,
            stage="toy",
            identity={"data": "a"},
            resume=True,
            report=lambda _: None,
        )


def test_starting_over_an_unfinished_training_is_refused(tmp_path: Path) -> None:
    _fit(_module(), tmp_path)
    with refused(TrainingError, "resume", tmp_path):
        _fit(_module(), tmp_path)


def test_the_weights_with_the_best_score_are_kept(tmp_path: Path) -> None:
    module = _module()
    kept: dict[int, list[float]] = {}

    def evaluate(step: int) -> dict[str, float]:
        kept[step] = _weights(module)
        return {"AP": {4: 0.2, 8: 0.9, 12: 0.5}[step]}

    figures = fit(
        module,
        _loss_at(module),
        replace(OPTIONS, evaluate_every=4),
        tmp_path,
        stage="toy",
        identity={},
        resume=False,
        report=lambda _: None,
        evaluate=evaluate,
        score="AP",
    )
    assert figures == {"AP": 0.9, "step": 8.0}
    assert _weights(module) == kept[8]


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    module = _module()

    def loss_at(step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        return module(torch.full((1, 4), float("nan"))).mean(), {}

    with pytest.raises(TrainingError, match="nan at step 0"):
        fit(module, loss_at, OPTIONS, tmp_path, stage="toy", identity={}, resume=False, report=lambda _: None)


def test_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    _fit(_module(), tmp_path / "work")
    (tmp_path / "work" / LOG).unlink()  # trainings have it beside that folder
    finished(tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_the_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(step, replace(OPTIONS, steps=100, warmup=10)) for step in range(100)]
    assert rates[0] == pytest.approx(OPTIONS.lr / 10)
    assert max(rates) == rates[10] == OPTIONS.lr
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.03 * OPTIONS.lr


def test_an_unknown_precision_is_a_usage_error() -> None:
    with refused(UsageError, "precision", '"fp8"'):
        resolve_precision("fp8", "cpu")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"step": "many"}'])
def test_the_steps_of_a_damaged_checkpoint_are_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    assert steps_done(tmp_path) == 0
    (tmp_path / INDEX).write_text(text, "utf-8")
    with refused(TrainingError, None, INDEX):
        steps_done(tmp_path)
