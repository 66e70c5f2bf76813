"""The last gate of an export: a few jobs through the whole loop, on every engine, side by side.

Knows: how to paint the same jobs on two engines, and how far their images and labels agree. Single graphs are
compared in `export.verify`; here their small differences go through all steps, guidance and the adapter's top-k.

Memory: one engine at a time, opened for its jobs and gone before the next.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.backends.base import Backend
from engines.backends.registry import open_backend
from engines.backends.rows import is_full_size
from engines.bundle.bundle import Bundle
from engines.common.devices import cpu_has_bf16, cpu_has_int8
from engines.datasets.images import read_image
from engines.errors import ExportError
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import SCORE_FLOOR
from engines.painting.references import job_source
from engines.painting.resolve import resolve
from engines.painting.settings import GenerateSettings
from engines.runs.generate import run
from engines.runs.journal import IMAGES, JOURNAL, Entry, read_entries
from export.memory import release_memory
from export.verify import check_precision

JOBS, STEPS = 4, 8  # of the gate: enough for differences to show
# With a bundle of full size a step takes a CPU many seconds: the least that has guidance, two steps and a label pass.
FULL_SIZE_JOBS, FULL_SIZE_STEPS = 1, 2
TRUE_SCORE = 0.3  # the reference's boxes that score this are what the other engine has to find
# What an engine must reach against PyTorch in f32, by its precision: PSNR in dB (8-bit rounding alone is 59 dB), and
# AP50 of its labels. Steps and guidance amplify the few 1e-4 by which half precision is off; 60 dB and 0.98 were
# measured on SD 2.1's shape, 65 dB and 1.0 on the bundled model. bf16 and int8 are only reported.
LEAST = {"f32": (40.0, 0.9), "f16": (30.0, 0.9)}


@dataclass(frozen=True)
class Agreement:
    """How far one engine's images and labels are from PyTorch's in f32, over the same jobs."""

    engine: str
    precision: str
    jobs: int
    psnr: float  # dB, mean over the images; 99 where they are equal
    ap50: float | None  # of its labels against PyTorch's; None where PyTorch found nothing


def variants(engines: Sequence[str], graph_dtype: str = "float32", *, int8: bool = False) -> list[tuple[str, str]]:
    """Engine and precision of every comparison: each in its `check_precision`, and OpenVINO in bf16 too, and in `int8`
    if asked for, where the processor has them.
    """
    found = [(engine, check_precision(engine, graph_dtype)) for engine in engines]
    narrow = [name for name, there in (("bf16", cpu_has_bf16()), ("int8", int8 and cpu_has_int8())) if there]
    return [*found, *(("openvino", name) for name in narrow)] if "openvino" in engines else found


def gate_size(bundle: Bundle) -> tuple[int, int]:
    """Jobs and steps of the gate: fewer for a bundle of full size."""
    return (FULL_SIZE_JOBS, FULL_SIZE_STEPS) if is_full_size(bundle) else (JOBS, STEPS)


def compare_engines(
    bundle: Bundle,
    engines: Sequence[tuple[str, str]],
    report: Callable[[str], None],
    *,
    jobs: int = JOBS,
    steps: int | None = STEPS,
    threads: int | None = None,
    device: str = "cpu",
) -> list[Agreement]:
    """Paint the same jobs (text to image, the bundle's own settings) on PyTorch f32 and on every (engine, precision).

    `steps` None takes the bundle's own number. `device` is where all of them run, PyTorch too. Images are compared as
    PNG, labels as they are in the journal.
    """
    with tempfile.TemporaryDirectory(prefix="dengine-") as name:
        outs = (Path(name) / str(number) for number in itertools.count())  # a folder for each painting

        def paint(engine: str, precision: str) -> list[tuple[npt.NDArray[np.uint8], Entry]]:
            report(f"painting {jobs} image{'s' * (jobs > 1)} on {engine} in {precision}")
            out = next(outs)
            maybe: Any = {"steps": steps, "threads": threads}  # None leaves them open
            asked = GenerateSettings(
                out=out, bundle=bundle.folder, jobs=jobs, chunk=jobs, keep_empty=True, score=SCORE_FLOOR,
                min_quality=0.0, image_format="png", engine=engine, precision=precision, device=device, **maybe,
            )  # fmt: skip
            _paint(bundle, asked)
            entries = list(read_entries(out / JOURNAL))
            return [(read_image(out / IMAGES / str(entry.file)), entry) for entry in entries]

        reference = paint("torch", "f32")
        return [
            _agreement(engine, precision, paint(engine, precision), reference, bundle.class_names)
            for engine, precision in engines
        ]


def check_agreement(agreements: Sequence[Agreement]) -> None:
    """Raise ExportError where an engine paints or labels otherwise than PyTorch, by LEAST."""
    for found in agreements:
        if found.precision not in LEAST:
            continue
        psnr, ap50 = LEAST[found.precision]
        if found.psnr < psnr or (found.ap50 is not None and found.ap50 < ap50):
            labels = "" if found.ap50 is None else f" and its labels AP50 {found.ap50:.3f}"
            raise ExportError(
                f"{found.engine} in {found.precision} paints other images than PyTorch in f32: PSNR {found.psnr:.1f} "
                f"dB{labels}; at least {psnr:.0f} dB and {ap50} were expected."
            )


def figures(agreements: Sequence[Agreement]) -> list[dict[str, Any]]:
    """What the manifest keeps of the comparison."""
    return [asdict(found) for found in agreements]


def _paint(bundle: Bundle, asked: GenerateSettings) -> None:
    """One `generate` of a bundle that is open already, so that its files are not hashed once an engine.

    What a check compiles is used once, and stays out of the user's cache. The engine is gone when this returns.
    """
    backend = open_backend(
        bundle, asked.engine, precision=asked.precision, threads=asked.threads, device=asked.device, keep_compiled=False
    )
    paint_jobs(bundle, backend, asked)
    del backend
    release_memory()


def paint_jobs(bundle: Bundle, backend: Backend, asked: GenerateSettings) -> None:
    """The same on a backend that is open already."""
    wanted = resolve(asked, bundle, backend, None, None)
    source = job_source(wanted.options, bundle, None)
    asked.out.mkdir(parents=True)
    run(
        asked.out, wanted, None, bundle, backend, source,
        report=lambda event: None, stop=lambda: False, started=time.monotonic(),
    )  # fmt: skip


def _agreement(
    engine: str,
    precision: str,
    found: Sequence[tuple[npt.NDArray[np.uint8], Entry]],
    reference: Sequence[tuple[npt.NDArray[np.uint8], Entry]],
    class_names: Sequence[str],
) -> Agreement:
    ratios = [psnr(ours, theirs) for (ours, _), (theirs, _) in zip(found, reference, strict=True)]
    truth = [entry.instances.take(entry.instances.scores >= TRUE_SCORE) for _, entry in reference]
    ap50 = None
    if any(len(image) for image in truth):
        detections = [entry.instances for _, entry in found]
        ap50 = round(mean_average_precision(truth, detections, class_names)["AP50"], 4)
    return Agreement(engine, precision, len(found), round(float(np.mean(ratios)), 2), ap50)


def psnr(image: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB, 99 at most."""
    error = float(np.mean((image.astype(np.float64) - other) ** 2))
    return min(99.0, float(10 * np.log10(255.0**2 / error))) if error > 0 else 99.0
