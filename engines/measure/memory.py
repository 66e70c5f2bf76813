"""How much memory this process holds, and held at most.

Knows: what the kernel says of main memory, and PyTorch of a GPU's. Knows nothing about what uses it.

Resident memory counts weights that are mapped from files, and pages that several processes share.
"""

import re
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Bytes, of this process."""

    rss: int | None  # resident in main memory now; None where the system does not say
    rss_peak: int  # resident at most, since the process began
    vram_peak: int | None  # of all GPUs, reserved by PyTorch at most; None where another runtime's is not known
    vram_taken: int | None = None  # in its place: of the GPU, now, whoever took it; the driver's own part is in it

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def read_memory() -> Memory:
    """What this process holds now, and held at most."""
    rss, peak = _resident()
    return Memory(rss, peak, _vram())


def _resident() -> tuple[int | None, int]:
    """(resident now, at most): the kernel's VmRSS and VmHWM on Linux, else what getrusage says of the peak."""
    try:
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", STATUS.read_text("ascii"), re.MULTILINE))
        return int(found["VmRSS"]) << 10, int(found["VmHWM"]) << 10
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return None, peak if sys.platform == "darwin" else peak << 10  # macOS counts bytes, others KiB


def _vram() -> int:
    """PyTorch's peak, of the GPU in use whichever it is; 0 without one. Never imports PyTorch itself."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return 0
    return sum(int(torch.cuda.max_memory_reserved(index)) for index in range(torch.cuda.device_count()))
