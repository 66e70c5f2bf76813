"""What this machine can run, and what is missing for the rest: the facts behind `dengine doctor`.

Knows: processor, runtimes, their devices and precisions, what `--engine auto` takes, and where things are kept.
Does not know: how it is shown.
"""

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import BackendError, BundleError


@dataclass(frozen=True)
class Runtime:
    """One library that executes graphs."""

    name: str  # the engine's name
    version: str  # empty where it is not installed
    ready: bool  # whether `--engine <name>` works here
    devices: tuple[str, ...]  # what it can compute on, by name
    precisions: tuple[str, ...]  # what --precision may be, beside auto; those that need a GPU only where there is one
    advice: str  # what to install or do to get more out of it; empty where there is nothing


@dataclass(frozen=True)
class Diagnosis:
    """What `examine` found."""

    system: str  # operating system and machine
    python: str  # version
    processor: str  # model name
    cores: int  # that this process may use
    threads: int  # that a graph runs on unless --threads says otherwise
    memory: int  # bytes of main memory; 0 where the system does not say
    bf16: bool  # whether the processor multiplies bfloat16 itself
    features: tuple[str, ...]  # of the processor, those that matter to speed
    runtimes: tuple[Runtime, ...]  # in the order that auto tries them
    engine: str  # what --engine auto takes
    precision: str  # what --precision auto becomes with it
    bundle: Path | None  # the bundled model; None where this copy of dengine has none
    cache: Path  # where compiled models are kept
    cache_bytes: int  # size of what is there


def examine() -> Diagnosis:
    """Look at this machine. Raises nothing: what is missing or broken is said in the diagnosis."""
    import torch

    from engines.backends import auto_engine
    from engines.backends.base import cpu_has_bf16, cpu_name, resolve_threads
    from engines.backends.cache import cache_folder
    from engines.bundle import default_bundle

    features = torch.cpu.get_capabilities()
    engine = auto_engine()
    try:
        bundle = default_bundle()
    except BundleError:
        bundle = None
    cpu_precision = "bf16" if cpu_has_bf16() and engine != "onnxruntime" else "f32"
    return Diagnosis(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        processor=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=resolve_threads(None),
        memory=_memory(),
        bf16=cpu_has_bf16(),
        features=tuple(name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if features.get(name)),
        runtimes=(_tensorrt(), _torch(), _openvino(), _onnxruntime()),
        engine=engine,
        precision="f16" if engine == "torch" and torch.cuda.is_available() else cpu_precision,
        bundle=bundle,
        cache=cache_folder(),
        cache_bytes=_folder_bytes(cache_folder()),
    )


def _torch() -> Runtime:
    import torch

    from engines.backends.base import cpu_has_bf16

    gpus = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    precisions = ["f32", *(["bf16"] if gpus or cpu_has_bf16() else []), *(["f16"] if gpus else [])]
    advice = "" if gpus or not _has_nvidia() else "an NVIDIA GPU is here; install a CUDA build of torch to use it"
    return Runtime("torch", torch.__version__, True, ("CPU", *gpus), tuple(precisions), advice)


def _openvino() -> Runtime:
    from engines.backends.base import cpu_has_bf16

    precisions = ("f32", "bf16") if cpu_has_bf16() else ("f32",)
    module, missing = _runtime("openvino", "openvino")
    if module is None:
        return Runtime("openvino", "", False, (), (), missing)
    return Runtime("openvino", module.__version__.split("-")[0], True, ("CPU",), precisions, "")


def _onnxruntime() -> Runtime:
    import torch

    from engines.backends.ort_backend import CUDA_PROVIDER

    module, missing = _runtime("onnxruntime", "onnxruntime-gpu")
    if module is None:
        return Runtime("onnxruntime", "", False, (), (), missing)
    gpus = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    advice = ""
    if gpus and CUDA_PROVIDER not in module.get_available_providers():
        gpus, advice = (), 'for the GPU: "pip install onnxruntime-gpu"'
    return Runtime("onnxruntime", module.__version__, True, ("CPU", *gpus), ("f32",), advice)


def _tensorrt() -> Runtime:
    module, _ = _runtime("tensorrt", "tensorrt")
    version = "" if module is None else str(module.__version__)
    return Runtime("tensorrt", version, False, (), (), "this version of dengine has no TensorRT engine")


def _runtime(name: str, install: str) -> tuple[Any, str]:
    """(the package, "") or (None, what is missing)."""
    from engines.backends.base import import_runtime

    try:
        return import_runtime(name, install), ""
    except BackendError as cause:
        return None, str(cause)


def _has_nvidia() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").is_dir()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _folder_bytes(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except OSError:
        return 0
