"""Single checks of an engine on a GPU: graphs against PyTorch on the CPU, ticks captured and eager, whole jobs.

Knows: what can go wrong on a GPU and not on a CPU (half precision that overflows, black images, a captured tick that
differs), and how to tell. Does not know which checks make a report, or what happens when one raises
(`export.gpu.report`). Every check takes an opened backend, so it runs on a CPU as well.

B batch, R rows of a UNet call, S slots, Z/h/w latents.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from engines.backends.base import Backend, Call
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GRAPH_NAMES, TOLERANCES
from engines.diffusion.capture import Step, capture
from engines.diffusion.sampler import SlotSampler, Task, UNetCall
from engines.diffusion.schedule import make_schedule
from engines.errors import DengineError
from engines.painting.networks import TextEncoder, prepare
from engines.painting.resolve import GPU_SLOTS, resolve
from engines.painting.settings import GenerateSettings, PaintOptions
from export.agreement import LEAST, compare_engines
from export.matching import MATCHINGS, match_boxes
from export.tensorrt.check_plans import is_black
from export.verify import MATCHED, Chain, reference_backend, relative_error, run_graph

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
WARM_UP, RUNS = 3, 20  # calls of a timing: the first are not counted, the median of the others is
CASE = 7  # key of the graphs' inputs, others than those an export is checked with
BATCH = 2  # of the graphs' inputs
CAPTURED = 1e-3  # largest relative error of captured latents; the same kernels should give the same bits

Tell = Callable[[str], None]  # told what begins
Record = Callable[[Step, torch.device], Step]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str  # engine and precision, then what: "torch f16: unet"
    outcome: str  # OK, FAILED or SKIPPED
    text: str  # what was found, one line
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """How fast one engine moves the UNet."""

    what: str  # engine and precision, then what was timed
    rows: int  # R
    seconds: float  # of a call (median) or of a tick (mean)


def run_reference(bundle: Bundle, report: Tell) -> Chain:
    """All graphs on PyTorch in f32 on the CPU, two images of the bundle's frame: what the GPU has to reproduce."""
    w, h = (side // bundle.vae_stride for side in bundle.frame)
    chain = Chain(bundle, {"B": BATCH, "h": h, "w": w}, CASE)
    reference = reference_backend(bundle)
    for graph in GRAPH_NAMES:
        report(f"running {graph} on the CPU in f32")
        chain.run(graph, reference)
    return chain


def check_graphs(bundle: Bundle, backend: Backend, chain: Chain, report: Tell) -> list[Check]:
    """Every graph on an engine against `run_reference`; a graph that cannot run is a failed check, not the end."""
    checks = []
    for graph in GRAPH_NAMES:
        name = f"{backend.name} {backend.precision}: {graph}"
        report(name)
        try:
            found = run_graph(backend, bundle.specs[graph], chain.inputs[graph])
        except DengineError as cause:
            checks.append(Check(name, FAILED, str(cause)))
            continue
        checks.append(compare_outputs(name, found, chain.outputs[graph], backend.precision))
    return checks


def compare_outputs(name: str, found: Tensors, expected: Tensors, precision: str) -> Check:
    """One graph's outputs against PyTorch's in f32: finite, not black, as close as the precision must be.

    Boxes, which come after a top-k, are compared as sets. `precision` is f32 or f16; an engine in f32 with a float16
    bundle gives its outputs rounded to float16, and is judged as f16.
    """
    overflow = {output: int((~value.isfinite()).sum()) for output, value in found.items()}
    if any(overflow.values()):
        output = max(overflow, key=lambda key: overflow[key])
        share = f"{overflow[output]} of {found[output].numel()}"
        return Check(name, FAILED, f"{share} values of {output} are NaN or infinite: {precision} overflows", overflow)
    if "pixels" in found and is_black(found["pixels"]) and not is_black(expected["pixels"]):
        return Check(name, FAILED, "the image is black, and PyTorch's on the CPU is not")
    half = precision == "f16" or any(value.dtype == torch.float16 for value in found.values())
    dtype = "float16" if half else "float32"
    errors = {key: relative_error(value, expected[key]) for key, value in found.items() if key not in MATCHED}
    worst = max(errors, key=lambda key: errors[key])
    text = f"relative error {errors[worst]:.1e} ({worst}), {TOLERANCES[dtype]:.0e} allowed"
    fails = errors[worst] > TOLERANCES[dtype]
    if set(MATCHED) <= set(found):
        total, missing = match_boxes(found, expected, MATCHINGS[dtype])
        text += f"; {total - missing} of {total} boxes agree"
        fails = fails or missing > MATCHINGS[dtype].missing * total
    return Check(name, FAILED if fails else OK, text, errors)


def check_ticks(
    bundle: Bundle, backend: Backend, report: Tell, *, steps: int | None = None, record: Record = capture
) -> tuple[list[Check], list[Speed]]:
    """The UNet as `generate` runs it by default: its speed, and ticks captured in a CUDA graph against eager ones.

    `steps` None takes the bundle's own number. `record` is what captures.
    """
    name = f"{backend.name} {backend.precision}"
    report(f"{name}: timing the UNet")
    maybe: Any = {"steps": steps}  # None leaves it open
    asked = GenerateSettings(out=Path("unused"), bundle=bundle.folder, jobs=GPU_SLOTS, **maybe)
    settings = resolve(asked, bundle, backend, None, None).options
    w, h = (side // bundle.vae_stride for side in settings.size)
    call = prepare(bundle, backend, "unet", {"B": settings.rows, "h": h, "w": w}, ["model_output"], role="sampler")
    text = TextEncoder(bundle, backend)
    cond, uncond = text(f"a {bundle.style}"), text(settings.negative_prompt)
    tasks = [Task(index, settings.seed, None, 0, cond, uncond) for index in range(settings.slots)]
    speeds = [Speed(f"{name}: UNet call", settings.rows, call_seconds(call))]
    eager, seconds = _paint(_Eager(call), bundle, settings, tasks, record)
    speeds.append(Speed(f"{name}: tick", settings.rows, seconds))
    if not call.capturable:
        return [Check(f"{name}: captured tick", SKIPPED, "this engine's calls cannot be captured here")], speeds
    report(f"{name}: capturing the tick")
    captured, seconds = _paint(call, bundle, settings, tasks, record)
    speeds.append(Speed(f"{name}: tick in a CUDA graph", settings.rows, seconds))
    return [compare_latents(f"{name}: captured tick", captured, eager)], speeds


def compare_latents(name: str, found: Mapping[int, torch.Tensor], expected: Mapping[int, torch.Tensor]) -> Check:
    """Final latents of the same tasks, captured against eager: [Z, h, w] by image."""
    if expected and all(torch.equal(found[index], latents) for index, latents in expected.items()):
        return Check(name, OK, f"equal to the eager one, bit for bit, in {len(expected)} images")
    error = max((_distance(found[index], latents) for index, latents in expected.items()), default=math.inf)
    text = f"differs from the eager one by {error:.1e} (relative), {CAPTURED:.0e} allowed"
    return Check(name, OK if error <= CAPTURED else FAILED, text, {"error": error})


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error; infinite for a NaN, which no comparison would find to be large."""
    error = relative_error(found.cpu(), expected.cpu())
    return error if math.isfinite(error) else math.inf


class _Eager:
    """A call that may not be captured."""

    capturable = False

    def __init__(self, call: Call) -> None:
        self.inputs, self.outputs, self.run = call.inputs, call.outputs, call.run


def _paint(
    call: UNetCall, bundle: Bundle, settings: PaintOptions, tasks: Sequence[Task], record: Record
) -> tuple[dict[int, torch.Tensor], float]:
    """(final latents by image, seconds a tick) of the second of two runs: the first warms up, and is recorded."""
    schedule = make_schedule(bundle.scheduler_config, settings.sampler, settings.steps, settings.eta)
    sampler = SlotSampler(
        call,
        schedule,
        slots=settings.slots,
        rows=settings.rows,
        guidance_scale=settings.guidance,
        guidance_interval=settings.guidance_interval or (0.0, 1.0),
        record=record,
    )
    list(sampler.run(tasks))
    _wait()
    before, started = sampler.ticks, time.perf_counter()
    latents = {task.index: value for task, value in sampler.run(tasks)}
    _wait()
    return latents, (time.perf_counter() - started) / (sampler.ticks - before)


def call_seconds(call: Call) -> float:
    """Median of RUNS runs after WARM_UP others, device work included."""
    times = []
    for _ in range(WARM_UP + RUNS):
        _wait()
        started = time.perf_counter()
        call.run()
        _wait()
        times.append(time.perf_counter() - started)
    return statistics.median(times[WARM_UP:])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def check_labels(bundle: Bundle, engines: Sequence[tuple[str, str]], device: str, report: Tell) -> list[Check]:
    """The same jobs on every (engine, precision) and on PyTorch in f32: do the images and the labels agree?"""
    checks = []
    for found in compare_engines(bundle, engines, report, jobs=GPU_SLOTS, steps=None, device=device):
        psnr, ap50 = LEAST[found.precision]
        labels = "PyTorch found no boxes" if found.ap50 is None else f"AP50 of the labels {found.ap50:.3f}"
        good = found.psnr >= psnr and (found.ap50 is None or found.ap50 >= ap50)
        checks.append(
            Check(
                f"{found.engine} {found.precision}: {found.jobs} jobs",
                OK if good else FAILED,
                f"PSNR {found.psnr:.1f} dB ({psnr:.0f} needed), {labels} ({ap50} needed), against PyTorch in f32",
                {"psnr": found.psnr} | ({} if found.ap50 is None else {"ap50": found.ap50}),
            )
        )
    return checks
