"""The parts of dengine's path on a GPU, one by one: rows of `gpu.py` that say where the time of a whole run goes.

Knows: products of the UNet's own shapes; UNet calls, and the networks beside the ticks, as they were before anything
was mended, rewritten, and compiled; kernels; the host's part of a batch; the bundled model with files; `dengine
doctor`. Each row is a JSON object with `ms` or `found`. Does not know whole runs of full size (`gpu_rows`).
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_rows import Size, unexported
from benchmarks.records import Record
from engines.backends.torch import TorchBackend
from engines.bundle.bundle import Bundle, default_bundle
from engines.diffusion.capture import Recorded
from engines.measure.roofline import half_product
from engines.measure.timing import profiled, time_calls
from engines.painting.finisher import rounded_boxes
from engines.painting.networks import prepare
from engines.painting.settings import GenerateSettings
from engines.runs.generate import generate

STAGES = ("peaks", "ticks", "finisher", "small", "doctor")
PRODUCTS = ((65536, 320, 2560), (65536, 320, 320), (16384, 640, 5120), (4096, 1280, 10240))  # of 16 rows at 512 pixels
Opened = Callable[[str], TorchBackend]


def parts_of(stage: str, work: Path, size: Size, device: torch.device) -> Iterator[tuple[str, Callable[[], Record]]]:
    """(name, what measures it) of every row of a stage, in the order in which they are measured."""
    cuda, bundle = device.type == "cuda", unexported(work, size)
    ways = ("as it was", "rewritten", *(("compiled",) if cuda else ()))

    @cache
    def opened(how: str) -> TorchBackend:
        changed = {"compiled": how == "compiled", "rewritten": how != "as it was"}
        return TorchBackend(bundle, precision="auto", threads=None, device=device, **changed)

    if stage == "peaks":
        for shape in PRODUCTS if cuda else ((64, 32, 32),):
            for fp8 in (False, True) if cuda else (False,):
                made = partial(half_product, device, shape, fp8=fp8)
                yield f"product {shape}, {'fp8' if fp8 else 'half'}", partial(alone, made, device)
    elif stage == "ticks":
        for rows, how in ((rows, how) for rows in size.tick_rows for how in ways):
            yield f"UNet call, {rows} rows, {how}", partial(timed, bundle, opened, how, "unet", rows, "sampler")
        yield f"kernels, {ways[-1]}", partial(kernels, bundle, opened, ways[-1], size.tick_rows[0])
    elif stage == "finisher":
        for how in ways:
            for graph, role in (("unet", "labels"), ("vae_decoder", None), ("adapter", None)):
                name = f"{'label pass' if role else graph}, {size.equal_batch} images, {how}"
                yield name, partial(timed, bundle, opened, how, graph, size.equal_batch, role)
        yield f"boxes of {size.equal_batch} images", partial(boxes, bundle, size.equal_batch)
    elif stage == "small":
        for slots in size.small_slots:
            yield f"bundled model, {slots} slots", partial(small, slots, size, device)
    elif cuda:
        yield "doctor", partial(doctor, str(device))


def prepared(bundle: Bundle, backend: TorchBackend, graph: str, batch: int, role: Any) -> Any:
    """A call as a run prepares it, filled with noise."""
    w, h = (side // bundle.vae_stride for side in bundle.frame)
    outputs = {"sampler": ["model_output"], "labels": [spec.name for spec in bundle.specs["adapter"].inputs]}
    varies = "encoder_hidden_states" if role == "sampler" else None
    call = prepare(bundle, backend, graph, {"B": batch, "h": h, "w": w}, outputs.get(role), varies, role)
    for tensor in call.inputs.values():
        tensor.normal_() if tensor.is_floating_point() else tensor.fill_(1)
    return call


def timed(bundle: Bundle, opened: Opened, how: str, graph: str, batch: int, role: Any) -> Record:
    """Milliseconds of such a call, recorded where it may be."""
    call, device = prepared(bundle, opened(how), graph, batch, role), opened(how).device
    seconds = time_calls(Recorded(call.run, [call], device), device, warm_up=2, calls=10, limit=3.0).median
    return {"ms": seconds * 1e3, "graph": graph, "batch": batch}


def alone(make: Callable[[], Callable[[], Any]], device: torch.device) -> Record:
    """Milliseconds of what `make` gives."""
    return {"ms": time_calls(make(), device).median * 1e3}


def kernels(bundle: Bundle, opened: Opened, how: str, rows: int) -> Record:
    """The kernels of a UNet call that take longest, with how often they ran."""
    call = prepared(bundle, opened(how), "unet", rows, "sampler")
    found = profiled(call.run, opened(how).device)[:25]
    return {"found": "; ".join(f"{name[:80]} ({count}): {seconds * 1e3:.2f} ms" for name, count, seconds in found)}


def boxes(bundle: Bundle, batch: int) -> Record:
    """What the host makes of a batch's numbers, every query another box."""
    config, rng = bundle.adapter_info.config, np.random.default_rng(0)
    logits = rng.normal(-2, 2, (batch, 1, config.queries, config.num_classes)).astype(np.float32)
    places = rng.uniform(0.1, 0.9, (batch, 1, config.queries, 4)).astype(np.float32)
    run = partial(lambda: [rounded_boxes(*one, bundle.frame) for one in zip(logits, places, strict=True)])
    return alone(lambda: run, torch.device("cpu"))


def small(slots: int, size: Size, device: torch.device) -> Record:
    """Images/s of a `generate` with the bundled model, files and all."""
    with tempfile.TemporaryDirectory(prefix="dengine-gpu-") as folder:
        found = generate(GenerateSettings(
            out=Path(folder) / "run", jobs=size.small_jobs, slots=slots, keep_empty=True, engine="torch",
            device=str(device), steps=size.own_steps,
        ))  # fmt: skip
    return {"found": f"{found.images_per_second:.1f} images/s with files"}


def doctor(device: str) -> Record:
    """What `dengine doctor --gpu` found of the bundled model."""
    from export.gpu.report import gpu_report

    report = gpu_report(default_bundle(), device=device)
    return {"found": f"{report.failed} of {len(report.checks)} checks failed", "report": report.to_json()}
