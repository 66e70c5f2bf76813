"""The rows of `gpu.py`: models with random weights, dengine on them, and diffusers (`gpu_reference`) on the same.

Knows: how one row is painted and measured. Each runs in a process of `gpu.py`'s, which gives it its time. Nothing here
is trained: pictures are noise and boxes mean nothing, but every operation costs what the real one does.

What is timed is from prompts to pictures and boxes in the host's memory, text to image, all images of one size and as
many steps. No file is written on either side. Needs torch, diffusers and transformers, and no other runtime.

B batch, S slots, R rows of a UNet call, Z/h/w latents.
"""

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import full_size_models as models
from benchmarks.gpu_reference import GUIDANCE, MODE, Diffusers
from benchmarks.records import Record
from engines.adapter.info import read_info
from engines.backends.torch import TorchBackend
from engines.bundle.bundle import Bundle
from engines.diffusion.capture import capture
from engines.measure.flops import graph_flops
from engines.measure.memory import read_memory
from engines.measure.roofline import best_rates, matmul_rates
from engines.measure.timing import TimedBackend, Use, synchronise, time_calls
from engines.painting.jobs import make_job
from engines.painting.painter import Painter
from engines.painting.resolve import make_plan, resolve
from engines.painting.settings import GenerateSettings

# Of a row, after what warms it up: images, and batches, at least. Pictures and boxes of dengine's last batch come after
# its ticks, those of others beside later ticks, as in a long run. Fewer batches where one takes many seconds.
LEAST_IMAGES, BATCHES, FEWER, MANY = 6, 3, 2, 32


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


FULL = Size(models.SD2_BASE, 50, 25, (8, 1, 16, 4, 2, 32, 64), 8, (4096, 8192), 0.3)
TOY = Size(models.reduced(models.SD2_BASE), 4, 2, (2, 1), 2, (64,), 0.0)

Paint = Callable[[int], int]  # images to paint -> boxes found


def make_models(work: Path, size: Size) -> Record:
    """Write base and adapter to `work`; returns the operations of every graph for one image, one row of the UNet."""
    models.make_base(work / "base", size.shape)
    models.make_adapter(work / "base" / "adapter", work / "base", size.shape)
    return dict(graph_flops(unexported(work, size), size.shape.frame))


def unexported(work: Path, size: Size) -> Bundle:
    """The models in `work` as a bundle without graphs, which is all that the torch backend needs."""
    return models.bare_bundle(work / "base", size.shape, read_info(work / "base" / "adapter"))


def peak(device: torch.device, size: Size, precision: str) -> dict[str, Any]:
    """The best matmul rate of a precision here, in operations a second, and the side that had it."""
    rates = matmul_rates(device, torch.get_num_threads(), sizes=size.peak_sizes, patience=size.patience)
    best = best_rates(rates)[precision]
    return {"precision": precision, "flops_per_second": best.flops_per_second, "size": best.size}


def rows_of(stage: str, work: Path, size: Size, device: torch.device) -> Iterator[tuple[str, Callable[[], Record]]]:
    """(name, what measures it) of every row of a stage, the most telling first.

    Diffusers is the reference's way at batch 1 and at the batch of the comparison; dengine is at the reference's steps
    and that batch, then at its own steps with 1 to 64 images at once. torch.compile compiles for one batch, and so
    either has that batch alone.
    """
    bundle, equal, compiled = unexported(work, size), size.equal_batch, stage.endswith("-compiled")
    if stage.startswith("diffusers"):
        theirs = cache(lambda: Diffusers(bundle, size.steps, device, MODE if compiled else None))
        name = f"diffusers, compiled ({MODE})" if compiled else "reference's way"
        for batch in (equal,) if compiled else (1, equal):
            yield f"{name}, batch {batch}", partial(lambda batch: diffusers_row(theirs(), batch), batch)
        return
    ours = cache(lambda: TorchBackend(bundle, precision="auto", threads=None, device=device, compiled=compiled))
    name = "dengine, compiled" if compiled else "dengine"
    sweep = (equal,) if compiled else size.slots
    for slots, steps in ((equal, size.steps), *((slots, size.own_steps) for slots in sweep)):
        row = partial(lambda slots, steps: dengine_row(bundle, ours(), slots, steps), slots, steps)
        yield f"{name}, {steps} steps, batch {slots}", row


def dengine_row(bundle: Bundle, backend: TorchBackend, slots: int, steps: int) -> Record:
    """Paint with `slots` images at once, and time the UNet call of these rows alone."""
    asked = GenerateSettings(out=Path(), jobs=1, slots=slots, steps=steps, guidance=GUIDANCE, keep_empty=True)
    begin_row(backend.device)
    timed = TimedBackend(backend)
    options = resolve(asked, bundle, timed, None, None).options
    plan = make_plan(options, bundle, None)
    painter = Painter(bundle, timed, options, plan, stage=lambda text: None, tick=lambda: None)
    indices = itertools.count()

    def paint(count: int) -> int:
        jobs = (make_job(plan, options.seed, next(indices)) for _ in range(count))
        return sum(len(outcome.instances) for outcome in painter.paint(jobs, lambda: False))

    row = measured(paint, slots, backend.device)
    call = timed.calls[Use("unet", options.rows, "sampler")]
    step = capture(call.run, backend.device) if call.capturable else call.run
    seconds = time_calls(step, backend.device, warm_up=2, calls=10, limit=3.0).median
    return row | {
        "unet_seconds": seconds, "unet_rows": options.rows, "steps": options.steps, "precision": backend.precision,
    }  # fmt: skip


def diffusers_row(pipeline: Diffusers, batch: int) -> Record:
    """Paint `batch` images in each call of the pipeline, and time the UNet call of these rows alone."""
    begin_row(pipeline.device)
    row = measured(lambda count: pipeline.paint_all(count, batch), batch, pipeline.device)
    seconds = time_calls(pipeline.unet_call(2 * batch), pipeline.device, warm_up=2, calls=10, limit=3.0).median
    return row | {
        "unet_seconds": seconds, "unet_rows": 2 * batch, "steps": pipeline.steps, "precision": pipeline.precision,
    }  # fmt: skip


def measured(paint: Paint, batch: int, device: torch.device) -> Record:
    """Images/s of whole batches, after one that is not counted (with torch.compile it is the one that compiles); and
    the memory that this took.
    """
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
