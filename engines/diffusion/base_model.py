"""The base model: a latent diffusion model in the diffusers folder layout.

Knows: how to load one (Stable Diffusion 1.x or 2.x, or a small one of our own) from a local folder or a hub, which
numbers of it the rest of dengine needs, and a hash that names its weights.
Knows nothing about sampling, adapters or exported graphs.

B batch, L text length, D text width.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.errors import ModelError
from engines.files import read_json, sha256_file

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
BASE_NOTES = "dengine.json"  # beside model_index.json, where dengine trained the base: its style, classes and scale
_LAYOUT = "a diffusers folder with unet/, vae/, text_encoder/, tokenizer/ and scheduler/"


@dataclass(frozen=True)
class BaseModel:
    """The networks of a base model, in evaluation mode and without gradients."""

    folder: Path  # the local diffusers folder it came from
    unet: Any  # diffusers.UNet2DConditionModel
    vae: Any  # diffusers.AutoencoderKL
    text_encoder: Any  # transformers.CLIPTextModel
    tokenizer: Any  # transformers.CLIPTokenizer
    scheduler_config: dict[str, Any]  # scheduler/scheduler_config.json as read

    @property
    def latent_channels(self) -> int:
        """Channels of the latents (4 for Stable Diffusion)."""
        return int(self.vae.config.latent_channels)

    @property
    def vae_stride(self) -> int:
        """Pixels a latent cell spans along one side (8 for Stable Diffusion)."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def latent_multiple(self) -> int:
        """Latent height and width must be multiples of this, so that every UNet level halves exactly."""
        return int(2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def size_multiple(self) -> int:
        """Image height and width in pixels must be multiples of this."""
        return self.vae_stride * self.latent_multiple

    @property
    def scaling_factor(self) -> float:
        """What the VAE's latents are multiplied by before the UNet sees them."""
        return float(self.vae.config.scaling_factor)

    @property
    def prediction_type(self) -> str:
        """`epsilon` or `v_prediction`."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def text_length(self) -> int:
        """Tokens in a padded prompt (77 for Stable Diffusion)."""
        return int(self.tokenizer.model_max_length)

    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts to the text encoder's last hidden states, [B, L, D]."""
        token_ids = tokenize(self.tokenizer, prompts).to(self.text_encoder.device)
        with torch.no_grad():
            states: torch.Tensor = self.text_encoder(token_ids)[0]
        return states

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] to scaled latents [B, Z, h, w]: the mode of the posterior, no noise."""
        with torch.no_grad():
            latents: torch.Tensor = self.vae.encode(pixels).latent_dist.mode() * self.scaling_factor
        return latents

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, Z, h, w] to pixels [B, 3, H, W], nominally in [-1, 1], not clipped."""
        with torch.no_grad():
            pixels: torch.Tensor = self.vae.decode(latents / self.scaling_factor).sample
        return pixels


def load_base(
    folder: Path | str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> BaseModel:
    """Load a base model from a local diffusers folder, or by its name on the Hugging Face hub.

    Safetensors only: weights in any other format are refused, no remote code runs. Raises ModelError, naming what is
    missing or unsupported.
    """
    path = local_folder(folder)
    check_layout(path)
    config = read_json(path / "scheduler" / "scheduler_config.json", ModelError)
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        kind = config["prediction_type"]
        raise ModelError(f'{path}/scheduler: prediction_type "{kind}"; epsilon or v_prediction was expected.')
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    silence_libraries()
    try:
        parts = {
            # low_cpu_mem_usage needs a package more, and its absence is a warning to the user
            name: kind.from_pretrained(path / name, use_safetensors=True, torch_dtype=dtype, low_cpu_mem_usage=False)
            for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
        }
        text_encoder = CLIPTextModel.from_pretrained(path / "text_encoder", use_safetensors=True, dtype=dtype)
        tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer")
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as cause:
        raise ModelError(f"{path} does not load as {_LAYOUT}: {_first_line(cause)}") from cause
    for network in (*parts.values(), text_encoder):
        network.requires_grad_(False).eval().to(device)
    return BaseModel(path, parts["unet"], parts["vae"], text_encoder, tokenizer, config)


def local_folder(name: Path | str) -> Path:
    """The local folder of a base model: `name` itself when it is one, else the hub's snapshot of that name."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{path} is a file; {_LAYOUT} was expected.")
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise ModelError(f"{path} does not exist; give {_LAYOUT}, or a model's name on the Hugging Face hub.")
    from huggingface_hub import snapshot_download

    wanted = [f"{part}/*{suffix}" for part in PARTS for suffix in (".json", ".txt", ".safetensors")]
    try:
        return Path(snapshot_download(str(name), allow_patterns=["model_index.json", *wanted]))
    except Exception as cause:  # the hub's client raises its own, the network's and the file system's errors
        raise ModelError(f'"{name}" is no local folder, and the hub did not give it: {_first_line(cause)}') from cause


def check_layout(folder: Path) -> None:
    """Raise ModelError unless `folder` has every part of a base model and no weights but safetensors are needed."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise ModelError(f"{folder} has no {', '.join(f'{part}/' for part in missing)}; {_LAYOUT} was expected.")
    for part in ("unet", "vae", "text_encoder"):
        if not list((folder / part).glob("*.safetensors")):
            raise ModelError(
                f"{folder}/{part} holds no .safetensors weights; other formats can run code and are refused."
            )


def base_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a base model's weights, configurations and vocabulary."""
    digest = hashlib.sha256()
    for part in PARTS:
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and path.suffix in (".safetensors", ".json", ".txt"):
                digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def alphas_cumprod(scheduler_config: dict[str, Any]) -> torch.Tensor:
    """The cumulative products of 1 - beta, float64 [T], computed as diffusers' DDIMScheduler does (in float32)."""
    steps = int(scheduler_config.get("num_train_timesteps", 1000))
    start = float(scheduler_config.get("beta_start", 0.0001))
    end = float(scheduler_config.get("beta_end", 0.02))
    kind = scheduler_config.get("beta_schedule", "linear")
    if scheduler_config.get("trained_betas") is not None:
        betas = torch.tensor(scheduler_config["trained_betas"], dtype=torch.float32)
    elif kind == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float32)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    else:
        raise ModelError(f'beta_schedule "{kind}" is not supported; linear or scaled_linear was expected.')
    return torch.cumprod(1.0 - betas, dim=0).double()


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """Prompts to token ids, int64 [B, L], padded and cut to the tokenizer's length."""
    batch = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: torch.Tensor = batch.input_ids
    return ids


def silence_libraries() -> None:
    """No progress bars of diffusers and transformers: dengine shows its own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
