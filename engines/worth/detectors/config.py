"""What a detector is, in plain data: its network, how it is trained, its story (`detector.json`), and presets.

Knows: the fields, their ranges, and JSON both ways. Knows nothing about tensors: it imports no torch.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from engines.adapter.info import are_names
from engines.common.files import read_json
from engines.common.quote import quote, shorten
from engines.common.schema import KEY, from_object, hold, in_range, to_object
from engines.errors import ModelError, UsageError, refuse, wrong_values

FORMAT = 1
INFO_FILE = "detector.json"
WEIGHTS_FILE = "detector.safetensors"
MULTIPLE = 32  # frames' width and height divide by this, in pixels: the networks' coarsest stride
MAX_DETECTIONS = 100  # of one image: COCO's own limit

Kind = Literal["rt_detr", "retinanet", "faster_rcnn"]
KINDS: tuple[str, ...] = get_args(Kind)


# Lowest and highest value of each number, checked before anything is built from it.
_RANGES = (
    ("backbone_width", 1, 1024),
    ("width", 32, 4096),
    ("heads", 1, 128),
    ("decoder_layers", 2, 24),
    ("queries", 1, 10_000),
    ("denoising", 0, 10_000),
    ("expansion", 0.01, 8),
    ("anchor_cells", 0.01, 1000),
    ("depths", 1, 64),
)
_MOST_PARTS = 64  # layers, levels and points of a network that a library's settings describe
_MOST = 1_000_000  # every other number there


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a detector's network: everything that decides its weights' names and sizes."""

    kind: Kind = "rt_detr"
    backbone_width: int = 32  # channels of the ResNet's first stage (x4 in bottlenecks), doubled at every further one
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)  # blocks of its stages
    bottleneck: bool = False  # ResNet-50's blocks in place of ResNet-18's
    width: int = 64  # channels behind the backbone
    heads: int = 4  # attention heads (rt_detr)
    decoder_layers: int = 3  # layers that refine boxes (rt_detr)
    queries: int = 100  # most objects in a frame (rt_detr)
    denoising: int = 50  # denoising queries of a frame in training (rt_detr)
    expansion: float = 0.5  # inner width of the encoder's blocks, as a share of `width` (rt_detr)
    anchor_cells: float = 2.0  # side of a level's smallest anchors, in cells of that level (retinanet, faster_rcnn)

    def __post_init__(self) -> None:
        checks = [
            (name, f"{low:g} to {high:g}", in_range(getattr(self, name), low, high)) for name, low, high in _RANGES
        ]
        if all(fits for _, _, fits in checks):
            divides = not (self.width % 32 or self.width % (4 * self.heads))
            checks.append(("width", f"a multiple of 32 and of 4 x heads ({self.heads})", divides))
        refuse(wrong_values(self, checks), ModelError, "Detector settings: ")


@dataclass(frozen=True)
class DetectorOptions:
    """How a detector is trained."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    short_side: int = 256  # pixels of the images' short side, at most
    steps: int = 2700  # optimiser steps
    batch: int = 4  # frames a step
    lr: float = 1e-3  # peak learning rate
    weight_decay: float = 1e-4  # AdamW's
    warmup: int = 50  # steps to the peak
    final_lr: float = 0.02  # learning rate at the last step, as a share of the peak
    grad_clip: float = 0.1  # largest norm of the gradient
    ema_decay: float = 0.995  # of the averaged weights
    scale: tuple[float, float] = (0.8, 1.25)  # random factor on the images' scale
    flips: bool = True  # mirror frames left to right, half of the time
    # Right-angle turns are as likely as not (microscopes, satellites).
    rotate: bool = field(default=False, metadata={KEY: "turns"})
    colour: float = 1.0  # strength of changes to brightness, contrast, saturation and hue; 0 for none
    min_visible: float = 0.3  # a cut box stays when this share of its area is in the frame
    device: str = "cpu"  # cpu, cuda or cuda:N
    precision: str = "auto"  # f32, bf16 or auto
    checkpoint_minutes: float = 3.0  # wall time between checkpoints

    def __post_init__(self) -> None:
        checks = (
            ("short_side", f"at least {MULTIPLE}", self.short_side >= MULTIPLE),
            ("steps", "positive", self.steps > 0),
            ("batch", "2 or more (for batch norm)", self.batch >= 2),
            ("lr", "positive", self.lr > 0),
            ("grad_clip", "positive", self.grad_clip > 0),
            ("ema_decay", "at least 0 and below 1", 0 <= self.ema_decay < 1),
            ("scale", "two positive factors, the lower first", 0 < self.scale[0] <= self.scale[1]),
            ("colour", "0 or more", self.colour >= 0),
            ("min_visible", "between 0 and 1", 0 <= self.min_visible <= 1),
        )
        refuse(wrong_values(self, checks))

    def decisive(self) -> dict[str, Any]:
        """Every field that decides the weights, as JSON has it; `precision` does once it is resolved."""
        free = ("device", "checkpoint_minutes")
        return {name: value for name, value in to_object(self).items() if name not in free}


def fewest_cells(short_side: int) -> int:
    """Cells of the three levels (strides 8, 16 and 32 pixels) of the smallest frame with that short side, a square."""
    side = max(MULTIPLE, short_side // MULTIPLE * MULTIPLE)
    return sum((side // stride) ** 2 for stride in (8, 16, 32))


@dataclass(frozen=True)
class DetectorInfo:
    """`detector.json`: what was learned, from what, and how to use it."""

    class_names: tuple[str, ...]  # in the order of the labels
    short_side: int  # pixels of the short side that images are resized to
    network: NetworkConfig
    library: dict[str, Any] = field(default_factory=dict)  # transformers' settings, where it began as their checkpoint
    training: dict[str, Any] = field(default_factory=dict)  # how it was trained, for the reader
    format: int = FORMAT  # version of this file

    def to_json(self) -> dict[str, Any]:
        """The JSON object written to `detector.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, folder: Path) -> "DetectorInfo":
        """Read `detector.json` of a detector folder; ModelError that lists every mistake at once."""
        path = folder / INFO_FILE
        value = read_json(path, ModelError)
        if value.get("format") != FORMAT:
            found = quote(value.get("format"))
            raise ModelError(f"{path}: detector format {found} was found; this version reads format {FORMAT}.")
        info = from_object(cls, value, ModelError, str(path))
        checks = (
            ("class_names", "different names without line breaks", are_names(info.class_names)),
            ("short_side", f"{MULTIPLE} to 65536", in_range(info.short_side, MULTIPLE, 65_536)),
        )
        hold(info, checks, ModelError, str(path))
        check_library_settings(info.library, str(path))
        return info


def check_library_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raise ModelError for a library's settings with a number that no network of ours has, however deep it lies."""
    for key, value in settings.items():
        named = any(word in key for word in ("layers", "levels", "depths", "points"))
        numbers = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int | float)]
        most = _MOST_PARTS if named else _MOST
        if not in_range(numbers, -most, most):
            raise ModelError(f'{where}: "{shorten(key)}" is {quote(value)}; at most {most} was expected.')
        if isinstance(value, Mapping):
            check_library_settings(value, where)


@dataclass(frozen=True)
class Preset:
    """A size of detector, with the training it needs."""

    seeds: int  # trainings of each arm, unless another number is asked for
    options: DetectorOptions  # of an rt_detr
    changes: Mapping[str, Mapping[str, Any]]  # for other kinds: DetectorOptions fields that differ


_ANCHORS = {kind: {"lr": 5e-4, "grad_clip": 1.0} for kind in ("retinanet", "faster_rcnn")}
_PAPER = NetworkConfig(
    backbone_width=64,
    depths=(3, 4, 6, 3),
    bottleneck=True,
    width=256,
    heads=8,
    decoder_layers=6,
    queries=300,
    denoising=100,
    expansion=1.0,
)

PRESETS: Mapping[str, Preset] = {
    # Both arms of 30 images of blood cells in some 8 minutes on one CPU core; AP50 0.77 on 30 others.
    "quick": Preset(1, DetectorOptions(short_side=192, steps=500, ema_decay=0.99), _ANCHORS),
    # Meant for about 15 minutes a training on two CPU cores, at frames of 320x256; reckoned from the quick one.
    "small": Preset(3, DetectorOptions(steps=2700), _ANCHORS),
    # ResNet-50 and the published widths, for a GPU; never trained yet.
    "paper": Preset(
        3,
        DetectorOptions(_PAPER, short_side=640, steps=30000, batch=16, lr=2e-4, warmup=1000, ema_decay=0.9995),
        {kind: {"grad_clip": 1.0} for kind in ("retinanet", "faster_rcnn")},
    ),
}


def preset(name: str, kind: str) -> tuple[DetectorOptions, int]:
    """Options of a preset for one kind of detector, and its number of seeds; UsageError listing the names."""
    if name not in PRESETS:
        raise UsageError(f'`preset` is "{name}"; one of {", ".join(PRESETS)} was expected.', field="preset")
    named = next((known for known in get_args(Kind) if known == kind), None)
    if named is None:
        raise UsageError(f'`detector` is "{kind}"; one of {", ".join(KINDS)} was expected.', field="detector")
    found = PRESETS[name]
    network = replace(found.options.network, kind=named)
    return replace(found.options, network=network, **found.changes.get(kind, {})), found.seeds
