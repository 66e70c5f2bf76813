"""What executes a bundle's graphs.

Knows: the engines by name, and the order in which `auto` takes them. What differs between runtimes (sessions,
streams, compiled models) stays in each backend's own file, imported only when that backend is opened.
"""

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from engines.errors import BackendError, UsageError

if TYPE_CHECKING:
    import torch

    from engines.backends.base import Backend
    from engines.backends.tensorrt.backend import TensorRtBackend
    from engines.backends.tensorrt.plans import Needs
    from engines.bundle.bundle import Bundle

ENGINES = ("auto", "tensorrt", "torch", "openvino", "onnxruntime")
_CPU_ORDER = ("openvino", "onnxruntime")  # measured: the fastest first; torch is always there


def open_backend(
    bundle: "Bundle",
    engine: str = "auto",
    *,
    precision: str = "auto",
    threads: int | None = None,
    device: str | None = None,
    keep_compiled: bool = True,
    compiled: bool = False,
    whole: bool = False,
    needs: "Needs | None" = None,
    told: Callable[[str], None] = lambda line: None,
) -> "Backend":
    """Open a bundle on a runtime.

    Args:
        bundle: an opened bundle.
        engine: one of ENGINES; auto takes tensorrt where all plans in `needs` are there, else torch where CUDA is, else
            openvino, onnxruntime or torch on the CPU.
        precision: auto, f32, bf16, f16 or int8 (`base.PRECISIONS`); auto is f16 on CUDA with torch, bf16 where a CPU
            runtime and the processor have it, else f32. int8 is for openvino. `Backend.precision` says what it became.
        threads: CPU threads; None for as many as PyTorch takes. They decide the last bits of the results.
        device: cpu, cuda or cuda:N; None for what the engine is fastest on.
        keep_compiled: whether compiled models come from and go to the user's cache folder (openvino); off for checks
            that use each shape once. A bundle of full size keeps none: its UNet compiles in 10 seconds into 3.5 GB.
        compiled: pass the UNet and the VAE decoder through torch.compile (torch on CUDA; refused elsewhere).
        whole: run batches as they are, even where a CPU would run a bundle of full size row by row (`rows`).
        needs: what is going to be prepared. With it, a missing TensorRT plan is known of now, and not halfway.
        told: told, in one line, why auto passes over tensorrt, where it is installed and the bundle is one for it.

    Raises:
        UsageError: an unknown name, or options that contradict each other.
        BackendError: a runtime, GPU, processor feature or plan that is not here, and what to install or build.
    """
    from engines.backends import base

    if engine not in ENGINES:
        raise UsageError(f'Unknown engine "{engine}"; one of {", ".join(ENGINES)} was expected.')
    if precision not in base.PRECISIONS:
        raise UsageError(f'Unknown precision "{precision}"; one of {", ".join(base.PRECISIONS)} was expected.')
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; 1 or more was expected.")
    if engine == "auto" and compiled:
        engine = "torch"
    if compiled and engine != "torch":
        raise UsageError(
            f"--compile is for --engine torch on CUDA, not for {engine}, which compiles its graphs itself."
        )
    if engine == "auto":
        if needs is not None and _may_have_plans(bundle, precision, device):
            found, reason = _try_tensorrt(bundle, precision, threads, device, needs)
            if found is not None:
                return found
            told(f"tensorrt is passed over: {reason}")
        engine = auto_engine(device)
    if precision == "int8" and engine != "openvino":
        raise UsageError(f"int8 is for --engine openvino, not for {engine}. Use --precision auto there.")
    place = _place(engine, device)
    if engine == "tensorrt":
        return _open_tensorrt(bundle, precision, threads, place, needs)
    from engines.backends.rows import RowBackend, is_full_size

    full_size = place.type == "cpu" and is_full_size(bundle)
    backend = _open_plain(bundle, engine, precision, threads, place, keep_compiled and not full_size, compiled)
    return RowBackend(backend, bundle.specs) if full_size and not whole else backend


def _open_plain(
    bundle: "Bundle",
    engine: str,
    precision: str,
    threads: int | None,
    place: "torch.device",
    keep: bool,
    compiled: bool,
) -> "Backend":
    """The backend of an engine that needs no plans."""
    if engine == "openvino":
        from engines.backends.openvino.backend import OpenVinoBackend

        return OpenVinoBackend(bundle, precision=precision, threads=threads, keep=keep)
    if engine == "onnxruntime":
        from engines.backends.onnxruntime import OrtBackend

        return OrtBackend(bundle, precision=precision, threads=threads, device=place)
    from engines.backends.torch import TorchBackend

    return TorchBackend(bundle, precision=precision, threads=threads, device=place, compiled=compiled)


def _open_tensorrt(
    bundle: "Bundle", precision: str, threads: int | None, place: "torch.device", needs: "Needs | None"
) -> "TensorRtBackend":
    from engines.backends.tensorrt.backend import TensorRtBackend
    from engines.backends.tensorrt.gpu import find_gpu

    backend = TensorRtBackend(bundle, precision=precision, threads=threads, gpu=find_gpu(place))
    if needs is not None and (missing := backend.missing(needs)):
        raise BackendError(missing)
    return backend


def _may_have_plans(bundle: "Bundle", precision: str, device: str | None) -> bool:
    """Whether auto has TensorRT to consider: a GPU, the library, and a bundle in the precision of its plans."""
    import torch

    from engines.backends.tensorrt.flavours import FLAVOURS, is_installed

    return (
        device != "cpu"
        and precision in ("auto", "f16")
        and bundle.manifest.graph_dtype == "float16"
        and torch.cuda.is_available()
        and any(is_installed(flavour) for flavour in FLAVOURS)
    )


def _try_tensorrt(
    bundle: "Bundle", precision: str, threads: int | None, device: str | None, needs: "Needs"
) -> tuple["TensorRtBackend | None", str]:
    """(the backend, "") or (None, why not)."""
    place = _place("tensorrt", device)
    try:
        return _open_tensorrt(bundle, precision, threads, place, needs), ""
    except BackendError as cause:
        return None, str(cause)


def auto_engine(device: str | None = None) -> str:
    """The engine that `auto` takes without plans, for buffers on `device` (None: on a GPU if there is one)."""
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
        on_gpu = engine == "tensorrt" or (cuda and engine == "torch")
        return torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    if place.type not in ("cpu", "cuda"):
        raise UsageError(f'Unknown device "{device}"; cpu, cuda or cuda:N was expected.')
    if place.type == "cpu":
        if engine == "tensorrt":
            raise UsageError("tensorrt runs on NVIDIA GPUs, not on the CPU. Take another --engine there.")
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
