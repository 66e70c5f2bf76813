"""One tick of the sampler as indices: whose latents, text and timestep every row of the network call has.

Knows: how rows are laid out, and in which order their numbers lie in one tensor. Pure arithmetic: knows nothing about
who decides which slots move (`engines.diffusion.sampler`), nor about devices.

S slots, R rows of a network call, T steps of the longest schedule.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch


class Move(NamedTuple):
    """A step that a slot takes in a tick."""

    slot: int
    step: int  # of its own schedule
    timestep: int
    rows: int  # of the network call: 2 where it is guided, else 1


@dataclass(frozen=True, eq=False)
class Tick:
    """Indices of shapes that do not depend on how full the slots are."""

    row_slot: torch.Tensor  # int64 [R], whose latents a row holds
    row_text: torch.Tensor  # int64 [R], which of the 2 S texts
    row_time: torch.Tensor  # int64 [R], timesteps
    cond_row: torch.Tensor  # int64 [S], where a slot's conditional output is
    uncond_row: torch.Tensor  # int64 [S], where its unconditional one is; the conditional row when not guided
    table_row: torch.Tensor  # int64 [S], row of the coefficient table
    active: torch.Tensor  # int64 [S], 1 for the slots that take a step in this tick

    @classmethod
    def view(cls, numbers: torch.Tensor, slots: int, rows: int) -> "Tick":
        """The parts of what `lay_out` gives."""
        return cls(*numbers.split([rows, rows, rows, slots, slots, slots, slots]))


def lay_out(moves: Sequence[Move], slots: int, rows: int, steps: int) -> torch.Tensor:
    """The numbers of a Tick one after the other, int64 [3 R + 4 S] on the CPU: the rows of `moves`, which must fit, in
    their order, the conditional one first, then spare rows, which repeat the first move's.
    """
    taken: list[tuple[int, int, int]] = []  # slot, text, timestep
    cond_row, uncond_row, table_row, active = ([0] * slots for _ in range(4))
    for slot, step, timestep, cost in moves:
        cond_row[slot] = uncond_row[slot] = len(taken)
        table_row[slot] = slot * steps + step
        active[slot] = 1
        taken.append((slot, slot, timestep))
        if cost == 2:
            uncond_row[slot] = len(taken)
            taken.append((slot, slots + slot, timestep))
    first = taken[: moves[0].rows]
    taken += (first * rows)[: rows - len(taken)]
    return torch.tensor([*chain(*zip(*taken, strict=True)), *cond_row, *uncond_row, *table_row, *active])


def take_fitting(waiting: deque[int], costs: Sequence[int], rows: int) -> list[int]:
    """Take slots out of the queue, longest waiting first, each that still fits into `rows`; `costs` by slot."""
    chosen, passed = [], []
    while waiting and rows:
        slot = waiting.popleft()
        if costs[slot] <= rows:
            chosen.append(slot)
            rows -= costs[slot]
        else:
            passed.append(slot)
    waiting.extendleft(reversed(passed))
    return chosen


def count_ticks(jobs: Iterable[Sequence[int]], slots: int, rows: int) -> int:
    """How many ticks jobs take together, each given as the rows of its steps, in the order in which they begin.

    >>> count_ticks([[2, 2, 1], [2, 2, 1]], slots=2, rows=2)
    5
    """
    source, ticks = iter(jobs), 0
    left: list[list[int]] = [[] for _ in range(slots)]  # rows of the steps to come, the last first
    waiting: deque[int] = deque()
    while True:
        for slot in range(slots):
            if not left[slot] and (job := next(source, None)) is not None:
                left[slot] = list(reversed(job))
                waiting.append(slot)
        if not waiting:
            return ticks
        ticks += 1
        for slot in take_fitting(waiting, [steps[-1] if steps else 0 for steps in left], rows):
            left[slot].pop()
            if left[slot]:
                waiting.append(slot)
