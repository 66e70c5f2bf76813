"""Work on a GPU recorded once and replayed: one launch in place of hundreds.

Knows: CUDA graphs as PyTorch has them. Knows nothing about what is recorded, which must read and write the same
memory each time, and must not wait for the device.

Source: CUDA graphs in PyTorch (torch.cuda.CUDAGraph), as its notes on CUDA semantics describe them.
"""

from collections.abc import Callable

import torch

Step = Callable[[], None]


def capture(step: Step, device: torch.device) -> Step:
    """Record `step` on a CUDA device, and return what replays it; recording itself computes nothing.

    `step` must have run before, so that libraries have made their handles and chosen their kernels. What it allocates
    lives in a pool of the recording's own, and is valid until the next replay. Other threads may go on using the device
    meanwhile: only this thread's calls are watched for what a recording cannot hold.
    """
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()

    def replay() -> None:
        graph.replay()

    return replay
