"""The base model: a latent diffusion model in the diffusers folder layout.

Knows: how to load one (Stable Diffusion 1.x or 2.x, or a small one of our own) from a local folder, a single file or
a hub, which numbers of it the rest of dengine needs, and a hash that names its weights.
Knows nothing about sampling, adapters or exported graphs; what checkpoints look like inside is `checkpoints`' and
`families`' to know.

B batch, L text length, D text width.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.common.files import sha256_file
from engines.common.quote import quote
from engines.common.tokenizer import load_tokenizer, tokenize
from engines.diffusion.checkpoints import checkpoint_folder
from engines.diffusion.families import check_folder_family, few_steps
from engines.diffusion.hub import PARTS, hub_folder
from engines.diffusion.libraries import silence_libraries
from engines.diffusion.loading import Described, describe
from engines.diffusion.noise import read_scheduler, scheduler_remarks
from engines.diffusion.weights import DECODER, PICKLES, STEMS, find_weights, pickle_message
from engines.errors import ModelError, UsageError

__all__ = ["BASE_NOTES", "PARTS", "BaseModel", "base_files", "base_hash", "check_layout", "load_base", "local_folder"]

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
    decoder: Any | None = None  # diffusers.AutoencoderTiny, its half that decodes: does so in the VAE's place

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
        """Tokens in a padded prompt (77 for Stable Diffusion), those at its beginning and end with them."""
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
            return decode_latents(self.vae if self.decoder is None else self.decoder, latents)


def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, H, W] in [-1, 1] to scaled latents [B, Z, h, w]: the mode of an AutoencoderKL's posterior."""
    latents: torch.Tensor = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    return latents


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Scaled latents [B, Z, h, w] to pixels [B, 3, H, W], nominally in [-1, 1], not clipped; by an AutoencoderKL, or an
    AutoencoderTiny.
    """
    pixels: torch.Tensor = vae.decode(latents / vae.config.scaling_factor).sample
    return pixels


def load_base(name: Path | str, *, device: str | torch.device = "cpu") -> BaseModel:
    """Load a base model from a local diffusers folder, a single `.safetensors` file, or by its name on the hub.

    Safetensors only: weights in any other format are refused, no remote code runs. Everything is checked by headers
    and configurations first, then memory is taken. Raises ModelError, naming what is missing or unsupported.
    """
    path = local_folder(name)
    described = check_layout(path)
    config = read_scheduler(path)
    silence_libraries()
    text: Any = described["text_encoder"].network.config
    tokenizer = load_tokenizer(path / "tokenizer", int(text.vocab_size), int(text.max_position_embeddings))
    parts = {part: one.load() for part, one in described.items()}
    for network in parts.values():
        network.requires_grad_(False).eval().to(device)
    return BaseModel(
        path, parts["unet"], parts["vae"], parts["text_encoder"], tokenizer, config, parts.get(DECODER)
    )  # fmt: skip


def local_folder(
    name: Path | str,
    prediction_type: str | None = None,
    note: Callable[[str], None] = lambda text: None,
    *,
    vae: Path | None = None,
) -> Path:
    """The local diffusers folder of a base model.

    `name` itself when it is a folder; for a `.safetensors` file, the folder it is converted to; else the hub's
    snapshot of the model of that name. `prediction_type` says what a single file predicts ("epsilon" or
    "v_prediction") where the file cannot tell, and `vae` is the file or folder of a VAE in place of its own; `note` is
    told before a conversion, which takes a minute, and what the user may not expect of this model. Raises ModelError,
    and UsageError for options that contradict a folder.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix in PICKLES:
            raise ModelError(pickle_message(path))
        if path.suffix != ".safetensors":
            raise ModelError(f"{path} is a file; {_LAYOUT}, or a .safetensors checkpoint, was expected.")
        return checkpoint_folder(path, prediction_type, vae=vae, note=note)
    if not path.is_dir():
        is_name = str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))
        if not is_name or path.suffix in (*PICKLES, ".safetensors"):
            raise ModelError(
                f"{path} does not exist; give {_LAYOUT}, a .safetensors checkpoint, or a model's name on the Hugging "
                "Face hub."
            )
        path = hub_folder(str(name))
    if vae is not None:
        raise UsageError(
            f"`vae` is for single files, and {path} is a folder. Put the VAE's config.json and weights into its vae/.",
            field="vae",
        )
    config = read_scheduler(path)
    found = prediction_type and config.get("prediction_type", "epsilon")
    if prediction_type != found:
        raise UsageError(
            f'`prediction_type` is {quote(prediction_type)}, and {path}/scheduler says "{found}". Leave it out (it is '
            "for single files), or correct scheduler_config.json.",
            field="prediction_type",
        )
    remarks = list(scheduler_remarks(config))
    if not remarks and few_steps(Path(name).name):
        remarks.append("it looks like a model distilled for few steps; dengine samples it as any other")
    for remark in remarks:
        note(f"{path.name}: {remark}")
    return path


def check_layout(folder: Path) -> dict[str, Described]:
    """The networks of a base model's folder, found whole and of a supported family without reading weights, by part:
    unet, vae, text_encoder, and decoder where it has one.

    Raises ModelError.
    """
    check_folder_family(folder)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise ModelError(f"{folder} has no {', '.join(f'{part}/' for part in missing)}; {_LAYOUT} was expected.")
    parts = {part: describe(folder / part, part) for part in STEMS}
    reads = parts["unet"].network.config.cross_attention_dim
    gives = parts["text_encoder"].network.config.hidden_size
    if reads != gives:
        raise ModelError(
            f"{folder}: its unet reads text that is {reads} wide, and its text_encoder gives text that is {gives} "
            "wide. They belong to different models."
        )
    if (folder / DECODER).is_dir():
        parts[DECODER] = describe(folder / DECODER, DECODER)
        _check_decoder(folder / DECODER, parts[DECODER].network.config, parts["vae"].network.config)
    return parts


def _check_decoder(folder: Path, config: Any, vae: Any) -> None:
    """ModelError for a decoder of other latents than the VAE's."""
    reads, gives = int(config.latent_channels), int(vae.latent_channels)
    scale, stride = (2 ** (len(list(one)) - 1) for one in (config.num_decoder_blocks, vae.block_out_channels))
    if (reads, scale) != (gives, stride):
        raise ModelError(
            f"{folder} makes {scale} pixels a side of a latent with {reads} channels, and the vae beside it makes "
            f"latents with {gives} channels of {stride}. They belong to different models."
        )


def base_files(folder: Path) -> Iterator[Path]:
    """The files that `base_hash` reads, relative to the folder, in an order of their own: configurations, vocabulary,
    and the weights that `load_base` reads. A second variant beside them is left out, and so is a decoder, on which no
    adapter's features depend.
    """
    for part in PARTS:
        weights = find_weights(folder / part).files if part in STEMS else ()
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and (path.suffix in (".json", ".txt") or path.name in weights):
                yield path.relative_to(folder)


def base_hash(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the names and contents of a base model's `base_files`.

    `known` are SHA-256 of files, by POSIX path relative to the folder, that need not be read again.
    """
    digest = hashlib.sha256()
    for path in base_files(folder):
        name = path.as_posix()
        digest.update(f"{name}\0{(known or {}).get(name) or sha256_file(folder / path)}\n".encode())
    return digest.hexdigest()
