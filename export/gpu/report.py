"""Every check that needs a GPU, in one run: what `dengine doctor` prints of one.

Knows: which checks there are, in which order, on which engines, and that one that fails does not stop the others: the
report is for pasting into an issue. Does not know how a check is done (`export.gpu.checks`), how plans are built
(`export.tensorrt.build`), or how a report is shown.
"""

import contextlib
import gc
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engines.backends.probe import one_line
from engines.backends.registry import open_backend
from engines.backends.tensorrt.flavours import RTX
from engines.backends.tensorrt.gpu import find_gpu
from engines.bundle.bundle import Bundle, open_bundle
from engines.common.events import Report, note, silent
from engines.doctor import Diagnosis, examine
from engines.errors import BackendError, DengineError
from export.assemble import export
from export.gpu.checks import (
    FAILED,
    OK,
    SKIPPED,
    Check,
    Speed,
    Tell,
    check_graphs,
    check_labels,
    check_ticks,
    run_reference,
)
from export.matching import MATCHINGS
from export.settings import ExportSettings
from export.tensorrt.operators import unsupported_operators
from export.to_onnx import OPSETS

if TYPE_CHECKING:
    from export.tensorrt.build import PlanSummary


@dataclass(frozen=True)
class GpuReport:
    """What `gpu_report` found."""

    diagnosis: Diagnosis
    bundle: str  # folder
    graph_dtype: str  # of its graphs
    checks: tuple[Check, ...]
    speeds: tuple[Speed, ...]
    seconds: float  # for all of it

    @property
    def failed(self) -> int:
        """Number of checks that failed."""
        return sum(check.outcome == FAILED for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self) | {"diagnosis": self.diagnosis.to_json(), "failed": self.failed}


def need_gpu() -> None:
    """Raise BackendError unless PyTorch can use a CUDA GPU here."""
    if not torch.cuda.is_available():
        raise BackendError(
            "There is no NVIDIA GPU that PyTorch can use here, and these checks need one. "
            "Run `dengine doctor` alone to see what is missing."
        )


def gpu_report(
    bundle_folder: Path,
    *,
    device: str = "cuda",
    report: Report | None = None,
) -> GpuReport:
    """Run every check on a bundle; on "cpu" (for tests) in f32, with what a CPU can do.

    `report` is told which check begins, and how far TensorRT is.

    A float32 bundle is checked as it is; TensorRT, which needs float16 graphs, gets a copy that is exported for the
    occasion. Plans are built into the user's cache.

    Raises BundleError for a folder that is no bundle. What a check itself raises is in the report.
    """
    started = time.monotonic()
    bundle = open_bundle(bundle_folder)
    diagnosis = examine()
    run = _Run(device, report or silent)
    half = "f32" if device == "cpu" else "f16"
    own = {"float32": "f32", "float16": "f16"}[bundle.manifest.graph_dtype]
    engines = (("torch", half), ("onnxruntime", own))
    run.graphs(bundle, dict.fromkeys((("torch", "f32"), *engines)))
    run.ticks(bundle, engines)
    run.labels(bundle, engines)
    tensorrt = next(probe for probe in diagnosis.runtimes if probe.name == "tensorrt")
    if tensorrt.ready:
        run.tensorrt(bundle, tensorrt.version if tensorrt.details.get("flavour") != RTX.title else None)
    else:
        run.checks.append(Check("tensorrt", SKIPPED, tensorrt.advice or "it does not work here"))
    seconds = time.monotonic() - started
    return GpuReport(
        diagnosis, str(bundle_folder), bundle.manifest.graph_dtype, tuple(run.checks), tuple(run.speeds), seconds
    )


class _Run:
    """The checks so far, on one device."""

    def __init__(self, device: str, report: Report) -> None:
        self.checks: list[Check] = []
        self.speeds: list[Speed] = []
        self._device, self._report = device, report

    def _tell(self, text: str) -> None:
        self._report(note(text))

    @contextlib.contextmanager
    def _section(self, name: str) -> Iterator[None]:
        """Whatever is raised inside becomes a failed check; the GPU's memory is given back."""
        self._tell(name)
        try:
            yield
        except Exception as cause:  # runtimes raise errors of many kinds, and the report says which
            kind = "" if isinstance(cause, DengineError) else f"{type(cause).__name__}: "
            self.checks.append(Check(name, FAILED, kind + one_line(cause)))
        finally:
            _release()

    def graphs(self, bundle: Bundle, engines: Iterable[tuple[str, str]]) -> None:
        """Each graph on each engine against PyTorch on the CPU."""
        with self._section("graphs"):
            chain = run_reference(bundle, self._tell)
            for engine, precision in engines:
                with self._section(f"{engine} {precision}"):
                    backend = open_backend(bundle, engine, precision=precision, device=self._device)
                    self.checks += check_graphs(bundle, backend, chain, self._tell)
                    del backend

    def ticks(self, bundle: Bundle, engines: Iterable[tuple[str, str]]) -> None:
        """Speed, and captured ticks against eager ones."""
        for engine, precision in engines:
            with self._section(f"{engine} {precision}: ticks"):
                backend = open_backend(bundle, engine, precision=precision, device=self._device)
                checks, speeds = check_ticks(bundle, backend, self._tell)
                self.checks += checks
                self.speeds += speeds
                del backend

    def labels(self, bundle: Bundle, engines: Sequence[tuple[str, str]]) -> None:
        """Whole jobs; PyTorch in f32 on the same device is what they are compared with, engine by engine."""
        for engine, precision in engines:
            if (engine, precision) != ("torch", "f32"):
                with self._section(f"{engine} {precision}: labels"):
                    self.checks += check_labels(bundle, [(engine, precision)], self._device, self._tell)

    def tensorrt(self, bundle: Bundle, version: str | None) -> None:
        """Plans for the default `generate`, built or found, and all of the above with them.

        `version` is that by which the published list of operators goes; None for TensorRT for RTX.
        """
        from export.tensorrt.build import PlanError, build_plans
        from export.tensorrt.layers import explain_plan
        from export.tensorrt.settings import BuildPlansSettings

        with self._section("tensorrt"), half_precision(bundle, version, self._tell) as half:
            if half is not bundle:
                self.graphs(half, [("onnxruntime", "f16")])
            try:
                made = build_plans(BuildPlansSettings(half.folder), report=self._report)
            except PlanError as cause:
                for graph in cause.graphs:
                    self._tell(f"tensorrt f16: {graph}, layer by layer")
                    self.checks.append(Check(f"tensorrt f16: {graph}", FAILED, explain_plan(half, graph, find_gpu())))
                raise
            self.checks += [_plan_check(plan) for plan in made.plans]
            agree = f"{made.boxes - made.boxes_missing} of {made.boxes} boxes agree with PyTorch's"
            missing = made.boxes_missing > MATCHINGS["float16"].missing * made.boxes
            self.checks.append(Check("tensorrt f16: labels of the same latents", FAILED if missing else OK, agree))
            self.ticks(half, [("tensorrt", "f16")])
            self.labels(half, [("tensorrt", "f16")])


def _release() -> None:
    """Give back the memory of what is no longer used, on the GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def half_precision(bundle: Bundle, tensorrt: str | None, report: Tell) -> Iterator[Bundle]:
    """The bundle itself if its graphs are in float16; else a copy in float16, exported for as long as this lasts.

    The copy's opset is the newest one whose operators this version of TensorRT has.
    """
    if bundle.manifest.graph_dtype == "float16":
        yield bundle
        return
    newest = not unsupported_operators(bundle.folder, tensorrt)
    with tempfile.TemporaryDirectory(prefix="dengine-") as name:
        settings = ExportSettings(
            bundle.folder,
            bundle.folder / "adapter",
            Path(name) / "float16",
            frame=bundle.frame,
            graph_dtype="float16",
            opset=OPSETS["default"] if newest else min(OPSETS.values()),
            generate=bundle.generate_defaults,
            engines=("onnxruntime",),
        )
        summary = export(settings, report=lambda event: report(f"a copy in float16: {event.text}"))
        yield open_bundle(summary.folder)


def _plan_check(plan: "PlanSummary") -> Check:
    """What a plan that passed its check came to; one that fails raises in the build."""
    assert plan.error is not None  # it was checked here
    made = f"built in {plan.seconds:.0f} s" if plan.seconds else "found in the cache"
    text = f"relative error {plan.error:.1e} against PyTorch, {plan.bytes / 1e6:.0f} MB, {made}"
    return Check(f"tensorrt f16: {plan.graph}", OK, text, {"error": plan.error, "build_seconds": plan.seconds})
