"""Work on a GPU recorded once and replayed: one launch in place of hundreds.

Knows: CUDA graphs as PyTorch has them. Knows nothing about what is recorded, which must read and write the same
memory each time, and must not wait for the device.

Source: CUDA graphs in PyTorch (torch.cuda.CUDAGraph), as its notes on CUDA semantics describe them.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Step = Callable[[], None]
Record = Callable[[Step, torch.device], Step]  # what `capture` is
_ONE_AT_A_TIME = threading.Lock()  # of the threads that record: each waits for the device first


def capture(step: Step, device: torch.device) -> Step:
    """Record `step` on a CUDA device, and return what replays it; recording itself computes nothing.

    `step` must have run before, so that libraries have made their handles and chosen their kernels. What it allocates
    lives in a pool of the recording's own, and is valid until the next replay. Other threads may go on using the device
    meanwhile: only this thread's calls are watched for what a recording cannot hold.
    """
    with _ONE_AT_A_TIME, torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()

    def replay() -> None:
        graph.replay()

    return replay


class Capturable(Protocol):
    """What a call says of itself."""

    @property
    def capturable(self) -> bool:
        """Whether it may be recorded."""


class Recorded:
    """A step that is recorded at its second use, where all its calls may be, and replayed from then on.

    The first is the warm-up, and what is used once is not recorded.
    """

    def __init__(self, step: Step, calls: Sequence[Capturable], device: torch.device, record: Record = capture) -> None:
        self._step, self._device, self._record = step, device, record
        self._capturable = all(call.capturable for call in calls)
        self._warm = False

    def __call__(self) -> None:
        """The step, on the current stream."""
        if self._warm and self._capturable:
            self._step = self._record(self._step, self._device)
            self._capturable = False
        self._step()
        self._warm = True
