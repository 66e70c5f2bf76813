"""A tick of a UNet of Stable Diffusion 2's size: diffusers in float32 against a bundle's graph on OpenVINO.

Knows: how to make the UNet (random weights) and its graph without the rest of a bundle, and how to time one guided
step of one image, two rows of 64x64 latents: network, guidance and update. Each function is a task of
`engines.measure.alone`, in a process of its own: the networks do not fit beside each other. Does not know what the
figures are compared with.

The UNet alone is exported, a minute of work where a whole bundle takes a quarter of an hour. What runs it is what
`generate` takes: `open_backend` and the slot sampler.
"""

import gc
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import full_size_models
import numpy as np
import torch

from engines.bundle.bundle import FORMAT, Bundle, Manifest
from engines.bundle.graphs import GraphSpec, ModelShape, graph_specs

Tell = Callable[[str], None]
GUIDANCE = 4.0
WARM_UP, TICKS = 1, 4  # ticks that are not counted, and that are
LENGTH, QUERIES, CLASSES = full_size_models.TEXT_LENGTH, 900, len(full_size_models.CLASS_NAMES)
TIMESTEPS = (999, 700, 400, 100, 1)  # that the ranges of int8 are measured at
COMPARED = 500  # timestep of the call whose output is compared
_WEIGHTS, _RANGES, _OUTPUT = "unet/diffusion_pytorch_model.safetensors", "ranges.json", "output.npy"


def make_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Write the UNet, weights as float16, its graph, and the ranges that int8 needs, to `folder`, where they are not
    there; `toy` for a tiny one.
    """
    from diffusers import UNet2DConditionModel

    from engines.adapter.pyramid import PyramidUNet
    from export.activations import watched
    from export.to_onnx import export_graph

    folder, shape = Path(arguments["folder"]), _shape(arguments)
    begun = time.perf_counter()
    if not (folder / "unet.onnx").exists():
        tell("making the UNet")
        torch.manual_seed(shape.seed * 10)
        unet: Any = UNet2DConditionModel(**shape.unet)
        torch.nn.Module.to(unet, torch.float16)
        unet.save_pretrained(folder / "unet", safe_serialization=True, max_shard_size="1TB")
        del unet
        gc.collect()
        tell("exporting the UNet")
        module = PyramidUNet(_load(folder)).eval()
        export_graph(module, _spec(shape), folder / "unfinished.onnx", _WEIGHTS)
        (folder / "unfinished.onnx").rename(folder / "unet.onnx")
    if not (folder / _RANGES).exists():
        unet = _load(folder)
        with torch.no_grad(), watched(unet) as ranges:
            for timestep in TIMESTEPS:
                tell(f"measuring ranges at t = {timestep}")
                latents, states = _inputs(shape, int(arguments["side"]), seed=timestep)
                unet(latents, timestep, encoder_hidden_states=states[None])
        (folder / _RANGES).write_text(json.dumps(ranges), "utf-8")
    return {"seconds": time.perf_counter() - begun, "parameters": _parameters(folder)}


def diffusers_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Seconds of a step as diffusers' pipeline does it, in float32. Leaves an output behind, to compare others with."""
    from diffusers import DDIMScheduler

    from engines.measure.timing import spread

    side, shape = int(arguments["side"]), _shape(arguments)
    unet: Any = _load(Path(arguments["folder"]))
    scheduler: Any = DDIMScheduler.from_config(dict(shape.scheduler))
    scheduler.set_timesteps(25)
    latents, states = _inputs(shape, side)
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
    return {"seconds": spread(seconds[WARM_UP:]).to_json(), "threads": torch.get_num_threads()}


def ours_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Seconds of a tick of ours in `precision`, its operations, and the matmul rates of the same process.

    With `whole` both rows go through the network at once, otherwise as `generate` has it for networks of this size:
    row by row, in int8 pair by pair. `relative_error` is that of the network's output against diffusers' on the same
    inputs.
    """
    from engines.backends.registry import open_backend
    from engines.common.devices import resolve_threads
    from engines.diffusion.sampler import SlotSampler, Task
    from engines.diffusion.schedule import make_schedule
    from engines.measure.roofline import SIZES, best_rates, matmul_rates
    from engines.measure.timing import spread

    side, shape, folder = int(arguments["side"]), _shape(arguments), Path(arguments["folder"])
    spec = _spec(shape)
    sizes = SIZES[:1] if arguments.get("toy") else SIZES
    best = best_rates(matmul_rates(torch.device("cpu"), resolve_threads(None), sizes=sizes, tell=tell))
    bundle = _bundle(folder, spec, shape)
    backend = open_backend(bundle, "openvino", precision=arguments["precision"], whole=bool(arguments["whole"]))
    tell("compiling the UNet")
    shapes = spec.input_shapes({"B": 2, "h": side, "w": side})
    call = backend.prepare("unet", shapes, ["model_output"], varies="encoder_hidden_states")
    times: list[float] = []

    def told() -> None:
        times.append(time.perf_counter())
        tell("a tick of ours")

    schedule = make_schedule(shape.scheduler, "ddim", WARM_UP + TICKS + 1)
    sampler = SlotSampler(call, schedule, slots=1, rows=2, guidance_scale=GUIDANCE, told=told)
    latents, states = _inputs(shape, side)
    for _ in sampler.run([Task(0, 0, None, 0, states, -states)]):
        pass
    seconds = [after - before for before, after in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)]
    return {
        "seconds": spread(seconds).to_json(),
        "flops": 2 * _flops(shape, side),
        "rates": {name: {"runtime": r.runtime, "flops_per_second": r.flops_per_second} for name, r in best.items()},
        "backend": backend.description,
        "precision": backend.precision,
        "relative_error": _relative_error(call, latents, states, folder),
    }


def _relative_error(call: Any, latents: torch.Tensor, states: torch.Tensor, folder: Path) -> float:
    """Norm of the difference to diffusers' output, over that output's norm."""
    call.inputs["sample"].copy_(torch.cat([latents] * 2))
    call.inputs["timesteps"].fill_(COMPARED)
    call.inputs["encoder_hidden_states"].copy_(torch.stack([-states, states]))
    call.run()
    expected = torch.from_numpy(np.load(folder / _OUTPUT, allow_pickle=False))
    return float((call.outputs["model_output"] - expected).norm() / expected.norm())


def _shape(arguments: Mapping[str, Any]) -> full_size_models.Shape:
    shape = full_size_models.SHAPES["sd21"]
    return full_size_models.reduced(shape) if arguments.get("toy") else shape


def _load(folder: Path) -> Any:
    from diffusers import UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    return unet.requires_grad_(False).eval()


def _spec(shape: full_size_models.Shape) -> GraphSpec:
    from engines.adapter.pyramid import pyramid_channels

    width = int(shape.unet["cross_attention_dim"])
    numbers = ModelShape(4, 8, pyramid_channels(shape.unet), LENGTH, width, 49_408, 1000, QUERIES, CLASSES)
    return graph_specs(numbers)["unet"]


def _bundle(folder: Path, spec: GraphSpec, shape: full_size_models.Shape) -> Bundle:
    """A bundle of which there is only the UNet: enough for its backend."""
    levels = len(shape.unet["block_out_channels"])
    ranges = json.loads((folder / _RANGES).read_text("utf-8"))
    manifest = Manifest(
        format=FORMAT, class_names=full_size_models.CLASS_NAMES, weights_dtype="float16", graph_dtype="float32",
        timestep=1, short_side=min(shape.frame), frame=shape.frame, base_hash="", style=full_size_models.STYLE,
        prompts={}, generate={}, latent_channels=4, vae_stride=8, latent_multiple=2 ** (levels - 1),
        text_length=LENGTH, hidden_size=int(shape.unet["cross_attention_dim"]), graphs={"unet": spec.to_json()},
        made_with={}, figures={}, files={},
        activations={name: (float(low), float(high)) for name, (low, high) in ranges.items()},
    )  # fmt: skip
    return Bundle(folder, manifest, {"unet": spec}, cast(Any, None), dict(shape.scheduler), "")


def _inputs(shape: full_size_models.Shape, side: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [1, 4, side, side] and an embedding [L, D], random."""
    random = torch.Generator().manual_seed(seed)
    width = int(shape.unet["cross_attention_dim"])
    return torch.randn((1, 4, side, side), generator=random), torch.randn((LENGTH, width), generator=random)


def _flops(shape: full_size_models.Shape, side: int) -> int:
    """Operations of one row."""
    from diffusers import UNet2DConditionModel

    from engines.measure.flops import count_flops

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**shape.unet)
        width = int(shape.unet["cross_attention_dim"])
        inputs = (torch.zeros(1, 4, side, side), torch.zeros(1, dtype=torch.int64), torch.zeros(1, LENGTH, width))
    return count_flops(lambda: unet(*inputs))


def _parameters(folder: Path) -> int:
    """Of the UNet, by its weights file's header."""
    with (folder / _WEIGHTS).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
