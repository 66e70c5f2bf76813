"""The baseline: the workload as a user of diffusers would do it, with its time and memory.

Knows: which batches are painted in which order, what of it the clock sees, and the files that come out. Does not know
how a batch is painted and labelled (`pipeline`), nor anything of dengine's own engines.

The clock runs over painting, labels, JPEG files and the COCO file. Loading, the first batch, and with torch.compile the
first batch of every size, come before it and are reported apart. Images are saved as a user saves them, without the
fsync and the journal that `generate` pays for.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.bundle.bundle import Bundle, default_bundle, open_bundle
from engines.datasets.writers import IMAGES, AnnotatedImage, write_coco
from engines.diffusion.libraries import first_line
from engines.errors import BackendError
from engines.measure.memory import read_memory
from engines.measure.pipeline import Baseline, Picture, batches_of
from engines.measure.workload import WORKLOAD, Workload, WorkloadJobs, jobs_of
from engines.painting.jobs import Job
from engines.painting.settings import JPEG_QUALITY
from engines.runs.dataset_files import ANNOTATIONS
from engines.runs.journal import image_name

BATCHES = (1, 2, 4, 8, 16)  # that `try_batches` tries
GPU_BATCHES = (*BATCHES, 32, 64)
FALLEN = 0.95  # share of the best rate below which no larger batch is tried

Tell = Callable[[str], None]


@dataclass(frozen=True)
class BaselineSettings:
    """One run of the baseline."""

    out: Path  # new folder for images/ and annotations.json
    workload: Workload = WORKLOAD
    bundle: Path | None = None  # None: the bundled model
    references: Path | None = None  # None: text to image
    batch: int = 1  # most images of a call
    compiled: bool = False  # the pipeline's UNet with torch.compile
    threads: int | None = None  # of PyTorch on a CPU; None: its own choice
    device: str | None = None  # cpu, cuda or cuda:N; None: a GPU where there is one

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        paths = {key: None if value[key] is None else str(value[key]) for key in ("out", "bundle", "references")}
        return value | paths | {"workload": self.workload.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "BaselineSettings":
        """Read what `to_json` wrote."""
        paths = {key: None if value[key] is None else Path(value[key]) for key in ("out", "bundle", "references")}
        return cls(**{**value, **paths, "workload": Workload.from_json(value["workload"])})


def run_baseline(settings: BaselineSettings, tell: Tell = lambda line: None) -> dict[str, Any]:
    """Do the whole workload and return its figures as a JSON object; images and annotations lie in `settings.out`.

    Seconds are `load_seconds` (bundle opened, networks in place), `warm_up_seconds` (batches painted before the
    clock), `first_image_seconds` (from the beginning of loading to the first image on disk, warm-up being what
    that costs) and `seconds` (the clock: every image, label and file). Raises UsageError, DatasetError, BundleError,
    and BackendError where torch.compile fails.
    """
    started = time.perf_counter()
    bundle, work, baseline = _opened(settings, tell)
    loaded = time.perf_counter()
    batches = batches_of(work, settings.batch)
    folder = settings.out / IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    first_image = 0.0
    for jobs in _warm_ups(batches, settings.compiled):
        tell(f"warming up at batch {len(jobs)}")
        _write(_warm(baseline, jobs, settings.compiled), folder)
        first_image = first_image or time.perf_counter() - started
    warm = time.perf_counter()
    annotated: list[AnnotatedImage] = []
    for done, jobs in enumerate(batches):
        annotated += _write(baseline.paint(jobs), folder)
        tell(f"painting {len(annotated)}/{len(work.jobs)}, batch {done + 1} of {len(batches)}")
    annotated.sort(key=lambda image: image.file_name)
    write_coco(settings.out / ANNOTATIONS, annotated, bundle.class_names, {"description": "diffusers baseline"})
    seconds = time.perf_counter() - warm
    return {
        "images": len(annotated),
        "boxes": sum(len(image.instances) for image in annotated),
        "batch": settings.batch,
        "mean_batch": len(annotated) / len(batches),
        "compiled": settings.compiled,
        "precision": "f16" if baseline.dtype == torch.float16 else "f32",
        "device": baseline.device.type,
        "threads": torch.get_num_threads(),
        "load_seconds": loaded - started,
        "warm_up_seconds": warm - loaded,
        "first_image_seconds": first_image,
        "seconds": seconds,
        "images_per_second": len(annotated) / seconds,
        "memory": read_memory().to_json(),
    }


def try_batches(
    settings: BaselineSettings, batches: Sequence[int] = BATCHES, tell: Tell = lambda line: None
) -> dict[str, float]:
    """Images/s of one full batch of each size, the whole chain to disk, by size as text; `settings.batch` is not read.

    The jobs are the workload's, in the middle of its strengths first, repeated where they are too few. A size is
    painted twice, and the faster time counts. The trial ends where a size is slower than FALLEN of the best before it,
    or does not fit into memory; BackendError where none fits.
    """
    _, work, baseline = _opened(settings, tell)
    folder = settings.out / IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    middle = sum(work.source.strength) / 2
    jobs = sorted(work.jobs, key=lambda job: abs((job.strength or middle) - middle))
    rates: dict[str, float] = {}
    for batch in batches:
        tell(f"trying batch {batch}")
        chosen = [jobs[i % len(jobs)] for i in range(batch)]
        try:
            rate = batch / min(_chain_seconds(baseline, chosen, settings.compiled, folder) for _ in range(2))
        except (torch.OutOfMemoryError, MemoryError):
            tell(f"batch {batch} does not fit into memory")
            break
        best = max(rates.values(), default=0.0)
        rates[str(batch)] = rate
        if rate < FALLEN * best:
            break
    if not rates:
        raise BackendError(f"The baseline has no memory for a batch of {batches[0]}: take a smaller size.")
    return rates


def best_batch(rates: Mapping[str, float]) -> int:
    """The size with the most images/s of `try_batches`."""
    return int(max(rates, key=lambda size: rates[size]))


def baseline_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """For `alone`: `run_baseline` of `BaselineSettings.to_json`."""
    return run_baseline(BaselineSettings.from_json(arguments), tell)


def batches_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """For `alone`: `try_batches` of `BaselineSettings.to_json` and `batches`."""
    given = dict(arguments)
    batches = given.pop("batches", BATCHES)
    return dict(try_batches(BaselineSettings.from_json(given), batches, tell))


def _opened(settings: BaselineSettings, tell: Tell) -> tuple[Bundle, WorkloadJobs, Baseline]:
    tell("loading the pipeline")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    bundle = open_bundle(settings.bundle or default_bundle())
    work = jobs_of(settings.workload, bundle, settings.references)
    return bundle, work, Baseline(bundle, work, device=settings.device, compiled=settings.compiled)


def _warm_ups(batches: Sequence[list[Job]], compiled: bool) -> Iterator[list[Job]]:
    """The batches that are painted before the clock: the first of the largest size; compiled, one of every size."""
    sizes = sorted({len(jobs) for jobs in batches}, reverse=True)
    for size in sizes if compiled else sizes[:1]:
        yield next(jobs for jobs in batches if len(jobs) == size)


def _warm(baseline: Baseline, jobs: Sequence[Job], compiled: bool) -> list[Picture]:
    """The first calls of a batch size, where torch.compile does its work, or fails."""
    try:
        return baseline.paint(jobs)
    except torch.OutOfMemoryError:
        raise
    except Exception as cause:  # a compiler's errors share no base class
        if not compiled:
            raise
        raise BackendError(f"torch.compile of the UNet fails here: {first_line(cause)}") from cause


def _chain_seconds(baseline: Baseline, jobs: Sequence[Job], compiled: bool, folder: Path) -> float:
    start = time.perf_counter()
    _write(_warm(baseline, jobs, compiled), folder)
    return time.perf_counter() - start


def _write(pictures: Sequence[Picture], folder: Path) -> list[AnnotatedImage]:
    """Save the images, as dengine does by default: JPEG of the same quality; and what annotations.json says of them."""
    found = []
    for picture in pictures:
        name = image_name(picture.job.index, "jpg")
        picture.image.save(folder / name, quality=JPEG_QUALITY, subsampling=0)
        width, height = picture.image.size
        found.append(AnnotatedImage(name, width, height, picture.instances, prompt=picture.job.prompt))
    return found
