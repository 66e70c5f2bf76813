"""Work beside other work on a GPU, and copies that do not hold it up.

Knows: CUDA streams, and memory of the host that a GPU copies by itself (pinned). On a CPU a lane is nothing, and a copy
is the tensor itself, so that who uses this need not ask where it runs. Knows nothing about what is computed.

A lane is an order of work of its own. What is enqueued in `with lane.after(mark)` waits on the GPU for what the mark
holds, and for nothing else; the host waits only in `fetch`, and only for the stream it stands on. Streams are a matter
of the thread: another thread's work is not moved.

Memory. PyTorch gives a freed tensor's memory to whoever asks next on the stream it was made on, and does not look at
other streams. So a tensor that is used on another stream than its own is kept until a `fetch` there came back, or is
handed over (`hand_over`).

Source: PyTorch's notes on CUDA semantics, on streams and on pinned memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Mark = Any  # a torch.cuda.Event; None on a CPU


class Lane:
    """A stream of its own on a CUDA device; on a CPU nothing at all."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._begun = False

    def mark(self) -> Mark:
        """What the calling thread's current stream holds so far."""
        if self._stream is None:
            return None
        return torch.cuda.current_stream(self.device).record_event()

    @contextmanager
    def after(self, mark: Mark = None) -> Iterator[None]:
        """Enqueue on this lane, in this thread and while this lasts; first of all it waits for `mark`.

        The first time it waits for all that the current stream holds, such as the zeros of buffers just prepared. Not
        to be left open over the `yield` of a generator: what the caller enqueues would land here too.
        """
        if self._stream is None:
            yield
            return
        if not self._begun:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            self._begun = True
        if mark is not None:
            self._stream.wait_event(mark)
        with torch.cuda.stream(self._stream):
            yield


def hand_over(tensor: torch.Tensor) -> None:
    """Let a tensor that was made on a lane be used on PyTorch's default stream too, where the sampler's ticks are.

    It must be whole: something of it was fetched, or its values were checked. Its memory is then not used again before
    the default stream is done with it. On a CPU this does nothing.
    """
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.default_stream(tensor.device))


def begin_fetch(*tensors: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Begin to copy the tensors to the CPU, through pinned memory; what comes back waits for the copies and gives them.

    They are enqueued on the current stream. A tensor that is on the CPU comes back as it is. Whatever thread asks for
    them waits for these copies alone, and not for what is enqueued behind them.
    """
    copies = []
    device = None
    for tensor in tensors:
        if tensor.is_cuda:
            device = tensor.device
            copies.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True))
            copies[-1].copy_(tensor, non_blocking=True)
        else:
            copies.append(tensor)
    done: Mark = None if device is None else torch.cuda.current_stream(device).record_event()

    def take() -> tuple[torch.Tensor, ...]:
        if done is not None:
            done.synchronize()
        return tuple(copies)

    return take


def fetch(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors on the CPU, at once: `begin_fetch`, and the wait."""
    return begin_fetch(*tensors)()


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on `device`, through pinned memory, without waiting; on the CPU the tensor itself."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
