"""The last gate of an export: a few jobs through the whole loop, on every engine, side by side.

Knows: how to paint the same jobs on two engines, and how far their images and labels agree. Single graphs are
compared in `export.verify`; here their small differences go through all steps, guidance and the adapter's top-k.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.adapter.inference import SCORE_FLOOR
from engines.backends.base import cpu_has_bf16
from engines.bundle import Bundle
from engines.datasets.images import read_image
from engines.errors import ExportError
from engines.evaluation.detection import Detections, mean_average_precision
from engines.generation.journal import IMAGES, JOURNAL, Entry, boxes_above, read_entries
from engines.generation.loop import generate
from engines.generation.settings import GenerateSettings

JOBS, STEPS = 4, 8  # of the gate: enough for differences to show, short enough for a Stable Diffusion on a CPU
TRUE_SCORE = 0.3  # the reference's boxes that score this are what the other engine has to find
LEAST_PSNR = 40.0  # dB, of an engine in f32 against PyTorch in f32; 8-bit rounding alone is 59 dB
LEAST_AP50 = 0.9  # of an engine in f32


@dataclass(frozen=True)
class Agreement:
    """How far one engine's images and labels are from PyTorch's in f32, over the same jobs."""

    engine: str
    precision: str
    jobs: int
    psnr: float  # dB, mean over the images; 99 where they are equal
    ap50: float | None  # of its labels against PyTorch's; None where PyTorch found nothing


@dataclass(frozen=True, eq=False)
class _Boxes:
    """One image's boxes as annotations."""

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    iscrowd: npt.NDArray[np.bool_]


def variants(engines: Sequence[str]) -> list[tuple[str, str]]:
    """Engine and precision of every comparison: f32 each, and bf16 where the processor has it and OpenVINO runs."""
    found = [(engine, "f32") for engine in engines]
    return [*found, ("openvino", "bf16")] if "openvino" in engines and cpu_has_bf16() else found


def compare_engines(
    bundle: Bundle,
    engines: Sequence[tuple[str, str]],
    report: Callable[[str], None],
    *,
    jobs: int = JOBS,
    steps: int | None = STEPS,
    threads: int | None = None,
) -> list[Agreement]:
    """Paint the same jobs (text to image, the bundle's own settings) on PyTorch f32 and on every (engine, precision).

    `steps` None takes the bundle's own number. Images are compared as PNG, labels as they are in the journal.
    """
    with tempfile.TemporaryDirectory(prefix="dengine-") as name:
        root = Path(name)

        def paint(engine: str, precision: str) -> list[tuple[npt.NDArray[np.uint8], Entry]]:
            report(f"painting {jobs} images on {engine} in {precision}")
            out = root / f"{engine}-{precision}"
            asked = GenerateSettings(
                out=out, bundle=bundle.folder, jobs=jobs, steps=steps, keep_empty=True, score=SCORE_FLOOR,
                image_format="png", engine=engine, precision=precision, threads=threads, chunk=jobs,
            )  # fmt: skip
            generate(asked)
            entries = list(read_entries(out / JOURNAL))
            return [(read_image(out / IMAGES / str(entry.file)), entry) for entry in entries]

        reference = paint("torch", "f32")
        return [
            _agreement(engine, precision, paint(engine, precision), reference, bundle.class_names)
            for engine, precision in engines
        ]


def check_agreement(agreements: Sequence[Agreement]) -> None:
    """Raise ExportError where an engine in f32 paints or labels otherwise than PyTorch; bf16 is only reported."""
    for found in agreements:
        if found.precision != "f32":
            continue
        if found.psnr < LEAST_PSNR or (found.ap50 is not None and found.ap50 < LEAST_AP50):
            labels = "" if found.ap50 is None else f" and its labels AP50 {found.ap50:.3f}"
            raise ExportError(
                f"{found.engine} in f32 paints other images than PyTorch: PSNR {found.psnr:.1f} dB{labels}; at least "
                f"{LEAST_PSNR:.0f} dB and {LEAST_AP50} were expected."
            )


def figures(agreements: Sequence[Agreement]) -> list[dict[str, Any]]:
    """What the manifest keeps of the comparison."""
    return [asdict(found) for found in agreements]


def _agreement(
    engine: str,
    precision: str,
    found: Sequence[tuple[npt.NDArray[np.uint8], Entry]],
    reference: Sequence[tuple[npt.NDArray[np.uint8], Entry]],
    class_names: Sequence[str],
) -> Agreement:
    ratios = [_psnr(ours, theirs) for (ours, _), (theirs, _) in zip(found, reference, strict=True)]
    truth = [_annotations(entry) for _, entry in reference]
    ap50 = None
    if any(len(image.boxes) for image in truth):
        detections = [_detections(entry) for _, entry in found]
        ap50 = round(mean_average_precision(truth, detections, class_names)["AP50"], 4)
    return Agreement(engine, precision, len(found), round(float(np.mean(ratios)), 2), ap50)


def _psnr(image: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB, 99 at most."""
    error = float(np.mean((image.astype(np.float64) - other) ** 2))
    return min(99.0, float(10 * np.log10(255.0**2 / error))) if error > 0 else 99.0


def _annotations(entry: Entry) -> _Boxes:
    boxes = boxes_above(entry.boxes, TRUE_SCORE)
    corners = np.array([box[:4] for box in boxes], np.float32).reshape(-1, 4)
    return _Boxes(corners, np.array([box.label for box in boxes], np.int64), np.zeros(len(boxes), np.bool_))


def _detections(entry: Entry) -> Detections:
    corners = np.array([box[:4] for box in entry.boxes], np.float32).reshape(-1, 4)
    scores = np.array([box.score for box in entry.boxes], np.float32)
    return Detections(corners, scores, np.array([box.label for box in entry.boxes], np.int64))
