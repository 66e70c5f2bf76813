"""The engines by name: what each can do, and how a bundle is opened on one.

Knows: the order in which `auto` takes engines, and which precisions, devices and options each has. What differs between
runtimes (sessions, streams, compiled models, plans) stays in each backend's own module, which is imported only when
that backend is opened or probed. To add an engine, write its module and a row of BACKENDS.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.common.quote import quote
from engines.errors import BackendError, UsageError

if TYPE_CHECKING:
    import torch

    from engines.backends.base import Backend, OpenOptions
    from engines.backends.probe import Probe
    from engines.backends.tensorrt.plans import Needs
    from engines.bundle.bundle import Bundle

MOST_THREADS = 1024


@dataclass(frozen=True)
class BackendInfo:
    """What is known of an engine before its runtime is imported."""

    name: str
    module: str  # with `open_bundle(bundle, options)` and `probe()`
    package: str  # what must be importable
    devices: tuple[str, ...]  # kinds of device that it runs on, the one it takes by itself first
    int8: bool = False  # whether it has int8 beside the wider precisions
    compiles: bool = False  # whether `compiled` means something to it
    built_ahead: bool = False  # runs plans built before: who prepares asks for full batches, whatever the images
    prepares_beside: bool = False  # makes several graphs ready at once in less time than one by one


# In the order that `auto` tries them on a machine with a GPU. Without one, plans and torch come last.
BACKENDS = (
    BackendInfo("tensorrt", "engines.backends.tensorrt.backend", "tensorrt", ("cuda",), built_ahead=True),
    BackendInfo("torch", "engines.backends.torch", "torch", ("cuda", "cpu"), compiles=True),
    BackendInfo("openvino", "engines.backends.openvino.backend", "openvino", ("cpu",), int8=True, prepares_beside=True),
    BackendInfo("onnxruntime", "engines.backends.onnxruntime", "onnxruntime", ("cpu", "cuda")),
)
ENGINES = ("auto", *(info.name for info in BACKENDS))
_CPU_ORDER = ("openvino", "onnxruntime")  # measured: the fastest first; torch is always there


def backend_info(name: str) -> BackendInfo:
    """The engine of that name; UsageError for one that does not exist."""
    for info in BACKENDS:
        if info.name == name:
            return info
    raise UsageError(f'Unknown engine "{name}"; one of {", ".join(ENGINES)} was expected.', field="engine")


def probe_backend(info: BackendInfo) -> "Probe":
    """What an engine's runtime says of itself here."""
    found: Probe = importlib.import_module(info.module).probe()
    return found


def open_backend(
    bundle: "Bundle",
    engine: str = "auto",
    *,
    precision: str = "auto",
    threads: int | None = None,
    device: str | None = None,
    keep_compiled: bool = True,
    compiled: bool | None = False,
    whole: bool = False,
    needs: "Needs | None" = None,
    told: Callable[[str], None] = lambda line: None,
) -> "Backend":
    """Open a bundle on a runtime.

    Args:
        bundle: an opened bundle.
        engine: one of ENGINES; auto takes tensorrt where all plans in `needs` are there, else torch where CUDA is, else
            openvino, onnxruntime or torch on the CPU.
        precision: one of `base.PRECISIONS`; auto is f16 on CUDA with torch, bf16 where a CPU runtime and the processor
            have it, else f32. int8 is for openvino. `Backend.precision` says what it became.
        threads: CPU threads; None for as many as PyTorch takes. They decide the last bits of the results.
        device: cpu, cuda or cuda:N; None for what the engine is fastest on.
        keep_compiled: whether compiled models come from and go to the user's cache folder (openvino); off for checks
            that use each shape once. A bundle of full size keeps none: its UNet compiles in 10 seconds into 3.5 GB.
        compiled: pass the networks through torch.compile (torch on CUDA; refused elsewhere). None: where it is torch on
            CUDA that is taken, and the compiler is here.
        whole: run batches as they are, even where a CPU would run a bundle of full size row by row (`rows`).
        needs: what is going to be prepared. With it, a missing TensorRT plan is known of now, and not halfway.
        told: told, in one line, why auto passes over tensorrt, where it is installed and the bundle is one for it.

    Raises:
        UsageError: an unknown name, or options that contradict each other.
        BackendError: a runtime, GPU, processor feature or plan that is not here, and what to install or build.
    """
    from engines.backends.base import OpenOptions

    _check_numbers(precision, threads)
    if engine == "auto" and compiled:
        engine = "torch"
    if engine == "auto":
        if needs is not None and _may_have_plans(bundle, precision, device):
            plans = OpenOptions(precision, threads, _place(backend_info("tensorrt"), device), needs=needs)
            try:
                return _opened("tensorrt", bundle, plans)
            except BackendError as cause:
                told(f"tensorrt is passed over: {cause}")
        engine = auto_engine(device)
    info = backend_info(engine)
    _check_abilities(info, precision, compiled)
    place = _place(info, device)
    if info.built_ahead:
        return _opened(engine, bundle, OpenOptions(precision, threads, place, needs=needs))
    from engines.backends.rows import RowBackend, is_full_size

    if compiled is None:
        compiled = info.compiles and place.type == "cuda" and importlib.util.find_spec("triton") is not None
    full_size = place.type == "cpu" and is_full_size(bundle)
    backend = _opened(engine, bundle, OpenOptions(precision, threads, place, keep_compiled and not full_size, compiled))
    return RowBackend(backend, bundle.specs) if full_size and not whole else backend


def auto_engine(device: str | None = None) -> str:
    """The engine that `auto` takes without plans, for buffers on `device` (None: on a GPU if there is one)."""
    import torch

    if device is not None and device != "cpu":
        return "torch"
    if device is None and torch.cuda.is_available():
        return "torch"
    return next((engine for engine in _CPU_ORDER if importlib.util.find_spec(engine)), "torch")


def _check_numbers(precision: str, threads: int | None) -> None:
    """UsageError for what no engine could be opened with."""
    from engines.backends.base import PRECISIONS

    if precision not in PRECISIONS:
        expected = ", ".join(PRECISIONS)
        raise UsageError(f'Unknown precision "{precision}"; one of {expected} was expected.', field="precision")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        text = f"`threads` is {quote(threads)}; a whole number from 1 to {MOST_THREADS} was expected."
        raise UsageError(text, field="threads")


def _check_abilities(info: BackendInfo, precision: str, compiled: bool | None) -> None:
    """UsageError for what this engine does not have."""
    if compiled and not info.compiles:
        raise UsageError(
            f"`compiled` is for `engine=torch` on CUDA, not for {info.name}, which compiles its graphs itself.",
            field="compiled",
        )
    if precision == "int8" and not info.int8:
        raise UsageError(
            f"int8 is for `engine=openvino`, not for {info.name}. Use `precision=auto` there.", field="precision"
        )


def _opened(engine: str, bundle: "Bundle", options: "OpenOptions") -> "Backend":
    module: Any = importlib.import_module(backend_info(engine).module)
    backend: Backend = module.open_bundle(bundle, options)
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


def _place(info: BackendInfo, device: str | None) -> "torch.device":
    """Where an engine's buffers live: as asked, else on the first GPU where it takes one by itself."""
    from engines.common.devices import find_device

    if device is None:
        return find_device(
            None if len(info.devices) > 1 and info.devices[0] == "cuda" else info.devices[0], check=False
        )
    kind = find_device(device, check=False).type
    if kind not in info.devices:
        others = [other.name for other in BACKENDS if kind in other.devices and not other.built_ahead]
        raise UsageError(
            f"{info.name} does not run on {device}. Take `engine={' or '.join(others)}` there.", field="device"
        )
    return find_device(device)
