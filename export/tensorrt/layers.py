"""Which tensor of a plan is the first that ONNX Runtime computes otherwise: what to look at when a plan is wrong.

Knows: how to have what every layer of a plan computes, and the same tensors from ONNX Runtime on the CPU, and how they
are compared. Does not know why a plan is wrong, or when to ask. The plan is built for this anew, and fuses less than
the one that is wrong: a fault of a fused kernel may be gone in it.

Polygraphy does what would take much code here: it makes every tensor of a graph an output for ONNX Runtime, and it
collects TensorRT's debug tensors, whose number and shapes only a run tells. It comes with dengine's TensorRT extras
and is used nowhere else: its runners copy and wait for every tensor.
"""

import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.backends.probe import one_line
from engines.backends.tensorrt.backend import library_for, machine_of
from engines.backends.tensorrt.flavours import Library
from engines.backends.tensorrt.gpu import Gpu
from engines.bundle.bundle import Bundle
from engines.errors import BackendError
from export.tensorrt.builder import PlanBuilder
from export.tensorrt.profiles import Batches, Frames, wanted_profiles

Arrays = Mapping[str, npt.NDArray[Any]]
SLACK = 10.0  # a tensor inside a graph may be off by so many times what its outputs may
_KEY = 20  # of the random inputs


@dataclass(frozen=True)
class LayerDifference:
    """The first tensor, in the order of the graph, that a plan computes otherwise."""

    tensor: str
    node: str  # that makes it; its operator where it has no name
    error: float  # norm of the difference over that of ONNX Runtime's; infinite where a value is not finite
    compared: int  # tensors up to it, and with it

    def __str__(self) -> str:
        return (
            f"{self.tensor} (of {self.node}) is the first tensor that differs from ONNX Runtime's, by {self.error:.1e} "
            f"(relative); the {self.compared - 1} before it agree"
        )


def has_polygraphy() -> bool:
    """Whether Polygraphy is installed."""
    return importlib.util.find_spec("polygraphy") is not None


def explain_plan(
    bundle: Bundle, graph: str, gpu: Gpu, batches: Batches | None = None, frames: Frames | None = None
) -> str:
    """What `compare_layers` finds at the usual sizes of the plan of `graph` that `batches` and `frames` ask for.

    A sentence, whatever comes of it: this is asked when something else has failed already.
    """
    try:
        library = library_for(gpu)
        builder = PlanBuilder(library, bundle, machine_of(library, gpu), None, lambda at: None, gpu.free_memory)
        profile = wanted_profiles(bundle, batches, frames)[graph][0]
        found = compare_layers(builder, graph, {size: usual for size, (_, usual, _) in profile.items()})
    except Exception as cause:  # Polygraphy and the runtimes raise errors of many kinds
        return f"its layers could not be compared: {one_line(cause)}"
    return str(found or "every layer agrees with ONNX Runtime's, where nothing is fused")


def compare_layers(builder: PlanBuilder, graph: str, sizes: Mapping[str, int]) -> LayerDifference | None:
    """Build the plan of `graph` once more, at these sizes and with its tensors kept, and run it beside ONNX Runtime.

    Needs the GPU that `builder` builds for. Inputs are random. None where all tensors agree. Raises ExportError for a
    plan that does not build, BackendError where Polygraphy is missing.
    """
    spec, path = builder.bundle.specs[graph], builder.bundle.graph_path(graph)
    inputs = spec.example(sizes, _KEY)
    profile = {size: (number,) * 3 for size, number in sizes.items()}
    plan = builder.build(graph, [profile], threading.Event(), keep_tensors=True)
    expected = run_onnxruntime(path, inputs)
    return first_difference(path, run_plan(builder.library, plan, inputs), expected, SLACK * spec.tolerance)


def run_onnxruntime(path: Path, inputs: Arrays) -> Arrays:
    """Every tensor that a graph computes, by name, on the CPU. Raises BackendError where Polygraphy is missing."""
    with _polygraphy():
        from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs, OnnxFromPath
        from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
        from polygraphy.constants import MARK_ALL

        session = SessionFromOnnx(
            BytesFromOnnx(ModifyOutputs(OnnxFromPath(str(path)), outputs=MARK_ALL)), providers=["cpu"]
        )
        with OnnxrtRunner(session) as runner:
            return dict(runner.infer(dict(inputs)))


def run_plan(library: Library, plan: Any, inputs: Arrays) -> Arrays:
    """Every tensor of a plan that was built to keep its tensors, by name, on the GPU."""
    with _polygraphy(library):
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        with TrtRunner(EngineFromBytes(bytes(plan))) as runner:
            return dict(runner.infer(dict(inputs)))


def first_difference(path: Path, found: Arrays, expected: Arrays, tolerance: float) -> LayerDifference | None:
    """The first float tensor of both, in the order of the graph's nodes, that differs by more than `tolerance`."""
    compared = 0
    for tensor, node in _tensors(path):
        if tensor not in found or tensor not in expected or expected[tensor].dtype.kind != "f":
            continue
        compared += 1
        error = _error(found[tensor], expected[tensor])
        if not error <= tolerance:
            return LayerDifference(tensor, node, error, compared)
    return None


def _error(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    if not np.isfinite(found).all() and np.isfinite(expected).all():
        return float("inf")
    wide = expected.astype(np.float64)
    difference = float(np.linalg.norm(found.astype(np.float64) - wide))
    return difference / max(float(np.linalg.norm(wide)), 1e-12)


def _tensors(path: Path) -> Sequence[tuple[str, str]]:
    """(tensor, node that makes it) of a graph, in its order."""
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    return [(name, node.name or node.op_type) for node in nodes for name in node.output if name]


@contextmanager
def _polygraphy(library: Library | None = None) -> Iterator[None]:
    """Let Polygraphy be imported, for the TensorRT of `library`."""
    if not has_polygraphy():
        raise BackendError('polygraphy is not installed. Install it with "pip install polygraphy".')
    from polygraphy import config
    from polygraphy.logger import G_LOGGER

    if library is not None and library.flavour.ahead:  # which Polygraphy imports under another name
        config.USE_TENSORRT_RTX = True
        sys.modules.setdefault("tensorrt_rtx", library.trt)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield
