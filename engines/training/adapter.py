"""Training a Detection-Adapter on a labelled dataset: what `train_adapter` does once its images are open.

Knows: the order (set the dev split apart, freeze the base, calibrate the neck, train, keep the best, measure it with
all three kinds of prompt, save), and every setting of it. Batches come from `pyramids`, the loop from `trainer`,
images that an adapter labelled from `pseudo`.
Knows nothing about files of datasets, or about exported graphs.

Source: DiffusionEngine (arXiv 2309.03893, section 3.2), with one conditional UNet call in place of a guidance batch,
prompts that do not give the labels away, and a dev split that picks the checkpoint.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from engines.adapter.inference import resized_size
from engines.adapter.info import INFO_FILE, AdapterConfig, AdapterInfo
from engines.adapter.model import DetectionAdapter, save_adapter
from engines.adapter.pyramid import pyramid_channels
from engines.common.devices import AUTO, device_name, find_device, resolve_precision
from engines.common.events import Event, Report, note
from engines.common.files import read_json
from engines.common.forecast import Forecast, Part, longest
from engines.common.plurals import counted
from engines.common.schema import KEY, from_object, settle, to_object
from engines.common.tokenizer import cut_remark
from engines.common.training_log import TrainingLog
from engines.datasets.dataset import Dataset, Record, instances_of
from engines.datasets.learned import LEARNED, write_learned
from engines.diffusion import prompts
from engines.diffusion.base_model import BASE_NOTES, BaseModel, base_hash, load_base
from engines.diffusion.lora import fuse_loras, fused_hash
from engines.errors import ModelError, TrainingError, UsageError, refuse, wrong_values
from engines.labels.boxes import Instances
from engines.labels.findings import Picture
from engines.labels.gaps import looks_incomplete
from engines.labels.thresholds import Choice, choose_thresholds
from engines.training.adapter_figures import looks, threshold_figures, training_figures
from engines.training.adapter_rehearsal import adapter_parts, timed_pyramids, try_adapter
from engines.training.augment import FrameOptions
from engines.training.dev_split import split_by_names, split_dev
from engines.training.pseudo import blend
from engines.training.pyramids import BatchSource, DevSplit, FrozenPyramid, SourceOptions
from engines.training.rehearsal import planned
from engines.training.shared_norm import share_statistics
from engines.training.stopping import save_result, steps_done
from engines.training.together import dismiss, gathered, share
from engines.training.trainer import FitOptions, check_goes_on, fit, started_with

STYLE, SHORT_SIDE = "photo", 512  # for bases without notes
_LONGEST_SIDE = 65_536  # pixels
STATISTICS_IMAGES = 200  # images whose class counts `generate` draws prompts from
CALIBRATION_BATCHES = 2
FINDS_FROM = 0.2  # share of the steps before an adapter's own finds are trusted to be objects
_FROM_BASE = ("channels", "num_classes")  # AdapterConfig fields that are no setting


@dataclass(frozen=True, kw_only=True)
class AdapterTrainOptions:
    """How an adapter is trained. Raises UsageError that lists every mistake at once."""

    # What is seen
    style: str = ""  # style words of the prompts; empty: those the base was trained with, or "photo"
    short_side: int = 0  # pixels of the images' short side; 0: as the base was trained, or 512
    frame: tuple[int, int] = (0, 0)  # (width, height) of training frames; (0, 0): the most common whole image
    scale: tuple[float, float] = (0.8, 1.25)  # random factor on the images' scale
    flips: bool = True  # mirror frames left to right, half of the time
    # Right-angle turns are as likely as not (microscopes, satellites).
    rotate: bool = field(default=False, metadata={KEY: "turns"})
    colour: float = 1.0  # strength of changes to brightness, contrast, saturation and hue; 0 for none
    min_visible: float = 0.3  # a cut box stays when this share of its area is in the frame
    prompt_probabilities: dict[str, float] = field(  # of generic, listing and empty prompts
        default_factory=lambda: {str(kind): share for kind, share in prompts.KIND_PROBABILITIES.items()}
    )
    timestep: int = 1  # t of the label pass
    # How it is learned
    steps: int = 3000  # optimiser steps
    minutes: float | None = None  # about how long it takes here, in place of `steps`
    batch: int = 4  # frames a step
    lr: float = 4e-4  # peak learning rate
    weight_decay: float = 1e-4  # AdamW's
    warmup: int = 100  # steps to the peak
    final_lr: float = 0.02  # learning rate at the last step, as a share of the peak
    grad_clip: float = 0.1  # largest norm of the gradient
    ema_decay: float = 0.998  # of the averaged weights
    ignore_finds: float = 0.0  # score from which its own finds without a label teach nothing; 0: they are background
    seed: int = 0  # decides every draw
    pseudo_share: float = 0.5  # about what share of the frames shows images that an adapter labelled, if there are any
    # Share of the images held out to pick the best checkpoint; 0: none, the last is kept.
    dev_fraction: float = field(default=0.1, metadata={KEY: "tune_fraction"})
    eval_every: int = 500  # steps between evaluations on them
    score: str = "AP50"  # the figure that picks: AP, AP50 or AP75
    precision_goal: float = 0.9  # of the labels: on the dev split, each class's score threshold is chosen to reach it
    network: dict[str, Any] = field(default_factory=dict)  # AdapterConfig fields, but for channels and num_classes
    # Where and how fast
    device: str = AUTO  # cpu, cuda or cuda:N; auto: a GPU where there is one
    precision: str = "auto"  # f32, bf16 or auto
    checkpoint_minutes: float = 3.0  # wall time between checkpoints
    cache_views: int = 0  # keep the pyramids of this many views of each image and use them again; 0: never
    cache_gb: float = 4.0  # memory for them, in GiB
    workers: int = 0  # threads that draw frames beforehand; for GPUs

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads."""
        return to_object(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "training options") -> Self:
        """Read what `to_json` wrote; UsageError lists every unknown key and wrong type at once."""
        return from_object(cls, value, UsageError, where)

    def __post_init__(self) -> None:
        settle(self)
        checks = (
            ("short_side", "0 or more", self.short_side >= 0),
            ("frame", "two positive sizes, or 0, 0", min(self.frame) > 0 or self.frame == (0, 0)),
            ("scale", "two positive factors, the lower first", 0 < self.scale[0] <= self.scale[1]),
            ("colour", "0 or more", self.colour >= 0),
            ("min_visible", "between 0 and 1", 0 <= self.min_visible <= 1),
            ("prompt_probabilities", _KINDS_EXPECTED, _are_probabilities(self.prompt_probabilities)),
            ("timestep", "between 0 and 999", 0 <= self.timestep < 1000),
            ("steps", "positive", self.steps > 0),
            ("minutes", "positive", self.minutes is None or 0 < self.minutes <= 1e6),
            ("batch", "positive", self.batch > 0),
            ("lr", "positive", self.lr > 0),
            ("grad_clip", "positive", self.grad_clip > 0),
            ("ema_decay", "at least 0 and below 1", 0 <= self.ema_decay < 1),
            ("ignore_finds", "at least 0 and below 1", 0 <= self.ignore_finds < 1),
            ("seed", "from 0 to 2^31 - 1", 0 <= self.seed < 2**31),
            ("pseudo_share", "between 0.01 and 0.99", 0.01 <= self.pseudo_share <= 0.99),
            ("dev_fraction", "at least 0 and below 1", 0 <= self.dev_fraction < 1),
            ("eval_every", "positive", self.eval_every > 0),
            ("score", "AP, AP50 or AP75", self.score in ("AP", "AP50", "AP75")),
            ("precision_goal", "above 0 and at most 1", 0 < self.precision_goal <= 1),
            ("cache_views", "0 or more", self.cache_views >= 0),
            ("cache_gb", "0 or more", self.cache_gb >= 0),
            ("workers", "0 or more", self.workers >= 0),
        )
        known = {name for name in AdapterConfig.__dataclass_fields__ if name not in _FROM_BASE}
        unknown = [("network", f'network has no setting "{name}"') for name in self.network if name not in known]
        refuse([*wrong_values(self, checks), *unknown])


_KINDS_EXPECTED = "generic, listing and empty, adding up to 1"


def _are_probabilities(value: Mapping[str, float]) -> bool:
    return (
        set(value) <= set(prompts.KIND_PROBABILITIES)
        and min(value.values(), default=-1.0) >= 0
        and math.isclose(sum(value.values()), 1.0, abs_tol=1e-6)
    )


def fit_adapter(
    dataset: Dataset,
    base_folder: Path | str,
    out: Path,
    options: AdapterTrainOptions,
    *,
    pseudo: Sequence[Record] = (),
    loras: Sequence[tuple[Path, float]] = (),
    resume: bool,
    report: Report,
) -> AdapterInfo:
    """Train an adapter on `dataset` for the base model in `base_folder`, and save it in the folder `out`.

    `pseudo` are more images, with boxes that an adapter found (`engines.training.pseudo`); none of them is held out.
    `loras` are LoRA files and their scales, added to the base's weights first; the adapter is then for that base with
    these LoRAs. Checkpoints lie in `out`/training until it is done. Returns what was written to adapter.json; its
    figures hold AP on the dev split by kind of prompt. Raises TrainingError, UsageError, ModelError.
    """
    check_start(out, options, dataset)
    options = replace(options, device=device_name(options.device))
    by_names = resume and "dev_split" not in started_with(out / "training", {"dev_split": ""})  # of before
    train, dev = (split_by_names if by_names else split_dev)(dataset.records, options.dev_fraction)
    base = load_base(base_folder, device=options.device)
    names = fuse_loras(base, loras, lambda text: report(note(text)))
    model = _build(base, len(dataset.class_names), options)
    size_multiple = base.vae_stride * 2 ** (model.config.levels - 1)
    style, short_side = _scene(base, options)
    _remark_on_cut(base, style, dataset, report)
    frame = _frame_size(train, short_side, size_multiple, options)
    source_options = _source_options(options, style, short_side, frame)
    precision = resolve_precision(options.precision, options.device)
    frozen, classes = FrozenPyramid(base, options.timestep, precision, options.device), dataset.class_names
    source = BatchSource(blend(train, pseudo, options.pseudo_share), classes, frozen, source_options)
    dev_split = DevSplit(dev, classes, frozen, source_options, size_multiple, report := Forecast.of(report))
    seconds, pyramids = timed_pyramids(source, CALIBRATION_BATCHES)
    model.calibrate([_whole(pyramid) for pyramid in pyramids])
    options, fit_options = _planned(model, source, dev_split, seconds, options, out / "training", resume, report)
    hashed = fused_hash(base_hash(base.folder), names)
    identity = training_identity(dataset, pseudo, options, hashed, by_names=by_names)
    done = steps_done(out / "training") if check_goes_on(out / "training", fit_options, identity, resume) else 0
    report(_plan(model, options, (style, short_side, frame), len(train), len(dev), done, report))
    best = fit(
        model, partial(_loss_at, model, source, options, precision), fit_options, out / "training", stage="adapter",
        identity=identity, resume=resume, report=report,
        evaluate=partial(_evaluate, dev_split, model, by_names) if dev else None, score=options.score if dev else "",
        log=TrainingLog(out, ("adapter",)),
    )  # fmt: skip
    choices = _thresholds(model, dataset, dev, dev_split, options, report)
    info = AdapterInfo(
        class_names=tuple(classes), timestep=options.timestep, short_side=short_side, frame=frame,
        size_multiple=size_multiple, style=style, prompts=_prompts(style, classes, options),
        base_hash=hashed, config=model.config, photographs=looks(train, short_side),
        class_statistics=source.statistics(min(STATISTICS_IMAGES, len(train))),  # the labelled come first
        labelled_images=len(dataset.records), objects=dataset.objects(),
        thresholds={name: choice.score for name, choice in choices.items() if choice.score is not None},
        figures=training_figures(model, dev_split, train, dev, classes, options.steps, best)
        | threshold_figures(choices, options.precision_goal) | _origins(pseudo, names),
    )  # fmt: skip
    save_result(lambda: _save(out, model, info, (*dataset.records, *pseudo)), (out / "training",), report)
    return info


def _planned(
    model: DetectionAdapter,
    source: BatchSource,
    dev: DevSplit,
    seconds: float,
    options: AdapterTrainOptions,
    work: Path,
    resume: bool,
    report: Forecast,
) -> tuple[AdapterTrainOptions, FitOptions]:
    """The options with as many steps as fit into their minutes, where these are given, and what the loop needs of them;
    what it all takes is tried out and said. `seconds`: that the pyramids of a batch take."""
    precision, evaluate = resolve_precision(options.precision, options.device), len(dev) > 0
    loss_at = partial(_loss_at, model, source, options, precision)
    speeds = try_adapter(model, source, dev, loss_at, _fit_options(options, evaluate=evaluate), seconds)
    done = steps_done(work) if resume else 0

    def parts(steps: int) -> list[Part]:
        wanted = replace(_fit_options(options, evaluate=evaluate), steps=steps)
        return adapter_parts(speeds, wanted, source.fresh(steps - done), len(dev), done)

    if options.minutes is not None:
        begun = started_with(work, {}) if resume else {}
        steps = begun["settings"]["steps"] if begun else longest(60 * options.minutes - report.elapsed, parts, 10**6)
        steps = gathered([steps])[0]  # by the clock of the first process
        options = replace(options, minutes=None, steps=int(steps))
        said = note(f"trains for {steps} steps: `steps={steps}` repeats it")
        report(replace(said, settled={"minutes": None, "steps": int(steps)}))
    report.plan(parts(options.steps), {"adapter": done})
    return options, _fit_options(options, evaluate=evaluate)


def _plan(
    model: DetectionAdapter,
    options: AdapterTrainOptions,
    scene: tuple[str, int, tuple[int, int]],
    images: int,
    measured: int,
    done: int,
    report: Forecast,
) -> Event:
    """What will be done, behind `done` steps; `scene`: style, short side and frame."""
    settled = {
        "steps": options.steps, "style": scene[0], "short_side": scene[1], "frame": scene[2], "device": options.device,
        "precision": resolve_precision(options.precision, options.device),
    }  # fmt: skip
    before = f" ({done} are done)" if done else ""
    text = f"trains an adapter: {options.steps} steps on {counted(images, 'image')}{before}"
    return planned(f"{text}, measured on {measured} others", settled, [model], report)


def _save(out: Path, model: DetectionAdapter, info: AdapterInfo, learned: Sequence[Record]) -> None:
    write_learned(out / LEARNED, learned)
    save_adapter(out, model, info)


def _evaluate(dev_split: DevSplit, model: DetectionAdapter, plain: bool, step: int) -> Mapping[str, float]:
    """AP on the dev split, with how far it may be off unless `plain`: checkpoints are not chosen on noise."""
    return dev_split.evaluate(model) if plain else dev_split.evaluate_with_noise(model)


def _remark_on_cut(base: BaseModel, style: str, dataset: Dataset, report: Report) -> None:
    """Say where the longest prompt is longer than what the text encoder reads."""
    if remark := cut_remark(base.tokenizer, prompts.longest_listing(style, dataset.class_names)):
        report(note(remark))


def _thresholds(
    model: DetectionAdapter,
    dataset: Dataset,
    dev: Sequence[Record],
    dev_split: DevSplit,
    options: AdapterTrainOptions,
    report: Report,
) -> dict[str, Choice]:
    """Each class's score threshold by what is found on the dev split. The first process looks alone from here on."""
    dismiss()
    detected = dev_split.detect(model)
    _remark_on_gaps(dataset, dev, detected, report)
    return choose_thresholds(instances_of(dev), detected, dataset.class_names, options.precision_goal)


def _remark_on_gaps(dataset: Dataset, dev: Sequence[Record], detected: Sequence[Instances], report: Report) -> None:
    """Say where the labels of the dev split look incomplete, by what was found there."""
    pairs = zip(dev, detected, strict=True)
    pictures = [Picture(record.width, record.height, record.instances, found) for record, found in pairs]
    if remark := looks_incomplete(pictures, dataset.class_names, dataset.root):
        report(note(remark))


def _origins(pseudo: Sequence[Record], loras: Sequence[str]) -> dict[str, Any]:
    """What else it learned from, and with, where anything."""
    more = {"pseudo_images": len(pseudo)} if pseudo else {}
    return more | ({"loras": list(loras)} if loras else {})


def _loss_at(
    model: DetectionAdapter, source: BatchSource, options: AdapterTrainOptions, precision: str, step: int
) -> tuple[torch.Tensor, Mapping[str, float | torch.Tensor]]:
    """The loss of a step's batch, or of this process's share of it, and its parts."""
    batch, device = source.at(step), options.device
    targets = [{name: value.to(device) for name, value in target.items()} for target in gathered(batch.targets)]
    score, first = options.ignore_finds if step >= FINDS_FROM * options.steps else 0.0, share(len(targets)).start
    return model.loss([_to(level, device, precision) for level in batch.pyramid], targets, score, first)


def _whole(pyramid: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The pyramid of a batch, of the shares of all processes."""
    return [torch.cat(gathered([level.cpu()])).to(level.device) for level in pyramid]


def _prompts(style: str, class_names: Sequence[str], options: AdapterTrainOptions) -> dict[str, Any]:
    """How training draws prompts, as adapter.json has it."""
    return {
        "generic": prompts.generic_prompt(style),
        "listing": prompts.listing_prompt(style, dict.fromkeys(class_names, 2)),
        "probabilities": dict(options.prompt_probabilities),
        "absent_probability": prompts.ABSENT_PROBABILITY,
    }


def check_start(out: Path, options: AdapterTrainOptions, dataset: Dataset | None = None) -> None:
    """TrainingError where `out` has an adapter, or the dataset no box, UsageError for a device that is not there."""
    if (out / INFO_FILE).exists():
        raise TrainingError(f"{out} already holds a finished adapter; choose another folder, or remove it.")
    find_device(options.device)
    if dataset is not None and not any(len(record.instances) for record in dataset.records):
        raise TrainingError(f"{dataset.root} has no boxes to learn from.")


def _build(base: BaseModel, num_classes: int, options: AdapterTrainOptions) -> DetectionAdapter:
    settings = {**options.network, "channels": pyramid_channels(base.unet.config), "num_classes": num_classes}
    config = from_object(AdapterConfig, settings, UsageError, "network")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = DetectionAdapter(config).to(options.device)
    share_statistics(model)
    return model


def _scene(base: BaseModel, options: AdapterTrainOptions) -> tuple[str, int]:
    """Style words and short side: as given, else as the base's own notes say, else what suits Stable Diffusion."""
    path = base.folder / BASE_NOTES
    notes = read_json(path, ModelError) if path.exists() else {}
    style, short_side = notes.get("style", STYLE), notes.get("short_side", SHORT_SIDE)
    if not isinstance(style, str) or type(short_side) is not int or not 0 < short_side <= _LONGEST_SIDE:
        raise ModelError(f'{path}: "style" must be a string and "short_side" a whole number from 1 to {_LONGEST_SIDE}.')
    return options.style or style, options.short_side or short_side


def _frame_size(
    records: Sequence[Record], short_side: int, multiple: int, options: AdapterTrainOptions
) -> tuple[int, int]:
    """(width, height) of the training frames, checked against what the networks can divide."""
    if options.frame != (0, 0):
        if options.frame[0] % multiple or options.frame[1] % multiple:
            width, height = (max(multiple, round(side / multiple) * multiple) for side in options.frame)
            raise UsageError(
                f"`frame={options.frame}`: both must be multiples of {multiple}; `frame={(width, height)}` would do.",
                field="frame",
            )
        return options.frame
    shapes = Counter((record.width, record.height) for record in records)
    image_width, image_height = max(shapes, key=lambda shape: (shapes[shape], shape))
    width, height, _ = resized_size(image_width, image_height, short_side)
    return math.ceil(width / multiple) * multiple, math.ceil(height / multiple) * multiple


def _source_options(options: AdapterTrainOptions, style: str, short_side: int, frame: tuple[int, int]) -> SourceOptions:
    drawn = FrameOptions(
        width=frame[0],
        height=frame[1],
        short_side=short_side,
        scale=options.scale,
        flips=options.flips,
        rotate=options.rotate,
        colour=options.colour,
        min_visible=options.min_visible,
    )
    probabilities = {kind: options.prompt_probabilities.get(kind, 0.0) for kind in prompts.KIND_PROBABILITIES}
    return SourceOptions(
        frame=drawn,
        style=style,
        prompt_probabilities=probabilities,
        batch=options.batch,
        seed=options.seed,
        cache_views=options.cache_views,
        cache_gb=options.cache_gb,
        workers=options.workers,
    )


def _fit_options(options: AdapterTrainOptions, *, evaluate: bool) -> FitOptions:
    return FitOptions(
        steps=options.steps,
        lr=options.lr,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        final_lr=options.final_lr,
        grad_clip=options.grad_clip,
        ema_decay=options.ema_decay,
        seed=options.seed,
        precision=options.precision,
        device=options.device,
        checkpoint_minutes=options.checkpoint_minutes,
        evaluate_every=options.eval_every if evaluate else 0,
    )


def _to(level: torch.Tensor, device: str, precision: str) -> torch.Tensor:
    """A pyramid level where the head computes, as the head computes."""
    return level.to(device, torch.float32 if precision == "f32" else torch.bfloat16)


def training_identity(
    dataset: Dataset, pseudo: Sequence[Record], options: AdapterTrainOptions, hashed: str, *, by_names: bool = False
) -> dict[str, Any]:
    """Everything that decides the weights, for the check when it is resumed."""
    free = ("minutes", "checkpoint_minutes", "device", "cache_gb", "workers", "precision_goal")
    digest = hashlib.sha256()
    for record in (*dataset.records, *pseudo):
        digest.update(f"{record.name}\0{record.width}\0{record.height}\0".encode())
        found = record.instances
        digest.update(found.boxes.tobytes() + found.labels.tobytes() + found.crowd.tobytes())
    settings = {name: value for name, value in options.to_json().items() if name not in free}
    return {
        "settings": settings,
        "base": hashed,
        "classes": list(dataset.class_names),
        "images": len(dataset.records),
        "pseudo_images": len(pseudo),
        "annotations": digest.hexdigest()[:16],
    } | ({} if by_names else {"dev_split": "stratified"})
