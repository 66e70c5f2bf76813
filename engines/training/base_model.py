"""Making a base model: what `train_base` does once its images are open.

Knows: the order (autoencoder, then UNet and text encoder together), what is said of it beforehand, and the diffusers
folder that comes out. Knows nothing about losses, or about boxes beyond the counts that prompts name.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from engines.common.devices import AUTO, device_name, find_device, resolve_precision
from engines.common.events import Event, Report, note
from engines.common.files import sha256_file, sync_tree, usual_mode, write_atomic, write_json
from engines.common.forecast import Forecast, Part, longest
from engines.common.names import class_words
from engines.common.plurals import counted
from engines.common.schema import KEY, to_object
from engines.common.tokenizer import complete_vocabulary, cut_remark
from engines.common.training_log import TrainingLog
from engines.datasets.dataset import Dataset, Record
from engines.datasets.learned import LEARNED, read_learned, write_learned
from engines.diffusion import prompts
from engines.diffusion.base_model import BASE_NOTES, PARTS, base_hash, load_base, local_folder
from engines.diffusion.base_notes import QUALITY, read_quality
from engines.diffusion.libraries import silence_libraries
from engines.diffusion.published import save_text_encoder
from engines.diffusion.weights import DECODER
from engines.errors import TrainingError, UsageError, refuse
from engines.labels.boxes import Instances
from engines.quality.verdicts import BaseQuality
from engines.training.assess import MOST, SHEET, Networks, assess_base, hold_back
from engines.training.decoder import copy_base, decoder_loss, new_decoder
from engines.training.presets import BasePreset, Lengths, base_preset, lengths_of
from engines.training.rehearsal import Speeds, parts_of, planned, try_out
from engines.training.stopping import INDEX, save_result, steps_done
from engines.training.together import dismiss, gathered
from engines.training.tokenizer import write_tokenizer
from engines.training.trainer import FitOptions, check_goes_on, fit, started_with
from engines.training.unet import ViewSource, scale_latents, train_unet, trained_of
from engines.training.vae import vae_loss, vae_views
from engines.training.views import ImageStore, ViewOptions

STAGES = ("vae", "unet", "decoder")
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


@dataclass(frozen=True, kw_only=True)
class BaseTrainOptions:
    """How a base model is trained. Raises UsageError that lists every mistake at once."""

    preset: str = "small"  # a name of engines.training.presets
    style: str = "photo"  # what kind of pictures these are; prompts begin "a <style>"
    seed: int = 0  # decides every draw
    device: str = AUTO  # cpu, cuda or cuda:N; auto: a GPU where there is one
    precision: str = "auto"  # f32, bf16 or auto
    # Right-angle turns are as likely as not (microscopes, satellites).
    rotate: bool = field(default=False, metadata={KEY: "turns"})
    steps_scale: float = 1.0  # factor on every number of steps of the preset
    minutes: float | None = None  # about how long it takes here, in place of `steps_scale`
    checkpoint_minutes: float = 3.0  # wall time between checkpoints
    # What is trained; the rest is taken from continue_from. decoder: one that decodes in the VAE's place, sooner.
    stages: tuple[str, ...] = ("vae", "unet")

    def __post_init__(self) -> None:
        stages = ", ".join(self.stages) or "empty"
        checks = (
            ("seed", 0 <= self.seed < 2**31, f"`seed` is {self.seed}; a whole number from 0 to 2^31 - 1 was expected"),
            ("steps_scale", 0 < self.steps_scale <= 1000,
             f"`steps_scale` is {self.steps_scale}; a factor above 0 and up to 1000 was expected"),
            ("minutes", self.minutes is None or 0 < self.minutes <= 1e6,
             f"`minutes` is {self.minutes}; a number above 0 was expected"),
            ("minutes", self.minutes is None or self.steps_scale == 1,
             "`minutes` and `steps_scale` both say how long it trains: give one of them"),
            ("stages", set(self.stages) in ({"vae"}, {"unet"}, {"vae", "unet"}, {"decoder"}),
             f"`stages` is {stages:.60}; vae, unet, both of them, or decoder alone were expected"),
        )  # fmt: skip
        refuse((name, text) for name, fits, text in checks if not fits)


def fit_base(
    dataset: Dataset,
    out: Path,
    options: BaseTrainOptions,
    *,
    labelled: Collection[str] | None,
    continue_from: Path | str | None,
    resume: bool,
    report: Report,
) -> Path:
    """Fit a base model to the images of `dataset` and save it as a diffusers folder at `out`.

    `labelled` are the names of the records whose labels may be read (None: all; an empty set: none). With
    `continue_from`, training goes on from that base model, whose sizes then replace the preset's. Returns `out`.
    Raises TrainingError, UsageError, ModelError.
    """
    preset = base_preset(options.preset)
    check_base_start(out, options)
    options = replace(options, device=device_name(options.device))
    if len(options.stages) < 2 and continue_from is None and (not resume or "decoder" in options.stages):
        raise UsageError("From scratch, `stages` must be vae and unet; others `continue_from` a base.", field="stages")
    if not dataset.records:
        raise TrainingError(f"{dataset.root} holds no images to train on.")
    records = [_without_labels(r) if labelled is not None and r.name not in labelled else r for r in dataset.records]
    digests = {record.name: sha256_file(record.file) for record in records}
    records, held = hold_back(records, digests)
    networks, base = _build(out, dataset.class_names, preset, options, continue_from)
    work = out / "training"
    source = ViewSource(
        ImageStore(records), dataset.class_names, preset.short_side, options.rotate, options.seed, options.precision,
        options.device,
    )  # fmt: skip
    if "unet" in options.stages and (
        remark := cut_remark(networks.tokenizer, prompts.longest_listing(options.style, dataset.class_names))
    ):
        report(note(remark))
    report(note("trying out how long a step takes"))
    speeds = try_out(networks, source, preset, options.style, options.stages)
    looked_at, report = len(held) or min(MOST, len(records)), Forecast.of(report)
    if options.minutes is not None:
        options = _in_minutes(options, preset, speeds, len(records), looked_at, work if resume else None, report)
    lengths = lengths_of(preset, options.steps_scale, len(records), all_views=resume and _began_with_all_views(work))
    done = {stage: steps_done(work / stage) if resume else 0 for stage in options.stages}
    report.plan(parts_of(lengths, speeds, options.stages, looked_at, done), done)
    identity = _identity(records, digests, preset, options, continue_from)
    if (views := [phase.views for phase in lengths.phases]) != [phase.views for phase in preset.phases]:
        identity["views"] = views
    report(_planned(networks, lengths, preset, options, len(records), work, identity, resume, report))
    _train(networks, source, preset, lengths, options, work, identity, resume, report)
    quality, sheet = _assessed(networks, records, held, dataset.class_names, preset, options, report)

    def save() -> None:
        write_atomic(out / SHEET, sheet)
        write_learned(out / LEARNED, records, before=base and base / LEARNED)
        _save(networks, out, options, dataset.class_names, preset, quality, base)

    save_result(save, [work / stage for stage in STAGES], report)
    with contextlib.suppress(OSError):
        work.rmdir()
    return out


def check_base_start(out: Path, options: BaseTrainOptions) -> None:
    """TrainingError where `out` has a base model already, UsageError for a preset or a device that is not there."""
    base_preset(options.preset)
    find_device(options.device)
    if (out / "model_index.json").exists():
        raise TrainingError(f"{out} already holds a finished base model; choose another folder, or remove it.")


def _in_minutes(
    options: BaseTrainOptions,
    preset: BasePreset,
    speeds: Speeds,
    images: int,
    looked_at: int,
    begun: Path | None,
    report: Forecast,
) -> BaseTrainOptions:
    """The options with the length that takes about so many minutes here; one that has begun goes on with its own."""
    assert options.minutes is not None
    stages = [begun / stage for stage in STAGES if (begun / stage / INDEX).exists()] if begun else []
    if stages:
        scale = float(started_with(stages[0], {})["settings"]["steps_scale"])
    else:

        def parts(thousandths: int) -> list[Part]:
            return parts_of(lengths_of(preset, thousandths / 1000, images), speeds, options.stages, looked_at, {})

        scale = longest(60 * options.minutes - report.elapsed, parts, 1_000_000) / 1000
        scale = gathered([scale])[0]  # by the clock of the first process
    said = f"trains for {scale:g} of the preset's steps: `steps_scale={scale:g}` repeats it"
    report(replace(note(said), settled={"minutes": None, "steps_scale": scale}))
    return replace(options, minutes=None, steps_scale=scale)


def _planned(
    networks: Networks,
    lengths: Lengths,
    preset: BasePreset,
    options: BaseTrainOptions,
    images: int,
    work: Path,
    identity: Mapping[str, Any],
    resume: bool,
    report: Forecast,
) -> Event:
    """What will be done. Raises TrainingError where a training that was begun does not go on."""
    steps = {
        "vae": (lengths.vae_steps, preset.vae_lr), "unet": (lengths.unet_steps, preset.unet_lr),
        "decoder": (lengths.decoder_steps, preset.decoder_lr),
    }  # fmt: skip
    modules = {"vae": networks.vae, "unet": trained_of(networks), "decoder": networks.decoder}
    said = []
    for stage in (one for one in steps if one in options.stages):
        check_goes_on(work / stage, _fit_options(options, *steps[stage]), identity, resume)
        done = steps_done(work / stage)
        said.append(f"{steps[stage][0]} steps of the {stage}{f' ({done} are done)' if done else ''}")
    settled = {
        "steps_scale": options.steps_scale, "device": options.device,
        "precision": resolve_precision(options.precision, options.device),
    }  # fmt: skip
    text = f"trains a base on {counted(images, 'image')}: {', then '.join(said)}"
    return planned(text, settled, [modules[stage] for stage in steps if stage in options.stages], report)


def _train(
    networks: Networks,
    source: ViewSource,
    preset: BasePreset,
    lengths: Lengths,
    options: BaseTrainOptions,
    work: Path,
    identity: dict[str, Any],
    resume: bool,
    report: Report,
) -> None:
    """The autoencoder, then UNet and text encoder; or the decoder."""
    log = TrainingLog(work.parent, options.stages)
    crops = source.store, vae_views(preset, options.rotate), preset.vae_batch, options.seed, options.device
    if "vae" in options.stages:
        fit(
            networks.vae, vae_loss(networks.vae, *crops), _fit_options(options, lengths.vae_steps, preset.vae_lr),
            work / "vae", stage="vae", identity=identity, resume=resume, report=report, log=log,
        )  # fmt: skip
    networks.vae.requires_grad_(False).eval()
    if "decoder" in options.stages:
        decoder: Any = networks.decoder
        fit(
            decoder, decoder_loss(decoder, networks.vae, *crops),
            _fit_options(options, lengths.decoder_steps, preset.decoder_lr), work / "decoder", stage="decoder",
            identity=identity, resume=resume, report=report, log=log,
        )  # fmt: skip
    if "unet" not in options.stages:
        return
    if "vae" in options.stages:  # another one came with a factor of its own
        scale_latents(networks.vae, source, lengths.phases, report)
    train_unet(
        networks, source, lengths.phases, options.style,
        _fit_options(options, lengths.unet_steps, preset.unet_lr), work / "unet",
        identity=identity, resume=resume, report=report, log=log,
    )  # fmt: skip


def _build(
    out: Path,
    class_names: Sequence[str],
    preset: BasePreset,
    options: BaseTrainOptions,
    continue_from: Path | str | None,
) -> tuple[Networks, Path | None]:
    """The networks to train, and the folder of the base that they are from."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = None
    if continue_from is not None:
        base = load_base(continue_from, device=options.device)
        folder = base.folder
        read_learned(folder / LEARNED)  # these two are read at the end: what is wrong with them is said now
        read_quality(folder)
        decoder = None if "vae" in options.stages else base.decoder
        if "decoder" in options.stages:
            decoder = new_decoder(base.vae, preset, options.seed)
        networks = Networks(
            base.vae.requires_grad_(True), base.unet, base.text_encoder, base.tokenizer, base.scheduler_config, decoder
        )
    else:
        torch.manual_seed(options.seed)
        words = [*prompts.WORDS, *options.style.split()]
        words += [word for name in class_names for word in class_words(name).split()]
        with tempfile.TemporaryDirectory() as place:  # OUT stays as it is until a training is sure to begin
            tokenizer = write_tokenizer(Path(place) / "tokenizer", words, preset.text_length)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=preset.text_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **preset.text,
        )
        sample_size = preset.phases[-1].height // 2 ** (len(preset.vae["block_out_channels"]) - 1)
        networks = Networks(
            AutoencoderKL(sample_size=preset.phases[-1].height, **preset.vae).to(options.device),
            UNet2DConditionModel(sample_size=sample_size, **preset.unet).to(options.device),
            CLIPTextModel(text).to(options.device),
            tokenizer,
            dict(SCHEDULER),
        )
    if options.device == "cpu":  # scaled_dot_product_attention has a slow backward pass there
        networks.unet.set_attn_processor(AttnProcessor())
    return networks, folder


def _assessed(
    networks: Networks,
    records: Sequence[Record],
    held: Sequence[Record],
    class_names: Sequence[str],
    preset: BasePreset,
    options: BaseTrainOptions,
    report: Report,
) -> tuple[BaseQuality, bytes]:
    """How good the base is, on the images held back, or on the first that it learned from; and the sheet. The first
    process looks at it alone."""
    dismiss()
    frame = preset.phases[-1]
    for network in (networks.vae, networks.unet, networks.text_encoder, networks.decoder):
        if network is not None:
            network.eval()
    views = ViewOptions(frame.width, frame.height, preset.short_side, scale=(1.0, 1.0), flip=False)
    return assess_base(
        networks, held or records[:MOST], class_names, options.style, views,
        learned=records[: MOST - len(held)] if held else (), held_back=bool(held), seed=options.seed,
        device=options.device, precision=resolve_precision(options.precision, options.device), report=report,
    )  # fmt: skip


def _save(
    networks: Networks,
    out: Path,
    options: BaseTrainOptions,
    class_names: Sequence[str],
    preset: BasePreset,
    quality: BaseQuality,
    base: Path | None,
) -> None:
    silence_libraries()
    notes: dict[str, Any] = {"style": options.style, "class_names": list(class_names), "short_side": preset.short_side}
    if base is not None and "decoder" in options.stages:
        notes = copy_base(base, out)
    else:
        networks.vae.save_pretrained(out / "vae")
        networks.unet.save_pretrained(out / "unet")
        save_text_encoder(networks.text_encoder, out / "text_encoder")
        networks.tokenizer.save_pretrained(out / "tokenizer")
        complete_vocabulary(out / "tokenizer")
        (out / "scheduler").mkdir(exist_ok=True)
        write_json(out / "scheduler" / "scheduler_config.json", networks.scheduler_config)
    if networks.decoder is not None:
        networks.decoder.save_pretrained(out / DECODER)
        usual_mode(out / DECODER)
        sync_tree(out / DECODER)
    notes[QUALITY] = to_object(quality)
    write_json(out / BASE_NOTES, notes)
    for part in PARTS:
        usual_mode(out / part)
        sync_tree(out / part)
    from diffusers import __version__ as diffusers_version

    write_json(
        out / "model_index.json",  # last: its presence says that the folder is whole
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": diffusers_version,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", str(networks.scheduler_config.get("_class_name", "DDIMScheduler"))],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def _identity(
    records: Sequence[Record],
    digests: Mapping[str, str],
    preset: BasePreset,
    options: BaseTrainOptions,
    continue_from: Path | str | None,
) -> dict[str, Any]:
    """Everything that decides the weights, for the check when it is resumed."""
    sizes = {k: v for k, v in asdict(preset).items() if "decoder" in options.stages or not k.startswith("decoder_")}
    decisive = {k: v for k, v in to_object(options).items() if k not in ("checkpoint_minutes", "device", "minutes")}
    images = {record.name: digests[record.name][:16] for record in records}
    labels = hashlib.sha256()
    for record in records:
        found = record.instances
        labels.update(repr((record.name, found.boxes.tolist(), found.labels.tolist())).encode())
    return {
        "preset": sizes,
        "settings": decisive,
        "images": images,
        "labels": labels.hexdigest()[:16],
        "continue_from": "" if continue_from is None else base_hash(local_folder(continue_from))[:16],
    }


def _without_labels(record: Record) -> Record:
    return replace(record, instances=Instances.none())


def _began_with_all_views(work: Path) -> bool:
    """Whether the training that was begun encodes as many views as the preset says, however short it is."""
    begun = [work / stage for stage in STAGES if (work / stage / INDEX).exists()]
    return bool(begun) and "views" not in started_with(begun[0], {})


def _fit_options(options: BaseTrainOptions, steps: int, lr: float) -> FitOptions:
    return FitOptions(
        steps=steps,
        lr=lr,
        weight_decay=1e-3,
        warmup=min(100, max(1, steps // 10)),
        seed=options.seed,
        precision=options.precision,
        device=options.device,
        checkpoint_minutes=options.checkpoint_minutes,
    )
