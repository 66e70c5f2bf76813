"""What a machine computes on and in: devices, precisions, threads.

Knows: what the processor and PyTorch say of themselves. Knows nothing about networks or runtimes.
"""

import os
import platform
from functools import cache

import torch

from engines.errors import UsageError


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
    """`f32` or `bf16`: what `auto` takes on this device."""
    if precision not in ("auto", "f32", "bf16"):
        raise UsageError(f'precision "{precision}"; auto, f32 or bf16 was expected.')
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported() else "f32"
    return "bf16" if torch.cpu.get_capabilities().get("avx512_bf16", False) else "f32"


def check_device(device: str) -> None:
    """UsageError for what is neither the CPU nor a CUDA GPU, or a GPU that PyTorch has not got here."""
    expected = f'Unknown device "{device}"; cpu, cuda or cuda:N was expected.'
    try:
        place = torch.device(device)
    except RuntimeError as cause:
        raise UsageError(expected) from cause
    if place.type not in ("cpu", "cuda"):
        raise UsageError(expected)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if place.type == "cuda" and (place.index or 0) >= count:
        raise UsageError(f'Device "{device}": PyTorch finds {count} CUDA GPUs here; take --device cpu.')
