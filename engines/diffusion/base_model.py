"""The base model: a latent diffusion model in the diffusers folder layout.

Knows: how to load one (Stable Diffusion 1.x or 2.x, or a small one of our own) from a local folder, a single file or
a hub, which numbers of it the rest of dengine needs, and a hash that names its weights.
Knows nothing about sampling, adapters or exported graphs; what checkpoints look like inside is `checkpoints`' and
`families`' to know.

B batch, L text length, D text width.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.common.files import read_json, sha256_file
from engines.diffusion.checkpoints import PREDICTION_TYPES, checkpoint_folder
from engines.diffusion.families import check_folder_family
from engines.diffusion.libraries import first_line, silence_libraries
from engines.diffusion.weights import (
    PICKLES,
    STEMS,
    check_weights,
    choose_weights,
    find_weights,
    pickle_message,
)
from engines.errors import ModelError, UsageError

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
BASE_NOTES = "dengine.json"  # beside model_index.json, where dengine trained the base: its style, classes and scale
SMALLEST_PRODUCT = 1e-6  # of alphas_cumprod; DDPM's own linear schedule ends at 4e-5
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
            return encode_pixels(self.vae, pixels)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, Z, h, w] to pixels [B, 3, H, W], nominally in [-1, 1], not clipped."""
        with torch.no_grad():
            return decode_latents(self.vae, latents)


def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, H, W] in [-1, 1] to scaled latents [B, Z, h, w]: the mode of an AutoencoderKL's posterior."""
    latents: torch.Tensor = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    return latents


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Scaled latents [B, Z, h, w] to pixels [B, 3, H, W], nominally in [-1, 1], not clipped."""
    pixels: torch.Tensor = vae.decode(latents / vae.config.scaling_factor).sample
    return pixels


def load_base(name: Path | str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> BaseModel:
    """Load a base model from a local diffusers folder, a single `.safetensors` file, or by its name on the hub.

    Safetensors only: weights in any other format are refused, no remote code runs. Raises ModelError, naming what is
    missing or unsupported.
    """
    path = local_folder(name)
    check_layout(path)
    config = _scheduler_config(path)
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors import SafetensorError
    from transformers import CLIPTextModel, CLIPTokenizer

    silence_libraries()
    parts: dict[str, Any] = {}
    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    try:
        for part, kind in kinds.items():
            # low_cpu_mem_usage needs a package more, and its absence is a warning to the user
            more = {"dtype": dtype} if part == "text_encoder" else {"torch_dtype": dtype, "low_cpu_mem_usage": False}
            parts[part], found = kind.from_pretrained(
                path / part,
                use_safetensors=True,
                variant=find_weights(path / part).variant,
                output_loading_info=True,
                **more,
            )
            if missing := sorted(found["missing_keys"]):
                raise ModelError(
                    f'{path}/{part} is not whole: its weights lack "{missing[0]}" ({len(missing)} are missing). '
                    "Download it again."
                )
        tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer")
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as cause:
        raise ModelError(f"{path} does not load as {_LAYOUT}: {first_line(cause)}") from cause
    for network in parts.values():
        network.requires_grad_(False).eval().to(device)
    return BaseModel(path, parts["unet"], parts["vae"], parts["text_encoder"], tokenizer, config)


def local_folder(
    name: Path | str, prediction_type: str | None = None, note: Callable[[str], None] = lambda text: None
) -> Path:
    """The local diffusers folder of a base model.

    `name` itself when it is a folder; for a `.safetensors` file, the folder it is converted to; else the hub's
    snapshot of the model of that name. `prediction_type` says what a single file predicts ("epsilon" or
    "v_prediction") where the file cannot tell; `note` is told before a conversion, which takes a minute. Raises
    ModelError, and UsageError for a prediction type that contradicts a folder.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix in PICKLES:
            raise ModelError(pickle_message(path))
        if path.suffix != ".safetensors":
            raise ModelError(f"{path} is a file; {_LAYOUT}, or a .safetensors checkpoint, was expected.")
        return checkpoint_folder(path, prediction_type, note=note)
    if not path.is_dir():
        is_name = str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))
        if not is_name or path.suffix in (*PICKLES, ".safetensors"):
            raise ModelError(
                f"{path} does not exist; give {_LAYOUT}, a .safetensors checkpoint, or a model's name on the Hugging "
                "Face hub."
            )
        path = _hub_folder(str(name))
    found = prediction_type and _scheduler_config(path).get("prediction_type", "epsilon")
    if prediction_type != found:
        raise UsageError(
            f'`prediction_type` is {prediction_type}, and {path}/scheduler says "{found}". Leave the option out (it is '
            "for single files), or correct scheduler_config.json.",
            field="prediction_type",
        )
    return path


def check_layout(folder: Path) -> None:
    """Raise ModelError unless `folder` is a whole base model of a supported family, judged without reading weights."""
    check_folder_family(folder)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise ModelError(f"{folder} has no {', '.join(f'{part}/' for part in missing)}; {_LAYOUT} was expected.")
    for part in STEMS:
        check_weights(folder / part)


def base_hash(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the names and contents of a base model's weights, configurations and vocabulary.

    Weights are those that `load_base` reads: a second variant beside them changes nothing. `known` are SHA-256 of
    files, by POSIX path relative to the folder, that need not be read again.
    """
    digest = hashlib.sha256()
    for part in PARTS:
        weights = find_weights(folder / part).files if part in STEMS else ()
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and (path.suffix in (".json", ".txt") or path.name in weights):
                name = path.relative_to(folder).as_posix()
                digest.update(f"{name}\0{(known or {}).get(name) or sha256_file(path)}\n".encode())
    return digest.hexdigest()


def alphas_cumprod(scheduler_config: dict[str, Any]) -> torch.Tensor:
    """The cumulative products of 1 - beta, float64 [T], computed as diffusers' DDIMScheduler does (in float32).

    Raises ModelError for betas that are no noise schedule, and for zero terminal SNR: a last product (almost) zero,
    where noisy latents hold nothing of the clean ones and 1 / sqrt(product) in the samplers' updates has no use.
    """
    if scheduler_config.get("rescale_betas_zero_snr"):
        raise ModelError(
            "scheduler_config.json: rescale_betas_zero_snr is true; zero terminal SNR is not supported. If the base "
            "model was not trained with it, set it to false."
        )
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
    products = torch.cumprod(1.0 - betas, dim=0).double()
    if products.ndim != 1 or len(products) == 0 or not bool(((betas >= 0) & (betas <= 1)).all()):
        raise ModelError("scheduler_config.json: trained_betas must be a list of numbers from 0 to 1.")
    if (last := float(products[-1])) < SMALLEST_PRODUCT:
        raise ModelError(
            f"scheduler_config.json: the betas end at alphas_cumprod {last:.1e}, that is zero terminal SNR, which is "
            f"not supported; at least {SMALLEST_PRODUCT:.0e} was expected (Stable Diffusion's is 4.7e-03)."
        )
    return products


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


def _scheduler_config(folder: Path) -> dict[str, Any]:
    """The scheduler's configuration, checked for what dengine can sample."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path, ModelError)
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        raise ModelError(f'{path}: prediction_type "{kind}"; {" or ".join(PREDICTION_TYPES)} was expected.')
    try:
        alphas_cumprod(config)
    except ModelError as cause:
        raise ModelError(f"{folder}: {cause}") from None
    return config


def _hub_folder(name: str) -> Path:
    """The snapshot of a model on the hub: its configurations first, then the weights that `load_base` reads.

    Without a network, what an earlier call left in the hub's own cache.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    small = ["model_index.json", *(f"{part}/*{suffix}" for part in PARTS for suffix in (".json", ".txt"))]
    try:
        try:
            names = HfApi().list_repo_files(name)
        except HfHubHTTPError:
            raise
        except Exception:  # no network: each of its layers has errors of its own
            return Path(snapshot_download(name, local_files_only=True))
        folder = Path(snapshot_download(name, allow_patterns=small))
        check_folder_family(folder)
        return Path(snapshot_download(name, allow_patterns=[*small, *_hub_weights(names)]))
    except ModelError:
        raise
    except Exception as cause:  # the hub's client raises its own, the network's and the file system's errors
        raise ModelError(f'"{name}" is no local folder, and the hub did not give it: {first_line(cause)}') from cause


def _hub_weights(names: Sequence[str]) -> list[str]:
    """Of all files of a model, the weights that are read: not every variant of several gigabytes."""
    found = []
    for part in STEMS:
        inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        if weights := choose_weights(inside, part):
            found += [f"{part}/{name}" for name in weights.files]
    return found
