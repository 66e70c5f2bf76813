"""What every backend is to the rest of dengine, and the little that they share.

Knows: the Protocols, buffers for a graph's tensors, and what this machine's processor can compute in.
Does not know: any runtime but PyTorch, whose tensors are the buffers.

A Call has fixed shapes and fixed buffers: write `inputs`, `run()`, read `outputs`. The runtime works in that very
memory; nothing is copied on the way. Outputs are valid until the next `run()`.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from engines.bundle.graphs import GraphSpec, TensorSpec
from engines.common.devices import cpu_has_bf16
from engines.errors import BackendError

# The text encoder runs once a prompt and decides what is painted. The adapter is small, so that bf16 saves nothing one
# can measure on a CPU, while rounded scores let its top-k pick other queries. Both stay in f32 there, whatever the rest
# computes in. Float16 has three more digits in the base of two: there the adapter may be in half (`is_wide`).
ALWAYS_F32 = ("text_encoder", "adapter")

if TYPE_CHECKING:
    from engines.backends.tensorrt.plans import Needs

PRECISIONS = ("auto", "f32", "bf16", "f16", "int8")  # how a graph is executed; f16 is for GPUs, int8 for `openvino`
# What a graph is prepared for, where that may decide how: the sampler's UNet gives its prediction alone and runs every
# tick, so that it is worth recording and compiling, and may be narrower than what labels are read from.
Role = Literal["sampler", "labels"]

Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class OpenOptions:
    """How a bundle is opened, as far as a backend is concerned."""

    precision: str  # one of PRECISIONS
    threads: int | None  # CPU threads; None: as many as PyTorch takes
    device: "torch.device"
    keep_compiled: bool = True  # whether compiled models come from and go to the user's cache
    compiled: bool = False  # whether networks pass through torch.compile
    needs: "Needs | None" = None  # what is going to be prepared


class Call(Protocol):
    """One graph at one set of shapes."""

    @property
    def inputs(self) -> Tensors:
        """Buffers to write into, by name. They are zero at first and keep what was written."""

    @property
    def outputs(self) -> Tensors:
        """Buffers that `run` fills, by name; only the outputs asked for."""

    @property
    def capturable(self) -> bool:
        """Whether `run` may be recorded into a CUDA graph."""

    def run(self) -> None:
        """Compute `outputs` from `inputs`; both may be used as soon as it returns."""


class Backend(Protocol):
    """A runtime that executes the graphs of one bundle."""

    @property
    def name(self) -> str:
        """torch, onnxruntime, openvino or tensorrt."""

    @property
    def description(self) -> str:
        """One line for the user: runtime, device, precision, threads."""

    @property
    def device(self) -> torch.device:
        """Where the buffers live."""

    @property
    def precision(self) -> str:
        """What it computes in: f32, bf16, f16 or int8; never auto."""

    @property
    def threads(self) -> int:
        """CPU threads that a graph runs on."""

    def prepare(
        self,
        graph: str,
        shapes: Shapes,
        outputs: Sequence[str] | None = None,
        varies: str | None = None,
        role: Role | None = None,
    ) -> Call:
        """Ready `graph` for input `shapes`; only `outputs` (default all) are computed. `role`: what it is for.

        `varies` promises that rows 2k and 2k + 1 will hold the same in every input but this one: a backend may then
        compute once what the two rows share.

        Raises BackendError if the graph has no such tensors, or the shapes do not fit it.
        """


def import_runtime(module: str, install: str) -> ModuleType:
    """Import a runtime's package, or raise BackendError that says what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as cause:
        if (cause.name or "").split(".")[0] != module:
            raise BackendError(f"{module} does not import here: {cause}.") from cause
        raise BackendError(f'{module} is not installed. Install it with "pip install {install}".') from cause
    except (ImportError, OSError) as cause:
        raise BackendError(f"{module} is installed but does not import here: {cause}.") from cause


def wanted_outputs(spec: GraphSpec, outputs: Sequence[str] | None) -> tuple[TensorSpec, ...]:
    """The specs of the outputs asked for, in the graph's own order; all for None."""
    names = [tensor.name for tensor in spec.outputs]
    unknown = [name for name in outputs or () if name not in names]
    if unknown:
        raise BackendError(f"{spec.name} has no output {', '.join(unknown)}; its outputs are {', '.join(names)}.")
    return tuple(tensor for tensor in spec.outputs if outputs is None or tensor.name in outputs)


def known_shapes(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
    """Shapes of tensors at these sizes; None if one has an axis that only the graph knows."""
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        known = tuple(length for length in spec.shape(sizes) if length is not None)
        if len(known) < len(spec.axes):
            return None
        shapes[spec.name] = known
    return shapes


def new_buffers(specs: Sequence[TensorSpec], shapes: Shapes, device: torch.device) -> dict[str, torch.Tensor]:
    """Zeros for each tensor, contiguous, on `device`."""
    return {
        spec.name: torch.zeros(shapes[spec.name], dtype=getattr(torch, spec.dtype), device=device) for spec in specs
    }


def cpu_precision(precision: str, engine: str) -> str:
    """What `precision` means for a runtime that executes f32 and bf16 on the CPU: f32 or bf16.

    bf16 is refused where the processor would emulate it; f16 is refused.
    """
    if precision == "auto":
        return "bf16" if cpu_has_bf16() else "f32"
    if precision == "bf16" and not cpu_has_bf16():
        raise BackendError(
            "This processor has no bf16 arithmetic (AMX or AVX-512 BF16). Use `precision=f32`.", field="precision"
        )
    if precision == "f16":
        raise BackendError(
            f"{engine} on a CPU computes in f32 or bf16, not f16. Use `precision=auto`.", field="precision"
        )
    return precision


def is_wide(graph: str, half: bool) -> bool:
    """Whether PyTorch computes a graph in f32 whatever the rest is in; `half`: where that is float16."""
    return graph in ALWAYS_F32 and not (half and graph == "adapter")
