"""The settings of a run: what may be asked for.

Knows: every option of `generate`, once, with its range and what it is where nobody says, and which of them contradict
each other. Knows nothing about how what is left open is decided (`resolve`), what a run keeps of it (`run_settings`),
folders, networks or images.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from engines.adapter.looks import TTA_LOOKS, TTA_WANTED
from engines.common.quote import quote, shorten
from engines.common.schema import KEY, OLDER, AnyPath, settle
from engines.datasets.duplicates import NEAR
from engines.datasets.yolo_writer import VAL_FRACTION
from engines.errors import Mistake, UsageError, refuse
from engines.labels.boxes import SCORE_FLOOR
from engines.labels.rules import LABEL_SOURCES
from engines.labels.scores import ScoreKind, ScoreLike, ScorePolicy, shown

Sampler = Literal["ddim", "dpmpp"]
SAMPLERS = ("ddim", "dpmpp")
DATASET_FORMATS = ("coco", "yolo", "imagefolder", "parquet", "webdataset")
REPAINTS = ("all", "pasted")
IMAGE_SUFFIXES = {"jpeg": "jpg", "png": "png"}
TEMPLATE_FIELDS = ("style", "classes", "caption")
_NOT_MATCHED = "`score=matched` looks at all boxes at once: it is for `dengine label` and `dengine finalize`"
LIMIT = 10**9  # no count, seed aside, is larger
JPEG_QUALITY = 95
MOST_GUIDANCE = 1000.0
LARGEST_SIDE = 65_536  # pixels

# A setting left open: the bundle, the run that is there or the machine decides. To leave it out, or None, is the same.
# The type of such a field is that of what comes of it: once settings are resolved, nothing in them is open.
OPEN: Any = None


def _bundle(otherwise: Any, **metadata: Any) -> Any:
    """A field that is left to the bundle, and is `otherwise` where that has no default of its own."""
    return field(default=OPEN, metadata={"otherwise": otherwise, **metadata})


def _later(default: Any) -> Any:
    """A field that runs of an earlier dengine do not have, which did what its default says."""
    return field(default=default, metadata={OLDER: default})


def _new(default: Any) -> Any:
    """The same, of options that came last: their default is not written, so that files stay as they were."""
    return field(default=default, metadata={OLDER: default, "unsaid": True})


@dataclass(frozen=True, kw_only=True)
class PaintOptions:
    """What decides the bytes of a run, beside the bundle's and the references' own.

    Fields come in the order of `run.json`. Those that are `OPEN` here are so in what a caller asks for; in what
    `resolve` gives, they are what their type says.

    >>> PaintOptions(count=8, steps=10).sampler is None
    True
    """

    bundle: AnyPath | None = None  # None: the bundled model
    reference: AnyPath | None = None  # dataset whose images are repainted; None paints from text alone
    count: int | None = None  # kept images wanted
    jobs: int | None = None  # images to paint, kept or not, in place of count
    shard: tuple[int, int] | None = None  # (k, n): the k-th of n parts of the jobs, 1 <= k <= n
    seed: int = 0  # decides everything that is drawn, 0 to 2^63 - 1
    # Noise level t/T of references, drawn from this range; (0, 0) paints nothing.
    strength: tuple[float, float] | None = _bundle((0.4, 0.8))
    flip: bool = True  # mirror references left to right, half of the time
    size: tuple[int, int] = field(default=OPEN, metadata={KEY: "frame"})  # (width, height) in pixels; the bundle's
    # Network evaluations from the noise level to none, 1 to 1000; None: STEPS of a reference, FROM_NOISE of text alone.
    steps: int = _bundle(OPEN)
    sampler: Sampler = _bundle("dpmpp")  # noqa: RUF009  a field; one of SAMPLERS
    eta: float = _bundle(0.0)  # share of DDPM's noise in 0..1, ddim only
    guidance: float = _bundle(4.0)  # classifier-free guidance; 1 is off
    guidance_interval: tuple[float, float] | None = _bundle(None)  # of t / T, where guidance acts; None: everywhere
    prompt_template: str | None = _bundle(None)  # with {style}, {classes}, {caption}; None: the wording of training
    negative_prompt: str = _bundle("")  # what guidance leads away from
    score: ScoreLike = _bundle("adapter")  # noqa: RUF009  a field; a box below is no label
    keep_empty: bool = False  # keep images without a label
    chunk: int = OPEN  # jobs painted between two safe points; grows with the count
    slots: int = OPEN  # images in work at once; by device
    rows: int = OPEN  # rows of a network call; what the slots need
    engine: str = "auto"  # a backend's name
    precision: str = "auto"  # of the backend's arithmetic
    threads: int = OPEN  # of the backend, on a CPU; its own choice
    formats: Sequence[str] = ("coco",)  # of DATASET_FORMATS; COCO is always written
    image_format: str = "jpeg"  # a key of IMAGE_SUFFIXES
    jpeg_quality: int | None = None  # 1..100; None: JPEG_QUALITY, and of png, which has none
    skip_bad: bool = False  # leave broken references out, instead of stopping
    # A box from this up to `score` makes a region to ignore; 0: none does.
    ignore_score: float = _bundle(0.0, **{OLDER: 0.0, KEY: "uncertain"})
    min_quality: float = _bundle(0.0, **{OLDER: 0.0})  # an image whose boxes are less sure as a whole goes; 0: none
    max_overlap: float = _bundle(1.0, **{OLDER: 1.0})  # of labels of a class that overlap (IoU) more, one stays; 1: all
    tta: int = field(default=1, metadata={OLDER: 1, KEY: "label_views"})  # looks that boxes are read from, of TTA_LOOKS
    near_duplicates: float = _later(0.0)  # correlation from which an image repeats another or a reference; 0: all stay
    balance: bool = _later(False)  # references and prompts with rare classes are drawn more often
    reference_split: str | None = _later(None)  # part of the reference dataset, such as train; None: all of it
    follow_links: bool = _new(False)  # follow links that lead outside the references' folder
    boxes: str = _new("auto")  # what the numbers of the references' boxes mean, see `open_dataset`
    # Of LABEL_SOURCES: the adapter's boxes, the references' own, or both; with `compose` both, else the adapter's.
    labels: str = field(default=OPEN, metadata={OLDER: "adapter", "unsaid": True})
    compose: bool = _new(False)  # paste objects of annotated references into them
    rotate: bool = _new(False)  # turn pasted objects by a random right angle
    repaint: str = _new("all")  # of REPAINTS: of a composed image all, or what was pasted and the seams round it
    # What the VAE loses of references comes back, as far as these are kept; with `compose` it does where nobody says.
    keep_detail: bool = field(default=OPEN, metadata={OLDER: False, "unsaid": True})
    val_fraction: float = _new(VAL_FRACTION)  # about what share of the images YOLO's files call validation


# What is not written where it is as here.
UNSAID: Mapping[str, Any] = {
    item.name: item.metadata[OLDER] for item in fields(PaintOptions) if item.metadata.get("unsaid", False)
}

# What is painted where neither the user nor the bundle's manifest says otherwise.
DEFAULTS: Mapping[str, Any] = {
    item.name: item.metadata["otherwise"] for item in fields(PaintOptions) if "otherwise" in item.metadata
}
# The same of runs that were begun before format 4.
EARLIER: Mapping[str, Any] = {"sampler": "ddim"}
STEPS: Mapping[str, int] = {"dpmpp": 8, "ddim": 15}  # by sampler: `steps` of a reference, where nobody says
FROM_NOISE: Mapping[str, int] = {"dpmpp": 12, "ddim": 25}  # and of images painted from text alone


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(PaintOptions):
    """What `generate` is asked for: its options, where the run lies, and what it is painted on.

    What is left out is decided by the bundle, then by DEFAULTS. Paths may be text. Raises UsageError that lists every
    mistake at once.

    >>> GenerateSettings(out="runs/first", count=100, steps=10).out.name
    'first'
    >>> GenerateSettings(out="runs/first", count=100, eta=2.0)
    Traceback (most recent call last):
    engines.errors.UsageError: `eta` is 2.0; a number from 0 to 1 was expected.
    """

    out: AnyPath  # the run's folder: new, empty, or a run to go on with
    compiled: bool | None = None  # pass the networks through torch.compile (torch on CUDA); None: for a long run
    device: str | None = None  # cpu, cuda or cuda:N; None: what the engine is fastest on

    def __post_init__(self) -> None:
        settle(self)
        refuse([*range_mistakes(self), *_contradictions(self)])


def range_mistakes(s: PaintOptions) -> list[Mistake]:
    """Values outside their own range."""
    mistakes = [
        (name, f"`{name}` is {quote(value)}; a whole number from 1 to {most} was expected")
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
        (s.guidance, "guidance", s.guidance is None or 1.0 <= s.guidance <= MOST_GUIDANCE,
         f"a number from 1 (off) to {MOST_GUIDANCE:g}"),
        (s.ignore_score, "ignore_score", not s.ignore_score or SCORE_FLOOR <= s.ignore_score < 1.0,
         f"0 (off), or a number from {SCORE_FLOOR} to below 1"),
        (s.min_quality, "min_quality", s.min_quality is None or 0.0 <= s.min_quality <= 1.0, "a number from 0 to 1"),
        (s.max_overlap, "max_overlap", s.max_overlap is None or 0.0 < s.max_overlap <= 1.0,
         "a number above 0, up to 1 (off)"),
        (s.tta, "tta", s.tta in TTA_LOOKS, TTA_WANTED),
        (s.near_duplicates, "near_duplicates", 0.0 <= s.near_duplicates <= 1.0,
         f"a correlation from 0 (keep all) to 1, such as {NEAR},"),
        (s.sampler, "sampler", s.sampler is None or s.sampler in SAMPLERS, " or ".join(SAMPLERS)),
        (s.image_format, "image_format", s.image_format in IMAGE_SUFFIXES, " or ".join(IMAGE_SUFFIXES)),
        (s.size, "size", s.size is None or 0 < min(s.size) <= max(s.size) <= LARGEST_SIDE,
         f"width x height in pixels, {LARGEST_SIDE} at most,"),
        (s.strength, "strength",
         s.strength is None or s.strength == (0.0, 0.0) or 0.0 < s.strength[0] <= s.strength[1] <= 1.0,
         "0 (paint nothing), or a range low:high above 0 and up to 1,"),
        (s.labels, "labels", s.labels is None or s.labels in LABEL_SOURCES, ", ".join(LABEL_SOURCES)),
        (s.repaint, "repaint", s.repaint in REPAINTS, " or ".join(REPAINTS)),
        (s.guidance_interval, "guidance_interval",
         s.guidance_interval is None or 0.0 <= s.guidance_interval[0] < s.guidance_interval[1] <= 1.0,
         "a range low:high from 0 to 1"),
        (s.shard, "shard", s.shard is None or 1 <= s.shard[0] <= s.shard[1] <= LIMIT, "k/n with k from 1 to n"),
    )  # fmt: skip
    mistakes += [
        (name, f"`{name}` is {shown_value(value)}; {wanted} was expected")
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
        ("formats", f"`formats={shorten(name)}` is unknown; {', '.join(DATASET_FORMATS)} are known")
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
            ("rows", s.rows is not None and s.rows < 2 and s.guidance is not None and not unguided,
             "`rows=1` with guidance, which takes two rows of an image"),
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
            ("labels", s.labels in ("reference", "both") and s.reference is None,
             f"`labels={s.labels}` without `reference`: labels are those of that dataset"),
            ("compose", s.compose and s.reference is None,
             "`compose` without `reference`: its objects are pasted into its images"),
            ("rotate", s.rotate and not s.compose, "`rotate` without `compose`: pasted objects are turned"),
            ("repaint", s.repaint == "pasted" and not s.compose,
             "`repaint=pasted` without `compose`: nothing is pasted"),
            ("keep_detail", s.keep_detail and s.reference is None,
             "`keep_detail` without `reference`: it is that of references"),
            ("near_duplicates", s.strength == (0.0, 0.0) and bool(s.near_duplicates),
             "`near_duplicates` at strength 0, where every image repeats its reference: leave it out"),
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
        text = (
            f'`prompt_template` is "{template:.60}", which is not readable ({shorten(cause)}); known fields are {known}'
        )
        return [("prompt_template", text)]
    wrong = [f"{{{name}}}" for name, _, _ in fields if name is not None and name not in TEMPLATE_FIELDS]
    wrong += [f"{{{name}}}" for name, spec, conversion in fields if name in TEMPLATE_FIELDS and (spec or conversion)]
    if not wrong:
        return []
    return [("prompt_template", f"`prompt_template` holds {', '.join(wrong)}; known fields are {known}")]


def shown_value(value: Any) -> str:
    """A setting in a message."""
    if value is None:
        return "not set"
    if isinstance(value, dict):
        return shorten(shown(value))
    return shorten(":".join(map(shorten, value)) if isinstance(value, tuple) else value)
