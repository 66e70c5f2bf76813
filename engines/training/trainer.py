"""One training loop for every network dengine trains.

Knows: AdamW with warm-up and cosine decay, gradient clipping, bf16 autocast, an exponential moving average of the
weights, checkpoints that a killed run resumes from exactly, and how far it is.
Knows nothing about what is trained: the caller gives a function from the step to a loss. All that a step draws must
come from (seed, step), which is what makes a resumed run equal to an uninterrupted one.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from engines.common.devices import resolve_precision
from engines.common.events import Event, EventKind, Report, note
from engines.common.files import write_json
from engines.common.interrupts import held
from engines.common.quote import shorten
from engines.common.training_log import Row, TrainingLog
from engines.common.weight_file import check_described, check_finite, read_header, save_tensors
from engines.errors import ModelError, TrainingError
from engines.training.stopping import BEST, INDEX, check_same, read_index, unfinished
from engines.training.together import averaged, copy_first, is_first

_HIGHEST = "highest"  # of the figure that picks, over all evaluations
_FINISHING = "Finishing the step in work, then a checkpoint is written. Ctrl-C again stops at once."
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter
_FREE = ("device", "checkpoint_minutes")  # options that may change at a resume


@dataclass(frozen=True)
class FitOptions:
    """How long and how fast to train."""

    steps: int  # optimiser steps
    lr: float  # peak learning rate
    weight_decay: float = 1e-4  # AdamW's, on matrices and kernels only
    warmup: int = 100  # steps from 0 to the peak learning rate
    final_lr: float = 0.02  # learning rate at the last step, as a share of the peak
    grad_clip: float = 1.0  # largest norm of the gradient; 0.1 for DETR heads
    ema_decay: float = 0.999  # of the moving average of the weights, lower in the first steps
    seed: int = 0  # with the step, decides everything that is drawn
    precision: str = "auto"  # f32, bf16 (autocast), or auto: bf16 where the machine has it
    device: str = "cpu"  # cpu, cuda or cuda:N
    checkpoint_minutes: float = 3.0  # wall time between checkpoints
    evaluate_every: int = 0  # steps between evaluations; 0 for none


LossAt = Callable[[int], tuple[torch.Tensor, Mapping[str, float | torch.Tensor]]]
Evaluate = Callable[[int], Mapping[str, float]]


def autocast(precision: str, device: str) -> contextlib.AbstractContextManager[Any]:
    """The autocast context of a resolved precision; none for f32."""
    if precision == "f32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def learning_rate(step: int, options: FitOptions) -> float:
    """Linear warm-up, then a cosine to `final_lr` of the peak; `step` counts from 0."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    share = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.lr * (options.final_lr + (1 - options.final_lr) * 0.5 * (1 + math.cos(math.pi * share)))


def fit(
    module: nn.Module,
    loss_at: LossAt,
    options: FitOptions,
    folder: Path,
    *,
    stage: str,
    identity: Mapping[str, Any],
    resume: bool,
    report: Report,
    evaluate: Evaluate | None = None,
    score: str = "",
    prepare: Callable[[int], None] | None = None,
    log: TrainingLog | None = None,
) -> dict[str, float]:
    """Train `module` in place and leave it with its averaged weights (the best by `score`, where one is named).

    `loss_at(step)` draws the batch of that step, or this process's equal share of it (`together`), and returns its mean
    loss and the parts of that. `evaluate(step)` is called with the averaged weights in place; of its figures, the one
    named `score` picks the weights that are kept. `identity` holds everything that decides the result (options are
    added to it): a checkpoint of another identity is refused, and nothing is written then. `prepare(step)` brings what
    a step needs, where that may take minutes.
    Ctrl-C and SIGTERM let the step in work end, write a checkpoint and raise KeyboardInterrupt; a second one, or one
    while a step is prepared, is raised at once. `report` hears, and `log` keeps, of every ten steps and of evaluations
    the mean loss since, and figures.
    Returns the figures of the kept evaluation, empty without one. Raises TrainingError when the loss is not finite.
    """
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    state = _State(module, named, options, stage)
    precision = resolve_precision(options.precision, options.device)
    full_identity = _full(identity, options)
    if check_goes_on(folder, options, identity, resume):
        state.load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state.begin_log(log)
    started, first_step, saved = time.monotonic(), state.step, (time.monotonic(), state.step)
    try:
        report(Event(EventKind.PROGRESS, stage, done=state.step, total=options.steps))
        while state.step < options.steps:
            if prepare:
                prepare(state.step)
            with held(lambda: report(note(_FINISHING))) as stop:
                state.whole = False
                parts = _train_step(module, named, state, loss_at, options, precision)
                measured = _evaluation(module, state, options, folder, evaluate, score)
                if measured or state.step % 10 == 0 or state.step == options.steps:
                    report(_progress(state, parts, measured, (time.monotonic() - started) / (state.step - first_step)))
                state.whole = True
                if time.monotonic() - saved[0] > options.checkpoint_minutes * 60 or state.step == options.steps:
                    state.save(folder, full_identity)
                    saved = time.monotonic(), state.step
            if stop():
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        if state.whole and state.step > saved[1]:
            state.save(folder, full_identity)
        raise
    state.install_result(folder)
    module.eval()
    return state.best


def check_goes_on(folder: Path, options: FitOptions, identity: Mapping[str, Any], resume: bool) -> bool:
    """Whether `fit` has a checkpoint in `folder` to go on from. Raises TrainingError where it refuses to begin: for one
    that it is not to `resume`, and for one of another identity, with the difference."""
    if not (folder / INDEX).exists():
        return False
    if not resume:
        raise unfinished(folder)
    check_same(folder, read_index(folder).identity, _full(identity, options), TrainingError)
    return True


def checkpoint_bytes(module: nn.Module) -> int:
    """What a checkpoint of a training takes on the disk, nearly: weights, their average, and AdamW's moments."""
    return 4 * sum(one.numel() * one.element_size() for one in module.parameters() if one.requires_grad)


def _full(identity: Mapping[str, Any], options: FitOptions) -> dict[str, Any]:
    precision = resolve_precision(options.precision, options.device)
    return {**identity, "options": decisive(options) | {"precision": precision}}


def started_with(folder: Path, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """The identity of the unfinished training in `folder`; `default` where there is none. Raises TrainingError."""
    return read_index(folder).identity if (folder / INDEX).exists() else default


def _progress(
    state: "_State", parts: Mapping[str, float | torch.Tensor], measured: Mapping[str, float], seconds: float
) -> Event:
    """How far a training is, at so many seconds a step, and its figures, which the log gets, too."""
    steps, figures = state.options.steps, state.figures(parts, measured)
    if state.log:
        state.log.add(state.stage, state.step, figures)
    return Event(EventKind.PROGRESS, state.stage, "", state.step, steps, seconds * (steps - state.step), figures)


def decisive(options: FitOptions) -> dict[str, Any]:
    """The options that decide the weights."""
    return {name: value for name, value in asdict(options).items() if name not in _FREE}


def _evaluation(
    module: nn.Module, state: "_State", options: FitOptions, folder: Path, evaluate: Evaluate | None, score: str
) -> dict[str, float]:
    """The figures of an evaluation, where one is due; the best weights are kept."""
    due = state.step % options.evaluate_every == 0 or state.step == options.steps if options.evaluate_every else False
    if not evaluate or not due or not is_first():
        return {}
    with state.averaged_weights():
        module.eval()
        measured = dict(evaluate(state.step))
        module.train()
    state.keep_best(folder, measured, score)
    return measured


def _train_step(
    module: nn.Module,
    named: Mapping[str, nn.Parameter],
    state: "_State",
    loss_at: LossAt,
    options: FitOptions,
    precision: str,
) -> dict[str, float | torch.Tensor]:
    """Take the step that `state` is at; the parts of its loss."""
    # Libraries that draw from torch's own generator (denoising queries, dropout) repeat, too.
    torch.manual_seed((options.seed << 32) + state.step)
    module.train()
    with autocast(precision, options.device):
        loss, parts = loss_at(state.step)
    state.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    value, parts = averaged(loss, parts, named.values())
    if not math.isfinite(value):
        raise TrainingError(f"The loss became {value} at step {state.step}; try a lower learning rate, or f32.")
    nn.utils.clip_grad_norm_(list(named.values()), options.grad_clip)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, options)
    state.optimizer.step()
    state.step += 1
    state.update_average()
    state.losses.append(value)
    return dict(parts)


class _State:
    """Everything that a checkpoint holds: the step, the weights, their average, the optimiser's moments."""

    def __init__(self, module: nn.Module, named: Mapping[str, nn.Parameter], options: FitOptions, stage: str) -> None:
        self.module, self.named, self.options, self.stage = module, named, options, stage
        self.step = 0
        self.whole = True  # no step is half taken
        self.losses: list[float] = []  # since they were last told
        self.best: dict[str, float] = {}
        self.log: TrainingLog | None = None
        self.before: tuple[Row, ...] = ()  # the log of a checkpoint that has one
        copy_first(module)
        self.average = {name: parameter.detach().clone() for name, parameter in named.items()}
        decayed = [parameter for parameter in named.values() if parameter.ndim >= 2]
        plain = [parameter for parameter in named.values() if parameter.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": options.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.99))

    def update_average(self) -> None:
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        averages, weights = list(self.average.values()), [p.detach() for p in self.named.values()]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def begin_log(self, log: TrainingLog | None) -> None:
        """Go on with a log from where the training is."""
        self.log = log if is_first() else None
        if self.log:
            self.log.begin(self.stage, self.step, self.before)

    def figures(self, parts: Mapping[str, float | torch.Tensor], measured: Mapping[str, float]) -> dict[str, float]:
        """The mean loss since the last call, parts of the last step's loss and its learning rate, what was measured."""
        loss = sum(self.losses) / len(self.losses)
        self.losses.clear()
        figures = {**parts, "lr": learning_rate(self.step - 1, self.options), **measured}
        return {"loss": loss} | {name: float(value) for name, value in figures.items()}

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the module, and the trained ones back afterwards."""
        trained = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        self._install(self.average)
        try:
            yield
        finally:
            self._install(trained)

    def keep_best(self, folder: Path, figures: dict[str, float], score: str) -> None:
        """Store the averaged weights (in place now) when `score` is the highest so far, or, where `figures` say how
        far it may be off ("noise AP50" of AP50), no further below the highest: what can't be told apart, more training
        decides."""
        highest = self.best.get(_HIGHEST, self.best.get(score, -math.inf))
        if score and figures[score] >= highest - figures.get(f"noise {score}", 0.0):
            self.best = {**figures, "step": float(self.step)}
            if f"noise {score}" in figures:
                self.best[_HIGHEST] = max(highest, figures[score])
            save_tensors(folder / BEST, self._with_buffers(self.average))

    def install_result(self, folder: Path) -> None:
        """Leave the module with the best weights, or with the averaged ones where none were evaluated."""
        if self.best and is_first():
            stored = _load_tensors(folder / BEST, self._with_buffers(self.average), {}, "cpu")
            self._install({name: stored[f"weight.{name}"] for name in self.named})
            self._install_buffers(stored)
        else:
            self._install(self.average)
        copy_first(self.module)

    def save(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Write a checkpoint; the one before it is removed once the new one is whole. The first process's alone."""
        if not is_first():
            return
        tensors = self._held()
        for name, parameter in self.named.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        if self.log:
            self.log.sync()
        file = f"checkpoint-{self.step}.safetensors"
        save_tensors(folder / file, tensors)
        index = {"file": file, "stage": self.stage, "step": self.step, "best": self.best, "losses": self.losses}
        write_json(folder / INDEX, index | {"identity": dict(identity)})
        for old in folder.glob("checkpoint-*.safetensors"):
            if old.name != file:
                old.unlink()

    def load(self, folder: Path) -> None:
        """Take a checkpoint up again."""
        index = read_index(folder)
        tensors = _load_tensors(folder / index.file, self._held(), self.named, self.options.device)
        self.step, self.best, self.losses, self.before = index.step, dict(index.best), list(index.losses), index.log
        self._install({name: tensors[f"weight.{name}"] for name in self.named})
        self._install_buffers(tensors)
        for name, parameter in self.named.items():
            self.average[name].copy_(tensors[f"average.{name}"])
            if f"adam.step.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    key: tensors[f"adam.{key}.{name}"].cpu() if key == "step" else tensors[f"adam.{key}.{name}"]
                    for key in _MOMENTS
                }

    def _held(self) -> dict[str, torch.Tensor]:
        """Weights, buffers and averages, by their names in a checkpoint."""
        tensors = self._with_buffers({name: parameter.detach() for name, parameter in self.named.items()})
        return tensors | {f"average.{name}": value for name, value in self.average.items()}

    def _with_buffers(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors = {f"weight.{name}": value for name, value in weights.items()}
        return tensors | {f"buffer.{name}": value for name, value in self.module.named_buffers()}

    @torch.no_grad()
    def _install(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(weights[name])

    @torch.no_grad()
    def _install_buffers(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, buffer in self.module.named_buffers():
            buffer.copy_(tensors[f"buffer.{name}"])


def _load_tensors(
    path: Path, expected: Mapping[str, torch.Tensor], named: Mapping[str, torch.Tensor], device: str
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's file: those `expected`, and the moments of those `named` that have any.

    Raises TrainingError for a file that lacks one, or has it in another shape, or a number that is not finite.
    """
    try:
        stored = read_header(path).tensors
        moving = {name: value for name, value in named.items() if f"adam.step.{name}" in stored}
        described = {f"adam.{key}.{name}": value for name, value in moving.items() for key in _MOMENTS[1:]}
        described |= {f"adam.step.{name}": torch.empty(()) for name in moving}
        check_described(path, stored, {**expected, **described}, "the training", spare=True)
        found: dict[str, torch.Tensor] = load_file(path, device=device)
        check_finite(path, found)
    except (ModelError, OSError, SafetensorError) as cause:
        raise TrainingError(f"{shorten(cause, 300)} Remove {path.parent}, and train from the start.") from cause
    return found
