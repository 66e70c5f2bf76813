"""Training a Detection-Adapter on a labelled dataset: what `train_adapter` does once its images are open.

Knows: the order (set the dev split apart, freeze the base, calibrate the neck, train, keep the best, measure it with
all three kinds of prompt, save). Its settings are in `adapter_options`, what it is shown comes from `adapter_scene`,
batches from `pyramids`, the loop from `trainer`, images that an adapter labelled from `pseudo`, and what is trained
ahead of it is `ahead`'s matter.
Knows nothing about files of datasets, or about exported graphs.

Source: DiffusionEngine (arXiv 2309.03893, section 3.2), with one conditional UNet call in place of a guidance batch,
prompts that do not give the labels away, and a dev split that picks the checkpoint.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engines.adapter.info import INFO_FILE, AdapterConfig, AdapterInfo
from engines.adapter.model import DetectionAdapter, save_adapter
from engines.adapter.pyramid import pyramid_channels
from engines.common.devices import device_name, find_device, resolve_precision
from engines.common.events import Event, Report, note
from engines.common.forecast import Forecast, Part, longest
from engines.common.plurals import counted
from engines.common.schema import from_object
from engines.common.tokenizer import cut_remark
from engines.common.training_log import TrainingLog
from engines.datasets.dataset import Dataset, Record, instances_of
from engines.datasets.learned import LEARNED, write_learned
from engines.diffusion import prompts
from engines.diffusion.base_model import BaseModel
from engines.errors import TrainingError, UsageError
from engines.labels.boxes import Instances
from engines.labels.findings import Picture
from engines.labels.gaps import looks_incomplete
from engines.labels.thresholds import Choice, choose_thresholds
from engines.training.adapter_figures import looks, threshold_figures, training_figures
from engines.training.adapter_options import AdapterTrainOptions
from engines.training.adapter_rehearsal import adapter_parts, timed_pyramids, try_adapter
from engines.training.adapter_scene import Scene, scene_of, source_options_of
from engines.training.ahead import VIEWS, Ahead, begun, check_begun, clear
from engines.training.dev_split import FEW, split_by_names, split_dev
from engines.training.opened import OpenedBase, open_base
from engines.training.pseudo import blend
from engines.training.pyramids import BatchSource, FrozenPyramid
from engines.training.rehearsal import planned
from engines.training.shared_norm import share_statistics
from engines.training.stopping import save_result, steps_done, unfinished
from engines.training.together import dismiss, gathered, share
from engines.training.trainer import FitOptions, check_goes_on, fit, started_with
from engines.training.whole_images import DevSplit

STATISTICS_IMAGES = 200  # images whose class counts `generate` draws prompts from
CALIBRATION_BATCHES = 2
WITH_FOLDS = 5  # folds that are advised where a dev split is small
FINDS_FROM = 0.2  # share of the steps before an adapter's own finds are trusted to be objects


@dataclass(frozen=True)
class Prepared:
    """A training that can begin: all is open, tried out and checked, and nothing is written."""

    dataset: Dataset
    pseudo: Sequence[Record]  # more images, with boxes that an adapter found
    base: OpenedBase
    out: Path
    options: AdapterTrainOptions  # as settled
    fit_options: FitOptions
    identity: Mapping[str, Any]  # all that decides what comes out
    model: DetectionAdapter
    source: BatchSource
    train: Sequence[Record]  # learned from, but for `pseudo`
    dev: Sequence[Record]  # held out
    dev_split: DevSplit  # of `dev`
    scene: Scene
    by_names: bool  # it goes on by the rule of before
    resume: bool
    report: Forecast
    ahead: Ahead | None  # what is trained first

    @property
    def work(self) -> Path:
        """The folder of checkpoints."""
        return self.out / "training"


def fit_adapter(
    dataset: Dataset,
    base: OpenedBase | Path | str,
    out: Path,
    options: AdapterTrainOptions,
    *,
    pseudo: Sequence[Record] = (),
    loras: Sequence[tuple[Path, float]] = (),
    resume: bool,
    report: Report,
) -> AdapterInfo:
    """Train an adapter on `dataset` for a `base` model, and save it in the folder `out`: `prepare_adapter`, then
    `fit_prepared`, as these say."""
    prepared = prepare_adapter(dataset, base, out, options, pseudo=pseudo, loras=loras, resume=resume, report=report)
    return fit_prepared(prepared)


def prepare_adapter(
    dataset: Dataset,
    base: OpenedBase | Path | str,
    out: Path,
    options: AdapterTrainOptions,
    *,
    pseudo: Sequence[Record] = (),
    loras: Sequence[tuple[Path, float]] = (),
    ahead: Ahead | None = None,
    resume: bool,
    report: Report,
) -> Prepared:
    """Open all that training an adapter on `dataset` takes, try it out and say how long it is; nothing is written.

    `base` is a folder, or open already, with its LoRAs. `pseudo` are more images, with boxes that an adapter found
    (`engines.training.pseudo`); none of them is held out. `loras` are LoRA files and their scales, added to the base's
    weights first; the adapter is then for that base with these LoRAs. With `ahead` no image is held out. Raises
    TrainingError, UsageError, ModelError.
    """
    check_start(out, options, dataset)
    if not resume and _started_with(out / "training", {}):
        raise unfinished(out / "training")
    options = replace(options, device=device_name(options.device))
    options = replace(options, dev_fraction=0.0) if ahead else options
    by_names = resume and "dev_split" not in _started_with(out / "training", {"dev_split": ""})  # of before
    train, dev = (split_by_names if by_names else split_dev)(dataset.records, options.dev_fraction)
    opened = base if isinstance(base, OpenedBase) else open_base(base, options.device, loras, report)
    model = _build(opened.model, len(dataset.class_names), options)
    scene = scene_of(opened.model, train, options, opened.model.vae_stride * 2 ** (model.config.levels - 1))
    _remark_on_cut(opened.model, scene.style, dataset, report)
    _remark_on_few(dev, len(dataset.records), report)
    source_options = source_options_of(options, scene)
    precision, classes = resolve_precision(options.precision, options.device), dataset.class_names
    frozen = FrozenPyramid(opened.model, options.timestep, precision, options.device)
    source = BatchSource(blend(train, pseudo, options.pseudo_share), classes, frozen, source_options)
    report = Forecast.of(report)
    splits = [
        DevSplit(some, classes, frozen, source_options, scene.size_multiple, report)
        for some in (dev, dev or dataset.records[: ahead is not None])
    ]
    seconds, pyramids = timed_pyramids(source, CALIBRATION_BATCHES)
    model.calibrate([_whole(pyramid) for pyramid in pyramids])
    options, fit_options = _planned(model, source, splits, seconds, options, out / "training", resume, ahead, report)
    identity = training_identity(dataset, pseudo, options, opened.hashed, by_names=by_names)
    identity |= ahead.identity(options.steps) if ahead else {}
    check_begun(out / "training", identity)
    done = steps_done(out / "training") if check_goes_on(out / "training", fit_options, identity, resume) else 0
    report(_plan(model, options, scene, len(train), len(dev), done, ahead, report))
    return Prepared(
        dataset, pseudo, opened, out, options, fit_options, identity, model, source, train, dev, splits[0], scene,
        by_names, resume, report, ahead,
    )  # fmt: skip


def fit_prepared(prepared: Prepared, unseen: Sequence[Instances] = ()) -> AdapterInfo:
    """Train the adapter, and save it in its folder.

    `unseen`: where others were trained ahead, what these find on each image of the dataset, which they did not see; by
    it the adapter is measured, in place of a dev split. Checkpoints lie in the folder's training/ until it is done.
    Returns what was written to adapter.json; its figures hold AP on the dev split by kind of prompt. Raises
    TrainingError, UsageError, ModelError.
    """
    p, options, classes = prepared, prepared.options, prepared.dataset.class_names
    precision = resolve_precision(options.precision, options.device)
    best = fit(
        p.model, partial(_loss_at, p.model, p.source, options, precision), p.fit_options, p.work, stage="adapter",
        identity=p.identity, resume=p.resume, report=p.report, log=TrainingLog(p.out, ("adapter",)),
        evaluate=partial(_evaluate, p.dev_split, p.model, p.by_names) if p.dev else None,
        score=options.score if p.dev else "",
    )  # fmt: skip
    dismiss()  # the first process looks alone from here on
    judged = p.dataset.records if p.ahead else p.dev
    found = unseen if p.ahead else p.dev_split.detect(p.model)
    choices = _thresholds(p.dataset, judged, found, options, p.report)
    figures = training_figures(p.model, p.dev_split, p.train, judged, found, classes, options.steps, best)
    figures |= p.ahead.identity(options.steps) if p.ahead else {}
    info = AdapterInfo(
        class_names=tuple(classes), timestep=options.timestep, short_side=p.scene.short_side, frame=p.scene.frame,
        size_multiple=p.scene.size_multiple, style=p.scene.style, prompts=_prompts(p.scene.style, classes, options),
        base_hash=p.base.hashed, config=p.model.config, rotate=options.rotate,
        photographs=looks(p.train, p.scene.short_side),
        class_statistics=p.source.statistics(min(STATISTICS_IMAGES, len(p.train))),  # the labelled come first
        labelled_images=len(p.dataset.records), objects=p.dataset.objects(),
        thresholds={name: choice.score for name, choice in choices.items() if choice.score is not None},
        figures=figures | threshold_figures(choices, options.precision_goal) | _origins(p.pseudo, p.base.loras),
    )  # fmt: skip
    save_result(lambda: _save(p, info), (p.work,), p.report)
    return info


def _started_with(work: Path, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """The identity of the training in `work`, which may still be among those ahead of it; `default` where none is."""
    return started_with(work, {}) or begun(work, default)


def _planned(
    model: DetectionAdapter,
    source: BatchSource,
    splits: Sequence[DevSplit],
    seconds: float,
    options: AdapterTrainOptions,
    work: Path,
    resume: bool,
    ahead: Ahead | None,
    report: Forecast,
) -> tuple[AdapterTrainOptions, FitOptions]:
    """The options with as many steps as fit into their minutes, where these are given, and what the loop needs of them;
    what it all takes is tried out and said.

    `splits`: the dev split, and images to try detecting on. `seconds`: that the pyramids of a batch take.
    """
    (dev, some), views = splits, options.cache_views or VIEWS
    precision, evaluate = resolve_precision(options.precision, options.device), len(dev) > 0
    loss_at = partial(_loss_at, model, source, options, precision)
    speeds = try_adapter(model, source, some, loss_at, _fit_options(options, evaluate=evaluate), seconds)
    done = steps_done(work) if resume else 0

    def parts(steps: int) -> list[Part]:
        wanted = replace(_fit_options(options, evaluate=evaluate), steps=steps)
        first = ahead.parts(speeds, steps, partial(source.fresh_of, views=views), work) if ahead else []
        return first + adapter_parts(speeds, wanted, source.fresh(steps - done), len(dev), done)

    if options.minutes is not None:
        before = _started_with(work, {}) if resume else {}
        steps = before["settings"]["steps"] if before else longest(60 * options.minutes - report.elapsed, parts, 10**6)
        steps = gathered([steps])[0]  # by the clock of the first process
        options = replace(options, minutes=None, steps=int(steps))
        said = note(f"trains for {steps} steps: `steps={steps}` repeats it")
        report(replace(said, settled={"minutes": None, "steps": int(steps)}))
    report.plan(parts(options.steps), {"adapter": done} | (ahead.done(options.steps, work) if ahead else {}))
    return options, _fit_options(options, evaluate=evaluate)


def _plan(
    model: DetectionAdapter,
    options: AdapterTrainOptions,
    scene: Scene,
    images: int,
    measured: int,
    done: int,
    ahead: Ahead | None,
    report: Forecast,
) -> Event:
    """What will be done, behind `done` steps."""
    settled = {
        "steps": options.steps, "style": scene.style, "short_side": scene.short_side, "frame": scene.frame,
        "device": options.device, "precision": resolve_precision(options.precision, options.device),
    }  # fmt: skip
    before = f" ({done} are done)" if done else ""
    text = f"trains an adapter: {options.steps} steps on {counted(images, 'image')}{before}"
    where = f"on {measured} others"
    if ahead:
        settled["fold_steps"] = ahead.length(options.steps)
        where = f"by {ahead.folds} others of {settled['fold_steps']} steps, each on images that it did not see"
    return planned(f"{text}, measured {where}", settled, [model], report)


def _save(prepared: Prepared, info: AdapterInfo) -> None:
    write_learned(prepared.out / LEARNED, (*prepared.dataset.records, *prepared.pseudo))
    save_adapter(prepared.out, prepared.model, info)
    clear(prepared.work)


def _evaluate(dev_split: DevSplit, model: DetectionAdapter, plain: bool, step: int) -> Mapping[str, float]:
    """AP on the dev split, with how far it may be off unless `plain`: checkpoints are not chosen on noise."""
    return dev_split.evaluate(model) if plain else dev_split.evaluate_with_noise(model)


def _remark_on_cut(base: BaseModel, style: str, dataset: Dataset, report: Report) -> None:
    """Say where the longest prompt is longer than what the text encoder reads."""
    if remark := cut_remark(base.tokenizer, prompts.longest_listing(style, dataset.class_names)):
        report(note(remark))


def _remark_on_few(dev: Sequence[Record], images: int, report: Report) -> None:
    """Say where a dev split is too small to believe."""
    if 0 < len(dev) < FEW and images >= WITH_FOLDS:
        report(
            note(
                f"the dev split has {counted(len(dev), 'image')}, and AP on so few is noise: `folds={WITH_FOLDS}` "
                f"measures on all {images}, by {WITH_FOLDS} trainings more"
            )
        )


def _thresholds(
    dataset: Dataset,
    judged: Sequence[Record],
    found: Sequence[Instances],
    options: AdapterTrainOptions,
    report: Report,
) -> dict[str, Choice]:
    """Each class's score threshold by what is found on images that were not learned from."""
    _remark_on_gaps(dataset, judged, found, report)
    return choose_thresholds(instances_of(judged), found, dataset.class_names, options.precision_goal)


def _remark_on_gaps(dataset: Dataset, dev: Sequence[Record], detected: Sequence[Instances], report: Report) -> None:
    """Say where the labels of images that were not learned from look incomplete, by what was found there."""
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
