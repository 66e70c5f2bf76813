"""ONNX graphs to TensorRT plans, for this machine.

Knows: TensorRT's Python API for building: network, parser, profiles, timing cache, progress, errors. Does not know
which shapes are wanted (`export.tensorrt.profiles`), how a plan is compared with PyTorch
(`export.tensorrt.check_plans`), or what a plan file looks like (`engines.backends.tensorrt.plans`).

The Python API is used directly and not through Polygraphy: what is called is then what the tests check against the
vendor's bindings, name by name, and the log, from which an out-of-memory error has to be read, is our own.

Networks are strongly typed: precision is in the graph. No builder flag is set; refit and weight streaming, which make
plans slower, are cleared in case a version should begin to set them by itself.
"""

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engines.backends.base import ALWAYS_F32
from engines.backends.tensorrt.backend import (
    TensorRtBackend,
    check_bundle,
    import_tensorrt,
    last_error,
    log,
    machine_of,
    version_of,
)
from engines.backends.tensorrt.gpu import Gpu, find_gpu
from engines.backends.tensorrt.plans import SUFFIX, Bounds, Plan, PlanStore, plan_key, plans_folder, remove_unused
from engines.bundle.bundle import Bundle, open_bundle
from engines.bundle.graphs import GRAPH_NAMES, GraphSpec
from engines.common import cache
from engines.common.events import Event, EventKind, Report, silent
from engines.common.files import sync_folder
from engines.errors import BackendError, DengineError, ExportError, UsageError
from export.tensorrt.check_plans import PlanCheck
from export.tensorrt.operators import check_operators
from export.tensorrt.profiles import Batches, Frames, Profiles, wanted_profiles
from export.tensorrt.progress import Phases, make_monitor, run_cancellable
from export.to_onnx import OPSETS

GB = 10**9
_STALE_SECONDS = 2 * 24 * 3600.0  # an unfinished build's folder of this age belongs to a process that was killed
_MEMORY = re.compile(r"out ?of ?memory|insufficient (memory|workspace)|could not be allocated|bad_alloc", re.IGNORECASE)
_REQUEST = re.compile(r"(?:size (?:of|was) |memory \()(\d+)")
WHOLE_ATTENTION = (10, 14)  # the first TensorRT that reads opset 23's Attention
_SHOWN = 3  # parser errors that are named


@dataclass(frozen=True)
class PlanSummary:
    """One graph's plans."""

    graph: str
    seconds: float  # of the build; 0 where all plans were found
    bytes: int  # of the plan files that serve the shapes asked for
    error: float  # largest relative error against PyTorch


@dataclass(frozen=True)
class BuildSummary:
    """What `build_plans` made or found."""

    plans: tuple[PlanSummary, ...]
    boxes: int  # of PyTorch's labels and TensorRT's, on the same images
    boxes_missing: int  # those without a counterpart on the other side
    tensorrt: str  # version
    gpu: str  # name
    folder: Path  # where the plans are


def check_ready(opset: int | None = None, workspace: float | None = None) -> None:
    """Raise BackendError unless this machine can build plans, and of graphs at `opset` where one is named.

    Raises UsageError for a workspace that is none. Made before an export, which takes long.
    """
    _check_workspace(workspace)
    find_gpu()
    version = str(import_tensorrt().__version__)
    if opset == OPSETS["default"] and version_of(version) < WHOLE_ATTENTION:
        raise BackendError(
            f"TensorRT {version} does not read Attention at opset {opset}; {'.'.join(map(str, WHOLE_ATTENTION))} does. "
            f"Export with `opset=18`, or upgrade TensorRT.",
            field="opset",
        )


def build_plans(
    bundle_folder: Path,
    *,
    batches: Batches | None = None,
    sizes: Frames | None = None,
    workspace: float | None = None,
    report: Report | None = None,
    stop: Callable[[], bool] = lambda: False,
    gpu: Gpu | None = None,
) -> BuildSummary:
    """Build what is missing of a bundle's plans, and check all of them against PyTorch.

    Args:
        bundle_folder: a bundle whose graphs are in float16.
        batches, sizes: see `plan_profiles.wanted_profiles`.
        workspace: most GPU memory that a kernel may use for intermediate results, in GB; None for no limit.
        report: told how far the work is, from several threads.
        stop: once True, the build is cancelled.
        gpu: None for the first one.

    A plan is kept once it has passed its check, and not before. Raises BackendError without GPU or TensorRT or for a
    bundle in float32, UsageError, ExportError; KeyboardInterrupt when stopped, with nothing half finished left.
    """
    _check_workspace(workspace)
    bundle = open_bundle(bundle_folder)
    check_bundle(bundle)
    gpu = gpu or find_gpu()
    trt = import_tensorrt()
    check_operators(bundle.folder, str(trt.__version__))
    wanted = wanted_profiles(bundle, batches, sizes)
    folder = plans_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        work = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
        try:
            return _Builder(trt, bundle, gpu, workspace, report or silent, stop, work, folder).build(wanted)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as cause:
        raise ExportError(f"{folder} cannot be written: {cause.strerror or cause}.") from cause


@dataclass
class _Builder:
    """One `build_plans`: new plans go to `work`, and from there to `folder` when they have passed."""

    trt: Any
    bundle: Bundle
    gpu: Gpu
    workspace: float | None
    report: Report
    stop: Callable[[], bool]
    work: Path
    folder: Path

    def build(self, wanted: Profiles) -> BuildSummary:
        """Build what is missing, check everything, and keep what passes."""
        machine = machine_of(self.gpu)
        store = PlanStore(self.work, self.folder)
        plans: dict[str, dict[Path, Plan]] = {}
        seconds = dict.fromkeys(GRAPH_NAMES, 0.0)
        for graph in GRAPH_NAMES:
            key = plan_key(self.bundle, graph, machine)
            missing = [profile for profile in wanted[graph] if store.holding(key, profile) is None]
            if missing:
                started = time.monotonic()
                store.write(key, missing, run_cancellable(partial(self._build_plan, graph, missing), self.stop))
                seconds[graph] = time.monotonic() - started
            found = (store.holding(key, profile) for profile in wanted[graph])
            plans[graph] = {plan.path: plan for plan in found if plan is not None}
        return self._check(plans, wanted, seconds)

    def _check(
        self, plans: Mapping[str, Mapping[Path, Plan]], wanted: Profiles, seconds: Mapping[str, float]
    ) -> BuildSummary:
        """Compare every plan with PyTorch; keep those that pass, remove the others and raise ExportError for them."""
        total = len(GRAPH_NAMES) + 2
        self.report(Event(EventKind.PROGRESS, "checking", "loading the networks in PyTorch", 0, total))
        every = {path for found in plans.values() for path in found}
        store = PlanStore(self.work, self.folder, only=every)
        tested = TensorRtBackend(self.bundle, precision="auto", threads=None, gpu=self.gpu, store=store)
        check = PlanCheck(self.bundle, tested)
        summaries, failures = [], []
        for done, graph in enumerate(GRAPH_NAMES, start=1):
            if self.stop():
                raise KeyboardInterrupt
            self.report(Event(EventKind.PROGRESS, "checking", f"{graph} against PyTorch", done, total))
            try:
                error = check.check(graph, wanted[graph])
            except DengineError as cause:
                for path in plans[graph]:
                    path.unlink(missing_ok=True)
                failures.append(f"{cause} The plan of {graph} was removed.")
                continue
            except torch.OutOfMemoryError:
                failures.append(
                    f"{graph}: the GPU's memory does not suffice to compare its plan with PyTorch. Lower `batches` "
                    f"or `sizes`, or end other programs on the GPU. The plan was not kept."
                )
                for path in plans[graph]:
                    path.unlink(missing_ok=True)
                continue
            size = sum(plan.bytes for plan in plans[graph].values())
            summaries.append(PlanSummary(graph, seconds[graph], size, error))
        boxes = missing = 0
        if not failures:
            self.report(Event(EventKind.PROGRESS, "checking", "labels against PyTorch's", total - 1, total))
            try:
                boxes, missing = check.labels(wanted["adapter"][0])
            except DengineError as cause:  # every plan has passed: they are kept, and this is said
                failures.append(f"labels: {cause}")
        self._keep()
        if failures:
            raise ExportError(" ".join(failures))
        self.report(Event(EventKind.PROGRESS, "checking", "done", total, total))
        return BuildSummary(tuple(summaries), boxes, missing, str(self.trt.__version__), self.gpu.name, self.folder)

    def _keep(self) -> None:
        """Move what was built, and not removed, to the user's plans."""
        new = [self.folder / path.name for path in self.work.glob(f"*{SUFFIX}")]
        for path in new:
            os.replace(self.work / path.name, path)
        sync_folder(self.folder)
        remove_unused(self.folder, new)

    def _build_plan(self, graph: str, profiles: Sequence[Bounds], cancel: threading.Event) -> Any:
        """The serialised plan of a graph; whatever it is when cancelled."""
        with self.gpu.active():
            return self._build_active(graph, profiles, cancel)

    def _build_active(self, graph: str, profiles: Sequence[Bounds], cancel: threading.Event) -> Any:
        trt = self.trt
        spec = self.bundle.specs[graph]
        log().messages.clear()
        builder = trt.Builder(log())
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = self._parse(graph, network)
        config = builder.create_builder_config()
        for flag in (trt.BuilderFlag.REFIT, trt.BuilderFlag.WEIGHT_STREAMING):
            config.clear_flag(flag)
        if graph in ALWAYS_F32:  # what these keep in float32 is not for TF32's 10 bits
            config.clear_flag(trt.BuilderFlag.TF32)
        if self.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, round(self.workspace * GB))
        for profile in profiles:
            _add_profile(builder, config, spec, profile)
        timing = self._load_timings(config)
        monitor = make_monitor(trt, Phases(graph, self.report), cancel)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        del parser  # which held the weights
        if monitor.error is not None:
            raise monitor.error
        if cancel.is_set():
            return None
        if plan is None:
            raise self._build_error(graph)
        self._save_timings(timing)
        return plan

    def _parse(self, graph: str, network: Any) -> Any:
        """Read the graph, its weights from where its file says. The parser holds them: it must outlive the build."""
        path = self.bundle.graph_path(graph)
        parser = self.trt.OnnxParser(network, log())
        if parser.parse_from_file(str(path)):
            return parser
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        named = [
            f"node {error.node_name()} ({error.node_operator()}): {' '.join(error.desc().split())}" for error in errors
        ]
        more = f", and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        raise ExportError(
            f"{path}: TensorRT {self.trt.__version__} does not read it: "
            f"{'; '.join(named[:_SHOWN]) or last_error()}{more}. "
            f'A newer TensorRT may ("pip install --upgrade tensorrt"), or a bundle of an older `opset`.'
        )

    def _timings_key(self) -> str:
        machine = machine_of(self.gpu)
        return cache.cache_key({"timings of": "tensorrt", "machine": str(machine), "capability": machine.capability})

    def _load_timings(self, config: Any) -> Any:
        """Let the build use, and add to, what earlier builds measured."""
        timing = config.create_timing_cache(cache.load(self._timings_key()) or b"")
        if timing is None or not config.set_timing_cache(timing, False):  # of another device: begin anew
            timing = config.create_timing_cache(b"")
            config.set_timing_cache(timing, False)
        return timing

    def _save_timings(self, timing: Any) -> None:
        cache.store(self._timings_key(), bytes(timing.serialize()))

    def _build_error(self, graph: str) -> ExportError:
        """Why a build gave no plan, as far as TensorRT's log says."""
        warning = self.trt.ILogger.WARNING  # an ordinary build warns of tactics that it has no memory for
        errors = [text for severity, text in log().messages if severity != warning]
        about_memory = [text for _, text in log().messages if _MEMORY.search(text)]
        if not any(_MEMORY.search(text) for text in errors):
            return ExportError(f"{graph}: TensorRT built no plan: {last_error()}.")
        asked = max((int(size) for text in about_memory for size in _REQUEST.findall(text)), default=0)
        amount = f"asked for {asked / GB:.1f} GB" if asked else "does not say how much it asked for"
        limit = "unlimited" if self.workspace is None else f"{self.workspace:g} GB"
        return ExportError(
            f"{graph}: the GPU's memory does not suffice to build its plan: TensorRT {amount}, and "
            f"{self.gpu.free_memory() / GB:.1f} GB are free ({last_error()}). Lower `workspace` (now {limit}), "
            f"`batches` or `sizes`, or end other programs on the GPU.",
            field="workspace",
        )


def _add_profile(builder: Any, config: Any, spec: GraphSpec, profile: Bounds) -> None:
    """Tell TensorRT the smallest, usual and largest shape of every input."""
    shapes = [spec.input_shapes({size: bounds[end] for size, bounds in profile.items()}) for end in (0, 1, 2)]
    optimization = builder.create_optimization_profile()
    for tensor in spec.inputs:
        optimization.set_shape(tensor.name, *(each[tensor.name] for each in shapes))
    if config.add_optimization_profile(optimization) < 0:
        raise ExportError(f"{spec.name}: TensorRT does not take the shapes {shapes}: {last_error()}.")


def _check_workspace(workspace: float | None) -> None:
    if workspace is not None and not workspace > 0:
        raise UsageError(f"`workspace` is {workspace:g}; a number of GB above 0 was expected.", field="workspace")


def _remove_stale(folder: Path) -> None:
    """Remove what builds left that were killed."""
    for path in folder.glob(".building-*"):
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
