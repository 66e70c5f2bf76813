"""The settings of a run: what was asked for, and what that came to.

Knows: every option of `generate`, its range and its default, which of them contradict each other, how options left
out are filled in (from the run that is being resumed, the bundle, or DEFAULTS), and JSON both ways for `run.json`.
Knows nothing about folders, networks or images.
"""

import dataclasses
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engines.adapter.inference import LABEL_VIEWS
from engines.common.schema import from_object
from engines.datasets.duplicates import NEAR
from engines.datasets.yolo_writer import VAL_FRACTION
from engines.errors import BundleError, Mistake, RunError, UsageError, refuse
from engines.labels.boxes import SCORE_FLOOR
from engines.labels.scores import ScoreKind, ScoreLike, ScorePolicy, StoredScore, check_uncertain, shown, stored

FORMAT = 2  # version of run.json, and of the order in which a chunk's jobs are painted
OLDER = (1,)  # formats of runs that can be read, but not gone on with
Sampler = Literal["ddim", "dpmpp"]
SAMPLERS = ("ddim", "dpmpp")
DATASET_FORMATS = ("coco", "yolo", "imagefolder")
IMAGE_SUFFIXES = {"jpeg": "jpg", "png": "png"}
TEMPLATE_FIELDS = ("style", "classes", "caption")
_NOT_MATCHED = "`score=matched` looks at all boxes at once: it is for `dengine label` and `dengine finalize`"
LIMIT = 10**9  # no count, seed aside, is larger

# What is painted where neither the user nor the bundle's manifest says otherwise.
DEFAULTS: Mapping[str, Any] = {
    "steps": 25,
    "guidance": 4.0,
    "guidance_interval": None,
    "sampler": "ddim",
    "eta": 0.0,
    "strength": (0.4, 0.8),
    "score": "adapter",
    "uncertain": 0.0,
    "min_quality": 0.0,
    "max_overlap": 1.0,
    "prompt_template": None,
    "negative_prompt": "",
}
JPEG_QUALITY = 95


@dataclass(frozen=True)
class GenerateSettings:
    """What the user asked for. None leaves the choice to the bundle, then to DEFAULTS.

    Raises UsageError that lists every mistake at once.
    """

    out: Path  # the run's folder: new, empty, or a run to go on with
    bundle: Path | None = None  # None: the bundled model
    count: int | None = None  # kept images wanted
    jobs: int | None = None  # images to paint, kept or not, in place of count
    shard: tuple[int, int] | None = None  # (k, n): the k-th of n parts of the jobs, 1 <= k <= n
    reference: Path | None = None  # dataset whose images are repainted; None paints from text alone
    reference_split: str | None = None  # part of that dataset, such as train; None: all of it
    strength: tuple[float, float] | None = None  # how much of a reference is repainted, drawn from this range
    flip: bool = True  # mirror references left to right, half of the time
    size: tuple[int, int] | None = None  # (width, height) of the images in pixels; None: the bundle's frame
    steps: int | None = None  # of the schedule
    sampler: str | None = None  # one of SAMPLERS
    eta: float | None = None  # share of DDPM's noise in 0..1, ddim only
    guidance: float | None = None  # classifier-free guidance; 1 is off
    guidance_interval: tuple[float, float] | None = None  # of t / T, where guidance acts; None: everywhere
    prompt_template: str | None = None  # with {style}, {classes}, {caption}; None: the wording of training
    negative_prompt: str | None = None  # what guidance leads away from
    score: ScoreLike | None = None  # a box below this is no label; classes it does not name take the adapter's own
    uncertain: float | None = None  # a box from this up to `score` marks its region as uncertain; 0: none does
    min_quality: float | None = None  # an image is dropped when its boxes are less sure as a whole; 0: none is
    max_overlap: float | None = None  # of two labels of a class that overlap (IoU) more, the surer stays; 1: both do
    keep_empty: bool = False  # keep images without a label
    label_views: int = 1  # looks that boxes are read from: 2 is with the mirror image
    near_duplicates: float = 0.0  # correlation from which an image repeats another or a reference and goes; 0: stays
    balance: bool = False  # references and prompts with rare classes are drawn more often
    seed: int = 0  # decides everything that is drawn
    chunk: int | None = None  # jobs painted between two safe points; None: grows with the count
    slots: int | None = None  # images in work at once; None: by device
    rows: int | None = None  # rows of a network call; None: what the slots need
    engine: str = "auto"  # a backend's name
    precision: str = "auto"  # of the backend's arithmetic
    compiled: bool = False  # pass the networks through torch.compile (torch on CUDA)
    threads: int | None = None  # of the backend, on a CPU; None: its own choice
    device: str | None = None  # cpu, cuda or cuda:N; None: what the engine is fastest on
    formats: tuple[str, ...] = ("coco",)  # of DATASET_FORMATS; COCO is always written
    image_format: str = "jpeg"  # a key of IMAGE_SUFFIXES
    jpeg_quality: int | None = None  # 1..100; None: JPEG_QUALITY
    val_fraction: float = VAL_FRACTION  # about what share of the images the YOLO files call validation
    skip_bad: bool = False  # leave broken references out, instead of stopping
    follow_links: bool = False  # follow links that lead outside the references' folder
    boxes: str = "auto"  # what the numbers of the references' boxes mean, see `open_dataset`

    def __post_init__(self) -> None:
        refuse([*_range_mistakes(self), *_contradictions(self)])


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a run's bytes, as resolved: the content of `run.json`."""

    bundle: str | None  # the bundle as it was named; None: the bundled model
    bundle_hash: str  # SHA-256 of its manifest, which holds those of all its files
    class_names: tuple[str, ...]  # the bundle's
    reference: str | None  # the reference dataset as it was named
    reference_hash: str | None  # SHA-256 over its records
    count: int | None
    jobs: int | None
    shard: tuple[int, int] | None
    seed: int
    strength: tuple[float, float] | None  # None without references
    flip: bool
    frame: tuple[int, int]  # (width, height) of the images
    steps: int
    sampler: Sampler
    eta: float
    guidance: float
    guidance_interval: tuple[float, float] | None
    prompt_template: str | None
    negative_prompt: str
    score: StoredScore  # the lowest of a label: a number, or a number for every class
    keep_empty: bool
    chunk: int
    slots: int
    rows: int
    engine: str  # the backend taken, never "auto"
    precision: str  # what it computes in, never "auto"
    threads: int  # CPU threads that a graph runs on
    backend: str  # its description: runtime, device, precision, threads
    formats: tuple[str, ...]
    image_format: str
    jpeg_quality: int | None  # None for png
    skip_bad: bool
    uncertain: float = 0.0
    min_quality: float = 0.0
    max_overlap: float = 1.0
    label_views: int = 1
    near_duplicates: float = 0.0
    balance: bool = False
    reference_split: str | None = None  # part of the reference dataset
    short_side: int | None = None  # the bundle's; with the references, it gives each job's crop back
    follow_links: bool = False  # out of the references' folder
    boxes: str = "auto"  # what the numbers of the references' boxes mean
    val_fraction: float = VAL_FRACTION
    frequencies: dict[str, float] | None = None  # `AdapterInfo.frequencies`; None in runs of an earlier dengine
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """The JSON object written to `run.json`."""
        return {"format": self.format} | dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "RunSettings":
        """Read what `to_json` wrote. Raises RunError that lists every mistake at once, prefixed with `where`."""
        if value.get("format") not in (FORMAT, *OLDER):
            raise RunError(
                f"{where}: run format {value.get('format')!r} was found; this version reads formats up to {FORMAT}."
            )
        settings = from_object(cls, value, RunError, where)
        if isinstance(settings.score, dict) and tuple(settings.score) != settings.class_names:
            raise RunError(
                f"{where}: score names {', '.join(settings.score)}; the run's own classes were expected.", field="score"
            )
        return settings

    @property
    def suffix(self) -> str:
        """File name ending of the images, without a dot."""
        return IMAGE_SUFFIXES[self.image_format]


def resolve_options(
    asked: GenerateSettings,
    bundle_defaults: Mapping[str, Any],
    thresholds: Mapping[str, float],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """The painting options of DEFAULTS' keys with every None filled in: from the bundle, then from DEFAULTS.

    A score has its stored form, and classes left out take the adapter's `thresholds`.
    Raises BundleError for a bundle whose defaults are unknown or out of range, UsageError where an option that was
    given contradicts one that was filled in.
    """
    unknown = sorted(set(bundle_defaults) - set(DEFAULTS))
    if unknown:
        raise BundleError(
            f'manifest.json: "generate" holds {", ".join(unknown)}; known are {", ".join(DEFAULTS)}. Export it again.'
        )
    own: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in bundle_defaults.items()
    }
    try:
        GenerateSettings(out=asked.out, count=1, reference=Path(), **own)
    except (UsageError, TypeError) as cause:
        field = cause.field if isinstance(cause, UsageError) else None
        raise BundleError(f'manifest.json: "generate" cannot be used: {cause}', field=field) from cause
    options = {}
    for key, default in DEFAULTS.items():
        given = getattr(asked, key)
        options[key] = given if given is not None else own.get(key, default)
    wanted = ScorePolicy.of(options["score"]).thresholds(thresholds, class_names)
    options["score"] = stored(wanted)
    if asked.uncertain is not None:
        check_uncertain(asked.uncertain, wanted)
    elif options["uncertain"] >= max(wanted.values()):
        options["uncertain"] = 0.0
    if options["sampler"] != "ddim" and asked.eta is None:
        options["eta"] = 0.0
    if options["guidance"] <= 1.0:
        options |= {
            key: DEFAULTS[key] for key in ("guidance_interval", "negative_prompt") if getattr(asked, key) is None
        }
    if asked.reference is None:
        options["strength"] = None
    dataclasses.replace(asked, **options)  # raises UsageError where they contradict each other
    return options


# Settings that may change between two starts of a run: no byte of an image depends on them.
_FREE = ("bundle", "reference", "skip_bad", "reference_split", "follow_links", "boxes", "short_side", "frequencies")


def differences(stored: RunSettings, wanted: RunSettings) -> list[Mistake]:
    """What keeps `wanted` from going on with the run `stored`, setting by setting; empty when nothing does.

    A larger count (or number of jobs) is no difference; neither is where the bundle and the references lie, as long
    as their contents are the same.
    """
    found = []
    for name in (field.name for field in dataclasses.fields(RunSettings)):
        before, now = getattr(stored, name), getattr(wanted, name)
        grows = name in ("count", "jobs") and before is not None and now is not None and now >= before
        if before != now and not grows and name not in _FREE:
            found.append((name, f"`{name}` is {_shown(before)} in the run, {_shown(now)} was asked for"))
    return found


def default_chunk(target: int, slots: int) -> int:
    """Jobs in a chunk for `target` images: about sqrt(target x slots), a multiple of the slots, at most 512.

    At a chunk's end the slots drain, which costs up to half of them (little, where the longest jobs come first); at the
    run's end half a chunk is painted beyond the count. The square root makes both small.
    """
    return min(512, math.ceil(math.sqrt(target * slots) / slots) * slots)


def _range_mistakes(s: GenerateSettings) -> list[Mistake]:
    """Values outside their own range."""
    mistakes = [
        (name, f"`{name}` is {value}; a whole number from 1 to {most} was expected")
        for name, most in (
            ("count", LIMIT), ("jobs", LIMIT), ("steps", 1000), ("chunk", 10**6), ("slots", 1024), ("rows", 2048),
            ("threads", 1024), ("jpeg_quality", 100),
        )
        if (value := getattr(s, name)) is not None and not 1 <= value <= most
    ]  # fmt: skip
    checks = (
        (s.val_fraction, "val_fraction", 0.0 < s.val_fraction < 1.0, "a number above 0, below 1"),
        (s.seed, "seed", 0 <= s.seed < 2**63, "a whole number from 0 to 2^63 - 1"),
        (s.eta, "eta", s.eta is None or 0.0 <= s.eta <= 1.0, "a number from 0 to 1"),
        (s.guidance, "guidance", s.guidance is None or 1.0 <= s.guidance < math.inf, "1 (off) or more"),
        (s.uncertain, "uncertain", not s.uncertain or SCORE_FLOOR <= s.uncertain < 1.0,
         f"0 (off), or a number from {SCORE_FLOOR} to below 1"),
        (s.min_quality, "min_quality", s.min_quality is None or 0.0 <= s.min_quality <= 1.0, "a number from 0 to 1"),
        (s.max_overlap, "max_overlap", s.max_overlap is None or 0.0 < s.max_overlap <= 1.0,
         "a number above 0, up to 1 (off)"),
        (s.label_views, "label_views", s.label_views in LABEL_VIEWS, "1 or 2"),
        (s.near_duplicates, "near_duplicates", 0.0 <= s.near_duplicates <= 1.0,
         f"a correlation from 0 (keep all) to 1, such as {NEAR},"),
        (s.sampler, "sampler", s.sampler is None or s.sampler in SAMPLERS, " or ".join(SAMPLERS)),
        (s.image_format, "image_format", s.image_format in IMAGE_SUFFIXES, " or ".join(IMAGE_SUFFIXES)),
        (s.size, "size", s.size is None or min(s.size) > 0, "width x height in pixels"),
        (s.strength, "strength", s.strength is None or 0.0 < s.strength[0] <= s.strength[1] <= 1.0,
         "a range low:high above 0 and up to 1"),
        (s.guidance_interval, "guidance_interval",
         s.guidance_interval is None or 0.0 <= s.guidance_interval[0] < s.guidance_interval[1] <= 1.0,
         "a range low:high from 0 to 1"),
        (s.shard, "shard", s.shard is None or 1 <= s.shard[0] <= s.shard[1], "k/n with k from 1 to n"),
    )  # fmt: skip
    mistakes += [
        (name, f"`{name}` is {_shown(value)}; {wanted} was expected")
        for value, name, good, wanted in checks
        if not good
    ]
    if s.score is not None:
        try:
            matched = ScorePolicy.of(s.score).kind is ScoreKind.MATCHED
        except UsageError as cause:
            mistakes.append(("score", str(cause).rstrip(".")))
        else:
            mistakes += [("score", _NOT_MATCHED)] if matched else []
    mistakes += [
        ("formats", f"`formats={name}` is unknown; {', '.join(DATASET_FORMATS)} are known")
        for name in s.formats
        if name not in DATASET_FORMATS
    ]
    return mistakes + _template_mistakes(s.prompt_template)


def _contradictions(s: GenerateSettings) -> list[Mistake]:
    """Options that cannot be meant together."""
    unguided = s.guidance is not None and s.guidance <= 1.0
    return [
        (name, text)
        for name, wrong, text in (
            ("count", s.count is None and s.jobs is None, "`count` or `jobs` is missing: say how many images to paint"),
            ("count", s.count is not None and s.jobs is not None, "`count` and `jobs` exclude each other: give one"),
            ("shard", s.shard is not None and s.jobs is None,
             "`shard` needs `jobs`: how many jobs a count comes to is known only at its end"),
            ("eta", s.sampler == "dpmpp" and bool(s.eta),
             f"`eta={s.eta}` with `sampler=dpmpp`, which adds no noise: leave it out"),
            ("guidance_interval", unguided and s.guidance_interval is not None,
             "`guidance_interval` with `guidance=1`, which is off"),
            ("negative_prompt", unguided and bool(s.negative_prompt),
             "`negative_prompt` with `guidance=1`, which does not read it"),
            ("reference_split", s.reference_split is not None and s.reference is None,
             "`reference_split` without `reference`: it names a part of that dataset"),
            ("strength", s.strength is not None and s.reference is None,
             "`strength` without `reference`: it says how much of a reference is repainted"),
            ("jpeg_quality", s.jpeg_quality is not None and s.image_format != "jpeg",
             "`jpeg_quality` with images that are not JPEG"),
        )
        if wrong
    ]  # fmt: skip


def _template_mistakes(template: str | None) -> list[Mistake]:
    if template is None:
        return []
    known = ", ".join(f"{{{name}}}" for name in TEMPLATE_FIELDS)
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(template)]
    except ValueError as cause:
        text = f'`prompt_template` is "{template:.60}", which is not readable ({cause}); known fields are {known}'
        return [("prompt_template", text)]
    wrong = [f"{{{name}}}" for name, _, _ in fields if name is not None and name not in TEMPLATE_FIELDS]
    wrong += [f"{{{name}}}" for name, spec, conversion in fields if name in TEMPLATE_FIELDS and (spec or conversion)]
    if not wrong:
        return []
    return [("prompt_template", f"`prompt_template` holds {', '.join(wrong)}; known fields are {known}")]


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, dict):
        return shown(value)
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value)
