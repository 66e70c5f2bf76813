"""The rows of `gpu.py`: models with random weights, dengine on them, and diffusers (`gpu_reference`) on the same.

Knows: how one row is painted and measured. Each runs in a process of `gpu.py`'s, which gives it its time. Nothing here
is trained: pictures are noise and boxes mean nothing, but every operation costs what the real one does.

What is timed is from prompts to pictures and boxes in the host's memory, text to image, all images of one size and as
many steps. No file is written on either side. Needs torch, diffusers and transformers, and no other runtime.

B batch, S slots, R rows of a UNet call, Z/h/w latents.
"""

import dataclasses
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import full_size_models as models
import torch
from gpu_reference import GUIDANCE, MODE, TUNED_MODE, Diffusers

from engines.adapter.info import read_info
from engines.adapter.pyramid import pyramid_channels
from engines.backends.torch import TorchBackend
from engines.bundle.bundle import FORMAT, Bundle, Manifest
from engines.bundle.graphs import ModelShape, graph_specs
from engines.common.files import read_json
from engines.diffusion.capture import capture
from engines.errors import BundleError
from engines.measure.flops import graph_flops
from engines.measure.memory import read_memory
from engines.measure.roofline import best_rates, matmul_rates
from engines.measure.timing import TimedBackend, Use, synchronise, time_calls
from engines.painting.jobs import make_job
from engines.painting.painter import Painter
from engines.painting.resolve import make_plan, resolve
from engines.painting.settings import GenerateSettings

STEPS = 50  # the reference's
OWN_STEPS = 25  # dengine's default
EQUAL_BATCH = 8  # images at once, where dengine and diffusers are compared
PEAK_SIZES = (4096, 8192)
# Of a row, after what warms it up: images, and batches, at least. Pictures and boxes of dengine's last batch come after
# its ticks, those of others beside later ticks, as in a long run. Fewer batches where one takes many seconds.
LEAST_IMAGES, BATCHES, FEWER, MANY = 6, 3, 2, 32

_SD2 = models.SHAPES["sd21"]
SD2_BASE = dataclasses.replace(  # stable-diffusion-2-base: as 2.1, for 512 pixels, predicting the noise
    _SD2,
    seed=20,
    frame=(512, 512),
    unet=dict(_SD2.unet) | {"sample_size": 64, "upcast_attention": False},
    vae=dict(_SD2.vae) | {"sample_size": 512},
    scheduler=dict(_SD2.scheduler) | {"prediction_type": "epsilon"},
)


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    shape: models.Shape
    steps: int  # of the schedule, on both sides
    own_steps: int  # of the rows at dengine's default
    slots: tuple[int, ...]  # of dengine's rows at its default, the most telling first
    equal_batch: int
    peak_sizes: tuple[int, ...]
    patience: float  # seconds that products of one size are repeated for


FULL = Size(SD2_BASE, STEPS, OWN_STEPS, (EQUAL_BATCH, 1, 16, 4, 2, 32, 64), EQUAL_BATCH, PEAK_SIZES, 0.3)
TOY = Size(models.reduced(SD2_BASE), 4, 2, (2, 1), 2, (64,), 0.0)

Row = dict[str, Any]
Paint = Callable[[int], int]  # images to paint -> boxes found


def make_models(work: Path, size: Size) -> None:
    """Write the base model and the adapter to `work`."""
    models.make_base(work / "base", size.shape)
    models.make_adapter(work / "base" / "adapter", work / "base", size.shape)


def unexported(work: Path, size: Size) -> Bundle:
    """What `make_models` wrote as a bundle without graphs, which is all that the torch backend needs."""
    shape, folder = size.shape, work / "base"
    info = read_info(folder / "adapter")
    stride = 2 ** (len(shape.vae["block_out_channels"]) - 1)
    channels = pyramid_channels(shape.unet)
    numbers = ModelShape(
        latent_channels=shape.vae["latent_channels"],
        vae_stride=stride,
        pyramid=channels,
        text_length=models.TEXT_LENGTH,
        hidden_size=shape.text_encoder["hidden_size"],
        vocabulary=models.VOCABULARY,
        train_timesteps=shape.scheduler["num_train_timesteps"],
        queries=info.config.queries,
        classes=info.config.num_classes,
    )
    specs = graph_specs(numbers)
    manifest = Manifest(
        format=FORMAT,
        class_names=info.class_names,
        weights_dtype="float16",
        graph_dtype="float32",
        timestep=info.timestep,
        short_side=info.short_side,
        frame=shape.frame,
        base_hash=info.base_hash,
        style=info.style,
        prompts={},
        generate={},
        latent_channels=numbers.latent_channels,
        vae_stride=stride,
        latent_multiple=2 ** (len(channels) - 1),
        text_length=numbers.text_length,
        hidden_size=numbers.hidden_size,
        graphs={name: spec.to_json() for name, spec in specs.items()},
        made_with={},
        figures={},
        files={},
    )
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", BundleError)
    return Bundle(folder, manifest, specs, info, scheduler, "random weights")


def peak(device: torch.device, size: Size, precision: str) -> dict[str, Any]:
    """The best matmul rate of a precision here, in operations a second, and the side that had it."""
    rates = matmul_rates(device, torch.get_num_threads(), sizes=size.peak_sizes, patience=size.patience)
    best = best_rates(rates)[precision]
    return {"precision": precision, "flops_per_second": best.flops_per_second, "size": best.size}


def diffusers_rows(work: Path, size: Size, device: torch.device) -> Iterator[tuple[str, Callable[[], Row]]]:
    """(name, what measures it) of the reference's rows without torch.compile, the most telling first."""
    bundle = unexported(work, size)
    theirs = _Loaded(lambda: Diffusers(bundle, size.steps, device))
    batch = size.equal_batch
    yield row_name("reference's way", 1), lambda: diffusers_row(theirs(), 1)
    yield row_name("reference's way", batch), lambda: diffusers_row(theirs(), batch)


def dengine_rows(work: Path, size: Size, device: torch.device) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The same of dengine: at the reference's steps and batch, then at its own steps with 1 to 64 images at once."""
    return _dengine_rows("dengine", work, size, device, size.slots, compiled=False)


def compiled_dengine_rows(work: Path, size: Size, device: torch.device) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The same with torch.compile, which compiles for one batch: that of the reference, at both numbers of steps."""
    return _dengine_rows("dengine, compiled", work, size, device, (size.equal_batch,), compiled=True)


def _dengine_rows(
    name: str, work: Path, size: Size, device: torch.device, sweep: Sequence[int], *, compiled: bool
) -> Iterator[tuple[str, Callable[[], Row]]]:
    bundle = unexported(work, size)
    ours = _Loaded(lambda: TorchBackend(bundle, precision="auto", threads=None, device=device, compiled=compiled))

    def row(slots: int, steps: int) -> tuple[str, Callable[[], Row]]:
        return row_name(f"{name}, {steps} steps", slots), lambda: dengine_row(bundle, ours(), slots, steps)

    yield row(size.equal_batch, size.steps)
    yield from (row(slots, size.own_steps) for slots in sweep)


def compiled_diffusers_rows(
    work: Path, size: Size, device: torch.device, mode: str = MODE
) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The same of the reference with torch.compile in one of its modes."""

    def measure() -> Row:
        return diffusers_row(Diffusers(unexported(work, size), size.steps, device, mode), size.equal_batch)

    yield row_name(f"diffusers, compiled ({mode})", size.equal_batch), measure


STAGES = {  # each in a process of its own: a side's settings of PyTorch and its memory are not the other's
    "diffusers": diffusers_rows,
    "dengine-compiled": compiled_dengine_rows,
    "diffusers-compiled": compiled_diffusers_rows,
    "dengine": dengine_rows,
    "diffusers-tuned": partial(compiled_diffusers_rows, mode=TUNED_MODE),
}


def row_name(what: str, batch: int) -> str:
    """What a row is called: the same before and after it ran."""
    return f"{what}, batch {batch}"


class _Loaded:
    """Something that is made when it is first asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._made = make, None

    def __call__(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made


def dengine_row(bundle: Bundle, backend: TorchBackend, slots: int, steps: int) -> Row:
    """Paint with `slots` images at once, and time the UNet call of these rows alone."""
    asked = GenerateSettings(out=Path(), jobs=1, slots=slots, steps=steps, guidance=GUIDANCE, keep_empty=True)
    begin_row(backend.device)
    timed = TimedBackend(backend)
    settings = resolve(asked, bundle, timed, None, None)
    plan = make_plan(settings, bundle, None)
    painter = Painter(bundle, timed, settings, plan, stage=lambda text: None, tick=lambda: None)
    indices = itertools.count()

    def paint(count: int) -> int:
        jobs = (make_job(plan, settings.seed, next(indices)) for _ in range(count))
        return sum(len(outcome.boxes) for outcome in painter.paint(jobs, lambda: False))

    row = measured(paint, slots, backend.device)
    call = timed.calls[Use("unet", settings.rows, ("model_output",))]
    step = capture(call.run, backend.device) if call.capturable else call.run
    seconds = time_calls(step, backend.device, warm_up=2, calls=10, limit=3.0).median
    return row | unet_figures(seconds, settings.rows) | {
        "steps": settings.steps, "precision": backend.precision,
    }  # fmt: skip


def diffusers_row(pipeline: Diffusers, batch: int) -> Row:
    """Paint `batch` images in each call of the pipeline, and time the UNet call of these rows alone."""
    begin_row(pipeline.device)
    row = measured(lambda count: pipeline.paint_all(count, batch), batch, pipeline.device)
    seconds = time_calls(pipeline.unet_call(2 * batch), pipeline.device, warm_up=2, calls=10, limit=3.0).median
    return row | unet_figures(seconds, 2 * batch) | {
        "steps": pipeline.steps, "precision": pipeline.precision,
    }  # fmt: skip


def measured(paint: Paint, batch: int, device: torch.device) -> Row:
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


def unet_figures(seconds: float, rows: int) -> Row:
    """What `gpu.py` puts against the machine's rate."""
    return {"unet_seconds": seconds, "unet_rows": rows}


def image_flops(work: Path, size: Size) -> dict[str, int]:
    """Operations of every graph for one image, one row of the UNet."""
    return graph_flops(unexported(work, size), size.shape.frame)


def begin_row(device: torch.device) -> None:
    """Give back what earlier rows held on the GPU, and forget how much it was."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
