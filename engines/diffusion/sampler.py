"""The slot loop: many images, each at its own step, through one network call a tick.

Knows: how to keep S slots busy with images that begin and end at different times, how guidance spends
network rows, and how a schedule's table updates all slots at once. A slot that finishes takes the next task,
as servers of language models batch continuously (Orca, Yu et al., OSDI 2022). A tick reads and writes the same
memory every time, so that a call that allows it is recorded with the whole tick, from the second on
(`engines.diffusion.capture`). Knows nothing about prompts, VAEs, labels or files, nor which runtime stands
behind the call.

S slots, R rows of a network call, Z/h/w latents, L text length, D text width, T steps of the schedule.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from engines.common.streams import send
from engines.diffusion.capture import Record, Recorded, capture
from engines.diffusion.latents import initial_noise, step_noise
from engines.diffusion.schedule import Schedule, step_rows
from engines.errors import NumericalError, UsageError


class UNetCall(Protocol):
    """What the sampler needs of a backend's `Call` for the `unet` graph at R rows."""

    @property
    def inputs(self) -> Mapping[str, torch.Tensor]:
        """`sample` [R, Z, h, w], `timesteps` int64 [R], `encoder_hidden_states` [R, L, D]; written into."""

    @property
    def outputs(self) -> Mapping[str, torch.Tensor]:
        """`model_output` [R, Z, h, w], read before the next run."""

    @property
    def capturable(self) -> bool:
        """Whether `run` may be recorded into a CUDA graph."""

    def run(self) -> None:
        """Fill the outputs from the inputs."""


@dataclass(frozen=True, eq=False)
class Task:
    """One image to paint. Its result depends on nothing else."""

    index: int  # of the job; part of the noise's key
    seed: int  # the rest of the noise's key
    latents: torch.Tensor | npt.NDArray[np.float32] | None  # clean, of the reference, [Z, h, w]; None: noise
    start: int  # first step of the schedule to run (`schedule.start_index`); 0 without a reference
    cond: torch.Tensor  # encoder_hidden_states of the prompt, [L, D]
    uncond: torch.Tensor  # encoder_hidden_states of the negative prompt, [L, D]


@dataclass
class _Slot:
    """The host's half of a slot: whose it is, and which step comes next."""

    task: Task
    step: int


@dataclass(frozen=True, eq=False)
class _State:
    """The device's half of all slots."""

    x: torch.Tensor  # latents, float32 [S, Z, h, w]
    h_prev: torch.Tensor  # the step before's clean prediction, float32 [S, Z, h, w]
    noise: torch.Tensor  # noise of this step, float32 [S, Z, h, w]
    text: torch.Tensor  # [2 S, L, D] in the network's dtype: conditional of every slot, then unconditional


@dataclass(frozen=True, eq=False)
class _Plan:
    """One tick as indices, of shapes that do not depend on how full the slots are."""

    row_slot: torch.Tensor  # int64 [R], whose latents a row holds
    row_text: torch.Tensor  # int64 [R], which of the 2 S texts
    row_time: torch.Tensor  # int64 [R], timesteps
    cond_row: torch.Tensor  # int64 [S], where a slot's conditional output is
    uncond_row: torch.Tensor  # int64 [S], where its unconditional one is; the conditional row when not guided
    table_row: torch.Tensor  # int64 [S], row of the coefficient table
    active: torch.Tensor  # int64 [S], 1 for the slots that take a step in this tick

    @classmethod
    def view(cls, numbers: torch.Tensor, slots: int, rows: int) -> "_Plan":
        """The parts of an int64 [3 R + 4 S] that holds them one after the other."""
        return cls(*numbers.split([rows, rows, rows, slots, slots, slots, slots]))


class SlotSampler:
    """Runs a schedule on many tasks with a network call of a fixed number of rows.

    A guided image (guidance_scale > 1, inside `guidance_interval`) takes two rows a step, any other one. In
    each tick the slots that have waited longest go first, and one whose rows no longer fit waits for the next
    tick, so `rows` may be less than 2 S. The two rows of an image lie side by side, the conditional one first; where
    every step is guided (`always_guided`), they are rows 2k and 2k + 1. Spare rows repeat the first image's, and their
    output is not read.
    """

    def __init__(
        self,
        call: UNetCall,
        schedule: Schedule,
        *,
        slots: int,
        rows: int,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        told: Callable[[], None] = lambda: None,
        record: Record = capture,
    ) -> None:
        """`told` is called after every tick; `record` makes the recording of a tick, where the call is capturable.

        Raises UsageError for slots, rows or guidance out of range; `rows` must be the call's own R.

        `guidance_scale` is the weight g of classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)
        in diffusers' convention, uncond + g (cond - uncond): 1 is the prompt alone. `guidance_interval` is
        in fractions of t / N, both ends included (`schedule.guided_steps`).
        """
        if guidance_scale < 1.0 or not np.isfinite(guidance_scale):
            raise UsageError(f"guidance is {guidance_scale}; 1 (off) or more was expected.")
        taken = step_rows(schedule, guidance_scale, guidance_interval)
        needed = int(taken.max())
        if slots < 1 or rows < needed:
            raise UsageError(f"{slots} slots, {rows} rows; at least 1 slot and {needed} rows were expected.")
        sample = call.inputs["sample"]
        if sample.shape[0] != rows:
            raise UsageError(f"the unet call has {sample.shape[0]} rows; {rows} were asked for.")
        self._call = call
        self._schedule = schedule
        self._slots = slots
        self._rows = rows
        self._guidance_scale = float(guidance_scale)
        self._step_rows = taken.tolist()
        self._shape = tuple(sample.shape[1:])
        self._device = sample.device
        self._timesteps = schedule.timesteps.tolist()
        self._adds_noise = schedule.adds_noise.tolist()
        table = np.concatenate([schedule.first, schedule.later])
        self._table = torch.from_numpy(table).to(self._device)
        self._told = told
        self._state = self._new_state()
        self._numbers = torch.zeros(3 * rows + 4 * slots, dtype=torch.int64, device=self._device)
        self._step = Recorded(self._advance, [call], self._device, record)
        self.ticks = 0  # network calls so far
        self.rows_used = 0  # rows of them that were not spare

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, torch.Tensor]]:
        """Yield each task with its final latents, float32 [Z, h, w] on the call's device, as slots finish.

        Tasks are taken from the iterable one at a time, as slots fall free, and what was taken is finished.
        The order of the results is a function of the tasks alone, and nothing here waits for the device: whoever
        takes the latents checks them (`check_latents`). Raises UsageError for a task that does not fit the schedule
        or the call.
        """
        source = iter(tasks)
        for tensor in (self._state.x, self._state.h_prev, self._state.noise, self._state.text):
            tensor.zero_()
        busy: dict[int, _Slot] = {}
        waiting: deque[int] = deque()
        while True:
            for slot in range(self._slots):
                if slot not in busy and (task := next(source, None)) is not None:
                    self._load(slot, task)
                    busy[slot] = _Slot(task, task.start)
                    waiting.append(slot)
            if not busy:
                return
            chosen = self._choose(busy, waiting)
            self._tick(busy, chosen)
            finished: list[int] = []
            for slot in chosen:
                busy[slot].step += 1
                (finished if busy[slot].step == self._schedule.steps else waiting).append(slot)
            yield from [(busy.pop(slot).task, self._state.x[slot].clone()) for slot in finished]

    def _new_state(self) -> _State:
        text = self._call.inputs["encoder_hidden_states"]
        x, h_prev, noise = torch.zeros((3, self._slots, *self._shape), device=self._device).unbind()
        return _State(x, h_prev, noise, text.new_zeros((2 * self._slots, *text.shape[1:])))

    @torch.no_grad()
    def _load(self, slot: int, task: Task) -> None:
        """Put a task's first latents and its two texts into a slot."""
        self._check_task(task)
        state = self._state
        start = initial_noise(self._shape, task.seed, task.index)
        if task.latents is not None:
            signal, share = self._schedule.start[task.start].tolist()
            start = signal * torch.as_tensor(task.latents).to(start) + share * start
        state.x[slot] = send(start, self._device)
        state.text[slot] = task.cond.to(state.text)
        state.text[self._slots + slot] = task.uncond.to(state.text)

    def _check_task(self, task: Task) -> None:
        if not 0 <= task.start < self._schedule.steps or (task.latents is None and task.start > 0):
            raise UsageError(
                f"image {task.index} begins at step {task.start}; 0 to {self._schedule.steps - 1} was "
                "expected, and 0 without a reference."
            )
        text = tuple(self._state.text.shape[1:])
        for name, tensor, shape in (
            ("latents", task.latents, self._shape),
            ("cond", task.cond, text),
            ("uncond", task.uncond, text),
        ):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise UsageError(f"image {task.index}: {name} has shape {tuple(tensor.shape)}, not {shape}.")

    def _choose(self, busy: Mapping[int, _Slot], waiting: deque[int]) -> list[int]:
        """Take the slots of this tick out of the queue: longest waiting first, each that still fits."""
        chosen, passed, free = [], [], self._rows
        while waiting and free:
            slot = waiting.popleft()
            cost = self._step_rows[busy[slot].step]
            if cost <= free:
                chosen.append(slot)
                free -= cost
            else:
                passed.append(slot)
        waiting.extendleft(reversed(passed))
        return chosen

    @torch.no_grad()
    def _tick(self, busy: Mapping[int, _Slot], chosen: Sequence[int]) -> None:
        """One network call, and one step of every chosen slot."""
        for slot in chosen:
            step, task = busy[slot].step, busy[slot].task
            if self._adds_noise[step]:
                noise = step_noise(self._shape, task.seed, task.index, step)
                self._state.noise[slot] = send(noise, self._device)
        self._numbers.copy_(send(self._plan(busy, chosen), self._device))
        self._step()
        self._told()

    @torch.no_grad()
    def _advance(self) -> None:
        """The device's part of a tick: everything it reads and writes stays where it is."""
        state, plan = self._state, _Plan.view(self._numbers, self._slots, self._rows)
        inputs = self._call.inputs
        inputs["sample"].copy_(state.x.index_select(0, plan.row_slot))
        inputs["timesteps"].copy_(plan.row_time)
        inputs["encoder_hidden_states"].copy_(state.text.index_select(0, plan.row_text))
        self._call.run()
        output = self._call.outputs["model_output"].to(self._device, torch.float32)
        cond = output.index_select(0, plan.cond_row)
        uncond = output.index_select(0, plan.uncond_row)
        guided = uncond + self._guidance_scale * (cond - uncond)
        columns = self._table.index_select(0, plan.table_row).reshape(self._slots, 6, 1, 1, 1)
        p_x, p_m, a_x, a_h, a_prev, a_n = columns.unbind(1)
        h = p_x * state.x + p_m * guided
        x = a_x * state.x + a_h * h + a_prev * state.h_prev + a_n * state.noise
        # `where`, not coefficients of zero: a NaN of one image must not reach another that waits.
        active = plan.active.bool().reshape(self._slots, 1, 1, 1)
        state.x.copy_(torch.where(active, x, state.x))
        state.h_prev.copy_(torch.where(active, h, state.h_prev))

    def _plan(self, busy: Mapping[int, _Slot], chosen: Sequence[int]) -> torch.Tensor:
        """Lay out a tick: the rows of the chosen slots, then spare rows.

        The numbers of `_Plan`, int64 [3 R + 4 S] on the CPU.
        """
        S, R, T = self._slots, self._rows, self._schedule.steps
        rows: list[tuple[int, int, int]] = []  # slot, text, timestep
        cond_row, uncond_row, table_row, active = ([0] * S for _ in range(4))
        for slot in chosen:
            step = busy[slot].step
            cond_row[slot] = uncond_row[slot] = len(rows)
            table_row[slot] = step if step == busy[slot].task.start else T + step
            active[slot] = 1
            rows.append((slot, slot, self._timesteps[step]))
            if self._step_rows[step] == 2:
                uncond_row[slot] = len(rows)
                rows.append((slot, S + slot, self._timesteps[step]))
        self.ticks += 1
        self.rows_used += len(rows)
        first = rows[: self._step_rows[busy[chosen[0]].step]]
        rows += (first * R)[: R - len(rows)]
        return torch.tensor([*chain(*zip(*rows, strict=True)), *cond_row, *uncond_row, *table_row, *active])


def always_guided(guidance_scale: float, guidance_interval: tuple[float, float] | None) -> bool:
    """Whether every step of every schedule takes two rows."""
    return guidance_scale > 1.0 and guidance_interval in (None, (0.0, 1.0))


def check_latents(tasks: Sequence[Task], finite: torch.Tensor) -> None:
    """Raise NumericalError naming the first task whose final latents are not all finite, as bool [n] says; waits for
    it."""
    for task, good in zip(tasks, finite.tolist(), strict=True):
        if not good:
            raise NumericalError(
                f"graph unet: the latents of image {task.index} (seed {task.seed}) came out NaN or infinite. "
                "Take a wider precision (`precision=f32`), a lower `guidance`, or another `engine`.",
                field="precision",
            )
