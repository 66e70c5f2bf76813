"""The slot loop: many images, each at its own step, through one network call a tick.

Knows: how to keep S slots busy with images that begin and end at different times, how guidance spends
network rows, and how a schedule's table updates all slots at once. A slot that finishes takes the next task,
as servers of language models batch continuously (Orca, Yu et al., OSDI 2022). Every slot has the
coefficients of its own task's schedule. A tick reads and writes the same memory every time, so that a call that
allows it is recorded with the whole tick, from the second on (`engines.diffusion.capture`). Knows nothing about
prompts, VAEs, labels or files, nor which runtime stands behind the call.

S slots, R rows of a network call, Z/h/w latents, L text length, D text width, T steps of the longest schedule.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from engines.common.streams import send
from engines.diffusion.capture import Record, Recorded, capture
from engines.diffusion.latents import initial_noise, step_noise
from engines.diffusion.schedule import Schedule, step_rows
from engines.diffusion.tick import Move, Tick, lay_out, take_fitting
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
    start: int  # first step of its schedule to run; 0 without a reference
    cond: torch.Tensor  # encoder_hidden_states of the prompt, [L, D]
    uncond: torch.Tensor  # encoder_hidden_states of the negative prompt, [L, D]
    schedule: Schedule | None = None  # its own, of no more steps than the sampler's; None: the sampler's

    @property
    def signal(self) -> float:
        """What the clean latents are multiplied by when the noise that it begins with is mixed in, 0 to 1."""
        assert self.schedule is not None
        return float(self.schedule.start[self.start, 0])


@dataclass
class _Slot:
    """The host's half of a slot: whose it is, and which step comes next."""

    task: Task
    step: int
    schedule: Schedule
    rows: Sequence[int]  # of a network call, that each step takes

    @property
    def cost(self) -> int:
        """Rows that the next step takes."""
        return self.rows[self.step]


@dataclass(frozen=True, eq=False)
class _State:
    """The device's half of all slots."""

    x: torch.Tensor  # latents, float32 [S, Z, h, w]
    h_prev: torch.Tensor  # the step before's clean prediction, float32 [S, Z, h, w]
    noise: torch.Tensor  # noise of this step, float32 [S, Z, h, w]
    text: torch.Tensor  # [2 S, L, D] in the network's dtype: conditional of every slot, then unconditional


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

        `schedule` is that of tasks without one of their own, and no task's has more steps. Raises UsageError for slots,
        rows or guidance out of range; `rows` must be the call's own R.

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
        self._guidance_interval = guidance_interval
        self._shape = tuple(sample.shape[1:])
        self._device = sample.device
        self._table = torch.zeros((slots * schedule.steps, 6), device=self._device)  # T rows a slot
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
                    busy[slot] = self._load(slot, task)
                    waiting.append(slot)
            if not busy:
                return
            costs = [busy[slot].cost if slot in busy else 0 for slot in range(self._slots)]
            chosen = take_fitting(waiting, costs, self._rows)
            self._tick(busy, chosen)
            finished: list[int] = []
            for slot in chosen:
                busy[slot].step += 1
                done = busy[slot].step == busy[slot].schedule.steps
                (finished if done else waiting).append(slot)
            yield from [(busy.pop(slot).task, self._state.x[slot].clone()) for slot in finished]

    def _new_state(self) -> _State:
        text = self._call.inputs["encoder_hidden_states"]
        x, h_prev, noise = torch.zeros((3, self._slots, *self._shape), device=self._device).unbind()
        return _State(x, h_prev, noise, text.new_zeros((2 * self._slots, *text.shape[1:])))

    @torch.no_grad()
    def _load(self, slot: int, task: Task) -> _Slot:
        """Put a task's first latents, its two texts and the coefficients of its schedule into a slot."""
        schedule = task.schedule or self._schedule
        rows = step_rows(schedule, self._guidance_scale, self._guidance_interval).tolist()
        self._check_task(task, schedule, max(rows))
        state = self._state
        start = initial_noise(self._shape, task.seed, task.index)
        if task.latents is not None:
            signal, share = schedule.start[task.start].tolist()
            start = signal * torch.as_tensor(task.latents).to(start) + share * start
        state.x[slot] = send(start, self._device)
        state.text[slot] = task.cond.to(state.text)
        state.text[self._slots + slot] = task.uncond.to(state.text)
        table = np.concatenate([schedule.first[: task.start + 1], schedule.later[task.start + 1 :]])
        place = slot * self._schedule.steps
        self._table[place : place + schedule.steps] = send(torch.from_numpy(table), self._device)
        return _Slot(task, task.start, schedule, rows)

    def _check_task(self, task: Task, schedule: Schedule, most_rows: int) -> None:
        if not 0 <= task.start < schedule.steps or (task.latents is None and task.start > 0):
            raise UsageError(
                f"image {task.index} begins at step {task.start}; 0 to {schedule.steps - 1} was "
                "expected, and 0 without a reference."
            )
        if schedule.steps > self._schedule.steps or most_rows > self._rows:
            raise UsageError(
                f"image {task.index} takes {schedule.steps} steps of up to {most_rows} rows; at most "
                f"{self._schedule.steps} steps of {self._rows} rows were expected."
            )
        text = tuple(self._state.text.shape[1:])
        for name, tensor, shape in (
            ("latents", task.latents, self._shape),
            ("cond", task.cond, text),
            ("uncond", task.uncond, text),
        ):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise UsageError(f"image {task.index}: {name} has shape {tuple(tensor.shape)}, not {shape}.")

    @torch.no_grad()
    def _tick(self, busy: Mapping[int, _Slot], chosen: Sequence[int]) -> None:
        """One network call, and one step of every chosen slot."""
        moves = []
        for slot in chosen:
            step, task, schedule = busy[slot].step, busy[slot].task, busy[slot].schedule
            if schedule.adds_noise[step]:
                noise = step_noise(self._shape, task.seed, task.index, step)
                self._state.noise[slot] = send(noise, self._device)
            moves.append(Move(slot, step, int(schedule.timesteps[step]), busy[slot].cost))
        numbers = lay_out(moves, self._slots, self._rows, self._schedule.steps)
        self._numbers.copy_(send(numbers, self._device))
        self.ticks += 1
        self.rows_used += sum(move.rows for move in moves)
        self._step()
        self._told()

    @torch.no_grad()
    def _advance(self) -> None:
        """The device's part of a tick: everything it reads and writes stays where it is."""
        state, tick = self._state, Tick.view(self._numbers, self._slots, self._rows)
        inputs = self._call.inputs
        inputs["sample"].copy_(state.x.index_select(0, tick.row_slot))
        inputs["timesteps"].copy_(tick.row_time)
        inputs["encoder_hidden_states"].copy_(state.text.index_select(0, tick.row_text))
        self._call.run()
        output = self._call.outputs["model_output"].to(self._device, torch.float32)
        cond = output.index_select(0, tick.cond_row)
        uncond = output.index_select(0, tick.uncond_row)
        guided = uncond + self._guidance_scale * (cond - uncond)
        columns = self._table.index_select(0, tick.table_row).reshape(self._slots, 6, 1, 1, 1)
        p_x, p_m, a_x, a_h, a_prev, a_n = columns.unbind(1)
        h = p_x * state.x + p_m * guided
        x = a_x * state.x + a_h * h + a_prev * state.h_prev + a_n * state.noise
        # `where`, not coefficients of zero: a NaN of one image must not reach another that waits.
        active = tick.active.bool().reshape(self._slots, 1, 1, 1)
        state.x.copy_(torch.where(active, x, state.x))
        state.h_prev.copy_(torch.where(active, h, state.h_prev))


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
