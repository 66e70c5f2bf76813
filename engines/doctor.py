"""What this machine can run, and what is missing for the rest: the facts behind `dengine doctor`.

Knows: processor, memory, GPUs and their driver, versions, what the engine `auto` is, where things are kept. It asks
each backend's own `probe()` what its runtime can do, which really runs a tiny graph.
Does not know: any runtime (`engines.backends`), or how a diagnosis is shown. Nothing here raises, or takes long.
"""

import dataclasses
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.backends.probe import Probe, one_line
from engines.backends.registry import BACKENDS, BackendInfo, auto_engine, probe_backend
from engines.common.versions import installed_versions
from engines.errors import BundleError

FEATURES = {  # what PyTorch calls a feature of the processor -> its name; those that matter to speed
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "amx_fp16": "AMX FP16",
}
PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "safetensors", "onnx", "onnxruntime-gpu", "onnxruntime",
    "openvino", "tensorrt", "polygraphy",
)  # fmt: skip
KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
_QUERY = ("name", "memory.total", "driver_version", "compute_cap")
_PATIENCE = 3.0  # seconds for nvidia-smi; a sleeping driver takes one or two


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, whether or not a runtime can use it."""

    name: str
    memory: int  # bytes; 0 where unknown
    capability: str  # compute capability, such as 9.0; empty where unknown


@dataclass(frozen=True)
class Diagnosis:
    """What `examine` found.

    >>> sorted(dengine.examine().to_json())[:2]
    ['bf16', 'bundle']
    """

    dengine: str  # version
    system: str  # operating system and machine
    python: str  # version
    processor: str  # model name
    cores: int  # that this process may use
    threads: int  # that a graph runs on unless `threads` says otherwise
    memory: int  # bytes of main memory; 0 where the system does not say
    bf16: bool  # whether the processor multiplies bfloat16 itself
    features: tuple[str, ...]  # of the processor: those of FEATURES that it has
    gpus: tuple[Gpu, ...]  # NVIDIA
    driver: str  # of the GPUs; empty where there is none
    cuda: str  # that PyTorch was built for; empty for a CPU build
    packages: dict[str, str]  # package -> version, those that are installed
    runtimes: tuple[Probe, ...]  # in the order that auto tries them
    engine: str  # what the engine `auto` is; tensorrt comes before it where a bundle's plans are built
    precision: str  # what the precision `auto` becomes with it
    bundle: Path | None  # the bundled model; None where this copy of dengine has none
    cache: Path  # where compiled models and plans are kept
    cache_bytes: int  # size of what is there

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the fields, and whether each runtime is ready."""
        value = dataclasses.asdict(self)
        for entry, probe in zip(value["runtimes"], self.runtimes, strict=True):
            entry["ready"] = probe.ready
        return value | {"bundle": None if self.bundle is None else str(self.bundle), "cache": str(self.cache)}


def examine() -> Diagnosis:
    """Look at this machine. Raises nothing: what is missing or broken is said in the diagnosis.

    >>> examine().cores >= 1
    True
    """
    import torch

    from engines.bundle.bundle import default_bundle
    from engines.common.cache import cache_folder
    from engines.common.devices import cpu_cores, cpu_has_bf16, cpu_name, resolve_threads

    capabilities = torch.cpu.get_capabilities()
    try:
        bundle = default_bundle()
    except BundleError:
        bundle = None
    gpus, driver = _gpus()
    runtimes = tuple(_probe(info) for info in BACKENDS)
    engine, precision = _auto(runtimes)
    return Diagnosis(
        dengine=installed_versions(("dengine",)).get("dengine", "not installed, run from its sources"),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        processor=cpu_name(),
        cores=cpu_cores(),
        threads=resolve_threads(None),
        memory=_memory(),
        bf16=cpu_has_bf16(),
        features=tuple(name for key, name in FEATURES.items() if capabilities.get(key)),
        gpus=gpus,
        driver=driver,
        cuda=torch.version.cuda or "",
        packages=installed_versions(PACKAGES),
        runtimes=runtimes,
        engine=engine,
        precision=precision,
        bundle=bundle,
        cache=cache_folder(),
        cache_bytes=_folder_bytes(cache_folder()),
    )


def _probe(info: BackendInfo) -> Probe:
    """What a backend says of itself; what its import or its probe raises, if either does, becomes the advice."""
    try:
        return probe_backend(info)
    except Exception as cause:  # a half-installed native library may raise anything
        return Probe(info.name, advice=f"it cannot be asked: {one_line(cause)}")


def _auto(runtimes: tuple[Probe, ...]) -> tuple[str, str]:
    """What the engine `auto` and the precision `auto` mean here."""
    import torch

    from engines.common.devices import cpu_has_bf16

    engine = auto_engine()
    if engine == "tensorrt" or (engine == "torch" and torch.cuda.is_available()):
        return engine, "f16"
    return engine, "bf16" if cpu_has_bf16() and engine != "onnxruntime" else "f32"


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """(NVIDIA GPUs, version of their driver): as nvidia-smi says, else as PyTorch does."""
    import torch

    rows = [line.split(", ") for line in _nvidia_smi().splitlines()]
    rows = [row for row in rows if len(row) == len(_QUERY)]
    if rows:
        return tuple(Gpu(name, _mebibytes(memory), capability) for name, memory, _, capability in rows), rows[0][2]
    try:
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError):  # a driver that does not start, a build that has no CUDA
        found = []
    gpus = tuple(Gpu(gpu.name, gpu.total_memory, f"{gpu.major}.{gpu.minor}") for gpu in found)
    return gpus, _kernel_driver()


def _nvidia_smi() -> str:
    """What the driver's own tool prints of the GPUs; nothing where it is not there, or does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _kernel_driver() -> str:
    """The version that the kernel module gives; empty without one."""
    try:
        line = KERNEL_DRIVER.read_text("utf-8").splitlines()[0]
    except (OSError, IndexError):
        return ""
    return next((word for word in line.split() if word[0].isdigit() and "." in word), "")


def _mebibytes(text: str) -> int:
    return int(text) << 20 if text.isdecimal() else 0


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _folder_bytes(folder: Path) -> int:
    """Size of all files in a folder and those below; what cannot be read counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total
