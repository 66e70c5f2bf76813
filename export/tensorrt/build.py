"""A bundle's graphs to TensorRT plans: for this machine, checked, or ahead for others.

Knows: what is missing of a bundle's plans, that a plan for this machine is kept once it has passed its check, and what
can be built for GPUs that are not here. Does not know how one plan is built (`export.tensorrt.builder`), which shapes
are wanted (`export.tensorrt.profiles`), how a plan is compared with PyTorch (`export.tensorrt.check_plans`), or what a
plan file looks like (`engines.backends.tensorrt.plans`).
"""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engines.backends.tensorrt.backend import TensorRtBackend, check_bundle, library_for, machine_of
from engines.backends.tensorrt.flavours import RTX, load_library, parse_targets, target_name, version_of
from engines.backends.tensorrt.gpu import Gpu, find_gpu
from engines.backends.tensorrt.plans import (
    SUFFIX,
    Bounds,
    Machine,
    Plan,
    PlanStore,
    plan_key,
    plans_folder,
    remove_unused,
)
from engines.bundle.bundle import open_bundle
from engines.bundle.graphs import GRAPH_NAMES
from engines.common.events import Event, EventKind, Report, silent
from engines.common.files import sync_folder
from engines.common.verbs import verb
from engines.errors import BackendError, DengineError, ExportError
from export.tensorrt.builder import PlanBuilder
from export.tensorrt.check_plans import PlanCheck
from export.tensorrt.operators import check_operators
from export.tensorrt.profiles import Profiles, wanted_profiles
from export.tensorrt.progress import run_cancellable
from export.tensorrt.settings import BuildPlansSettings, check_workspace
from export.to_onnx import OPSETS

_STALE_SECONDS = 2 * 24 * 3600.0  # an unfinished build's folder of this age belongs to a process that was killed


@dataclass(frozen=True)
class PlanSummary:
    """One graph's plans."""

    graph: str
    seconds: float  # of the build; 0 where all plans were found
    bytes: int  # of the plan files that serve the shapes asked for
    error: float | None  # largest relative error against PyTorch; None where plans were built ahead, and not run
    target: str = ""  # GPU architecture that it was built ahead for, such as sm89; empty for this machine's


@dataclass(frozen=True)
class BuildPlansSummary:
    """What `build_plans` made or found.

    >>> from pathlib import Path
    >>> BuildPlansSummary((), 40, 1, "TensorRT 11.4.0", "Some GPU", Path("plans")).boxes_missing
    1
    """

    plans: tuple[PlanSummary, ...]
    boxes: int  # of PyTorch's labels and TensorRT's, on the same images; 0 where plans were built ahead
    boxes_missing: int  # those without a counterpart on the other side
    tensorrt: str  # flavour and version
    gpu: str  # name; for plans that were built ahead, the architectures
    folder: Path  # where the plans are


class PlanError(ExportError):
    """Plans that differ from PyTorch; `graphs` are theirs."""

    def __init__(self, message: str, graphs: Sequence[str]) -> None:
        super().__init__(message)
        self.graphs = tuple(graphs)


def check_ready(opset: int | None = None, workspace: float | None = None, targets: Sequence[str] | None = None) -> None:
    """Raise BackendError unless plans can be built here, and of graphs at `opset` where one is named.

    Raises UsageError for a workspace or targets that are none. Made before an export, which takes long.
    """
    check_workspace(workspace)
    if targets is not None:
        parse_targets(targets)
    library = load_library(RTX) if targets is not None else library_for(find_gpu())
    needed = library.flavour.whole_attention
    if opset == OPSETS["default"] and version_of(library.version) < needed:
        raise BackendError(
            f"{library} does not read Attention at opset {opset}; {'.'.join(map(str, needed))} does. "
            f"Export with `opset=18`, or upgrade it.",
            field="opset",
        )


@verb
def build_plans(
    settings: BuildPlansSettings, *, report: Report | None = None, stop: Callable[[], bool] = lambda: False
) -> BuildPlansSummary:
    """Build what is missing of a bundle's plans, and check all of them against PyTorch, unless they have targets.

    A plan is kept once it has passed its check, and not before. Plans for targets are kept without having been run: the
    same without `targets`, on a machine with such a GPU and the same plans' folder, checks them. `report` is told how
    far the work is, from several threads; once `stop` returns True, the build is cancelled.
    Raises BackendError without GPU or TensorRT or for a bundle in float32, UsageError, ExportError; KeyboardInterrupt
    when stopped, with nothing half finished left.

    >>> build_plans(BuildPlansSettings("bundles/mine-fp16")).plans[0].graph  # doctest: +SKIP
    'text_encoder'
    """
    if settings.targets is not None:
        return build_ahead(settings, settings.targets, report=report, stop=stop)
    return build_here(settings, report=report, stop=stop)


def build_here(
    settings: BuildPlansSettings,
    *,
    report: Report | None = None,
    stop: Callable[[], bool] = lambda: False,
    gpu: Gpu | None = None,
) -> BuildPlansSummary:
    """`build_plans` for a GPU that is here, None for the first one."""
    bundle = open_bundle(settings.bundle)
    check_bundle(bundle)
    gpu = gpu or find_gpu()
    library = library_for(gpu)
    check_operators(bundle.folder, library.listed_version)
    wanted = wanted_profiles(bundle, settings.batches, settings.sizes)
    told = report or silent
    builder = PlanBuilder(library, bundle, machine_of(library, gpu), settings.workspace, told, gpu.free_memory)
    with _work_folder() as (work, folder):
        return _Build(builder, gpu, stop, work, folder).run(wanted)


def build_ahead(
    settings: BuildPlansSettings,
    targets: Sequence[str],
    *,
    report: Report | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> BuildPlansSummary:
    """`build_plans` for GPUs that need not be here, with TensorRT for RTX."""
    capabilities = parse_targets(targets)
    library = load_library(RTX)
    bundle = open_bundle(settings.bundle)
    check_bundle(bundle)
    check_operators(bundle.folder, library.listed_version)
    wanted = wanted_profiles(bundle, settings.batches, settings.sizes)
    told = report or silent
    summaries: list[PlanSummary] = []
    with _work_folder() as (work, folder):
        for capability in capabilities:
            machine = Machine(library.flavour.title, library.version, capability)
            build = _Build(PlanBuilder(library, bundle, machine, settings.workspace, told), None, stop, work, folder)
            plans, seconds = build.missing(wanted)
            build.keep()
            for graph in GRAPH_NAMES:
                size = sum(plan.bytes for plan in plans[graph].values())
                summaries.append(PlanSummary(graph, seconds[graph], size, None, target_name(capability)))
    return BuildPlansSummary(tuple(summaries), 0, 0, str(library), ", ".join(map(target_name, capabilities)), folder)


@contextlib.contextmanager
def _work_folder() -> Iterator[tuple[Path, Path]]:
    """A folder for plans in work, gone afterwards, and the user's own, where they go when they are done.

    Raises ExportError where they cannot be written.
    """
    folder = plans_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        work = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
        try:
            yield work, folder
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as cause:
        raise ExportError(f"{folder} cannot be written: {cause.strerror or cause}.") from cause


@dataclass
class _Build:
    """One set of plans: new ones go to `work`, and from there to `folder`."""

    builder: PlanBuilder
    gpu: Gpu | None  # None where plans are built ahead
    stop: Callable[[], bool]
    work: Path
    folder: Path

    def run(self, wanted: Profiles) -> BuildPlansSummary:
        """Build what is missing, check everything, and keep what passes."""
        return self._check(wanted, *self.missing(wanted))

    def missing(self, wanted: Profiles) -> tuple[dict[str, dict[Path, Plan]], dict[str, float]]:
        """Build what is missing; all plans wanted by graph and file, and the seconds that each graph took."""
        store = PlanStore(self.work, self.folder)
        plans: dict[str, dict[Path, Plan]] = {}
        seconds = dict.fromkeys(GRAPH_NAMES, 0.0)
        for graph in GRAPH_NAMES:
            key = plan_key(self.builder.bundle, graph, self.builder.machine)
            missing = [profile for profile in wanted[graph] if store.holding(key, profile) is None]
            if missing:
                started = time.monotonic()
                store.write(key, missing, run_cancellable(partial(self._build, graph, missing), self.stop))
                seconds[graph] = time.monotonic() - started
            found = (store.holding(key, profile) for profile in wanted[graph])
            plans[graph] = {plan.path: plan for plan in found if plan is not None}
        return plans, seconds

    def _build(self, graph: str, profiles: Sequence[Bounds], cancel: threading.Event) -> Any:
        with self.gpu.active() if self.gpu else contextlib.nullcontext():
            return self.builder.build(graph, profiles, cancel)

    def _check(
        self, wanted: Profiles, plans: Mapping[str, Mapping[Path, Plan]], seconds: Mapping[str, float]
    ) -> BuildPlansSummary:
        """Compare every plan with PyTorch; keep those that pass, remove the others and raise ExportError for them."""
        total = len(GRAPH_NAMES) + 2
        self.builder.report(Event(EventKind.PROGRESS, "checking", "loading the networks in PyTorch", 0, total))
        every = {path for found in plans.values() for path in found}
        store = PlanStore(self.work, self.folder, only=every)
        assert self.gpu is not None
        bundle = self.builder.bundle
        check = PlanCheck(bundle, TensorRtBackend(bundle, precision="auto", threads=None, gpu=self.gpu, store=store))
        summaries, failures, differing = [], [], []
        for done, graph in enumerate(GRAPH_NAMES, start=1):
            if self.stop():
                raise KeyboardInterrupt
            self.builder.report(Event(EventKind.PROGRESS, "checking", f"{graph} against PyTorch", done, total))
            try:
                error = check.check(graph, wanted[graph])
            except DengineError as cause:
                for path in plans[graph]:
                    path.unlink(missing_ok=True)
                failures.append(f"{cause} The plan of {graph} was removed.")
                differing.append(graph)
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
            self.builder.report(Event(EventKind.PROGRESS, "checking", "labels against PyTorch's", total - 1, total))
            try:
                boxes, missing = check.labels(wanted["adapter"][0])
            except DengineError as cause:  # every plan has passed: they are kept, and this is said
                failures.append(f"labels: {cause}")
        self.keep()
        if failures:
            raise PlanError(" ".join(failures), differing)
        self.builder.report(Event(EventKind.PROGRESS, "checking", "done", total, total))
        return BuildPlansSummary(
            tuple(summaries), boxes, missing, str(self.builder.library), self.gpu.name, self.folder
        )

    def keep(self) -> None:
        """Move what was built, and not removed, to the user's plans."""
        new = [self.folder / path.name for path in self.work.glob(f"*{SUFFIX}")]
        for path in new:
            os.replace(self.work / path.name, path)
        sync_folder(self.folder)
        remove_unused(self.folder, new)


def _remove_stale(folder: Path) -> None:
    """Remove what builds left that were killed."""
    for path in folder.glob(".building-*"):
        if time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
