"""The rows of `gpu.py`: models with random weights, dengine on them, and diffusers on the same.

Knows: how one row is painted and measured, in a process of `gpu.py`'s. Nothing is trained: pictures are noise, but each
operation costs what the real one does. What is timed is from prompts to pictures and boxes in the host's memory; no
file is written. Diffusers is `engines.measure.pipeline`: its label is a row of its own, a hundredth of its UNet's work,
where DiffusionEngine reads it off the last guided call.

S slots, R rows of a UNet call, h/w latents.
"""

import gc
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import full_size_models as models
from benchmarks.records import Record
from engines.adapter.info import read_info
from engines.backends.torch import TorchBackend
from engines.bundle.bundle import Bundle
from engines.diffusion.capture import Recorded
from engines.measure.flops import graph_flops
from engines.measure.memory import read_memory
from engines.measure.pipeline import Baseline
from engines.measure.roofline import best_rates, matmul_rates
from engines.measure.timing import TimedBackend, Use, synchronise, time_calls
from engines.measure.workload import Workload, WorkloadJobs, jobs_of
from engines.painting.jobs import make_job
from engines.painting.painter import Painter
from engines.painting.references import job_source
from engines.painting.resolve import resolve
from engines.painting.settings import GenerateSettings

# Of a row, after what warms it up: images, and batches, at least; fewer batches where one takes many seconds.
LEAST_IMAGES, BATCHES, FEWER, MANY = 6, 3, 2, 32
GUIDANCE = 7.5  # DiffusionEngine's
AS_THEIRS: Mapping[str, Any] = {"sampler": "ddim", "guidance_interval": (0.0, 1.0)}  # what diffusers' rows do
MODE = "reduce-overhead"  # of diffusers' torch.compile; it has CUDA graphs of its own


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    shape: models.Shape
    steps: int  # of the schedule, the reference's
    own_steps: int  # dengine's default
    slots: tuple[int, ...]  # of dengine's rows at its default, the most telling first
    equal_batch: int  # images at once, where dengine and diffusers are compared
    peak_sizes: tuple[int, ...]
    patience: float  # seconds that products of one size are repeated for
    tick_rows: tuple[int, ...]  # of the UNet calls that are timed alone
    small_slots: tuple[int, ...]  # of runs with the bundled model
    small_jobs: int  # their images


FULL = Size(models.SD2_BASE, 50, 12, (8, 1, 16, 4, 2, 32, 64), 8, (4096, 8192), 0.3, (16, 8, 32, 64), (8, 32, 128), 512)
TOY = Size(models.reduced(models.SD2_BASE), 4, 2, (2, 1), 2, (64,), 0.0, (2,), (1,), 1)

_PARTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler",
          "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}  # fmt: skip

Paint = Callable[[int], int]  # images to paint -> boxes found


def make_models(work: Path, size: Size) -> Record:
    """Write base and adapter to `work`; returns the operations of every graph for one image, one row of the UNet."""
    models.make_base(work / "base", size.shape)
    models.make_adapter(work / "base" / "adapter", work / "base", size.shape)
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None]}
    index |= {part: ["transformers" if "CLIP" in kind else "diffusers", kind] for part, kind in _PARTS.items()}
    (work / "base" / "model_index.json").write_text(json.dumps(index), "utf-8")  # what diffusers loads a folder by
    return dict(graph_flops(unexported(work, size), size.shape.frame))


def unexported(work: Path, size: Size) -> Bundle:
    """The models in `work` as a bundle without graphs, which is all that the torch backend needs."""
    return models.bare_bundle(work / "base", size.shape, read_info(work / "base" / "adapter"))


def peak(device: torch.device, size: Size, precision: str) -> dict[str, Any]:
    """The best matmul rate of a precision here, in operations a second, and the side that had it."""
    how: Any = {"sizes": size.peak_sizes, "patience": size.patience}
    best = best_rates(matmul_rates(device, torch.get_num_threads(), **how))[precision]
    return {"precision": precision, "flops_per_second": best.flops_per_second, "size": best.size}


def rows_of(stage: str, work: Path, size: Size, device: torch.device) -> Iterator[tuple[str, Callable[[], Record]]]:
    """(name, what measures it) of every row of a stage, the most telling first.

    Diffusers at batch 1 and at the batch of the comparison; dengine at the reference's steps and that batch, then at
    its own steps with 1 to 64 images at once. What is compiled has that batch alone.
    """
    bundle, equal, compiled = unexported(work, size), size.equal_batch, stage.endswith("-compiled")
    if stage.startswith("diffusers"):
        work_of = Workload(size.shape.frame, size.steps, guidance=GUIDANCE, jobs=counted_images(equal))
        jobs, mode = jobs_of(work_of, bundle, None), MODE if compiled else None
        theirs = cache(lambda: Baseline(bundle, jobs, device=str(device), compiled=compiled, mode=mode))
        name = f"diffusers, compiled ({MODE})" if compiled else "reference's way"
        for batch in (equal,) if compiled else (1, equal):
            yield f"{name}, batch {batch}", partial(diffusers_row, theirs, jobs, batch)
        return
    ours = cache(lambda: TorchBackend(bundle, precision="auto", threads=None, device=device, compiled=compiled))
    name = "dengine, compiled" if compiled else "dengine"
    own = ((slots, {"steps": size.own_steps}) for slots in ((equal,) if compiled else size.slots))
    for slots, how in ((equal, {**AS_THEIRS, "steps": size.steps}), *own):
        yield f"{name}, {how['steps']} steps, batch {slots}", partial(dengine_row, bundle, ours, slots, how)


def dengine_row(bundle: Bundle, opened: Callable[[], TorchBackend], slots: int, how: Mapping[str, Any]) -> Record:
    """Paint with `slots` images at once, and time the UNet call of these rows alone; `how`: settings."""
    asked = GenerateSettings(out=Path(), jobs=1, slots=slots, guidance=GUIDANCE, keep_empty=True, **how)
    backend = opened()
    begin_row(backend.device)
    timed = TimedBackend(backend)
    options = resolve(asked, bundle, timed, None, None).options
    source = job_source(options, bundle, None)
    quiet: Any = {"stage": lambda text: None, "tick": lambda: None, "record": timed.record}
    painter = Painter(bundle, timed, options, source, **quiet)
    indices = itertools.count()

    def paint(count: int) -> int:
        jobs = (make_job(source, options.seed, next(indices)) for _ in range(count))
        return sum(len(outcome.instances) for outcome in painter.paint(jobs, lambda: False))

    row = measured(paint, slots, backend.device) | {"steps": options.steps, "precision": backend.precision}
    call = timed.calls[Use("unet", options.rows, "sampler")]
    return row | unet_seconds(Recorded(call.run, [call], backend.device), options.rows, backend.device)


def diffusers_row(opened: Callable[[], Baseline], work: WorkloadJobs, batch: int) -> Record:
    """Paint `batch` images in each call of the pipeline, and time the UNet call of these rows alone."""
    baseline = opened()
    begin_row(baseline.device)

    def paint(count: int) -> int:
        batches = (work.jobs[first : first + batch] for first in range(0, count, batch))
        return sum(len(picture.instances) for jobs in batches for picture in baseline.paint(jobs))

    precision = "f16" if baseline.dtype == torch.float16 else "f32"
    row = measured(paint, batch, baseline.device) | {"steps": work.options["steps"], "precision": precision}
    return row | unet_seconds(baseline.unet_call(2 * batch), 2 * batch, baseline.device)


def unet_seconds(call: Callable[[], None], rows: int, device: torch.device) -> Record:
    """Of one call, as it is made in the row."""
    return {"unet_rows": rows, "unet_seconds": time_calls(call, device, warm_up=2, calls=10, limit=3.0).median}


def measured(paint: Paint, batch: int, device: torch.device) -> Record:
    """Images/s of whole batches, after one that is not counted (torch.compile's); and the memory that this took."""
    begun = time.perf_counter()
    paint(batch)
    synchronise(device)
    warm_up = time.perf_counter() - begun
    images = counted_images(batch)
    begun = time.perf_counter()
    boxes = paint(images)
    synchronise(device)
    seconds = time.perf_counter() - begun
    found = {"batch": batch, "images": images, "seconds": seconds, "images_per_second": images / seconds}
    return found | {"warm_up_seconds": warm_up, "boxes": boxes, "memory": read_memory().to_json()}


def counted_images(batch: int) -> int:
    """Images that a row's rate is measured with, on either side."""
    return batch * max(FEWER if batch >= MANY else BATCHES, math.ceil(LEAST_IMAGES / batch))


def begin_row(device: torch.device) -> None:
    """Give back what earlier rows held on the GPU, and forget how much it was."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
