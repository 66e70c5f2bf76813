"""What an adapter is, in plain data: its shape (AdapterConfig) and its story (AdapterInfo, `adapter.json`).

Knows: the fields, their ranges, and JSON both ways. Knows nothing about tensors: it imports no torch, so a bundle
can be read without it.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engines.common.files import read_json
from engines.common.quote import quote
from engines.common.schema import from_object, hold, in_range
from engines.errors import ModelError
from engines.labels.boxes import LEAST_COUNTED
from engines.quality.look import Looks

FORMAT = 1
INFO_FILE = "adapter.json"
WEIGHTS_FILE = "adapter.safetensors"

Head = Literal["rt_detr", "deformable_detr"]

# Lowest and highest value of each number, checked before anything is built from it. The highest are far above what any
# adapter needs, and low enough that a network of them is described in seconds.
_MOST_LEVELS = 8
_RANGES = (
    ("channels", 1, 65_536),
    ("num_classes", 1, 10_000),
    ("width", 4, 4096),
    ("extra_levels", 0, 4),
    ("encoder_layers", 0, 24),
    ("decoder_layers", 1, 24),
    ("queries", 1, 10_000),
    ("denoising", 0, 10_000),
    ("heads", 1, 128),
    ("ffn_width", 1, 65_536),
    ("expansion", 0.01, 8),
    ("points", 1, 64),
    ("anchor_cells", 0.01, 1000),
)
_INFO_RANGES = (
    ("timestep", 0, 100_000),
    ("short_side", 1, 65_536),
    ("frame", 1, 65_536),
    ("size_multiple", 1, 4096),
    ("class_statistics", 0, 1_000_000),
    ("labelled_images", 0, 1_000_000_000),
    ("objects", 0, 1_000_000_000_000),
)


@dataclass(frozen=True)
class AdapterConfig:
    """The adapter's shape: everything that decides its weights' names and sizes."""

    channels: tuple[int, ...]  # of div1, div2, ...: the base's pyramid sets them
    num_classes: int  # K
    head: Head = "rt_detr"  # RT-DETRv2's hybrid encoder and decoder, or Deformable DETR
    width: int = 128  # channels of every level after the neck, and of the decoder; a multiple of `heads` and 4
    extra_levels: int = 0  # levels added below the last by stride-2 convolutions
    encoder_layers: int = 1  # self-attention layers: of the last level (rt_detr), of all levels (deformable_detr)
    decoder_layers: int = 3  # decoder layers; each refines the boxes
    queries: int = 100  # Q: the most objects in one frame
    denoising: int = 50  # denoising queries in training, about; 0 for none (rt_detr only)
    heads: int = 8  # attention heads
    ffn_width: int = 512  # inner width of the transformer layers' MLPs
    expansion: float = 0.5  # inner width of the hybrid encoder's blocks, as a share of `width`
    points: int = 4  # sampling points for each head and level
    anchor_cells: float = 4.0  # side of the boxes that refinement starts from, in cells of their own level

    def __post_init__(self) -> None:
        hold(self, self._checks(), ModelError, "Adapter settings")

    def _checks(self) -> Iterator[tuple[str, str, bool]]:
        """(field, what it must be, whether it is), beyond its type."""
        for name, low, high in _RANGES:
            yield name, f"{low:g} to {high:g}", in_range(getattr(self, name), low, high)
        yield "channels", f"1 to {_MOST_LEVELS} numbers, one for each level", 0 < len(self.channels) <= _MOST_LEVELS
        yield "width", f"a multiple of 4 and of heads ({quote(self.heads)})", _divides(self.width, 4, self.heads)

    @property
    def levels(self) -> int:
        """Feature levels that the head sees."""
        return len(self.channels) + self.extra_levels

    def cells(self, height: int, width: int) -> int:
        """Cells of all levels for latents of `height` x `width`; the head picks its queries among them."""
        return sum(math.ceil(height / 2**level) * math.ceil(width / 2**level) for level in range(self.levels))


@dataclass(frozen=True)
class AdapterInfo:
    """`adapter.json`: what was learned, from what, and how to use it."""

    class_names: tuple[str, ...]  # in the order of the logits
    timestep: int  # t of the label pass the adapter was trained on
    short_side: int  # pixels of the short side that images were resized to
    frame: tuple[int, int]  # (width, height) of the training frames, in pixels
    size_multiple: int  # frames' width and height must divide by this, in pixels
    style: str  # style words of the prompts, such as "microscope photo"
    prompts: dict[str, Any]  # how training drew prompts: example templates and probabilities
    base_hash: str  # `base_model.base_hash` of the base it was trained on
    config: AdapterConfig  # shape of the network
    class_statistics: tuple[dict[str, int], ...] = ()  # objects by class in frames of training images with any
    labelled_images: int = 0  # all that it learned or was measured from; 0: not known
    objects: dict[str, int] = field(default_factory=dict)  # annotated in them, by class; crowds aside
    thresholds: dict[str, float] = field(default_factory=dict)  # class -> lowest score of a label; the rest: a default
    rotate: bool | None = None  # whether it learned from pictures turned by quarters; None: from an earlier dengine
    photographs: Looks | None = None  # what training images show at `short_side`, for painted ones to be held against
    figures: dict[str, Any] = field(default_factory=dict)  # AP on the dev split, and how training went
    format: int = FORMAT  # version of this file

    @property
    def frequencies(self) -> dict[str, float]:
        """Annotated objects an image, by class; a class of fewer than LEAST_COUNTED objects is left out.

        Where `labelled_images` is not known, of the frames in `class_statistics`.
        """
        images, objects = self.labelled_images, Counter(self.objects)
        if not images:
            images = len(self.class_statistics)
            for counts in self.class_statistics:
                objects.update(counts)
        return {name: number / images for name, number in objects.items() if number >= LEAST_COUNTED}

    def to_json(self) -> dict[str, Any]:
        """The JSON object written to `adapter.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = INFO_FILE) -> "AdapterInfo":
        """Read what `to_json` wrote. Raises ModelError that lists every mistake at once, prefixed with `where`."""
        if value.get("format") != FORMAT:
            found = quote(value.get("format"))
            raise ModelError(f"{where}: adapter format {found} was found; this version reads format {FORMAT}.")
        info = from_object(cls, value, ModelError, where)
        hold(info, info._checks(), ModelError, where)
        return info

    def _checks(self) -> Iterator[tuple[str, str, bool]]:
        """(field, what it must be, whether it is), beyond its type."""
        for name, low, high in _INFO_RANGES:
            yield name, f"{low} to {high}", in_range(getattr(self, name), low, high)
        names, known = self.class_names, set(self.class_names)
        yield "class_names", "different names without line breaks", are_names(names)
        classes = self.config.num_classes
        yield "class_names", f"as many as the network's classes, {classes}", len(names) == classes
        yield (
            "thresholds",
            "classes with scores above 0, up to 1",
            all(name in known and 0.0 < score <= 1.0 for name, score in self.thresholds.items()),
        )


def are_names(names: Sequence[str]) -> bool:
    """Whether these can be names of classes: some, different, of characters that print, and no idle space."""
    return len(names) > 0 and len(set(names)) == len(names) and all(map(_is_name, names))


def _is_name(name: str) -> bool:
    return bool(name) and name.isprintable() and name == " ".join(name.split())


def read_info(folder: Path) -> AdapterInfo:
    """Read `adapter.json` of an adapter folder; ModelError where it is missing or wrong."""
    return AdapterInfo.from_json(read_json(folder / INFO_FILE, ModelError), str(folder / INFO_FILE))


def _divides(number: int, *divisors: int) -> bool:
    return number > 0 and all(divisor > 0 and number % divisor == 0 for divisor in divisors)
