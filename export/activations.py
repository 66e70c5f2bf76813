"""How large the numbers are that products read while images are painted: what int8 needs to know.

Knows: which products of a UNet and of a VAE may compute in int8, and how to keep the lowest and highest number that
each reads while PyTorch paints a few images in float32, and encodes them. Does not know what a runtime makes of it
(`engines.backends.openvino.int8`), or about float16 (`export.ranges`).

Left in higher precision are the first and last convolution, whose inputs and outputs are the image itself (as is usual
since Zhou et al. 2016, arXiv 1606.06160), and what reads a timestep or a prompt: it costs next to nothing, and other
prompts may reach further than the measured ones.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engines.backends.rows import is_full_size
from engines.backends.torch import TorchBackend
from engines.bundle.bundle import Bundle
from engines.datasets.images import read_image
from engines.diffusion.latents import to_pixels
from engines.painting.networks import fill, prepare
from engines.painting.settings import OPEN, GenerateSettings
from engines.runs.journal import IMAGES
from export.agreement import paint_jobs

JOBS = 12  # painted to measure on, with the bundle's own number of steps
FULL_SIZE_JOBS, FULL_SIZE_STEPS = 1, 6  # with a bundle of full size, whose steps take many seconds each
_WIDE = ("conv_in", "conv_out", "quant_conv", "time_embedding", "time_emb_proj", "attn2.to_k", "attn2.to_v")

Ranges = dict[str, tuple[float, float]]


def measure_activations(bundle: Bundle, threads: int | None = None) -> Ranges:
    """Lowest and highest number that products of UNet and VAE read, by weight, over images painted and encoded."""
    backend = TorchBackend(bundle, precision="f32", threads=threads, device=torch.device("cpu"))
    full = is_full_size(bundle)
    with (
        tempfile.TemporaryDirectory(prefix="dengine-") as name,
        watched(backend.unet) as sampled,
        watched(backend.vae("vae_decoder")) as decoded,
        watched(backend.vae("vae_encoder")) as encoded,
    ):
        jobs = FULL_SIZE_JOBS if full else JOBS
        asked = GenerateSettings(
            out=Path(name) / "run", bundle=bundle.folder, jobs=jobs, chunk=jobs, slots=min(jobs, 4), keep_empty=True,
            steps=FULL_SIZE_STEPS if full else OPEN,
        )  # fmt: skip
        paint_jobs(bundle, backend, asked)
        _encode(bundle, backend, asked.out / IMAGES)
    ranges = {**sampled, **decoded, **encoded}
    return {name: (round(low, 6), round(high, 6)) for name, (low, high) in sorted(ranges.items())}


def _encode(bundle: Bundle, backend: TorchBackend, folder: Path) -> None:
    """Have the VAE encoder read the images in a folder, which are of the bundle's frame."""
    w, h = (side // bundle.vae_stride for side in bundle.frame)
    encoder = prepare(bundle, backend, "vae_encoder", {"B": 1, "h": h, "w": w})
    for file in sorted(folder.iterdir()):
        fill(encoder.inputs["pixels"], [to_pixels(read_image(file))])
        encoder.run()


@contextmanager
def watched(network: nn.Module) -> Iterator[Mapping[str, tuple[float, float]]]:
    """Watch what a network's products read, for as long as the context lasts: (lowest, highest) by weight."""
    ranges: Ranges = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            low, high = (float(end) for end in inputs[0].aminmax())
            before = ranges.get(name, (low, high))
            ranges[name] = (min(low, before[0]), max(high, before[1]))

        return hook

    handles = [
        module.register_forward_pre_hook(watch(f"{name}.weight"))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not any(part in f"{name}." for part in _dotted())
    ]
    try:
        yield ranges
    finally:
        for handle in handles:
            handle.remove()


def _dotted() -> Iterator[str]:
    return (f"{part}." for part in _WIDE)
