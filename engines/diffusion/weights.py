"""Which files of a model's part hold its weights, and what their headers say.

Knows: how diffusers and transformers name whole, sharded and variant files, of today and of earlier versions.
Does not know what is inside a file (`engines.common.weight_file`), or what the tensors mean.

Every error is a ModelError in one line, raised before any weight is read.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from engines.common.files import read_json
from engines.common.quote import quote, shorten
from engines.common.weight_file import TensorInfo, check_no_quantisation, read_header
from engines.errors import ModelError

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
DECODER = "decoder"  # a part that few have: what decodes in the VAE's place
_STEMS = STEMS | {DECODER: "diffusion_pytorch_model"}
_CONVERT_FILE = (
    'python -c "import sys, torch, safetensors.torch as s; '
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
    "s.save_file({k: v.contiguous().clone() for k, v in d.items() if hasattr(v, 'dtype')}, sys.argv[2])\" "
)
_CONVERT_PART = (
    'python -c "import sys, diffusers; diffusers.{}.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])" '
)
_CONVERT_FOLDER = (
    'python -c "import sys, diffusers; '
    'diffusers.StableDiffusionPipeline.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])" '
)


@dataclass(frozen=True)
class Weights:
    """The files of one part that hold its weights, by name inside the part's folder."""

    files: tuple[str, ...]  # one, or all shards
    index: str | None  # which tensor is in which shard; None for a single file
    variant: str | None  # "fp16" in `model.fp16.safetensors`


def choose_weights(names: Collection[str], part: str) -> Weights | None:
    """Which of a part's files are its weights, as diffusers and transformers name them; None where there are none.

    Full files are taken before variants, `fp16` before other variants. Raises ModelError where the names leave more
    than one choice.
    """
    stem = re.escape(_STEMS[part])
    shard = r"-\d{5}-of-\d{5}"  # before diffusers 0.32 in front of the variant: model-00001-of-00002.fp16.safetensors
    pattern = re.compile(rf"{stem}(?:\.(\w+))?({shard})?\.safetensors|{stem}({shard})\.(\w+)\.safetensors")
    indices = re.compile(rf"{stem}\.safetensors(?:\.(\w+))?\.index(?:\.(\w+))?\.json")
    whole: dict[str | None, str] = {}
    shards: dict[str | None, list[str]] = {}
    index: dict[str | None, str] = {}
    for name in sorted(names):
        if found := pattern.fullmatch(name):
            if found[2] or found[3]:
                shards.setdefault(found[1] or found[4], []).append(name)
            else:
                whole[found[1]] = name
        elif found := indices.fullmatch(name):
            index[found[1] or found[2]] = name
    variants = sorted({*whole, *(shards.keys() & index.keys())}, key=lambda variant: (variant is not None, variant))
    if not variants:
        return None
    taken = next((variant for variant in (None, "fp16") if variant in variants), variants[0])
    if taken not in (None, "fp16") and len(variants) > 1:
        raise ModelError(
            f"{part} holds the variants {', '.join(str(variant) for variant in variants)}, and no full or fp16 weights "
            "among them. Keep one."
        )
    if taken in whole and taken in index:
        raise ModelError(f"{part} holds both {whole[taken]} and {index[taken]}. Remove what is out of date.")
    if taken in whole:
        return Weights((whole[taken],), None, taken)
    return Weights(tuple(shards[taken]), index[taken], taken)


def find_weights(folder: Path, part: str | None = None) -> Weights:
    """The weights of the part in `folder` (unet/, vae/, text_encoder/ or decoder/); ModelError where it has none.

    `part` is which part a folder of another name holds.
    """
    part = part or folder.name
    names = [path.name for path in folder.iterdir() if path.is_file()]
    try:
        weights = choose_weights(names, part)
    except ModelError as cause:
        raise ModelError(f"{folder.parent if part == folder.name else folder}: {cause}") from None
    if weights is None:
        pickles = sorted(name for name in names if name.endswith(PICKLES))
        convert = f"{_CONVERT_FOLDER}{folder.parent}"
        if part == DECODER or (part == "vae" and not (folder.parent / "model_index.json").is_file()):
            convert = f"{_CONVERT_PART.format('AutoencoderTiny' if part == DECODER else 'AutoencoderKL')}{folder}"
        mend = (
            f"Convert {pickles[0]} where you trust it: {convert} new-folder"
            if pickles
            else f"{_STEMS[part]}.safetensors was expected."
        )
        raise ModelError(f"{folder} holds no .safetensors weights; other formats can run code and are refused. {mend}")
    if weights.index is not None:
        listed = read_json(folder / weights.index, ModelError).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise ModelError(f'{folder / weights.index} has no "weight_map" of tensors to files.')
        if missing := sorted(set(listed.values()) - set(weights.files)):
            raise ModelError(f"{folder} lacks {shorten(missing[0])}, which {weights.index} names. Download it again.")
        weights = Weights(tuple(sorted(set(listed.values()))), weights.index, weights.variant)
    return weights


def read_headers(folder: Path, part: str | None = None) -> dict[str, tuple[str, TensorInfo]]:
    """File and header entry of every tensor of the part in `folder` (`part`, in a folder of another name), by the
    tensor's name in its file.

    Every file is checked against its own header. Raises ModelError, also for a tensor that two shards hold, and for
    quantised weights.
    """
    found: dict[str, tuple[str, TensorInfo]] = {}
    for file in find_weights(folder, part).files:
        tensors = read_header(folder / file).tensors
        check_no_quantisation(folder / file, tensors)
        if twice := [name for name in tensors if name in found]:
            raise ModelError(f"{folder / file} and {found[twice[0]][0]} both hold {quote(twice[0])}. Keep one of them.")
        found |= {name: (file, info) for name, info in tensors.items()}
    return found


def pickle_message(path: Path) -> str:
    """Why a pickled checkpoint is refused, and the command that converts it without running what it may hold."""
    return (
        f"{path} is a pickle, which can run code; a .safetensors file was expected. Convert it with: "
        f"{_CONVERT_FILE}{path} {path.with_suffix('.safetensors')}"
    )
