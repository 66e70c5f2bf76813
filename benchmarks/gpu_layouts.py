"""The networks of Stable Diffusion 2 on a GPU, by memory layout and cuDNN setting, in eager mode and compiled.

    python benchmarks/gpu_layouts.py --out benchmarks/results/gpu_layouts.txt
    python benchmarks/gpu_layouts.py --toy --device cpu          a dry run with tiny networks

Random weights; 8 images of 512x512, so 16 rows of the UNet. It is what `TorchBackend` chose its layout and its mode of
torch.compile by. Takes two minutes on an H200, most of it compiling.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import gpu_rows  # noqa: E402  what stands above makes it importable
import torch  # noqa: E402
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402

from engines.adapter.info import AdapterConfig  # noqa: E402
from engines.adapter.model import DetectionAdapter  # noqa: E402
from engines.adapter.pyramid import PyramidUNet, pyramid_channels  # noqa: E402
from engines.measure.timing import synchronise, time_calls  # noqa: E402

IMAGES = 8
CUDNN = ((True, False), (False, False), (False, True))  # deterministic, benchmark


def main() -> None:
    """Print a line for each case as it is measured, and write them to --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--toy", action="store_true", help="tiny networks: the figures mean nothing")
    parser.add_argument("--out", type=Path, help="text file for what is printed")
    given = parser.parse_args()
    device = torch.device(given.device)
    lines = []
    for line in measure(device, (gpu_rows.TOY if given.toy else gpu_rows.FULL).shape):
        print(line, flush=True)
        lines.append(line)
    if given.out is not None:
        given.out.write_text("".join(f"{line}\n" for line in lines), "utf-8")


@torch.no_grad()
def measure(device: torch.device, shape: gpu_rows.models.Shape) -> Iterator[str]:
    """A line a case: milliseconds a call."""
    half = torch.float16 if device.type == "cuda" else torch.float32
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    yield f"{name}, torch {torch.__version__}, {str(half).removeprefix('torch.')}, {IMAGES} images"
    with device:
        unet = UNet2DConditionModel(**shape.unet).to(half).eval()
        vae = AutoencoderKL(**shape.vae).to(half).eval()
        config = AdapterConfig(channels=pyramid_channels(dict(unet.config)), num_classes=20, **shape.adapter)
        adapter = DetectionAdapter(config).eval()
        width, height = (side // 8 for side in shape.frame)
        rows = torch.randn(2 * IMAGES, 4, height, width).to(half)
        text = torch.randn(2 * IMAGES, 77, shape.unet["cross_attention_dim"]).to(half)
        steps = torch.full((2 * IMAGES,), 500)
    latents = rows[:IMAGES]
    for channels_last in (False, True):
        if channels_last:
            unet.to(memory_format=torch.channels_last)
            vae.to(memory_format=torch.channels_last)
        for deterministic, benchmark in CUDNN:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
            call = milliseconds(lambda: unet(rows, steps, text, return_dict=False), device)
            decode = milliseconds(lambda: vae.decode(latents, return_dict=False), device)
            how = f"channels_last={channels_last} deterministic={deterministic} benchmark={benchmark}"
            yield f"{how}: UNet call {call:.1f} ms, VAE decode {decode:.1f} ms"
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    network = PyramidUNet(unet)
    yield f"label pass: {milliseconds(lambda: network(latents, steps[:IMAGES], text[:IMAGES]), device):.1f} ms"
    pyramid = [level.float() for level in network(latents, steps[:IMAGES], text[:IMAGES])[1:]]
    for tf32 in (False, True):
        with _tf32(tf32):
            yield f"adapter, float32, TF32 {tf32}: {milliseconds(lambda: adapter(*pyramid), device):.1f} ms"
    compiled_unet = torch.compile(unet, fullgraph=True, dynamic=False)
    compiled_decode = torch.compile(vae.decode, fullgraph=True, dynamic=False)
    for what, call_once in (
        ("UNet call", lambda: compiled_unet(rows, steps, text, return_dict=False)),
        ("VAE decode", lambda: compiled_decode(latents, return_dict=False)),
    ):
        begun = time.perf_counter()
        call_once()
        synchronise(device)
        compiling = time.perf_counter() - begun
        call = milliseconds(call_once, device)
        yield f"compiled, channels last, {what}: {call:.1f} ms, compiled in {compiling:.0f} s"


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """The median of a few calls."""
    return time_calls(call, device, warm_up=2, calls=4, limit=20.0).median * 1e3


@contextlib.contextmanager
def _tf32(on: bool) -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


if __name__ == "__main__":
    main()
