"""Which machine and which versions a figure belongs to.

Knows: processor, cores, memory, GPUs, and the packages that decide speed. Knows nothing about what was measured.
"""

import os
import platform
from typing import Any

from engines.common.versions import installed_versions

PACKAGES = (
    "dengine", "torch", "diffusers", "transformers", "numpy", "pillow", "onnx", "onnxruntime-gpu", "onnxruntime",
    "openvino", "tensorrt",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, GiB of memory, the system, and NVIDIA GPUs that PyTorch can use."""
    import torch

    from engines.common.devices import cpu_cores, cpu_name

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if _cuda() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": cpu_name(),
        "cores": cpu_cores(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "gpus": gpus,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that took part, where installed."""
    return {"python": platform.python_version()} | installed_versions(PACKAGES)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
