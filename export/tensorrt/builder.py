"""One graph to one TensorRT plan.

Knows: TensorRT's Python API for building: network, parser, profiles, timing cache, progress, errors; and how a plan is
built for a compute capability that this machine does not have. Does not know which shapes are wanted
(`export.tensorrt.profiles`), or what becomes of a plan (`export.tensorrt.build`).

The Python API is used directly and not through Polygraphy: the log, from which an out-of-memory error has to be read,
is then our own, and so are progress and cancelling. (`export.tensorrt.layers` is for what Polygraphy does better.)

Networks are strongly typed: precision is in the graph. No builder flag is set; refit and weight streaming, which make
plans slower, are cleared in case a version should begin to set them by itself.
"""

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.backends.base import ALWAYS_F32
from engines.backends.tensorrt.flavours import Library, target_name, version_of
from engines.backends.tensorrt.plans import Bounds, Machine
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GraphSpec
from engines.common import cache
from engines.common.events import Report
from engines.errors import ExportError
from export.tensorrt.progress import Phases, make_monitor

GB = 10**9
DECOMPOSES = (10, 14)  # the first TensorRT whose Attention layers may be taken apart; TensorRT for RTX always may
_MEMORY = re.compile(r"out ?of ?memory|insufficient (memory|workspace)|could not be allocated|bad_alloc", re.IGNORECASE)
_WORKSPACE = re.compile(r"workspace (?:limit|size)|insufficient workspace", re.IGNORECASE)
_REQUEST = re.compile(r"(?:size (?:of|was) |memory \()(\d+)")
_SHOWN = 3  # parser errors that are named


@dataclass(frozen=True)
class PlanBuilder:
    """Builds plans of a bundle's graphs for one machine, or for one compute capability."""

    library: Library
    bundle: Bundle
    machine: Machine
    workspace: float | None  # most memory that a kernel may use for intermediate results, in GB; None for no limit
    report: Report  # told how far a build is, from several threads
    free_memory: Callable[[], int] | None = None  # of the GPU, in bytes; None where plans are built ahead

    def build(
        self, graph: str, profiles: Sequence[Bounds], cancel: threading.Event, *, keep_tensors: bool = False
    ) -> Any:
        """The serialised plan of a graph; whatever it is when cancelled. Raises ExportError.

        With `keep_tensors`, what every layer computes can be looked at when the plan runs, which then fuses less.
        """
        trt, log = self.library.trt, self.library.log
        log.messages.clear()
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = self._parse(graph, network)
        if self.library.flavour.ahead or version_of(self.library.version) >= DECOMPOSES:
            allow_decomposing(trt, network)
        if keep_tensors:
            _keep_tensors(network)
        config = self._config(builder, graph)
        for profile in profiles:
            _add_profile(self.library, builder, config, self.bundle.specs[graph], profile)
        timing = self._load_timings(config)
        monitor = make_monitor(trt, Phases(self._stage(graph), self.report), cancel)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        del parser  # which held the weights
        if monitor.error is not None:
            raise monitor.error
        if cancel.is_set():
            return None
        if plan is None:
            reason = self._why_none(graph)
            raise ExportError(reason, field="workspace" if "`workspace`" in reason else None)
        if timing is not None:
            cache.store(self._timings_key(), bytes(timing.serialize()))
        return plan

    def _stage(self, graph: str) -> str:
        return f"{graph} ({target_name(self.machine.capability)})" if self.library.flavour.ahead else graph

    def _config(self, builder: Any, graph: str) -> Any:
        trt = self.library.trt
        config = builder.create_builder_config()
        for flag in (trt.BuilderFlag.REFIT, trt.BuilderFlag.WEIGHT_STREAMING):
            config.clear_flag(flag)
        if graph in ALWAYS_F32:  # what these keep in float32 is not for TF32's 10 bits
            config.clear_flag(trt.BuilderFlag.TF32)
        if self.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, round(self.workspace * GB))
        if self.library.flavour.ahead:
            config.num_compute_capabilities = 1
            target = getattr(trt.ComputeCapability, target_name(self.machine.capability).upper())
            config.set_compute_capability(target, 0)
        return config

    def _parse(self, graph: str, network: Any) -> Any:
        """Read the graph, its weights from where its file says. The parser holds them: it must outlive the build."""
        path = self.bundle.graph_path(graph)
        parser = self.library.trt.OnnxParser(network, self.library.log)
        if parser.parse_from_file(str(path)):
            return parser
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        named = [
            f"node {error.node_name()} ({error.node_operator()}): {' '.join(error.desc().split())}" for error in errors
        ]
        raise ExportError(self._refusal(path, named))

    def _refusal(self, path: Path, named: Sequence[str]) -> str:
        more = f", and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        return (
            f"{path}: {self.library} does not read it: "
            f"{'; '.join(named[:_SHOWN]) or self.library.last_error()}{more}. A newer one may "
            f'("pip install --upgrade dengine[{self.library.flavour.extra}]"), or a bundle of an older `opset`.'
        )

    def _timings_key(self) -> str:
        capability = self.machine.capability
        return cache.cache_key({"timings of": "tensorrt", "machine": str(self.machine), "capability": capability})

    def _load_timings(self, config: Any) -> Any:
        """Let the build use, and add to, what earlier builds measured; None for a flavour that measures nothing."""
        if not self.library.flavour.keeps_timings:
            return None
        timing = config.create_timing_cache(cache.load(self._timings_key()) or b"")
        if timing is None or not config.set_timing_cache(timing, False):  # of another device: begin anew
            timing = config.create_timing_cache(b"")
            config.set_timing_cache(timing, False)
        return timing

    def _why_none(self, graph: str) -> str:
        warning = self.library.trt.ILogger.WARNING
        said = [(severity != warning, text) for severity, text in self.library.log.messages]
        free = None if self.free_memory is None else self.free_memory()
        return why_no_plan(graph, said, self.workspace, free)


def why_no_plan(graph: str, said: Sequence[tuple[bool, str]], workspace: float | None, free: int | None) -> str:
    """Why a build gave no plan, as far as TensorRT's log says.

    Args:
        said: whether it is an error, and the text, of what was logged. An ordinary build warns of tactics that it has
            no memory for.
        workspace: its limit, in GB.
        free: memory of the GPU, in bytes; None where it played no part.
    """
    errors = [text for is_error, text in said if is_error]
    last = errors[-1].rstrip(".") if errors else "TensorRT gives no reason"
    if workspace is not None and any(_WORKSPACE.search(text) for text in errors):
        return (
            f"{graph}: a `workspace` of {workspace:g} GB is too little for its plan: {last}. Raise it, leave it out, "
            f"or lower `batches` or `sizes`."
        )
    if not any(_MEMORY.search(text) for text in errors):
        return f"{graph}: TensorRT built no plan: {last}."
    asked = max((int(size) for _, text in said if _MEMORY.search(text) for size in _REQUEST.findall(text)), default=0)
    amount = f"asked for {asked / GB:.1f} GB" if asked else "does not say how much it asked for"
    left = "" if free is None else f", and {free / GB:.1f} GB are free"
    limit = "unlimited" if workspace is None else f"{workspace:g} GB"
    return (
        f"{graph}: the memory does not suffice to build its plan: TensorRT {amount}{left} ({last}). Lower `workspace` "
        f"(now {limit}), `batches` or `sizes`, or end other programs on the GPU."
    )


def allow_decomposing(trt: Any, network: Any) -> None:
    """Let every Attention layer be computed by several kernels where TensorRT has none that does all of it.

    Without it, Attention with a mask in float32 does not build (NVIDIA/TensorRT#4705); where there is a kernel for the
    whole it is still taken.
    """
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings' own way to a layer's own attributes
            layer.attention.decomposable = True


def _keep_tensors(network: Any) -> None:
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for place in range(layer.num_outputs):
            tensor = layer.get_output(place)
            if tensor is not None and not tensor.is_shape_tensor:
                network.mark_debug(tensor)


def _add_profile(library: Library, builder: Any, config: Any, spec: GraphSpec, profile: Bounds) -> None:
    """Tell TensorRT the smallest, usual and largest shape of every input."""
    shapes = [spec.input_shapes({size: bounds[end] for size, bounds in profile.items()}) for end in (0, 1, 2)]
    optimization = builder.create_optimization_profile()
    for tensor in spec.inputs:
        optimization.set_shape(tensor.name, *(each[tensor.name] for each in shapes))
    if config.add_optimization_profile(optimization) < 0:
        raise ExportError(f"{spec.name}: TensorRT does not take the shapes {shapes}: {library.last_error()}.")
