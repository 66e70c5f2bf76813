"""The state of a training, and its checkpoints.

Knows: the step, the weights, their average, the best of them, the optimiser's moments and the log, and how they are
written and read again. Knows nothing about what a step does, or when a checkpoint is due.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engines.common.files import read_json, replacing, write_json
from engines.common.training_log import Row
from engines.errors import TrainingError
from engines.training.stopping import BEST, INDEX, differences

if TYPE_CHECKING:
    from engines.training.trainer import FitOptions

_HIGHEST = "highest"  # of the figure that picks, over all evaluations


class State:
    """Everything that a checkpoint holds: the step, the weights, their average, the optimiser's moments."""

    def __init__(self, module: nn.Module, named: Mapping[str, nn.Parameter], options: "FitOptions", stage: str) -> None:
        self.module, self.named, self.options, self.stage = module, named, options, stage
        self.step = 0
        self.whole = True  # no step is half taken
        self.best: dict[str, float] = {}
        self.log: list[Row] = []
        self.losses: list[float] = []  # of the steps since the last row of the log
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

    def figures(self, parts: Mapping[str, float | torch.Tensor]) -> dict[str, float]:
        """The mean loss since the last call, and `parts` as numbers."""
        loss = sum(self.losses) / len(self.losses)
        self.losses.clear()
        return {"loss": loss} | {name: float(value) for name, value in parts.items()}

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the module, and the trained ones back afterwards."""
        trained = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        self._install(self.average)
        try:
            yield
        finally:
            self._install(trained)

    def note(self, loss: float, measured: Mapping[str, float]) -> None:
        """Add a row to the log: the mean loss since the last one, and what was measured."""
        row = {"loss": loss} | {name: float(value) for name, value in measured.items()}
        self.log.append({"step": self.step} | {name: round(value, 6) for name, value in row.items()})

    def keep_best(self, folder: Path, figures: dict[str, float], score: str) -> None:
        """Store the averaged weights (in place now) when `score` is the highest so far, or, where `figures` say how
        far it may be off ("noise AP50" of AP50), no further below the highest: what can't be told apart, more training
        decides."""
        highest = self.best.get(_HIGHEST, self.best.get(score, -math.inf))
        if score and figures[score] >= highest - figures.get(f"noise {score}", 0.0):
            self.best = {**figures, "step": float(self.step)}
            if f"noise {score}" in figures:
                self.best[_HIGHEST] = max(highest, figures[score])
            _save_tensors(folder / BEST, self._with_buffers(self.average))

    def install_result(self, folder: Path) -> None:
        """Leave the module with the best weights, or with the averaged ones where none were evaluated."""
        if self.best:
            stored = load_file(folder / BEST)
            self._install({name: stored[f"weight.{name}"] for name in self.named})
            self._install_buffers(stored)
        else:
            self._install(self.average)

    def save(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Write a checkpoint; the one before it is removed once the new one is whole."""
        tensors = self._with_buffers({name: parameter.detach() for name, parameter in self.named.items()})
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.named.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        file = f"checkpoint-{self.step}.safetensors"
        _save_tensors(folder / file, tensors)
        index = {"file": file, "stage": self.stage, "step": self.step, "best": self.best}
        index |= {"log": self.log, "losses": self.losses, "identity": dict(identity)}
        write_json(folder / INDEX, index)
        for old in folder.glob("checkpoint-*.safetensors"):
            if old.name != file:
                old.unlink()

    def load(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Take a checkpoint up again, if there is one; another identity is a TrainingError showing the difference."""
        if not (folder / INDEX).exists():
            return
        index = read_json(folder / INDEX, TrainingError)
        changed = differences(index["identity"], identity)
        if changed:
            raise TrainingError(f"{folder} was started with other settings: {'; '.join(changed)}.")
        tensors = load_file(folder / Path(index["file"]).name, device=self.options.device)
        self.step, self.best = int(index["step"]), dict(index["best"])
        self.log, self.losses = list(index.get("log", ())), list(index.get("losses", ()))
        self._install({name: tensors[f"weight.{name}"] for name in self.named})
        self._install_buffers(tensors)
        for name, parameter in self.named.items():
            self.average[name].copy_(tensors[f"average.{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"adam.step.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    key: tensors[f"adam.{key}.{name}"].cpu() if key == "step" else tensors[f"adam.{key}.{name}"]
                    for key in keys
                }

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


def _save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with replacing(path) as temporary:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, temporary)
