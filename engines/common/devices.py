"""What a machine computes on and in: devices, precisions, threads.

Knows: what the processor and PyTorch say of themselves. Knows nothing about networks or runtimes.
"""

import os
import platform
from functools import cache

import torch

from engines.errors import BackendError, UsageError

AUTO = "auto"  # the device of trainings that nothing is said of
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AMX or AVX-512), which is when bf16 is faster than f32."""
    features = torch.cpu.get_capabilities()
    return bool(features.get("amx_bf16") or features.get("avx512_bf16"))


def cpu_has_int8() -> bool:
    """Whether the processor multiplies 8-bit integers four at a time (AMX or VNNI), which is when int8 is fast."""
    features = torch.cpu.get_capabilities()
    return any(features.get(name) for name in ("amx_int8", "avx512_vnni", "avx_vnni"))


def resolve_threads(threads: int | None) -> int:
    """CPU threads for a graph: `threads`, or as many as PyTorch takes (OMP_NUM_THREADS, else the cores)."""
    return torch.get_num_threads() if threads is None else threads


def cpu_cores() -> int:
    """The processor's cores that this process may use, as they were at first: runtimes hold single threads to fewer."""
    return _CORES


@cache
def cpu_name() -> str:
    """The processor's model name, for messages and cache keys."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def resolve_precision(precision: str, device: str) -> str:
    """`f32` or `bf16`: what `auto` takes for training on this device. UsageError for anything else."""
    if precision not in ("auto", "f32", "bf16"):
        raise UsageError(f'`precision` is "{precision}"; auto, f32 or bf16 was expected.', field="precision")
    if precision != "auto":
        return precision
    has_bf16 = torch.cuda.is_bf16_supported() if device.startswith("cuda") else cpu_has_bf16()
    return "bf16" if has_bf16 else "f32"


def device_name(name: str) -> str:
    """The name of the device that `find_device` takes."""
    return str(find_device(name))


def find_device(name: str | None, *, check: bool = True) -> torch.device:
    """The device `cpu`, `cuda` or `cuda:N`; for None and `auto` a GPU where PyTorch has one, else the CPU.

    Raises UsageError for another name, and with `check` BackendError for a GPU that PyTorch has not got here.
    """
    if name in (None, AUTO):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f'Unknown device "{name:.60}"; cpu, cuda or cuda:N was expected.', field="device")
    if device.type == "cpu":
        return torch.device("cpu")
    index, count = device.index or 0, torch.cuda.device_count() if torch.cuda.is_available() else 0
    if check and index >= count:
        raise BackendError(
            f"There is no CUDA device {index} that PyTorch can use ({count} found). Use `device=cpu`, or install a GPU "
            "driver and a CUDA build of torch.",
            field="device",
        )
    return torch.device("cuda", index)
