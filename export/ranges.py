"""How large the numbers inside a network get, and which parts of it half precision cannot hold.

Knows: how to run every graph's module in float32 on real inputs and keep the largest magnitude of each block, and how
to choose from that the islands that stay in float32 (`engines.bundle.islands`). Does not know how a graph is exported.

A block is a module that is called. Three numbers belong to it: the largest magnitude of what it reads, of what it
gives, and of every operation that it does itself, outside the modules it calls: sums with a residual, products of
gates, attention scores. All operations are seen, since they pass PyTorch's dispatcher; the scores of a fused attention,
which nobody else sees, are computed once more. SD 2.1 overflows there.

What comes within FACTOR of float16's 65,504 gets an island. An island's inputs and outputs are float16 again, so it is
the smallest block round the operation that reads and gives numbers below the limit. A value that crosses between
blocks (the residual stream of a text encoder) therefore widens the island to the block round both, to the whole graph
if need be; a graph that itself gives or reads such a number is refused.

Not watched is what happens inside one operation. What that needs was looked up and measured:
    GroupNorm, LayerNorm: the sum of squares of 40,960 numbers of size 1.3 overflows float16, so statistics must be
        float32. They are: in PyTorch (float32 accumulation on CPU and CUDA), by the ONNX standard (stash_type 1 of
        GroupNormalization and LayerNormalization, at opset 23), in ONNX Runtime on a CPU (whose kernels are float32
        behind a cast) and in OpenVINO. Given that, norms gain nothing from islands: the bundled model in PyTorch's own
        half, every tensor rounded, is off from float32 by 3.6e-4 (VAE encoder), 6.2e-4 (decoder), 1.80e-3 (UNet) and
        2.9e-4 (adapter) without, and by 3.7e-4, 6.2e-4, 1.80e-3 and 2.9e-4 with an island round every norm.
    At opset 18 GroupNormalization becomes InstanceNormalization, of which the standard promises no precision; ONNX
        Runtime computes it in float32, and TensorRT's normalization layers are documented to, unless told otherwise.
    Softmax, GELU, convolutions and matrix products: GPU libraries accumulate in float32.

B batch, H/W pixels, h/w latents.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engines.adapter.info import AdapterInfo
from engines.backends.modules import run_module
from engines.bundle.graphs import GRAPH_NAMES
from engines.bundle.islands import LARGEST, SCORES, has_projections, outermost, upcast_scores
from engines.common.tokenizer import tokenize
from engines.datasets.dataset import Dataset, Record, open_images
from engines.diffusion.base_model import BaseModel
from engines.diffusion.latents import add_noise, initial_noise, to_pixels
from engines.diffusion.noise import alphas_cumprod
from engines.diffusion.prompts import generic_prompt, listing_prompt
from engines.errors import DatasetError, ExportError
from export.verify import smooth_pictures

FACTOR = 4.0  # room for inputs that reach further than the measured ones
LIMIT = LARGEST / FACTOR
KEPT = 5  # blocks of each graph that the manifest names
PICTURES = 8  # of a user's folder, at most; evenly spread over it
OWN_PICTURES = 2  # where there is no folder
_MASK = 1e38  # beyond: -inf and its stand-ins in attention masks, which float16 has its own of
_EMPTY = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "resize_")  # memory, not numbers


@dataclass
class BlockRange:
    """The largest magnitudes seen at one block."""

    reads: float = 0.0  # its inputs
    gives: float = 0.0  # its outputs
    inside: float = 0.0  # what it computes itself, attention scores apart
    scores: float = 0.0  # q k^T * scale of the attention that it computes
    callers: set[str] = field(default_factory=set)  # the blocks that call it; none for the graph itself

    @property
    def crossing(self) -> float:
        """Of what must be float16 outside of an island round this block."""
        return max(self.reads, self.gives)


Ranges = dict[str, BlockRange]  # by the block's name in its graph's module; "" is the graph itself


@dataclass(frozen=True)
class Measured:
    """What `measure_graphs` found."""

    ranges: dict[str, Ranges]  # by graph
    source: str  # what it was measured on, in words


def open_pictures(folder: Path) -> Dataset:
    """Up to PICTURES images, evenly spread over a folder's. Raises DatasetError."""
    found = open_images(folder, skip_bad=True)
    files = found.records
    if not files:
        raise DatasetError(
            f"{folder} has no images to measure ranges on; give a folder of pictures with `ranges`.", field="ranges"
        )
    count = min(PICTURES, len(files))
    return replace(found, records=[files[place * len(files) // count] for place in range(count)])


def count_pictures(files: Sequence[Record] | None) -> int:
    """How many pictures `measure_graphs` takes, and reports."""
    return OWN_PICTURES if files is None else len(files)


def measure_graphs(
    modules: Mapping[str, nn.Module],
    base: BaseModel,
    info: AdapterInfo,
    frame: tuple[int, int],
    files: Sequence[Record] | None,
    told: Callable[[str], None],
) -> Measured:
    """Run every graph's module on pictures: encoded, decoded, noised, denoised and labelled.

    Each picture goes through the UNet at the label pass' timestep and at one other, so that together they cover the
    schedule down from its noisiest; the prompts are a generic, an empty and a listing one in turn.

    Args:
        modules: of every graph, in float32 on the CPU, of `base` and the adapter that `info` describes.
        frame: (width, height) in pixels that pictures are scaled and cropped to.
        files: images; None for the OWN_PICTURES of smooth noise that the checks use.
        told: told of every picture.
    """
    ranges: dict[str, Ranges] = {name: {} for name in GRAPH_NAMES}

    def run(graph: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        return measure(modules[graph], tensors, ranges[graph])

    count = count_pictures(files)
    prompts = [generic_prompt(info.style), "", listing_prompt(info.style, dict.fromkeys(info.class_names, 3))]
    (states,) = run("text_encoder", tokenize(base.tokenizer, prompts))
    abar = alphas_cumprod(base.scheduler_config)
    for place in range(count):
        told(f"measuring ranges on picture {place + 1} of {count}")
        pixels = smooth_pictures((1, 3, frame[1], frame[0]), place) if files is None else _picture(files[place], frame)
        (latents,) = run("vae_encoder", pixels)
        run("vae_decoder", latents)
        for timestep in (info.timestep, len(abar) - 1 - place * len(abar) // count):
            noise = initial_noise(tuple(latents.shape), place, timestep)
            text = states[place % len(prompts)][None]
            outputs = run("unet", add_noise(latents, noise, abar, timestep), torch.tensor([timestep]), text)
            if timestep == info.timestep:
                run("adapter", *outputs[1:])
    source = f"{count} images of {files[0].file.parent.name}" if files else "the checks' own inputs, not on real images"
    return Measured(ranges, source)


def measure(module: nn.Module, tensors: tuple[Tensor, ...], ranges: Ranges) -> tuple[Tensor, ...]:
    """Run a module once, and raise `ranges` to the magnitudes seen.

    Args:
        module: of a graph, in float32 on the CPU.
        tensors: what it takes.
        ranges: of earlier runs of the same module; changed in place.

    Returns:
        The module's outputs. Raises ExportError naming the block that gave NaN.
    """
    with _watching(module, ranges):
        return run_module(module, tensors)


def choose_islands(graph: str, module: nn.Module, ranges: Ranges) -> tuple[str, ...]:
    """The parts of a graph's module that must stay in float32, sorted; ("",) for the whole graph.

    Attentions whose configuration asks for float32 scores (`upcast_attention`) get them, whatever was measured.

    Raises ExportError where the graph's own inputs or outputs reach the limit.
    """
    whole = ranges[""]
    if whole.crossing > LIMIT:
        raise ExportError(
            f"{graph}: its inputs or outputs reach {whole.crossing:.0f}, and half precision ends at {LARGEST:.0f} "
            f"({FACTOR:.0f} times that is kept free). Export it with `graph_dtype=float32`.",
            field="graph_dtype",
        )
    parts = dict(module.named_modules())
    islands: set[str] = set(upcast_scores(module))
    for name, block in ranges.items():
        if block.scores > LIMIT and block.inside <= LIMIT and block.crossing <= LIMIT and has_projections(parts[name]):
            islands.add(name + SCORES)
        elif max(block.inside, block.scores) > LIMIT:
            islands |= _enclosing(name, ranges)
    return outermost(islands)


def largest(ranges: Ranges, count: int = KEPT) -> dict[str, float]:
    """The blocks with the largest magnitudes, largest first; scores of an attention are named as their island is."""
    found = {name: max(block.gives, block.inside) for name, block in ranges.items()}
    found |= {name + SCORES: block.scores for name, block in ranges.items() if block.scores > 0}
    best = sorted(found, key=lambda name: (-found[name], name))[:count]
    return {name: float(f"{found[name]:.4g}") for name in best}


def figures(measured: Measured) -> dict[str, dict[str, float]]:
    """What the manifest keeps: graph -> its blocks with the largest magnitudes."""
    return {graph: largest(ranges) for graph, ranges in measured.ranges.items()}


def _enclosing(name: str, ranges: Ranges) -> set[str]:
    """The smallest blocks round `name`, itself included, whose inputs and outputs stay below the limit."""
    if ranges[name].crossing <= LIMIT:
        return {name}
    return {found for caller in ranges[name].callers for found in _enclosing(caller, ranges)}


def _picture(file: Record, frame: tuple[int, int]) -> Tensor:
    """An image scaled to cover the frame and cropped round its centre: pixels [1, 3, H, W] in [-1, 1]."""
    image = ImageOps.fit(Image.fromarray(file.pixels()), frame, Image.Resampling.BICUBIC)
    return to_pixels(np.array(image, dtype=np.uint8))[None]


@contextmanager
def _watching(module: nn.Module, ranges: Ranges) -> Iterator[None]:
    """Keep magnitudes while the module runs."""
    active: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, args: Any, kwargs: Any) -> None:
            block = ranges.setdefault(name, BlockRange())
            block.reads = max(block.reads, _magnitude((args, kwargs)))
            if active:
                block.callers.add(active[-1])
            active.append(name)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, args: Any, output: Any) -> None:
            active.pop()
            block = ranges[name]
            block.gives = max(block.gives, _magnitude(output))

        return hook

    with ExitStack() as stack:
        for name, part in module.named_modules():
            stack.callback(part.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
            stack.callback(part.register_forward_hook(leave(name)).remove)
        stack.enter_context(_Operations(ranges, active))
        yield


class _Operations(TorchDispatchMode):
    """Sees every operation's result, and notes its magnitude for the block that is running."""

    def __init__(self, ranges: Ranges, active: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ranges, self._active = ranges, active

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not self._active or func.is_view or name in _EMPTY:
            return result
        block = self._ranges[self._active[-1]]
        if "scaled_dot_product" in name:
            block.scores = max(block.scores, _scores(args[0], args[1], kwargs.get("scale")))
        found = _magnitude(result[:1] if isinstance(result, tuple) else result)  # the others are an operation's notes
        if found != found:
            raise ExportError(
                f'PyTorch itself gives NaN at "{self._active[-1]}" ({name}), in float32. Mend the model, or store its '
                f"weights as float32 (`weights_dtype=float32`).",
                field="weights_dtype",
            )
        block.inside = max(block.inside, found)
        return result


def _scores(query: Tensor, key: Tensor, scale: float | None) -> float:
    """Largest magnitude of q k^T * scale, for query [B, A, Q, E] and key [B, A, S, E], head by head."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    heads = zip(query.flatten(0, 1), key.flatten(0, 1), strict=True)
    return max(float((q @ k.T).abs().max()) * factor for q, k in heads)


def _magnitude(values: Any) -> float:
    """Largest magnitude among the float tensors of a structure, masks left out; NaN if there is one."""
    found = 0.0
    for tensor in tree_leaves(values):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        low, high = (float(end) for end in torch.aminmax(tensor))
        if low != low:
            return low
        if max(-low, high) > _MASK:
            kept = tensor[tensor.abs() <= _MASK]
            low, high = (float(end) for end in torch.aminmax(kept)) if kept.numel() else (0.0, 0.0)
        found = max(found, -low, high)
    return found
