"""Base models of the shapes of Stable Diffusion 1.5 and 2.1, and adapters of the paper's size, with random weights.

    python benchmarks/full_size_models.py sd21 WORK             writes WORK/base and WORK/adapter
    python benchmarks/full_size_models.py sd21 WORK --toy       tiny networks of the same kind

Knows: the published configurations, as data, and how to write folders of that shape without holding more than one
network in memory. Nothing here is trained: pictures are noise and boxes mean nothing, but every tensor has the size,
and every operation the cost, of the real one.

Sources: the `config.json` of each part of stable-diffusion-v1-5 and stable-diffusion-2-1; for the adapter,
DiffusionEngine (arXiv 2309.03893): DINO's deformable head, 256 wide, 6 + 6 layers, 900 queries, 4 levels and one more.
"""

import dataclasses
import gc
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.records import parser
from engines.adapter.info import AdapterConfig, AdapterInfo
from engines.adapter.pyramid import pyramid_channels
from engines.bundle.bundle import FORMAT, Bundle, Manifest
from engines.bundle.graphs import ModelShape, graph_specs

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog", "horse",
    "motorbike", "person", "plant", "sheep", "sofa", "train", "television",
)  # fmt: skip
STYLE = "photo"
TEXT_LENGTH, VOCABULARY = 77, 49_408
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@dataclass(frozen=True)
class Shape:
    """What decides a base model's tensors, and the adapter that reads it."""

    seed: int  # of all its weights
    frame: tuple[int, int]  # (width, height) that the model was made for, in pixels
    unet: Mapping[str, Any]  # of UNet2DConditionModel
    vae: Mapping[str, Any]  # of AutoencoderKL
    text_encoder: Mapping[str, Any]  # of CLIPTextConfig
    scheduler: Mapping[str, Any]  # scheduler_config.json
    adapter: Mapping[str, Any]  # of AdapterConfig, beside the channels


_UNET = {
    "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.18215,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_ADAPTER = {
    "head": "deformable_detr", "width": 256, "extra_levels": 1, "encoder_layers": 6, "decoder_layers": 6,
    "queries": 900, "denoising": 100, "heads": 8, "ffn_width": 2048, "points": 4,
}  # fmt: skip

SHAPES = {
    "sd15": Shape(
        seed=15, frame=(512, 512),
        unet=_UNET | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        vae=_VAE | {"sample_size": 512},
        text_encoder={
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "hidden_act": "quick_gelu", "projection_dim": 768,
        },
        scheduler=BETAS | {
            "_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1,
            "trained_betas": None, "clip_sample": False,
        },
        adapter=_ADAPTER,
    ),
    "sd21": Shape(
        seed=21, frame=(768, 768),
        unet=_UNET | {
            "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True, "upcast_attention": True,
        },
        vae=_VAE | {"sample_size": 768},
        text_encoder={
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
            "hidden_act": "gelu", "projection_dim": 512,
        },
        scheduler=BETAS | {
            "_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "set_alpha_to_one": False,
            "steps_offset": 1, "trained_betas": None, "clip_sample": False,
        },
        adapter=_ADAPTER,
    ),
}  # fmt: skip

SD2_BASE = dataclasses.replace(  # stable-diffusion-2-base: as 2.1, for 512 pixels, predicting the noise
    SHAPES["sd21"], seed=20, frame=(512, 512),
    unet=dict(SHAPES["sd21"].unet) | {"sample_size": 64, "upcast_attention": False},
    vae=dict(SHAPES["sd21"].vae) | {"sample_size": 512},
    scheduler=dict(SHAPES["sd21"].scheduler) | {"prediction_type": "epsilon"},
)  # fmt: skip


def reduced(shape: Shape) -> Shape:
    """The same kind of model with tiny networks: two UNet levels, attention in one block, one layer a block."""
    return dataclasses.replace(
        shape, frame=(128, 128),
        unet=dict(shape.unet) | {
            "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 16,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D",) * 2,
            "cross_attention_dim": 32, "attention_head_dim": 4,
        },
        vae=dict(shape.vae) | {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 8},
        text_encoder=dict(shape.text_encoder) | {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        },
        adapter=dict(shape.adapter) | {
            "width": 16, "encoder_layers": 1, "decoder_layers": 1, "queries": 8, "denoising": 0, "heads": 2,
            "ffn_width": 32, "points": 2,
        },
    )  # fmt: skip


def make_base(folder: Path, shape: Shape) -> dict[str, int]:
    """Write a base model in the diffusers layout, weights stored as float16; returns each part's parameters.

    Weights are PyTorch's own first values: bounded by the width of what a layer sums over, so that activations stay
    near 1 through any number of normalised layers.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from engines.training.tokenizer import write_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = ("a", STYLE, "of", "with", "and", "in", "the", "few", "several", "many", *CLASS_NAMES)
    tokenizer = write_tokenizer(folder / "tokenizer", words, TEXT_LENGTH)
    text = CLIPTextConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape.text_encoder,
    )
    makers: dict[str, Callable[[], Any]] = {
        "unet": partial(UNet2DConditionModel, **shape.unet),
        "vae": partial(AutoencoderKL, **shape.vae),
        "text_encoder": partial(CLIPTextModel, text),
    }
    parameters = {}
    for place, (part, make) in enumerate(makers.items()):
        parameters[part] = write_network(folder / part, make, shape.seed * 10 + place)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(shape.scheduler), indent=2), "utf-8")
    return parameters


def write_network(folder: Path, make: Callable[[], Any], seed: int) -> int:
    """Write a network of diffusers or transformers with random weights, as float16; returns its parameters."""
    torch.manual_seed(seed)
    module = make()
    torch.nn.Module.to(module, torch.float16)
    module.save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")
    parameters: int = sum(value.numel() for value in module.parameters())
    del module
    gc.collect()
    return parameters


def make_adapter(folder: Path, base: Path, shape: Shape) -> int:
    """Write a random adapter for the base in `base`, whose boxes are spread over the frame; returns its parameters.

    Its scores are spread too, so that boxes can be compared: an untrained head's all lie at the prior.
    """
    from engines.adapter.model import DetectionAdapter, save_adapter
    from engines.diffusion.base_model import base_hash

    config = AdapterConfig(channels=pyramid_channels(shape.unet), num_classes=len(CLASS_NAMES), **shape.adapter)
    torch.manual_seed(shape.seed * 10 + 9)
    adapter = DetectionAdapter(config)
    network: Any = adapter.head
    spread = config.width**-0.5
    for classifier in (network.enc_score_head, *network.decoder.class_embed):
        torch.nn.init.normal_(classifier.weight, std=spread)
        torch.nn.init.constant_(classifier.bias, -3.0)
    for regressor in (network.enc_bbox_head, *network.decoder.bbox_embed):
        torch.nn.init.normal_(regressor.layers[-1].weight, std=spread)
    info = AdapterInfo(
        class_names=CLASS_NAMES,
        timestep=1,
        short_side=min(shape.frame),
        frame=shape.frame,
        size_multiple=8 * 2 ** (len(shape.unet["block_out_channels"]) - 1),
        style=STYLE,
        prompts={},
        base_hash=base_hash(base),
        config=config,
        class_statistics=({"person": 2, "dog": 1}, {"car": 3}),
    )
    save_adapter(folder, adapter.eval(), info)
    return sum(value.numel() for value in adapter.parameters())


def bare_bundle(folder: Path, shape: Shape, info: AdapterInfo | None = None, dtype: str = "float32") -> Bundle:
    """What lies in `folder` as a bundle that nothing was exported for: enough for a backend that reads what is there.

    `info` is the adapter's, where there is one; `dtype` is the graphs'.
    """
    channels = pyramid_channels(shape.unet)
    numbers = ModelShape(
        latent_channels=shape.vae["latent_channels"],
        vae_stride=2 ** (len(shape.vae["block_out_channels"]) - 1),
        pyramid=channels,
        text_length=TEXT_LENGTH,
        hidden_size=shape.text_encoder["hidden_size"],
        vocabulary=VOCABULARY,
        train_timesteps=shape.scheduler["num_train_timesteps"],
        queries=shape.adapter["queries"],
        classes=len(CLASS_NAMES),
    )
    specs = graph_specs(numbers, dtype)
    manifest = Manifest(
        format=FORMAT, class_names=CLASS_NAMES, weights_dtype="float16", graph_dtype=dtype, timestep=1,
        short_side=min(shape.frame), frame=shape.frame, base_hash="" if info is None else info.base_hash, style=STYLE,
        prompts={}, generate={}, latent_channels=numbers.latent_channels, vae_stride=numbers.vae_stride,
        latent_multiple=2 ** (len(channels) - 1), text_length=TEXT_LENGTH, hidden_size=numbers.hidden_size,
        graphs={name: spec.to_json() for name, spec in specs.items()}, made_with={}, figures={}, files={},
    )  # fmt: skip
    return Bundle(folder, manifest, specs, cast(AdapterInfo, info), dict(shape.scheduler), "random weights")


def unet_graph(folder: Path, shape: Shape, dtype: str = "float32") -> Bundle:
    """A bundle of the UNet alone, weights as float16, and its graph, made in `folder` where they are not there."""
    from diffusers import UNet2DConditionModel

    from engines.adapter.pyramid import PyramidUNet
    from engines.bundle.islands import apply_islands, upcast_scores
    from export.to_onnx import export_graph

    bundle = bare_bundle(folder, shape, dtype=dtype)
    if not (path := bundle.graph_path("unet")).exists():
        write_network(folder / "unet", lambda: UNet2DConditionModel(**shape.unet), shape.seed * 10)
        unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        module = PyramidUNet(unet.requires_grad_(False)).eval()
        if dtype == "float16":
            apply_islands(module, upcast_scores(module))
        unfinished = folder / "unfinished.onnx"
        export_graph(module, bundle.specs["unet"], unfinished, "unet/diffusion_pytorch_model.safetensors")
        unfinished.rename(path)
    return bundle


def main() -> None:
    """Write both, and print their parameters as one JSON line."""
    options = parser(__doc__)
    options.add_argument("shape", choices=sorted(SHAPES))
    options.add_argument("work", type=Path, help="folder for base and adapter")
    options.add_argument("--toy", action="store_true", help="tiny networks")
    given = options.parse_args()
    shape = reduced(SHAPES[given.shape]) if given.toy else SHAPES[given.shape]
    parameters = make_base(given.work / "base", shape)
    parameters["adapter"] = make_adapter(given.work / "adapter", given.work / "base", shape)
    print(json.dumps(parameters))


if __name__ == "__main__":
    main()
