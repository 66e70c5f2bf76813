"""What was asked becomes what a run does: every choice made before anything is painted.

Knows: where each setting comes from (the user, the run that is being resumed, the bundle, the machine), and what of a
reference dataset the jobs depend on. Knows nothing about what happens then.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from engines.adapter.looks import check_looks
from engines.backends.registry import backend_info
from engines.backends.rows import FULL_SIZE, unet_parameters
from engines.common.schema import part_of
from engines.datasets.dataset import Dataset
from engines.diffusion.schedule import Schedules, guided_steps
from engines.errors import UsageError
from engines.painting.options import painting_options
from engines.painting.references import settled_labels
from engines.painting.run_settings import FORMAT, RunSettings
from engines.painting.settings import (
    JPEG_QUALITY,
    OPEN,
    GenerateSettings,
    PaintOptions,
)

if TYPE_CHECKING:
    import torch

    from engines.bundle.bundle import Bundle

CPU_SLOTS, GPU_SLOTS = 4, 8  # images in work at once, where the user does not say
MOST_SLOTS = 128  # of a small model on a GPU
_FILLS_A_GPU = FULL_SIZE * 64 * 64 * GPU_SLOTS  # parameters x latent pixels x images of what keeps a GPU busy
LONG_RUN = 1000  # images from which on networks are compiled first, where nobody says
_STRENGTHS = 33  # of a range, at which the steps that jobs take are counted


class Engine(Protocol):
    """What of a backend a run's settings hold: of one that is open, or of the one that a run was painted with."""

    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def description(self) -> str: ...
    @property
    def device(self) -> "torch.device": ...


@dataclasses.dataclass(frozen=True)
class FormerEngine:
    """What a run was painted with, where that is not opened: nothing is left to paint, or to be known of a device."""

    name: str
    precision: str
    threads: int
    description: str

    @classmethod
    def of(cls, asked: GenerateSettings, stored: RunSettings) -> "FormerEngine":
        """The stored run's, with what was asked for in its place."""
        options = stored.options
        return cls(
            options.engine if asked.engine == "auto" else asked.engine,
            options.precision if asked.precision == "auto" else asked.precision,
            options.threads if asked.threads is None else asked.threads,
            stored.backend,
        )

    @property
    def device(self) -> "torch.device":
        """The CPU: where settings are stored, none of them depends on it."""
        import torch

        return torch.device("cpu")


def resolve(
    asked: GenerateSettings,
    bundle: "Bundle",
    backend: Engine,
    references: Dataset | None,
    stored: RunSettings | None,
) -> RunSettings:
    """What was asked, with every choice made: by the stored run (slots, rows, chunk), the bundle, or the defaults.

    Raises UsageError for looks that the adapter did not learn, for a size that the networks cannot divide, and for
    steps that do not fit the base model, or, in a run of format 2, leave nothing to do at the lowest strength.
    """
    check_looks(asked.tta, bundle.adapter_info.rotate)
    options, schedules = painting_options(asked, bundle, stored)
    schedules.steps(options["strength"] and options["strength"][0])
    frame = _frame(asked, bundle)
    target = asked.count or asked.jobs or 1
    on_gpu = backend.device.type == "cuda"
    usual = min(gpu_slots(bundle, frame, target) if on_gpu else CPU_SLOTS, target)
    ahead = backend_info(backend.name).built_ahead
    if ahead:
        usual = GPU_SLOTS  # whatever the target: this is what its plans are built for
    slots, rows = slots_and_rows(asked, stored, usual, schedules, options, bundle if ahead else None)
    return RunSettings(
        options=part_of(
            PaintOptions,
            asked,
            size=frame,
            chunk=asked.chunk or (stored.options.chunk if stored else default_chunk(target, slots)),
            slots=slots,
            rows=rows,
            engine=backend.name,
            precision=backend.precision,
            threads=backend.threads,
            formats=tuple(dict.fromkeys(("coco", *asked.formats))),
            labels=settled_labels(asked, bundle, references),
            keep_detail=_keeps_detail(asked, stored),
            jpeg_quality=None if asked.image_format == "png" else asked.jpeg_quality or JPEG_QUALITY,
            **options,
        ),
        bundle_hash=bundle.digest,
        class_names=tuple(bundle.class_names),
        reference_hash=None if references is None else dataset_hash(references),
        backend=backend.description,
        short_side=bundle.short_side,
        frequencies=bundle.adapter_info.frequencies,
        format=stored.format if stored else FORMAT,
    )


def _frame(asked: GenerateSettings, bundle: "Bundle") -> tuple[int, int]:
    """(width, height) of the images, which the networks can divide and the adapter can look at."""
    frame = bundle.frame if asked.size is OPEN else asked.size
    multiple = bundle.size_multiple
    if any(side % multiple for side in frame):
        nearest = tuple(max(multiple, round(side / multiple) * multiple) for side in frame)
        raise UsageError(
            f"`size={frame}`: both must be multiples of {multiple} for this bundle; `size={nearest}` would do.",
            field="size",
        )
    config = bundle.adapter_info.config
    cells = config.cells(frame[1] // bundle.vae_stride, frame[0] // bundle.vae_stride)
    if cells < config.queries:
        raise UsageError(
            f"`size={frame}` has {cells} cells for the adapter's {config.queries} queries; "
            f"give a larger one, such as `size={bundle.frame}`.",
            field="size",
        )
    return frame


def _keeps_detail(asked: GenerateSettings, stored: RunSettings | None) -> bool:
    """Whether the detail of references is kept: as asked, else as in the stored run, else where objects are pasted."""
    if asked.keep_detail is not OPEN:
        return asked.keep_detail
    return stored.options.keep_detail if stored else asked.compose


def wants_compiled(asked: GenerateSettings, stored: RunSettings | None) -> bool | None:
    """Whether networks are to be compiled: as asked, else as in the stored run; else None, which leaves it to the
    engine, for a run of LONG_RUN images or more, and False for a shorter one."""
    if asked.compiled is not None:
        return asked.compiled
    if stored is not None:
        return ", compiled" in stored.backend
    return None if (asked.count or asked.jobs or 0) >= LONG_RUN else False


def dataset_hash(dataset: Dataset) -> str:
    """SHA-256 over what the jobs read of a dataset: its records, and the sizes of the image files."""
    digest = hashlib.sha256("\0".join(dataset.class_names).encode())
    for record in dataset.records:
        words: tuple[object, ...] = (record.name, record.width, record.height)
        words += (record.file.stat().st_size, record.caption)
        if record.white is not None:
            words += (record.white,)
        digest.update(repr(words).encode())
        for array in (record.instances.boxes, record.instances.labels, record.instances.crowd):
            digest.update(array.tobytes())
    return digest.hexdigest()


def default_chunk(target: int, slots: int) -> int:
    """Jobs in a chunk for `target` images: about sqrt(target x slots), a multiple of the slots, at most 512.

    At a chunk's end the slots drain, which costs up to half of them (little, where the longest jobs come first); at the
    run's end half a chunk is painted beyond the count. The square root makes both small.
    """
    return min(512, math.ceil(math.sqrt(target * slots) / slots) * slots)


def slots_and_rows(
    asked: GenerateSettings,
    stored: RunSettings | None,
    usual: int,
    schedules: Schedules,
    options: Mapping[str, Any],
    ahead: "Bundle | None",
) -> tuple[int, int]:
    """Images in work at once and rows of a network call: as asked, else as in the stored run, else `usual`, and what
    they need; of an engine whose plans are built `ahead`, for this bundle, what its own settings need, so that the same
    plans do for every run.
    """
    slots = asked.slots or (stored.options.slots if stored else usual)
    if asked.rows:
        return slots, asked.rows
    if stored is not None and stored.options.slots == slots:
        return slots, stored.options.rows
    return slots, default_rows(ahead, slots) if ahead else needed_rows(schedules, slots, options)


def default_rows(bundle: "Bundle", slots: int) -> int:
    """Rows of a network call of a `generate` with this many slots and the bundle's own settings."""
    options, schedules = painting_options(GenerateSettings(out=Path(), count=1), bundle)
    return needed_rows(schedules, slots, options)


def gpu_slots(bundle: "Bundle", frame: tuple[int, int], target: int) -> int:
    """Images in work at once on a GPU: GPU_SLOTS of a model of full size, up to MOST_SLOTS where an image is less work,
    so that a tick is enough for the GPU; doubled from one to the next.

    No more than an eighth of the `target`: a chunk has as many jobs as slots at least, and the last one is painted
    whole.
    """
    image = max(unet_parameters(bundle), 1) * (frame[0] // bundle.vae_stride) * (frame[1] // bundle.vae_stride)
    slots = GPU_SLOTS
    while 2 * slots <= min(MOST_SLOTS, target // 8) and 2 * slots * image <= _FILLS_A_GPU:
        slots *= 2
    return slots


def needed_rows(schedules: Schedules, slots: int, options: Mapping[str, Any]) -> int:
    """Rows of a network call that keep slots moving: about two a slot for the share of steps that is guided, else one.

    Which steps jobs take depends on the strengths they draw. With guidance, the number is the nearest even one, so that
    a call can be cut into two equal streams; some slots then wait a call, or a row is spare.
    """
    if options["guidance"] <= 1.0:
        return slots
    interval = options["guidance_interval"] or (0.0, 1.0)
    strengths: list[float | None] = [None]
    if options["strength"] is not None:
        low, high = options["strength"]
        strengths = np.linspace(low, high, _STRENGTHS).tolist()
    guided = [step for one in strengths if one != 0.0 for step in _guided(schedules, one, interval)]
    share = sum(guided) / max(len(guided), 1)
    return max(2 * round(slots * (1.0 + share) / 2), 2)


def _guided(schedules: Schedules, strength: float | None, interval: tuple[float, float]) -> list[bool]:
    """Of each step that a job of this strength takes, whether it is guided."""
    schedule, first = schedules.of(strength)
    return list(guided_steps(schedule, interval)[first:].tolist())
