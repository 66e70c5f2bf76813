"""What executes a bundle's graphs.

Knows: the engines by name, and the order in which `auto` takes them. What differs between runtimes (sessions,
streams, compiled models) stays in each backend's own file, imported only when that backend is opened.
"""

import importlib.util
from typing import TYPE_CHECKING

from engines.errors import BackendError, UsageError

if TYPE_CHECKING:
    import torch

    from engines.backends.base import Backend
    from engines.bundle import Bundle

ENGINES = ("auto", "torch", "openvino", "onnxruntime")
_CPU_ORDER = ("openvino", "onnxruntime")  # measured: the fastest first; torch is always there


def open_backend(
    bundle: "Bundle",
    engine: str = "auto",
    *,
    precision: str = "auto",
    threads: int | None = None,
    device: str | None = None,
    keep_compiled: bool = True,
) -> "Backend":
    """Open a bundle on a runtime.

    Args:
        bundle: an opened bundle.
        engine: one of ENGINES; auto takes torch where CUDA is, else openvino, onnxruntime or torch on the CPU.
        precision: auto, f32, bf16 or f16 (`base.PRECISIONS`); auto is f16 on CUDA with torch, bf16 where a CPU runtime
            and the processor have it, else f32. `Backend.precision` says what it became.
        threads: CPU threads; None for as many as PyTorch takes. They decide the last bits of the results.
        device: cpu, cuda or cuda:N; None for what the engine is fastest on.
        keep_compiled: whether compiled models come from and go to the user's cache folder (openvino); off for checks
            that use each shape once.

    Raises:
        UsageError: an unknown name, or options that contradict each other.
        BackendError: a runtime, GPU or processor feature that is not here, and what to install.
    """
    from engines.backends import base

    if engine not in ENGINES:
        raise UsageError(f'Unknown engine "{engine}"; one of {", ".join(ENGINES)} was expected.')
    if precision not in base.PRECISIONS:
        raise UsageError(f'Unknown precision "{precision}"; one of {", ".join(base.PRECISIONS)} was expected.')
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; 1 or more was expected.")
    if engine == "auto":
        engine = auto_engine(device)
    place = _place(engine, device)
    if engine == "openvino":
        from engines.backends.openvino_backend import OpenVinoBackend

        return OpenVinoBackend(bundle, precision=precision, threads=threads, keep=keep_compiled)
    if engine == "onnxruntime":
        from engines.backends.ort_backend import OrtBackend

        return OrtBackend(bundle, precision=precision, threads=threads, device=place)
    from engines.backends.torch_backend import TorchBackend

    return TorchBackend(bundle, precision=precision, threads=threads, device=place)


def auto_engine(device: str | None = None) -> str:
    """The engine that `auto` takes here, for buffers on `device` (None: on a GPU if there is one)."""
    import torch

    if device is not None and device != "cpu":
        return "torch"
    if device is None and torch.cuda.is_available():
        return "torch"
    return next((engine for engine in _CPU_ORDER if importlib.util.find_spec(engine)), "torch")


def _place(engine: str, device: str | None) -> "torch.device":
    """Where an engine's buffers live: as asked, else on the first GPU where the engine can use one."""
    import torch

    cuda = torch.cuda.is_available()
    if device is None:
        return torch.device("cuda", 0) if cuda and engine == "torch" else torch.device("cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    if place.type not in ("cpu", "cuda"):
        raise UsageError(f'Unknown device "{device}"; cpu, cuda or cuda:N was expected.')
    if place.type == "cpu":
        return torch.device("cpu")
    if engine == "openvino":
        raise UsageError(f"openvino runs on the CPU, not on {device}. Use --engine torch or onnxruntime there.")
    count = torch.cuda.device_count() if cuda else 0
    index = place.index or 0
    if index >= count:
        raise BackendError(
            f"There is no CUDA device {index} that PyTorch can use ({count} found). Use --device cpu, or install a GPU "
            f"driver and a CUDA build of torch."
        )
    return torch.device("cuda", index)
