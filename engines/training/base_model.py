"""Making a base model: what `train_base` does once its images are open.

Knows: the order (autoencoder, then UNet and text encoder together), how latents are encoded beforehand, the diffusion
loss, and the diffusers folder that comes out. Knows nothing about boxes beyond the counts that prompts name.

The loss is Min-SNR-5 weighted (Hang et al. 2023, arXiv 2303.09556) on epsilon or v.
B batch, Z latent channels, h/w latents.
"""

import contextlib
import hashlib
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from engines.common.devices import find_device, resolve_precision
from engines.common.events import Report, note
from engines.common.files import sha256_file, sync_tree, write_atomic, write_json
from engines.common.names import class_words
from engines.common.plurals import counted
from engines.common.rng import Stream, generator
from engines.common.schema import KEY, to_object
from engines.common.tokenizer import cut_remark, tokenize
from engines.common.training_log import write_log
from engines.datasets.dataset import Dataset, Record
from engines.datasets.learned import LEARNED, write_learned
from engines.diffusion import prompts
from engines.diffusion.base_model import BASE_NOTES, PARTS, base_hash, encode_pixels, load_base, local_folder
from engines.diffusion.base_notes import QUALITY
from engines.diffusion.latents import add_noise, to_pixels, velocity
from engines.diffusion.libraries import silence_libraries
from engines.diffusion.noise import alphas_cumprod
from engines.errors import TrainingError, UsageError, refuse
from engines.labels.boxes import Instances
from engines.quality.verdicts import BaseQuality
from engines.training.assess import MOST, SHEET, Networks, assess_base, hold_back
from engines.training.presets import BasePreset, Phase, base_preset
from engines.training.stopping import save_result
from engines.training.tokenizer import write_tokenizer
from engines.training.trainer import FitOptions, autocast, fit, log_of
from engines.training.vae import train_vae
from engines.training.views import ImageStore, ViewOptions, draw_view

MIN_SNR = 5.0
PROMPT_KINDS: dict[prompts.PromptKind, float] = {"listing": 0.75, "generic": 0.15, "empty": 0.10}
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
    device: str = "cpu"  # cpu, cuda or cuda:N
    precision: str = "auto"  # f32, bf16 or auto
    # Right-angle turns are as likely as not (microscopes, satellites).
    rotate: bool = field(default=False, metadata={KEY: "turns"})
    steps_scale: float = 1.0  # factor on every number of steps of the preset
    checkpoint_minutes: float = 3.0  # wall time between checkpoints
    stages: tuple[str, ...] = ("vae", "unet")  # what is trained; the rest is taken from continue_from

    def __post_init__(self) -> None:
        stages = ", ".join(self.stages) or "empty"
        checks = (
            ("seed", 0 <= self.seed < 2**31, f"`seed` is {self.seed}; a whole number from 0 to 2^31 - 1 was expected"),
            ("steps_scale", 0 < self.steps_scale <= 1000,
             f"`steps_scale` is {self.steps_scale}; a factor above 0 and up to 1000 was expected"),
            ("stages", bool(self.stages) and set(self.stages) <= {"vae", "unet"},
             f"`stages` is {stages:.60}; vae, unet, or both were expected"),
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
    if len(options.stages) < 2 and continue_from is None and not resume:
        raise UsageError("A base model from scratch needs both `stages`, vae and unet.", field="stages")
    if not dataset.records:
        raise TrainingError(f"{dataset.root} holds no images to train on.")
    records = [_without_labels(r) if labelled is not None and r.name not in labelled else r for r in dataset.records]
    digests = {record.name: sha256_file(record.file) for record in records}
    records, held = hold_back(records, digests)
    networks = _build(out, dataset.class_names, preset, options, continue_from)
    identity = _identity(records, digests, preset, options, continue_from)
    store = ImageStore(records)
    work = out / "training"
    if "vae" in options.stages:
        fit_options = _fit_options(options, _scaled(preset.vae_steps, options), preset.vae_lr)
        views = ViewOptions(preset.vae_size, preset.vae_size, preset.short_side, (0.8, 1.25), rotate=options.rotate)
        train_vae(
            networks.vae,
            store,
            views,
            preset.vae_batch,
            fit_options,
            work / "vae",
            identity=identity,
            resume=resume,
            report=report,
        )
    if "unet" in options.stages:
        if remark := cut_remark(networks.tokenizer, prompts.longest_listing(options.style, dataset.class_names)):
            report(note(remark))
        _train_unet(networks, store, dataset.class_names, preset, options, work / "unet", identity, resume, report)
    report(note(f"looking at what it makes of {counted(len(held) or min(MOST, len(records)), 'image')}"))
    quality, sheet = _assessed(networks, records, held, dataset.class_names, preset, options)

    def save() -> None:
        write_atomic(out / SHEET, sheet)
        write_log(out, {stage: log_of(work / stage) for stage in ("vae", "unet") if stage in options.stages})
        write_learned(out / LEARNED, records)
        _save(networks, out, options, dataset.class_names, preset, quality)

    save_result(save, (work / "vae", work / "unet"), report)
    with contextlib.suppress(OSError):
        work.rmdir()
    return out


def check_base_start(out: Path, options: BaseTrainOptions) -> None:
    """TrainingError where `out` has a base model already, UsageError for a preset or a device that is not there."""
    base_preset(options.preset)
    find_device(options.device)
    if (out / "model_index.json").exists():
        raise TrainingError(f"{out} already holds a finished base model; choose another folder, or remove it.")


def diffusion_loss(
    unet: Any,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    states: torch.Tensor,
    alphas: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """The Min-SNR weighted loss of one batch.

    `latents`, `noise` [B, Z, h, w]; `timesteps` int64 [B]; `states` [B, L, D]; `alphas` cumulative products [T].
    """
    alpha = alphas[timesteps].to(latents.dtype)
    output = unet(add_noise(latents, noise, alphas, timesteps), timesteps, states).sample.float()
    ratio = alpha / (1 - alpha)
    if prediction_type == "v_prediction":
        target = velocity(latents, noise, alphas, timesteps)
        weight = ratio.clamp(max=MIN_SNR) / (ratio + 1)
    else:
        target, weight = noise, ratio.clamp(max=MIN_SNR) / ratio
    return (functional.mse_loss(output, target, reduction="none").mean(dim=(1, 2, 3)) * weight).mean()


def _train_unet(
    networks: Networks,
    store: ImageStore,
    class_names: Sequence[str],
    preset: BasePreset,
    options: BaseTrainOptions,
    folder: Path,
    identity: dict[str, Any],
    resume: bool,
    report: Report,
) -> None:
    networks.vae.requires_grad_(False).eval()
    phases = [replace(p, steps=_scaled(p.steps, options)) for p in preset.phases]
    encoded: dict[int, tuple[torch.Tensor, list[dict[str, int]]]] = {}
    scale_latents(networks.vae, store, preset, options)
    alphas = alphas_cumprod(networks.scheduler_config).float().to(options.device)
    prediction_type = str(networks.scheduler_config.get("prediction_type", "epsilon"))
    both = nn.ModuleDict({"unet": networks.unet, "text_encoder": networks.text_encoder}).requires_grad_(True)

    def phase_of(step: int) -> int:
        return next(i for i in range(len(phases)) if step < sum(p.steps for p in phases[: i + 1]))

    def prepare(step: int) -> None:
        if (number := phase_of(step)) not in encoded:
            encoded.clear()
            phase = phases[number]
            encoded[number] = _encode_views(networks.vae, store, class_names, phase, number, preset, options)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float | torch.Tensor]]:
        number = phase_of(step)
        latents, counts = encoded[number]
        rng = generator(options.seed, Stream.UNET_STEP, step)
        chosen = rng.integers(len(counts), size=phases[number].batch)
        texts = [prompts.training_prompt(rng, options.style, counts[i], class_names, PROMPT_KINDS, 0.0) for i in chosen]
        timesteps = torch.from_numpy(rng.integers(len(alphas), size=len(chosen))).to(options.device)
        batch = latents[chosen].to(options.device)
        noise = generator(options.seed, Stream.UNET_NOISE, step).standard_normal(batch.shape, dtype=np.float32)
        states = networks.text_encoder(tokenize(networks.tokenizer, texts).to(options.device))[0]
        loss = diffusion_loss(
            networks.unet,
            batch,
            torch.from_numpy(noise).to(options.device),
            timesteps,
            states,
            alphas,
            prediction_type,
        )
        return loss, {}

    fit_options = _fit_options(options, sum(p.steps for p in phases), preset.unet_lr)
    fit(
        both, loss_at, fit_options, folder,
        stage="unet", identity=identity, resume=resume, report=report, prepare=prepare,
    )  # fmt: skip


def scale_latents(vae: Any, store: ImageStore, preset: BasePreset, options: BaseTrainOptions) -> None:
    """Set the VAE's scaling factor so that latents have unit variance, unless the VAE came with one of its own."""
    if "vae" not in options.stages:
        return
    phase = replace(preset.phases[0], views=256)
    vae.register_to_config(scaling_factor=1.0)
    latents, _ = _encode_views(vae, store, (), phase, len(preset.phases), preset, options)
    vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 5))


@torch.no_grad()
def _encode_views(
    vae: Any,
    store: ImageStore,
    class_names: Sequence[str],
    phase: Phase,
    number: int,
    preset: BasePreset,
    options: BaseTrainOptions,
) -> tuple[torch.Tensor, list[dict[str, int]]]:
    """Latents float32 [views, Z, h, w] of a phase's views, and the class counts of each."""
    views = ViewOptions(phase.width, phase.height, preset.short_side, rotate=options.rotate)
    latents, counts = [], []
    batch = 16
    for first in range(0, phase.views, batch):
        pixels = []
        for k in range(first, min(first + batch, phase.views)):
            rng = generator(options.seed, Stream.UNET_VIEWS, number, k)
            view = draw_view(store, k % len(store.records), views, rng)
            pixels.append(to_pixels(view.pixels))
            found = Counter(view.instances.labels.tolist())
            counts.append({name: found[i] for i, name in enumerate(class_names) if found[i]})
        with autocast(resolve_precision(options.precision, options.device), options.device):
            encoded = encode_pixels(vae, torch.stack(pixels).to(options.device))
        latents.append(encoded.float().cpu())
    return torch.cat(latents), counts


def _build(
    out: Path,
    class_names: Sequence[str],
    preset: BasePreset,
    options: BaseTrainOptions,
    continue_from: Path | str | None,
) -> Networks:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from transformers import CLIPTextConfig, CLIPTextModel

    if continue_from is not None:
        base = load_base(continue_from, device=options.device)
        networks = Networks(
            base.vae.requires_grad_(True), base.unet, base.text_encoder, base.tokenizer, base.scheduler_config
        )
    else:
        torch.manual_seed(options.seed)
        words = [*prompts.WORDS, *options.style.split()]
        words += [word for name in class_names for word in class_words(name).split()]
        with tempfile.TemporaryDirectory() as folder:  # OUT stays as it is until a training is sure to begin
            tokenizer = write_tokenizer(Path(folder) / "tokenizer", words, preset.text_length)
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
    return networks


def _assessed(
    networks: Networks,
    records: Sequence[Record],
    held: Sequence[Record],
    class_names: Sequence[str],
    preset: BasePreset,
    options: BaseTrainOptions,
) -> tuple[BaseQuality, bytes]:
    """How good the base is, on the images held back, or on the first that it learned from; and the sheet."""
    frame = preset.phases[-1]
    for network in (networks.vae, networks.unet, networks.text_encoder):
        network.eval()
    views = ViewOptions(frame.width, frame.height, preset.short_side, scale=(1.0, 1.0), flip=False)
    return assess_base(
        networks, held or records[:MOST], class_names, options.style, views,
        held_back=bool(held), seed=options.seed, device=options.device,
        precision=resolve_precision(options.precision, options.device),
    )  # fmt: skip


def _save(
    networks: Networks,
    out: Path,
    options: BaseTrainOptions,
    class_names: Sequence[str],
    preset: BasePreset,
    quality: BaseQuality,
) -> None:
    silence_libraries()
    networks.vae.save_pretrained(out / "vae")
    networks.unet.save_pretrained(out / "unet")
    networks.text_encoder.save_pretrained(out / "text_encoder")
    networks.tokenizer.save_pretrained(out / "tokenizer")
    (out / "scheduler").mkdir(exist_ok=True)
    write_json(out / "scheduler" / "scheduler_config.json", networks.scheduler_config)
    notes: dict[str, Any] = {"style": options.style, "class_names": list(class_names), "short_side": preset.short_side}
    notes[QUALITY] = to_object(quality)
    write_json(out / BASE_NOTES, notes)
    for part in PARTS:
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
    decisive = {k: v for k, v in to_object(options).items() if k not in ("checkpoint_minutes", "device")}
    images = {record.name: digests[record.name][:16] for record in records}
    labels = hashlib.sha256()
    for record in records:
        found = record.instances
        labels.update(repr((record.name, found.boxes.tolist(), found.labels.tolist())).encode())
    return {
        "preset": asdict(preset),
        "settings": decisive,
        "images": images,
        "labels": labels.hexdigest()[:16],
        "continue_from": "" if continue_from is None else base_hash(local_folder(continue_from))[:16],
    }


def _without_labels(record: Record) -> Record:
    return replace(record, instances=Instances.none())


def _scaled(steps: int, options: BaseTrainOptions) -> int:
    return max(1, round(steps * options.steps_scale))


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
