"""An NVIDIA GPU for work that is not PyTorch's: what it is, and how that work takes its place among PyTorch's.

Knows: name, compute capability and driver, and the rule of streams below. Knows nothing about what is run.

Streams. Work is enqueued where PyTorch's current stream stands, and the host never waits for the GPU:
- The current stream is an ordinary one, as it is while a CUDA graph is captured: the work goes on it. What PyTorch
  enqueued before is done before, what it enqueues after is done after, and a capture records it with the rest.
- The current stream is the default one, on which TensorRT would synchronise the device: the work goes on a stream of
  our own, which first waits for the default stream, and which the default stream then waits for. Both waits are events
  on the GPU; the host goes on.
So inputs may be written before `run` and outputs read after it, on PyTorch's current stream, with nothing more to do.
"""

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from engines.errors import BackendError


class Stream(Protocol):
    """What is used of a torch.cuda.Stream."""

    @property
    def cuda_stream(self) -> int:
        """The CUDA handle; 0 is the default stream."""

    def wait_stream(self, stream: Any, /) -> None:
        """Let what is enqueued from now on wait for what `stream` holds so far."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, as plans are bound to it and calls use it."""

    device: torch.device
    name: str
    capability: str  # such as 9.0
    driver: str  # version
    cuda: tuple[int, int]  # the latest CUDA that the driver supports; (0, 0) where it does not say
    own_stream: Stream  # not the default one
    current_stream: Callable[[], Stream]  # PyTorch's
    free_memory: Callable[[], int]  # bytes

    def active(self) -> AbstractContextManager[Any]:
        """While this lasts, it is the device that CUDA calls of this thread go to."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def enqueue(self, launch: Callable[[int], bool]) -> bool:
        """Call `launch` with a stream's handle, ordered with PyTorch's current stream as the docstring above says."""
        current = self.current_stream()
        if current.cuda_stream:
            return launch(current.cuda_stream)
        self.own_stream.wait_stream(current)
        launched = launch(self.own_stream.cuda_stream)
        current.wait_stream(self.own_stream)
        return launched


def find_gpu(device: torch.device | None = None) -> Gpu:
    """The GPU to use: `device`, or the first one. Raises BackendError where PyTorch can use none."""
    if not torch.cuda.is_available():
        raise BackendError(_why_none(driver_cuda(), torch.version.cuda or ""), field="engine")
    device = device or torch.device("cuda", 0)
    major, minor = torch.cuda.get_device_capability(device)
    return Gpu(
        device=device,
        name=torch.cuda.get_device_name(device),
        capability=f"{major}.{minor}",
        driver=_driver_version(),
        cuda=driver_cuda(),
        own_stream=torch.cuda.Stream(device),
        current_stream=lambda: torch.cuda.current_stream(device),
        free_memory=lambda: torch.cuda.mem_get_info(device)[0],
    )


def _why_none(supported: tuple[int, int], built: str) -> str:
    """Why PyTorch, built for CUDA `built` (empty for none), can use no GPU, and what mends it."""
    if built and (0, 0) < supported < tuple(int(part) for part in built.split(".")[:2]):
        return (
            f"The GPU's driver supports CUDA {supported[0]}.{supported[1]}, and the installed PyTorch is built for "
            f"CUDA {built}. Upgrade the NVIDIA driver, or install a torch that is built for CUDA {supported[0]}."
        )
    return (
        "TensorRT needs an NVIDIA GPU that PyTorch can use, and there is none. Install a GPU driver and a CUDA build "
        "of torch, or take another `engine`. Plans for other machines are built without one where `targets` are named."
    )


def driver_cuda() -> tuple[int, int]:
    """The latest CUDA that the installed driver supports, as (major, minor); (0, 0) where none says."""
    with suppress(OSError, AttributeError):
        number = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) == 0:
            return number.value // 1000, number.value % 1000 // 10
    return 0, 0


def _driver_version() -> str:
    """The GPU driver's version, from its management library, or as a CUDA version where a container has only that."""
    with suppress(OSError, AttributeError):
        management = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if management.nvmlInit_v2() == 0 and management.nvmlSystemGetDriverVersion(text, len(text)) == 0:
            return text.value.decode()
    if any(supported := driver_cuda()):
        return f"CUDA {supported[0]}.{supported[1]}"
    raise BackendError(
        "The GPU driver does not say its version. Install the driver again, or take another `engine`.", field="engine"
    )
