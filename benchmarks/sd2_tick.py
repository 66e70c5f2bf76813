"""A tick of a UNet of Stable Diffusion 2's size: diffusers in float32 against a bundle's graph on OpenVINO.

Knows: how to make the UNet (random weights) and its graph without the rest of a bundle, and how to time one guided
step of one image, two rows of latents: network, guidance and update. Each function is a task of
`engines.measure.alone`, in a process of its own: the networks do not fit beside each other. Does not know what the
figures are compared with.

The UNet alone is exported, a minute of work where a whole bundle takes a quarter of an hour. What runs it is what
`generate` takes: `open_backend` and the slot sampler.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import full_size_models as models
from benchmarks.records import Record, Tell
from engines.measure.timing import spread

GUIDANCE = 4.0
WARM_UP, TICKS = 1, 4  # ticks that are not counted, and that are
TIMESTEPS = (999, 700, 400, 100, 1)  # that the ranges of int8 are measured at
COMPARED = 500  # timestep of the call whose output is compared
_RANGES, _OUTPUT = "ranges.json", "output.npy"


def make_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """Write the UNet, weights as float16, its graph, and the ranges that int8 needs, to `folder`, where they are not
    there; `toy` for a tiny one.
    """
    from export.activations import watched

    folder, shape = Path(arguments["folder"]), _shape(arguments)
    begun = time.perf_counter()
    tell("making the UNet and its graph")
    models.unet_graph(folder, shape)
    if not (folder / _RANGES).exists():
        unet = _load(folder)
        with torch.no_grad(), watched(unet) as ranges:
            for timestep in TIMESTEPS:
                tell(f"measuring ranges at t = {timestep}")
                latents, states = _inputs(shape, seed=timestep)
                unet(latents, timestep, encoder_hidden_states=states[None])
        (folder / _RANGES).write_text(json.dumps(ranges), "utf-8")
    return {"seconds": time.perf_counter() - begun}


def diffusers_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """Seconds of a step as diffusers' pipeline does it, in float32. Leaves an output behind, to compare others with."""
    from diffusers import DDIMScheduler

    shape = _shape(arguments)
    unet: Any = _load(Path(arguments["folder"]))
    scheduler: Any = DDIMScheduler.from_config(dict(shape.scheduler))
    scheduler.set_timesteps(25)
    latents, states = _inputs(shape)
    rows = torch.stack([-states, states])
    seconds = []
    with torch.no_grad():
        compared = unet(torch.cat([latents] * 2), COMPARED, encoder_hidden_states=rows, return_dict=False)[0]
        np.save(Path(arguments["folder"]) / _OUTPUT, compared.numpy())
        for timestep in scheduler.timesteps[: WARM_UP + TICKS]:
            tell("a tick of diffusers")
            begun = time.perf_counter()
            output = unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=rows, return_dict=False)[0]
            uncond, cond = output.chunk(2)
            guided = uncond + GUIDANCE * (cond - uncond)
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
            seconds.append(time.perf_counter() - begun)
    return {"seconds": spread(seconds[WARM_UP:]).to_json()}


def ours_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """Seconds of a tick of ours in `precision`, its operations, and the matmul rates of the same process.

    The network runs as `generate` has it at this size: row by row, in int8 pair by pair. `relative_error` is that of
    its output against diffusers' on the same inputs.
    """
    from engines.backends.registry import open_backend
    from engines.common.devices import resolve_threads
    from engines.diffusion.sampler import SlotSampler, Task
    from engines.diffusion.schedule import make_schedule
    from engines.measure.roofline import SIZES, best_rates, matmul_rates

    shape, folder = _shape(arguments), Path(arguments["folder"])
    sizes = SIZES[:1] if arguments["toy"] else SIZES
    best = best_rates(matmul_rates(torch.device("cpu"), resolve_threads(None), sizes=sizes, tell=tell))
    ranges = json.loads((folder / _RANGES).read_text("utf-8"))
    bundle = models.bare_bundle(folder, shape, activations={name: (low, high) for name, (low, high) in ranges.items()})
    backend = open_backend(bundle, "openvino", precision=arguments["precision"])
    tell("compiling the UNet")
    latents, states = _inputs(shape)
    h, w = latents.shape[2:]
    shapes = bundle.specs["unet"].input_shapes({"B": 2, "h": h, "w": w})
    call = backend.prepare("unet", shapes, ["model_output"], "encoder_hidden_states", "sampler")
    times: list[float] = []

    def told() -> None:
        times.append(time.perf_counter())
        tell("a tick of ours")

    schedule = make_schedule(shape.scheduler, "ddim", WARM_UP + TICKS + 1)
    sampler = SlotSampler(call, schedule, slots=1, rows=2, guidance_scale=GUIDANCE, told=told)
    for _ in sampler.run([Task(0, 0, None, 0, states, -states)]):
        pass
    seconds = [after - before for before, after in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)]
    return {
        "seconds": spread(seconds).to_json(),
        "flops": 2 * row_flops(shape),
        "rates": {name: {"runtime": r.runtime, "flops_per_second": r.flops_per_second} for name, r in best.items()},
        "precision": backend.precision,
        "relative_error": _relative_error(call, latents, states, folder),
    }


def row_flops(shape: models.Shape) -> int:
    """Operations of the UNet for one row."""
    from diffusers import UNet2DConditionModel

    from engines.measure.flops import count_flops

    latents, states = _inputs(shape)
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**shape.unet)
    inputs = latents.to("meta"), torch.zeros(1, dtype=torch.int64, device="meta"), states[None].to("meta")
    return count_flops(lambda: unet(*inputs))


def _relative_error(call: Any, latents: torch.Tensor, states: torch.Tensor, folder: Path) -> float:
    """Norm of the difference to diffusers' output, over that output's norm."""
    call.inputs["sample"].copy_(torch.cat([latents] * 2))
    call.inputs["timesteps"].fill_(COMPARED)
    call.inputs["encoder_hidden_states"].copy_(torch.stack([-states, states]))
    call.run()
    expected = torch.from_numpy(np.load(folder / _OUTPUT, allow_pickle=False))
    return float((call.outputs["model_output"] - expected).norm() / expected.norm())


def _shape(arguments: Mapping[str, Any]) -> models.Shape:
    return models.reduced(models.SD2_BASE) if arguments["toy"] else models.SD2_BASE


def _load(folder: Path) -> Any:
    from diffusers import UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    return unet.requires_grad_(False).eval()


def _inputs(shape: models.Shape, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [1, 4, h, w] of the shape's frame and an embedding [L, D], random."""
    random = torch.Generator().manual_seed(seed)
    w, h = (side // 8 for side in shape.frame)
    states = torch.randn((models.TEXT_LENGTH, shape.unet["cross_attention_dim"]), generator=random)
    return torch.randn((1, 4, h, w), generator=random), states
