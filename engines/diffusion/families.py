"""Families of diffusion models: what a checkpoint is, by the names and shapes in it.

Knows: how single-file checkpoints and diffusers folders of the usual families are told apart without reading a
weight, and which of them dengine can use. Knows nothing about loading them.

The names are those that the families' own repositories gave their tensors; diffusers tells them apart in much the
same way (diffusers/loaders/single_file_utils.py, version 0.42).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from engines.common.files import read_json
from engines.common.quote import quote, shorten
from engines.common.weight_file import Header
from engines.errors import ModelError

Family = Literal["sd1", "sd2"]
FAMILIES: tuple[Family, ...] = ("sd1", "sd2")
SUPPORTED = "Stable Diffusion 1.x and 2.x text-to-image models are supported"
UNET_PREFIX, VAE_PREFIXES = "model.diffusion_model.", ("first_stage_model.", "vae.")
TEXT_PREFIXES = (  # of a text encoder, without `text_model.`: the first repositories', Stability's generative-models',
    "cond_stage_model.transformer.",  # and those that ComfyUI saves
    "cond_stage_model.model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.0.model.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.clip_h.transformer.",
)
EMA_PREFIX = "model_ema."
_FIRST = "input_blocks.0.0.weight"  # of a UNet in the original layout
_FEW_STEPS = re.compile(
    r"turbo|lightning|schnell|sdxs|hyper[-_ ]?sd|(?<![a-z])(lcm|tcd|dmd2?)(?![a-z])"
    r"|(?<!\d)(1|2|4|8)[-_ ]?steps?(?![a-z])",
    re.IGNORECASE,
)

_LORA_MARKS = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", "_lora.down.", ".hada_w1", ".lokr_w1")
_MARKS = (  # text in a tensor's name, and what a file with such a name is; the first that fits
    ("conditioner.embedders.1.", "a Stable Diffusion XL checkpoint"),
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("single_stream_modulation.", "a Flux 2 checkpoint"),
    ("double_blocks.0.img_attn", "a Flux checkpoint"),
    ("double_stream_blocks.", "a HiDream checkpoint"),
    ("double_layers.0.attn", "an AuraFlow checkpoint"),
    ("control_model.", "a ControlNet"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("emb_params", "a textual inversion embedding"),
    ("motion_modules.", "an AnimateDiff motion module"),
    ("time_embed.cond_proj.", "a latent consistency model"),
    ("time_embedding.cond_proj.", "a latent consistency model"),
)
_TEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "a Stable Diffusion XL refiner"}
_TEXT_WIDTHS |= {2048: "Stable Diffusion XL"}
_INPUT_CHANNELS = {  # of the UNet, where they are not the latents'
    5: "a Stable Diffusion depth-to-image model",
    7: "a Stable Diffusion upscaler",
    8: "an InstructPix2Pix model",
    9: "a Stable Diffusion inpainting model",
}
_PIPELINES = (  # beginnings of `_class_name` in model_index.json; the first that fits
    ("StableDiffusionXL", "Stable Diffusion XL"),
    ("StableDiffusion3", "Stable Diffusion 3"),
    ("StableCascade", "Stable Cascade"),
    ("Flux2", "Flux 2"),
    ("Flux", "Flux"),
    ("PixArt", "PixArt"),
    ("Kandinsky", "Kandinsky"),
    ("LatentConsistencyModel", "a latent consistency model"),
)
_USABLE_PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",  # often kept for a plain UNet; a real one is told by its input channels
)


def family_of_file(header: Header, path: Path, widths: Mapping[Family, int]) -> Family:
    """The family of a single-file checkpoint, from its header alone.

    `widths` is how wide each family's text is: what tells them apart, however a file's tensors are named. Raises
    ModelError, saying what the file is and what is supported, for everything that is no Stable Diffusion 1.x or 2.x
    text-to-image model with its text encoder.
    """
    names = header.tensors.keys()
    if is_lora(header):
        raise ModelError(
            f"{path} is a LoRA and not a base model. Give it with `loras`, and its base with `base`.", field="base"
        )
    if (marked := _marked(header)) is not None:
        raise _refused(path, marked)
    first = header.tensors.get(UNET_PREFIX + _FIRST)
    if first is None:
        raise _refused(path, _fragment(names))
    channels = first.shape[1] if len(first.shape) == 4 else 0
    if channels != 4:
        raise _refused(path, _INPUT_CHANNELS.get(channels, f"a model with {channels} input channels"))
    if "ztsnr" in names:
        raise _refused(path, "a model trained to zero terminal SNR")
    found = {
        info.shape[1]
        for name, info in header.tensors.items()
        if name.startswith(UNET_PREFIX) and name.endswith(".attn2.to_k.weight") and len(info.shape) > 1
    }
    if any(name.startswith(f"{UNET_PREFIX}label_emb.") for name in names):
        what = next((_TEXT_WIDTHS[width] for width in found if width in (1280, 2048)), "unCLIP, for instance")
        raise _refused(path, f"a model with more conditions than the prompt ({what})")
    if not any(name.startswith(TEXT_PREFIXES) for name in names):
        elsewhere = next((name for name in names if name.endswith("token_embedding.weight")), None)
        other = "a model with a text encoder under names of its own"
        raise _refused(
            path, f"{other} ({quote(elsewhere)})" if elsewhere else "a UNet without the text encoder that belongs to it"
        )
    families: list[Family] = [family for family in FAMILIES if found == {widths[family]}]
    if not families:
        wide = " and ".join(map(str, sorted(found)[:3]))
        reads = f"its UNet reads text that is {wide} wide" if found else "its UNet reads no text"
        what = next((_TEXT_WIDTHS[width] for width in found if width in _TEXT_WIDTHS), "a model of another kind")
        raise _refused(path, f"{what}: {reads}")
    return families[0]


def is_lora(header: Header) -> bool:
    """Whether a file holds changes to weights, and not weights."""
    return any(mark in name for name in header.tensors for mark in _LORA_MARKS)


def foreign_vae(header: Header) -> str | None:
    """What a file is whose VAE, if it has one, is not Stable Diffusion 1.x or 2.x's; None of every other."""
    if is_lora(header):
        return "a LoRA"
    if any(name.startswith(f"{UNET_PREFIX}label_emb.") for name in header.tensors):
        return "a checkpoint with more conditions than the prompt, such as Stable Diffusion XL"
    return _marked(header)


def few_steps(*names: str) -> bool:
    """Whether a model's names, its file's or those in its notes, say that it was distilled for a few steps."""
    return any(_FEW_STEPS.search(name) for name in names)


def check_folder_family(folder: Path) -> None:
    """Raise ModelError, naming the family, for a diffusers folder of another one. Reads configurations only."""
    index = folder / "model_index.json"
    if index.is_file():
        name = str(read_json(index, ModelError).get("_class_name"))
        if name not in _USABLE_PIPELINES:
            what = next((what for beginning, what in _PIPELINES if name.startswith(beginning)), "another model")
            raise _refused(folder, f"{what} ({shorten(name)} in model_index.json)")
    for part, what in (
        ("transformer", "a model with a transformer in place of the UNet, such as Stable Diffusion 3 or Flux"),
        ("text_encoder_2", "a model with two text encoders, such as Stable Diffusion XL"),
    ):
        if (folder / part).is_dir():
            raise _refused(folder, what)
    unet, vae, text = (_config(folder, part) for part in ("unet", "vae", "text_encoder"))
    for config, part, kind in ((unet, "unet", "UNet2DConditionModel"), (vae, "vae", "AutoencoderKL")):
        if (found := config.get("_class_name", kind)) != kind:
            raise _refused(folder, f"a model whose {part} is of the kind {shorten(found)}, where {kind} was expected")
    if (found := text.get("model_type", "clip_text_model")) != "clip_text_model":
        what = f"a model whose text_encoder is of the kind {shorten(found)}, where clip_text_model was expected"
        raise _refused(folder, what)
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if unet and vae and channels != latents:
        known = _INPUT_CHANNELS.get(channels) if isinstance(channels, int) else None
        found = f"a model with {quote(channels)} input channels and {quote(latents)} of latents"
        raise _refused(folder, known or found)
    for key in ("addition_embed_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim"):
        if unet.get(key) is not None:
            raise _refused(folder, f"a model with more conditions than the prompt ({key} in unet/config.json)")


def _config(folder: Path, part: str) -> Mapping[str, Any]:
    """A part's config.json; empty where there is none, which its own library will name."""
    path = folder / part / "config.json"
    return read_json(path, ModelError) if path.is_file() else {}


def _marked(header: Header) -> str | None:
    """What a file is by the name of one of its tensors; None where none tells."""
    return next((what for mark, what in _MARKS if any(mark in name for name in header.tensors)), None)


def _fragment(names: Any) -> str:
    """What a file without a UNet in Stable Diffusion's own layout is."""
    if any(name.startswith("down_blocks.") for name in names):
        return "one part of a diffusers folder (give the folder)"
    if any(name.startswith("unet.down_blocks.") for name in names):
        return "made of the parts of a diffusers folder (give the folder)"
    if (first := next((name for name in names if name.endswith(_FIRST)), None)) is not None:
        prefix = first.removesuffix(_FIRST)
        if prefix in ("", "diffusion_model."):
            return "a UNet alone"
        return f"a file whose UNet's names begin with {quote(prefix)}, where {quote(UNET_PREFIX)} was expected"
    if any(name.startswith(f"{UNET_PREFIX}down_blocks.") for name in names):
        return "a file of the original layout with diffusers' names inside (give the diffusers folder it was made of)"
    if any(name.startswith(EMA_PREFIX) for name in names):
        return "a file whose UNet is there only as an averaged (EMA) copy"
    if any(name.startswith((*VAE_PREFIXES, "encoder.down", "decoder.up")) for name in names):
        return "an autoencoder (VAE) alone"
    if any("text_model." in name or name.startswith(TEXT_PREFIXES) for name in names):
        return "a text encoder alone"
    return "no checkpoint of a kind that dengine knows"


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} is {what}; {SUPPORTED}.")
