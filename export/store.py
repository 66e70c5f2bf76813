"""A base model and an adapter into a bundle's folder: the diffusers layout, weights cast and stored once.

Knows: which files the layout has, and what a cast may not lose. Does not know graphs, or what else a bundle holds.
"""

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

import torch

from engines.adapter.info import WEIGHTS_FILE, AdapterInfo
from engines.adapter.model import DetectionAdapter, save_adapter
from engines.common.files import read_json, usual_mode, write_json
from engines.common.tokenizer import complete_vocabulary
from engines.datasets.learned import LEARNED
from engines.diffusion.base_model import BASE_NOTES, BaseModel
from engines.diffusion.published import save_text_encoder
from engines.diffusion.weights import DECODER
from engines.errors import ExportError, ModelError

GRAPH_WEIGHTS = {  # the file that each graph's initializers point into; of a base with a decoder, see `weights_file`
    "text_encoder": "text_encoder/model.safetensors",
    "vae_encoder": "vae/diffusion_pytorch_model.safetensors",
    "vae_decoder": "vae/diffusion_pytorch_model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "adapter": f"adapter/{WEIGHTS_FILE}",
}
_PARTS = {
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_ABSENT = ("feature_extractor", "image_encoder", "safety_checker")  # parts of a pipeline that dengine has no use for


def store_model(base: BaseModel, adapter: DetectionAdapter, info: AdapterInfo, work: Path, dtype: torch.dtype) -> None:
    """Write the diffusers folder and the adapter to `work`, weights cast to `dtype`."""
    networks = {"unet": base.unet, "vae": base.vae, "text_encoder": base.text_encoder, DECODER: base.decoder}
    for part, module in ((part, module) for part, module in networks.items() if module is not None):
        torch.nn.Module.to(module, dtype)  # diffusers' own `to` warns about casts, whatever is cast
        _check_finite(module, part, dtype)
        if part == "text_encoder":
            save_text_encoder(module, work / part)
        else:
            module.save_pretrained(work / part, safe_serialization=True, max_shard_size="1TB")
        config = read_json(work / part / "config.json", ModelError)
        config.pop("_name_or_path", None)  # a path of the machine that exported
        if "dtype" in config:  # transformers would compute as weights are stored, and diffusers' parts in float32
            config["dtype"] = "float32"
        write_json(work / part / "config.json", config)
        expected = Path(GRAPH_WEIGHTS.get(part, GRAPH_WEIGHTS["vae_encoder"])).name
        if [path.name for path in (work / part).glob("*.safetensors")] != [expected]:
            raise ExportError(f"{part}: its library did not write one {expected}; its version is not one we know.")
    for part in ("tokenizer", "scheduler"):
        (work / part).mkdir()
        for path in sorted((base.folder / part).iterdir()):
            if path.is_file() and path.suffix in (".json", ".txt"):
                shutil.copyfile(path, work / part / path.name)
    complete_vocabulary(work / "tokenizer")
    if (base.folder / BASE_NOTES).is_file():
        shutil.copyfile(base.folder / BASE_NOTES, work / BASE_NOTES)
    write_json(work / "model_index.json", _model_index(base))
    _check_finite(adapter.to(dtype), "adapter", dtype)
    save_adapter(work / "adapter", adapter, info)
    usual_mode(work)


def weights_file(graph: str, base: BaseModel) -> str:
    """The file, in a bundle's folder, with the weights of a graph."""
    decodes = graph == "vae_decoder" and base.decoder is not None
    return f"{DECODER}/diffusion_pytorch_model.safetensors" if decodes else GRAPH_WEIGHTS[graph]


def copy_learned(source: Path, target: Path) -> None:
    """Take along what a base or an adapter learned from, where its folder says so."""
    if (source / LEARNED).is_file():
        shutil.copyfile(source / LEARNED, target / LEARNED)


def _check_finite(module: torch.nn.Module, part: str, dtype: torch.dtype) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(
                f'{part}: "{name}" is not finite when stored as {str(dtype).removeprefix("torch.")}. '
                f"Use `weights_dtype=float32` (or bfloat16), unless the model itself is broken.",
                field="weights_dtype",
            )


def _model_index(base: BaseModel) -> dict[str, Any]:
    """What makes the folder load with StableDiffusionPipeline and StableDiffusionImg2ImgPipeline.from_pretrained."""
    scheduler = ["diffusers", str(base.scheduler_config.get("_class_name", "DDIMScheduler"))]
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": importlib.metadata.version("diffusers"),
        "requires_safety_checker": False,
        **{part: [None, None] for part in _ABSENT},
        **(_PARTS | {"scheduler": scheduler}),
    }
