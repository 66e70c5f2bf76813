"""Tiny random models in the layouts that dengine reads.

Knows: how to write a base model of either Stable Diffusion shape and a matching adapter, in a second or two, and a
bundle of the two, in half a minute, from fixed seeds. Nothing here is trained: the pictures are noise and the boxes
mean nothing.

The two shapes differ on purpose in everything that real SD 1.x and SD 2.x folders differ in, and in strides besides:
    sd1: convolution projections, epsilon, one head count for all blocks, 2 levels, VAE stride 8
    sd2: linear projections, v_prediction, more heads in deeper blocks, 3 levels, VAE stride 4, wider text
         and another activation
Attention is in fewer blocks than real models have it, since the time to export a graph grows with its operations.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

Kind = Literal["sd1", "sd2"]
KINDS: tuple[Kind, ...] = ("sd1", "sd2")
CLASS_NAMES = ("rbc", "wbc", "platelets")
TEXT_LENGTH = 32
TEXT_WIDTH = 32  # of sd1
OVERFLOWING = "unet.down_blocks.1.resnets.0"  # in the `unet` graph's module
WORDS = ("a", "photo", "microscope", "with", "of", "few", "several", "many", "and", *CLASS_NAMES)

_UNET: dict[Kind, dict[str, Any]] = {
    "sd1": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "use_linear_projection": False,
    },
    "sd2": {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 8),
        "use_linear_projection": True,
    },
}
_TEXT_WIDTHS: dict[Kind, int] = {"sd1": TEXT_WIDTH, "sd2": 48}
_VAE_CHANNELS: dict[Kind, tuple[int, ...]] = {"sd1": (8, 8, 16, 16), "sd2": (8, 16, 16)}


def _byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes that GPT-2's and CLIP's tokenizers share."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = (256 + extra for extra in range(256))
    return [chr(byte if byte in kept else next(spare)) for byte in range(256)]


def write_tokenizer(folder: Path, words: tuple[str, ...] = WORDS, length: int = TEXT_LENGTH) -> int:
    """Write vocab.json and merges.txt of a CLIPTokenizer that knows each of `words` as one token; return the size."""
    letters = _byte_letters()
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
            parts[:2] = ["".join(pair)]
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return len(vocabulary)


def make_toy_base(folder: Path, kind: Kind = "sd1") -> Path:
    """Write a random base model of the given shape in the diffusers layout to `folder`, and return `folder`."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    size = write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(KINDS.index(kind))
        unet = UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            cross_attention_dim=_TEXT_WIDTHS[kind],
            norm_num_groups=8,
            **_UNET[kind],
        )
        channels = _VAE_CHANNELS[kind]
        vae = AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=64,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=size,
                hidden_size=_TEXT_WIDTHS[kind],
                intermediate_size=2 * _TEXT_WIDTHS[kind],
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=TEXT_LENGTH,
                hidden_act="quick_gelu" if kind == "sd1" else "gelu",
                bos_token_id=size - 2,
                eos_token_id=size - 1,
                pad_token_id=size - 1,
            )
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon" if kind == "sd1" else "v_prediction",
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def make_overflowing_base(folder: Path, base: Path) -> Path:
    """Copy a base model, but one convolution of its UNet gives numbers beyond float16, in the block OVERFLOWING.

    A group norm follows the convolution, so that the network computes about the same in float32.
    """
    shutil.copytree(base, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = f"{OVERFLOWING.removeprefix('unet.')}.conv1.weight"
    tensors[name] = (tensors[name] * 2**18).clamp(-60_000, 60_000)
    save_file(tensors, weights, {"format": "pt"})
    return folder


def make_toy_adapter(
    folder: Path, base: Path, *, head: Literal["rt_detr", "deformable_detr"] = "rt_detr", queries: int = 8
) -> Path:
    """Write a random adapter for the base model in `base` to `folder`, and return `folder`.

    A `deformable_detr` head gets one level more than the pyramid has. Its boxes are spread over the frame and most
    score between 0.05 and 0.9, so that they can be compared and kept.
    """
    from engines.adapter.info import AdapterConfig, AdapterInfo
    from engines.adapter.model import DetectionAdapter, save_adapter
    from engines.adapter.pyramid import pyramid_channels
    from engines.diffusion.base_model import base_hash

    unet = json.loads((base / "unet" / "config.json").read_text("utf-8"))
    vae = json.loads((base / "vae" / "config.json").read_text("utf-8"))
    multiple = 2 ** (len(unet["block_out_channels"]) + len(vae["block_out_channels"]) - 2)
    config = AdapterConfig(
        channels=pyramid_channels(unet),
        num_classes=len(CLASS_NAMES),
        head=head,
        extra_levels=int(head == "deformable_detr"),
        width=16,
        decoder_layers=1,
        queries=queries,
        denoising=0,
        heads=2,
        ffn_width=32,
        points=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        adapter = DetectionAdapter(config)
        network: Any = adapter.head
        for classifier in (network.enc_score_head, *network.decoder.class_embed):
            torch.nn.init.normal_(classifier.weight, std=0.5)
            torch.nn.init.constant_(classifier.bias, -1.0)
        for regressor in (network.enc_bbox_head, *network.decoder.bbox_embed):
            torch.nn.init.normal_(regressor.layers[-1].weight, std=0.2)
    info = AdapterInfo(
        class_names=CLASS_NAMES,
        timestep=1,
        short_side=3 * multiple,
        frame=(4 * multiple, 3 * multiple),
        size_multiple=multiple,
        style="microscope photo",
        prompts={},
        base_hash=base_hash(base),
        config=config,
        class_statistics=({"rbc": 6, "platelets": 1}, {"rbc": 3, "wbc": 1}),
    )
    save_adapter(folder, adapter.eval(), info)
    return folder


def export_toy_bundle(folder: Path, base: Path, adapter: Path, graph_dtype: str = "float32") -> Path:
    """Export a bundle to `folder`, check it on every installed runtime, and return `folder`."""
    from export.assemble import export
    from export.settings import ExportSettings

    return export(ExportSettings(base, adapter, folder, graph_dtype=graph_dtype, threads=1)).folder
