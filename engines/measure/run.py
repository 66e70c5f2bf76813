"""One engine's figures: a real `generate` with its calls timed, then each graph and the sampler's tick on their own.

Knows: how to run `generate` so that what its calls took is seen, and which figures come of it. Does not know other
engines, the machine's limit (`roofline`), or how figures are shown. Meant for a process of its own (`alone`): peak
memory and thread pools are the process's.

R rows of a network call, S slots, Z/h/w latents, L text length, D text width.
"""

import itertools
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engines.backends.base import Call, is_wide
from engines.backends.openvino.int8 import ranges_of
from engines.bundle.bundle import Bundle, default_bundle, open_bundle
from engines.common.devices import cpu_has_bf16
from engines.common.events import Event, EventKind
from engines.diffusion.capture import Recorded
from engines.diffusion.sampler import SlotSampler, Task
from engines.diffusion.schedule import make_schedule
from engines.measure.memory import Memory, read_memory
from engines.measure.timing import (
    CALLS,
    LIMIT,
    WARM_UP,
    Spread,
    TimedBackend,
    Use,
    outside_share,
    spread,
    synchronise,
    time_calls,
)
from engines.measure.workload import Workload
from engines.runs.generate import generate_on
from engines.runs.run_folder import require_run
from engines.runs.summaries import GenerateSummary

if TYPE_CHECKING:
    from engines.backends.base import Backend
    from engines.painting.run_settings import RunSettings
    from engines.painting.settings import GenerateSettings

Tell = Callable[[str], None]
_RECORDED = ("unet", "vae_decoder", "adapter")  # graphs that a run records on a GPU, where their calls allow it
_TOGETHER = 5  # ticks between two looks at a GPU


@dataclass(frozen=True)
class _Watched:
    """One `generate`, and the clock beside it (`time.perf_counter`)."""

    summary: GenerateSummary
    settings: "RunSettings"  # as resolved
    backend: TimedBackend
    started: float  # `generate` was called
    opened: float  # everything was ready to paint
    ended: float  # `generate` returned: every file in place


def engine_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """For `alone`: all figures of one engine.

    Arguments: `workload` (`Workload.to_json`), `bundle` and `references` (folders or None), `engine`, and `options`,
    further fields of GenerateSettings: precision, threads, slots, device ... With `first_image`, only load and first
    image are measured: the run stops once there is one.

    Returns, in seconds: `import_seconds`; `load_seconds`, from the call of `generate` until it begins to paint;
    `first_image_seconds`, from the same moment to the first image in place; `seconds`, from the beginning of painting
    until every image, journal line and dataset file is on the disk. `images_per_second` is images over `seconds`.
    `outside_share` is `timing.outside_share` of that time.
    `memory` is that of the run, before anything else was measured. `graphs` has, by `Use.name`, the `graph`, its
    `batch`, `calls` in the run and the `run_seconds` that these took together (None on a GPU), `precision` of its
    arithmetic, and `seconds` a call on its own (`timing.Spread`); `tick` has the seconds of a tick of the sampler.
    """
    begun = time.perf_counter()
    import diffusers  # noqa: F401  so that load_seconds does not hold what `import_seconds` is
    import transformers  # noqa: F401

    imported = time.perf_counter() - begun
    folder, references = (None if arguments[key] is None else Path(arguments[key]) for key in ("bundle", "references"))
    workload = Workload.from_json(arguments["workload"])
    only_first = bool(arguments.get("first_image"))
    with tempfile.TemporaryDirectory(prefix="dengine-bench-") as name:
        settings = workload.generate_settings(
            Path(name) / "run",
            bundle=folder,
            references=references,
            engine=arguments["engine"],
            **arguments["options"],
        )
        watched = _watch(settings, tell, only_first)
    run = watched.settings
    memory = memory_of(run.options.engine, watched.backend.device)
    figures: dict[str, Any] = {
        "engine": run.options.engine,
        "precision": run.options.precision,
        "threads": run.options.threads,
        "backend": run.backend,
        "device": watched.backend.device.type,
        "slots": run.options.slots,
        "rows": run.options.rows,
        "import_seconds": imported,
        "load_seconds": watched.opened - watched.started,
        "first_image_seconds": watched.summary.first_image_seconds,
    }
    if only_first:
        return figures
    bundle = open_bundle(folder or default_bundle(), verify=False)
    seconds = watched.ended - watched.opened
    return figures | {
        "images": watched.summary.painted,
        "seconds": seconds,
        "images_per_second": watched.summary.painted / seconds,
        "outside_share": outside_share(watched.backend.intervals, watched.opened, watched.ended),
        "memory": memory.to_json(),
        "graphs": _graphs(bundle, watched, tell),
        "tick": _tick(bundle, watched, tell),
    }


def memory_of(engine: str, device: torch.device) -> Memory:
    """Of this process. For an engine that does not allocate through PyTorch, and keeps what it took, `vram_taken` is in
    the place of `vram_peak`.
    """
    memory = read_memory()
    if engine == "torch" or device.type == "cpu":
        return memory
    free, total = torch.cuda.mem_get_info(device)
    return replace(memory, vram_peak=None, vram_taken=total - free)


def precision_of(bundle: Bundle, use: Use, precision: str) -> str:
    """What a graph as it was prepared computes in where its backend's precision is `precision`."""
    if is_wide(use.graph, precision == "f16"):
        return "f32"
    if precision == "int8" and (use.role == "labels" or not ranges_of(use.graph, bundle.manifest.activations)):
        return "bf16" if cpu_has_bf16() else "f32"
    return precision


def _watch(settings: "GenerateSettings", tell: Tell, only_first: bool) -> _Watched:
    """Run `generate` on a timed backend."""
    timed: list[TimedBackend] = []
    opened: list[float] = []
    painted: list[int] = []

    def wrap(backend: "Backend") -> TimedBackend:
        timed.append(TimedBackend(backend))
        return timed[-1]

    def report(event: Event) -> None:
        if event.kind is EventKind.STARTED:
            opened.append(time.perf_counter())
            tell(event.text)
        elif event.image is not None:
            painted.append(event.image.index)
            tell(f"painting {event.done}/{event.total}")

    started = time.perf_counter()
    summary = generate_on(
        settings, wrap, report=report, stop=lambda: only_first and bool(painted), record=lambda _: timed[0].record
    )
    ended = time.perf_counter()
    return _Watched(summary, require_run(settings.out), timed[0], started, opened[0], ended)


def _graphs(bundle: Bundle, watched: _Watched, tell: Tell) -> dict[str, Any]:
    """Seconds a call of every graph as the run prepared it, by `Use.name`, recorded where the run has it so, and how
    often the run called it."""
    timed = watched.backend
    called: Counter[Use] = Counter()
    taken: defaultdict[Use, float] = defaultdict(float)
    for interval in timed.intervals:
        if interval.start >= watched.opened:
            called[interval.use] += 1
            taken[interval.use] += interval.end - interval.start
    found: dict[str, Any] = {}
    for use, call in timed.calls.items():
        name = use.name
        name = f"{name} at batch {use.batch}" if name in found else name
        tell(f"timing {name}")
        _randomise(call)
        step = Recorded(call.run, [call], timed.device) if use.graph in _RECORDED else call.run
        seconds = time_calls(step, timed.device)
        found[name] = {
            "graph": use.graph,
            "batch": use.batch,
            "calls": called[use],
            "run_seconds": taken[use] if timed.device.type == "cpu" else None,
            "precision": precision_of(bundle, use, timed.precision),
            "seconds": seconds.to_json(),
        }
    return found


@torch.no_grad()
def _randomise(call: Call) -> None:
    """Fill a call's float inputs with noise: rows that repeat each other might be computed once.

    Calls that were promised pairs get none, which makes their output wrong and their time the same.
    """
    random = torch.Generator().manual_seed(0)
    for tensor in call.inputs.values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=random))


def _tick(bundle: Bundle, watched: _Watched, tell: Tell) -> dict[str, Any]:
    """Seconds a tick of the sampler with every slot busy: UNet, guidance and update, captured where the call allows it.

    The call, slots, rows and guidance are the run's. Images begin from noise. The schedule has as many steps as are to
    be timed, which changes nothing in a tick. On a GPU the host does not wait for a tick before it lays out the next,
    as in a run: there a time is the mean of _TOGETHER ticks.
    """
    run, timed = watched.settings, watched.backend
    use = next(use for use in timed.calls if use.role == "sampler")
    call = timed.calls[use]
    tell(f"timing a tick of {run.options.slots} slots")
    unet_seconds = max(time_calls(call.run, timed.device, warm_up=1, calls=1).median, 1e-6)
    together = _TOGETHER if timed.device.type == "cuda" else 1
    ticks = together * (WARM_UP + max(3, min(CALLS, int(LIMIT / (together * unet_seconds)))))
    times: list[float] = []
    passed = itertools.count(1)

    def told() -> None:
        if next(passed) % together == 0:
            synchronise(timed.device)
            times.append(time.perf_counter())

    sampler = SlotSampler(
        call,
        make_schedule(bundle.scheduler_config, run.options.sampler, ticks, run.options.eta),
        slots=run.options.slots,
        rows=run.options.rows,
        guidance_scale=run.options.guidance,
        guidance_interval=run.options.guidance_interval or (0.0, 1.0),
        told=told,
    )
    states = torch.randn(
        tuple(call.inputs["encoder_hidden_states"].shape[1:]), generator=torch.Generator().manual_seed(0)
    )
    tasks = [Task(index, run.options.seed, None, 0, states, -states) for index in range(run.options.slots)]
    for _ in sampler.run(tasks):
        pass
    seconds: Spread = spread(
        [(after - before) / together for before, after in zip(times[WARM_UP - 1 :], times[WARM_UP:], strict=False)]
    )
    return {"slots": run.options.slots, "rows": run.options.rows, "seconds": seconds.to_json()}
