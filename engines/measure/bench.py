"""`dengine bench`: a bundle on every engine here, beside the plain diffusers pipeline and the machine's own limit.

Knows: what is measured in which order, each in a process of its own, and the figures that only follow from several of
them: speed-ups and shares of the matmul rate. An engine that fails is listed with its error, and the others go on.
Does not know how anything is measured (`run`, `baseline`, `roofline`), or how it is shown.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.bundle.bundle import Bundle, default_bundle, open_bundle
from engines.common.devices import find_device
from engines.common.events import Event, EventKind, Report, silent
from engines.common.verbs import verb
from engines.errors import DengineError
from engines.measure.alone import run_alone
from engines.measure.baseline import BATCHES, GPU_BATCHES, BaselineSettings, best_batch
from engines.measure.machine import machine, versions
from engines.measure.roofline import rate_of
from engines.measure.settings import MEASURED, BenchSettings, BenchSummary, Figures
from engines.measure.workload import Workload, jobs_of


@verb
def bench(settings: BenchSettings, *, report: Report | None = None) -> BenchSummary:
    """Measure.

    `engines`: of each engine, `run.engine_task`'s figures, `first_start` (load and
    first image of an earlier process, which found the cache of compiled models as it was), `roofline_share` and
    `speedup` over each row of the baseline, or `error`; `baseline`: `baseline.run_baseline`'s figures by `role` (batch
    1, best batch, and both with torch.compile), or `error`; `roofline`: `roofline.roofline_task`'s, by device, or
    `error` and an empty `best`.
    Raises UsageError, BundleError and DatasetError for what cannot be measured at all.

    >>> bench(BenchSettings(count=4, baseline=False), report=print).engines[0]["engine"]  # doctest: +SKIP
    'openvino'
    """
    bundle = open_bundle(settings.bundle or default_bundle())
    workload = workload_of(settings, bundle)
    places = _places(settings)
    jobs_of(workload, bundle, settings.references)
    steps = _Steps(2 * len(places) + 5 * settings.baseline + 1, report or silent)
    measured = [_engine(name, device, settings, workload, steps) for name, device in places]
    baseline = _baseline(settings, workload, steps) if settings.baseline else []
    rooflines = _rooflines(settings, workload, measured, steps)
    steps.over()
    return BenchSummary(
        machine=machine(),
        versions=versions(),
        settings=_settings_json(settings, workload, bundle),
        engines=[derived(figures, rooflines, baseline) for figures in measured],
        baseline=baseline,
        roofline=rooflines,
    )


def workload_of(settings: BenchSettings, bundle: Bundle) -> Workload:
    """The committed workload at this size. Raises UsageError for what is out of range, BackendError without the GPU."""
    workload = Workload(
        frame=settings.size or bundle.frame, steps=settings.steps, jobs=settings.count, seed=settings.seed
    )
    find_device(settings.device)
    workload.generate_settings(Path(), references=settings.references, **_options(settings))
    return workload


def derived(figures: Figures, rooflines: Mapping[str, Figures], baseline: Sequence[Figures]) -> Figures:
    """An engine's figures with those that follow from other measurements.

    `roofline_share` of a graph, and of a tick: operations of its rows, over the median of its seconds, over the matmul
    rate of its precision, or of the `roofline_precision` beside it where its own has no rate (`rate_of`). Of the whole
    run: the seconds that all its calls would take at these rates, spare rows included, over the run's. A row that a
    backend does not compute, because it repeats another, counts as computed.
    """
    if "error" in figures:
        return figures
    speeds = {row["role"]: row["images_per_second"] for row in baseline if "error" not in row}
    result = figures | {"speedup": {role: figures["images_per_second"] / speed for role, speed in speeds.items()}}
    roofline = rooflines.get(figures["device"])
    if roofline is None or "error" in roofline:
        return result
    flops, best = roofline["flops"], roofline["best"]
    graphs, ideal = {}, 0.0
    for name, entry in figures["graphs"].items():
        work = flops[entry["graph"]] * entry["batch"]
        share = _share(work / entry["seconds"]["median"], rate_of(best, entry["precision"]))
        ideal += (share["roofline_share"] or 0.0) * entry["seconds"]["median"] * entry["calls"]
        graphs[name] = entry | {"flops": work} | share
    tick = figures["tick"]
    share = _share(flops["unet"] * tick["rows"] / tick["seconds"]["median"], rate_of(best, figures["precision"]))
    whole = share | {"roofline_share": ideal / figures["seconds"] if ideal else None}
    return result | {"graphs": graphs, "tick": tick | share} | whole


def _share(speed: float, rate: Mapping[str, Any] | None) -> Figures:
    """Operations a second over a rate, and the rate's precision."""
    if rate is None:
        return {"roofline_share": None, "roofline_precision": None}
    return {"roofline_share": speed / rate["flops_per_second"], "roofline_precision": rate["precision"]}


class _Steps:
    """Counts the measurements, and says what each is doing."""

    def __init__(self, total: int, report: Report) -> None:
        self._done, self._total, self._report = -1, total, report
        self._name = ""

    def begin(self, name: str) -> Callable[[str], None]:
        """The next measurement begins; what is returned takes what it says."""
        self._done, self._name = self._done + 1, name
        self._tell(name)
        return lambda line: self._tell(f"{name}: {line}")

    def skip(self, count: int) -> None:
        """So many measurements are not made."""
        self._done += count

    def over(self) -> None:
        """All are done."""
        self._done = self._total
        self._tell("done")

    def _tell(self, text: str) -> None:
        self._report(Event(EventKind.PROGRESS, "bench", text, self._done, self._total))


def _engines(settings: BenchSettings) -> tuple[str, ...]:
    """The engines that were asked for, or those whose package is installed."""
    present = tuple(name for name in MEASURED if importlib.util.find_spec(name) is not None)
    return tuple(dict.fromkeys(settings.engines)) or present


def _places(settings: BenchSettings) -> list[tuple[str, str | None]]:
    """(engine, device) of what is measured: each engine on the device asked for, or its own first; ONNX Runtime, whose
    own first is the CPU, on a GPU too where there is one."""
    engines = _engines(settings)
    found: list[tuple[str, str | None]] = [(name, settings.device) for name in engines]
    if settings.device is None and "onnxruntime" in engines and find_device(None).type == "cuda":
        found.append(("onnxruntime", "cuda"))
    return found


def _options(settings: BenchSettings) -> dict[str, Any]:
    """The fields of GenerateSettings that are an engine's own."""
    return {name: getattr(settings, name) for name in ("precision", "compiled", "threads", "slots", "device")}


def _engine(name: str, device: str | None, settings: BenchSettings, workload: Workload, steps: _Steps) -> Figures:
    """Load and first image in one process, everything in a second one; or the error of either. `engine` has the device
    with it where that was not asked for."""
    shown = name if device == settings.device else f"{name} on {device}"
    arguments = {
        "workload": workload.to_json(),
        "bundle": _text(settings.bundle),
        "references": _text(settings.references),
        "engine": name,
        "options": _options(settings) | {"device": device},
    }
    task = "engines.measure.run:engine_task"
    tell = steps.begin(f"{shown}, first start")
    try:
        first = run_alone(task, arguments | {"first_image": True}, tell)
        tell = steps.begin(shown)
        figures = run_alone(task, arguments, tell)
    except DengineError as cause:
        return {"engine": shown, "error": str(cause)}
    return figures | {
        "engine": shown,
        "first_start": {key: first[key] for key in ("load_seconds", "first_image_seconds")},
    }


def _baseline(settings: BenchSettings, workload: Workload, steps: _Steps) -> list[Figures]:
    """The diffusers pipeline at batch 1 and at its best batch, and at both with torch.compile."""
    with tempfile.TemporaryDirectory(prefix="dengine-bench-") as folder:
        asked = BaselineSettings(
            out=Path(folder),
            workload=workload,
            bundle=settings.bundle,
            references=settings.references,
            threads=settings.threads,
            device=settings.device,
        )
        task = "engines.measure.baseline:baseline_task"
        rows = [_row("batch 1", task, asked, steps)]
        if "error" in rows[0]:
            return rows
        tell = steps.begin("baseline, batch sizes")
        batches = GPU_BATCHES if find_device(settings.device).type == "cuda" else BATCHES
        sizes = [size for size in batches if size <= workload.jobs]
        best = asked
        try:
            rates = run_alone("engines.measure.baseline:batches_task", asked.to_json() | {"batches": sizes}, tell)
        except DengineError as cause:
            rows.append({"role": "best batch", "error": str(cause)})
        else:
            rows[0]["tried"] = rates
            best = replace(asked, batch=best_batch(rates))
        if best.batch > 1:
            rows.append(_row("best batch", task, best, steps))
        rows.append(_row("torch.compile, batch 1", task, replace(asked, compiled=True), steps))
        if best.batch > 1:
            rows.append(_row("torch.compile, best batch", task, replace(best, compiled=True), steps))
        else:
            steps.skip(2)
    return rows


def _row(role: str, task: str, asked: BaselineSettings, steps: _Steps) -> Figures:
    tell = steps.begin(f"baseline, {role}")
    try:
        return {"role": role} | run_alone(task, asked.to_json(), tell)
    except DengineError as cause:
        return {"role": role, "error": str(cause)}


def _rooflines(
    settings: BenchSettings, workload: Workload, measured: Sequence[Figures], steps: _Steps
) -> dict[str, Figures]:
    """The matmul rates of every device that an engine ran on, or the error."""
    found: dict[str, Figures] = {}
    tell = steps.begin("matmul rate")
    for device in sorted({figures["device"] for figures in measured if "error" not in figures}):
        asked = settings.device if (settings.device or "").startswith(device) else device
        arguments = {
            "bundle": _text(settings.bundle),
            "frame": workload.frame,
            "threads": settings.threads,
            "device": asked,
            "sizes": settings.matmul_sizes,
        }
        try:
            found[device] = run_alone("engines.measure.roofline:roofline_task", arguments, tell)
        except DengineError as cause:
            found[device] = {"best": {}, "error": str(cause)}
    return found


def _settings_json(settings: BenchSettings, workload: Workload, bundle: Bundle) -> Figures:
    return {
        "bundle": _text(settings.bundle) or "the bundled model",
        "bundle_hash": bundle.digest,
        "references": _text(settings.references),
        "workload": workload.to_json(),
        **_options(settings),
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())
