"""Which shapes TensorRT plans are built for.

Knows: how batches and sizes become profiles (smallest, usual, largest) of every graph, so that a `generate` with
those settings finds all it prepares (`engines.painting.needs`). Does not know how a plan is built.

Static by default: a profile whose three shapes are one. A graph that is run at two batch sizes, as the UNet is for the
sampler and for the label pass, has two profiles in one plan, and its weights on the GPU once. A range of batches makes
one profile of them.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise

from engines.backends.tensorrt.plans import Bounds
from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from engines.painting.needs import Size, painted_graphs
from engines.painting.resolve import GPU_SLOTS, default_rows

Batches = tuple[int, int, int]  # smallest, usual, largest number of images in work at once
Frames = tuple[Size, Size, Size]  # smallest, usual, largest (width, height) in pixels
Profiles = Mapping[str, tuple[Bounds, ...]]


def wanted_profiles(bundle: Bundle, batches: Batches | None = None, frames: Frames | None = None) -> Profiles:
    """The profiles of every graph, by name.

    Args:
        bundle: its settings of `generate` decide how many rows of the UNet a number of images takes.
        batches: images in work at once, as the slots of `generate`; None for its default on a GPU.
        frames: sizes of the images; None for the bundle's own.

    Raises UsageError for a range that is out of order, or a size that the networks cannot take.
    """
    batches = batches or (GPU_SLOTS,) * 3
    frames = frames or (bundle.frame,) * 3
    _check(bundle, batches, frames)
    ends = [
        painted_graphs(bundle, slots, default_rows(bundle, slots), frame, references=True)
        for slots, frame in zip(batches, frames, strict=True)
    ]
    profiles: dict[str, tuple[Bounds, ...]] = {}
    for (graph, low), (_, usual), (_, high) in zip(*ends, strict=True):
        bounds = {size: (low[size], usual[size], high[size]) for size in usual}
        known = profiles.get(graph, ())
        if known and batches[0] < batches[2]:
            profiles[graph] = (_joined(known[0], bounds),)
        elif bounds not in known:
            profiles[graph] = (*known, bounds)
    return profiles


def _joined(profile: Bounds, other: Bounds) -> Bounds:
    """A profile that serves what both serve; what is usual is the first one's."""
    return {
        size: (min(low, other[size][0]), usual, max(high, other[size][2]))
        for size, (low, usual, high) in profile.items()
    }


def _check(bundle: Bundle, batches: Batches, frames: Frames) -> None:
    """Raise UsageError unless both ranges ascend and the networks can take their sizes."""
    if not 1 <= batches[0] <= batches[1] <= batches[2]:
        raise UsageError(
            f"`batches` is {_text(batches)}; a number from 1, or smallest:usual:largest, was expected.",
            field="batches",
        )
    shown = _text(f"{width}x{height}" for width, height in frames)
    if not all(a[side] <= b[side] for a, b in pairwise(frames) for side in (0, 1)):
        raise UsageError(f"`sizes` is {shown}; a size, or smallest:usual:largest, was expected.", field="sizes")
    multiple = bundle.size_multiple
    if any(side < 1 or side % multiple for frame in frames for side in frame):
        raise UsageError(
            f"`sizes` is {shown}; all sides must be multiples of {multiple} for this bundle.", field="sizes"
        )
    config = bundle.adapter_info.config
    width, height = (side // bundle.vae_stride for side in frames[0])
    if config.cells(height, width) < config.queries:
        raise UsageError(
            f"`sizes` begins at {frames[0][0]}x{frames[0][1]}, which has {config.cells(height, width)} cells for the "
            f"adapter's {config.queries} queries. Begin at a larger size.",
            field="sizes",
        )


def _text(values: Iterable[object]) -> str:
    return ":".join(dict.fromkeys(str(value) for value in values))
