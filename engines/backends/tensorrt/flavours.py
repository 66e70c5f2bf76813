"""The two TensorRTs: what each is called, needs and can do, which one is for a GPU, and how its package is loaded.

Knows: names, versions, compute capabilities, what to install. Does not know how a plan is built or run: both have the
same Python API, and where they differ a `Flavour` says so.

TensorRT compiles a plan to the end for the very GPU it is built on, and serves every NVIDIA GPU. TensorRT for RTX
builds for a compute capability, on any machine, with or without a GPU, and compiles the last step where a plan is
loaded; it is for GeForce, RTX and L4/L40 cards, not for A100, H100 or H200.
"""

import importlib.metadata
import importlib.util
import re
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from engines.backends.base import import_runtime
from engines.errors import BackendError, UsageError


@dataclass(frozen=True)
class Flavour:
    """One of the TensorRTs."""

    title: str  # in messages, and in keys of plans
    module: str  # Python package
    libraries: str  # package that has to be imported before it, since it holds the libraries; "" for none
    distributions: (
        str  # pattern of the installed distributions' names; their "cu" number is the CUDA they are built for
    )
    extra: str  # of dengine, that installs it
    oldest: tuple[int, ...]  # version that works
    whole_attention: tuple[int, ...]  # first version that reads opset 23's Attention
    capabilities: tuple[str, ...]  # compute capabilities that it serves; empty for all
    ahead: bool  # builds for a capability, whatever GPU is here, and compiles the last step when a plan is loaded
    keeps_timings: bool  # takes a timing cache
    listed: bool  # whether the published list of operators goes by its version numbers


CLASSIC = Flavour(
    title="TensorRT",
    module="tensorrt",
    libraries="",
    distributions=r"tensorrt[-_.]cu(\d+)",
    extra="tensorrt-cu13",
    oldest=(10, 12),  # the first whose networks must be strongly typed
    whole_attention=(10, 14),
    capabilities=(),
    ahead=False,
    keeps_timings=True,
    listed=True,
)
RTX = Flavour(
    title="TensorRT for RTX",
    module="tensorrt_rtx_bindings",
    libraries="onnxruntime_ep_nv_tensorrt_rtx",
    distributions=r"tensorrt[-_.]rtx[-_.]cu(\d+)[-_.]bindings",
    extra="tensorrt-rtx",
    oldest=(1, 7),  # the first that was tried
    whole_attention=(1, 7),
    capabilities=("7.5", "8.6", "8.9", "12.0", "12.1"),
    ahead=True,
    keeps_timings=False,
    listed=False,
)
FLAVOURS = (RTX, CLASSIC)  # in the order in which a GPU that both serve takes what is installed
FIRST_DRIVER = {12: "525", 13: "580"}  # CUDA's major version -> the first NVIDIA driver for it


@dataclass(frozen=True)
class Library:
    """A flavour's package, loaded."""

    flavour: Flavour
    trt: Any  # the package
    version: str
    # TensorRT keeps the first logger it is given for everything that comes later, so there is one a process. It is
    # silent; its `messages` are the last warnings and errors, as (severity, text).
    log: Any

    def last_error(self) -> str:
        """What TensorRT last called an error, as the end of a message of ours; says so where it gave no reason."""
        errors = [text for severity, text in self.log.messages if severity != self.trt.ILogger.WARNING]
        return errors[-1].rstrip(".") if errors else f"{self.flavour.title} gives no reason"

    def objections(self, runtime: Any, plan: Any) -> str:
        """What TensorRT has against a plan here, in words; empty where it says nothing, or is asked for no reasons."""
        if not self.flavour.ahead:
            return ""
        _, problems = runtime.get_engine_validity(plan)
        kinds = self.trt.EngineInvalidityDiagnostics.__members__
        return ", ".join(name.lower().replace("_", " ") for name, kind in kinds.items() if problems & int(kind))

    @property
    def listed_version(self) -> str | None:
        """The version by which the published list of operators goes; None where it goes by none."""
        return self.version if self.flavour.listed else None

    def __str__(self) -> str:
        return f"{self.flavour.title} {self.version}"


@cache
def load_library(flavour: Flavour) -> Library:
    """Import a flavour. Raises BackendError where it is missing, broken or too old, with what to install."""
    if flavour.libraries:
        import_runtime(flavour.libraries, f"dengine[{flavour.extra}]")
    trt: Any = import_runtime(flavour.module, f"dengine[{flavour.extra}]")
    version = str(trt.__version__)
    if version_of(version) < flavour.oldest:
        needed = ".".join(map(str, flavour.oldest))
        raise BackendError(
            f"{flavour.title} {version} is installed; {needed} or newer is needed. "
            f'Upgrade it with "pip install --upgrade dengine[{flavour.extra}]".'
        )
    return Library(flavour, trt, version, _make_log(trt))


def _make_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: deque[tuple[Any, str]] = deque(maxlen=1000)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.messages.append((severity, " ".join(str(message).split())))

    return Log()


def version_of(text: str) -> tuple[int, ...]:
    """`10.14.1.48.post1` as numbers: (10, 14, 1, 48)."""
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def is_installed(flavour: Flavour) -> bool:
    """Whether a flavour's packages are here; whether they load is seen when they are loaded."""
    names = [name for name in (flavour.libraries, flavour.module) if name]
    return all(name in sys.modules or importlib.util.find_spec(name) is not None for name in names)


def flavour_for(capability: str) -> Flavour:
    """The flavour for a GPU of this compute capability: the first one that serves it and is installed.

    Raises BackendError where none is, with what to install.
    """
    serving = [flavour for flavour in FLAVOURS if serves(flavour, capability)]
    if found := next((flavour for flavour in serving if is_installed(flavour)), None):
        return found
    other = "".join(
        f"{flavour.title} is installed, and does not serve compute capability {capability}. "
        for flavour in FLAVOURS
        if flavour not in serving and is_installed(flavour)
    )
    best = serving[0]
    raise BackendError(
        f"{other}{best.title} is not installed, which a GPU of compute capability {capability} takes. "
        f'Install it with "pip install dengine[{best.extra}]".'
    )


def serves(flavour: Flavour, capability: str) -> bool:
    """Whether plans of a flavour run on GPUs of a compute capability."""
    return not flavour.capabilities or capability in flavour.capabilities


def parse_targets(names: Sequence[str]) -> tuple[str, ...]:
    """GPU architectures as CUDA names them, such as sm89, as compute capabilities, such as 8.9.

    Raises UsageError for a name that is none, or one for which no plan can be built ahead.
    """
    known = {target_name(capability): capability for capability in RTX.capabilities}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(
            f"There is no building ahead for {', '.join(unknown)[:60]}: {RTX.title} builds for {', '.join(known)}. "
            f"For other GPUs leave `targets` out, on the machine that has one.",
            field="targets",
        )
    return tuple(dict.fromkeys(known[name] for name in names))


def target_name(capability: str) -> str:
    """8.9 as sm89."""
    return "sm" + capability.replace(".", "")


def check_driver(flavour: Flavour, supported: tuple[int, int]) -> None:
    """Raise BackendError if a flavour is built for a later CUDA than the GPU's driver supports.

    `supported` is that CUDA version; (0, 0) where the driver does not say, which passes.
    """
    needed = cuda_of(flavour)
    if needed and supported[0] and supported[0] < needed:
        driver = FIRST_DRIVER.get(needed, "a newer one")
        raise BackendError(
            f"The GPU's driver supports CUDA {supported[0]}.{supported[1]}, and the {flavour.title} that is installed "
            f"is built for CUDA {needed}. Upgrade the NVIDIA driver to {driver} or newer, or install "
            f'"dengine[{flavour.extra.removesuffix("-cu13")}-cu{supported[0]}]".'
        )


def cuda_of(flavour: Flavour) -> int:
    """The CUDA (its major version) that a flavour's installed package is built for; 0 where that is not known."""
    for distribution in importlib.metadata.distributions():
        found = re.fullmatch(flavour.distributions, str(distribution.metadata["Name"] or ""))
        if found:
            return int(found[1])
    return 0
