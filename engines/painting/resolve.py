"""What was asked becomes what a run does: every choice made before anything is painted.

Knows: where each setting comes from (the user, the run that is being resumed, the bundle, the machine), and what of a
reference dataset the jobs depend on. Knows nothing about what happens then.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from engines.backends.registry import backend_info
from engines.backends.rows import FULL_SIZE, unet_parameters
from engines.common.schema import key_of, part_of
from engines.datasets.dataset import Dataset
from engines.diffusion.schedule import Schedules, guided_steps
from engines.errors import BundleError, UsageError
from engines.labels.scores import ScorePolicy, check_ignore_score, stored
from engines.painting.references import settled_labels
from engines.painting.run_settings import FORMAT, RunSettings
from engines.painting.settings import DEFAULTS, FROM_NOISE, JPEG_QUALITY, OPEN, GenerateSettings, PaintOptions

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

    Raises UsageError for a size that the networks cannot divide, and for steps that do not fit the base model, or, in a
    run of format 2, leave nothing to do at the lowest strength.
    """
    options, schedules = painting_options(asked, bundle, stored)
    schedules.steps(options["strength"] and options["strength"][0])
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
    target = asked.count or asked.jobs or 1
    on_gpu = backend.device.type == "cuda"
    usual = min(gpu_slots(bundle, frame, target) if on_gpu else CPU_SLOTS, target)
    if backend_info(backend.name).built_ahead:
        usual = GPU_SLOTS  # whatever the target: this is what its plans are built for
    slots, rows = slots_and_rows(asked, stored, usual, schedules, options)
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


def wants_compiled(asked: GenerateSettings, stored: RunSettings | None) -> bool | None:
    """Whether networks are to be compiled: as asked, else as in the stored run; else None, which leaves it to the
    engine, for a run of LONG_RUN images or more, and False for a shorter one."""
    if asked.compiled is not None:
        return asked.compiled
    if stored is not None:
        return ", compiled" in stored.backend
    return None if (asked.count or asked.jobs or 0) >= LONG_RUN else False


def resolve_options(
    asked: GenerateSettings,
    bundle_defaults: Mapping[str, Any],
    thresholds: Mapping[str, float],
    class_names: Sequence[str],
    *,
    floored: bool = False,
) -> dict[str, Any]:
    """The painting options of DEFAULTS' keys with all that is open filled in: from the bundle, then from DEFAULTS.

    Steps are FROM_NOISE without a reference, and where they are counted from noise all the same (`floored`). A score
    has its stored form, and classes left out take the adapter's `thresholds`.
    Raises BundleError for a bundle whose defaults are unknown or out of range, UsageError where an option that was
    given contradicts one that was filled in.
    """
    names = {key_of(item): item.name for item in dataclasses.fields(PaintOptions) if item.name in DEFAULTS}
    unknown = sorted(set(bundle_defaults) - set(names))
    if unknown:
        raise BundleError(
            f'manifest.json: "generate" holds {", ".join(unknown)}; known are {", ".join(names)}. Export it again.'
        )
    of_bundle = {names[key]: value for key, value in bundle_defaults.items()}
    try:
        own = GenerateSettings(out=asked.out, count=1, reference=Path(), **of_bundle)
    except UsageError as cause:
        raise BundleError(f'manifest.json: "generate" cannot be used: {cause}', field=cause.field) from cause
    given = {key: getattr(asked, key) for key in DEFAULTS if getattr(asked, key) is not OPEN}
    from_noise = {"steps": FROM_NOISE} if asked.reference is None or floored else {}
    options = dict(DEFAULTS) | from_noise | {key: getattr(own, key) for key in of_bundle} | given
    wanted = ScorePolicy.of(options["score"]).thresholds(thresholds, class_names)
    options["score"] = stored(wanted)
    if "ignore_score" in given:
        check_ignore_score(asked.ignore_score, wanted)
    elif options["ignore_score"] >= max(wanted.values()):
        options["ignore_score"] = 0.0
    if options["sampler"] != "ddim" and "eta" not in given:
        options["eta"] = 0.0
    if options["guidance"] <= 1.0:
        options |= {key: DEFAULTS[key] for key in ("guidance_interval", "negative_prompt") if key not in given}
    if asked.reference is None:
        options["strength"] = None
    dataclasses.replace(asked, **options)  # raises UsageError where they contradict each other
    return options


def painting_options(
    asked: GenerateSettings, bundle: "Bundle", stored: RunSettings | None = None
) -> tuple[dict[str, Any], Schedules]:
    """The options of `resolve_options`, and the schedules they make: for a `stored` run, as it was begun."""
    thresholds, floored = bundle.adapter_info.thresholds, stored is not None and stored.floored
    options = resolve_options(asked, bundle.generate_defaults, thresholds, bundle.class_names, floored=floored)
    sampler, steps, eta = options["sampler"], options["steps"], options["eta"]
    return options, Schedules(bundle.scheduler_config, sampler, steps, eta, floored=floored)


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
    asked: GenerateSettings, stored: RunSettings | None, usual: int, schedules: Schedules, options: Mapping[str, Any]
) -> tuple[int, int]:
    """Images in work at once and rows of a network call: as asked, else as in the stored run, else `usual`."""
    slots = asked.slots or (stored.options.slots if stored else usual)
    same = stored is not None and stored.options.slots == slots
    rows = asked.rows or (stored.options.rows if stored and same else needed_rows(schedules, slots, options))
    return slots, rows


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
