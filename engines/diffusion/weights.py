"""Weight files: safetensors headers, and which files of a model's part hold its weights.

Knows: the safetensors layout (8 bytes of header length, a JSON header, the data), how to tell a whole file from a
damaged one by its header alone, and how diffusers and transformers name whole, sharded and variant files.
Does not know what the tensors mean.

Every error is a ModelError in one line, raised before any weight is read.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.common.files import read_json
from engines.errors import ModelError

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_CONVERT_FILE = (
    'python -c "import sys, torch, safetensors.torch as s; '
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
    "s.save_file({k: v.contiguous().clone() for k, v in d.items() if hasattr(v, 'dtype')}, sys.argv[2])\" "
)
_CONVERT_FOLDER = (
    'python -c "import sys, diffusers; '
    'diffusers.StableDiffusionPipeline.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])" '
)
_HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit
_LENGTH_BYTES = 8
_OTHER_FILES = (  # how files begin that are often found where weights should be
    (b"version https://git-lfs", "a Git LFS pointer and not the weights", 'Run "git lfs pull" where it came from'),
    (b"<", "a web page and not the weights", "Download it again"),
    (b"PK\x03\x04", "a pickle under another name, which can run code", "Convert it where you trust it"),
    (b"\x80\x02", "a pickle under another name, which can run code", "Convert it where you trust it"),
)


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    dtype: str  # as safetensors spells it: F32, F16, BF16, ...
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds."""

    tensors: Mapping[str, TensorInfo]  # by name
    metadata: Mapping[str, str]  # free notes; often empty


@dataclass(frozen=True)
class Weights:
    """The files of one part that hold its weights, by name inside the part's folder."""

    files: tuple[str, ...]  # one, or all shards
    index: str | None  # which tensor is in which shard; None for a single file
    variant: str | None  # "fp16" in `model.fp16.safetensors`


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against the file's size. Raises ModelError for a damaged file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(32)
            length = int.from_bytes(start[:_LENGTH_BYTES], "little")
            if size <= _LENGTH_BYTES or length > _HEADER_LIMIT or length > size - _LENGTH_BYTES:
                raise ModelError(_not_safetensors(path, start, size, length))
            file.seek(_LENGTH_BYTES)
            text = file.read(length)
    except OSError as cause:
        raise ModelError(f"{path} cannot be read: {cause.strerror or cause}.") from cause
    try:
        tensors, metadata, end = _parse(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as cause:
        raise ModelError(f"{path} is damaged: its safetensors header is not readable. Download it again.") from cause
    expected = _LENGTH_BYTES + length + end
    if size != expected:
        kind = "is cut short" if size < expected else "is damaged"
        raise ModelError(f"{path} {kind}: its header speaks of {expected} bytes, it has {size}. Download it again.")
    return Header(tensors, metadata)


def choose_weights(names: Collection[str], part: str) -> Weights | None:
    """Which of a part's files are its weights, as diffusers and transformers name them; None where there are none.

    Full files are taken before variants, `fp16` before other variants. Raises ModelError where the names leave more
    than one choice.
    """
    stem = re.escape(STEMS[part])
    pattern = re.compile(rf"{stem}(?:\.(\w+))?(-\d{{5}}-of-\d{{5}})?\.safetensors")
    indices = re.compile(rf"{stem}\.safetensors\.index(?:\.(\w+))?\.json")
    whole: dict[str | None, str] = {}
    shards: dict[str | None, list[str]] = {}
    index: dict[str | None, str] = {}
    for name in sorted(names):
        if found := pattern.fullmatch(name):
            if found[2]:
                shards.setdefault(found[1], []).append(name)
            else:
                whole[found[1]] = name
        elif found := indices.fullmatch(name):
            index[found[1]] = name
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


def find_weights(folder: Path) -> Weights:
    """The weights of the part in `folder` (.../unet, .../vae or .../text_encoder); ModelError where it has none."""
    names = [path.name for path in folder.iterdir() if path.is_file()]
    try:
        weights = choose_weights(names, folder.name)
    except ModelError as cause:
        raise ModelError(f"{folder.parent}: {cause}") from None
    if weights is None:
        pickles = sorted(name for name in names if name.endswith(PICKLES))
        mend = (
            f"Convert {pickles[0]} where you trust it: {_CONVERT_FOLDER}{folder.parent} new-folder"
            if pickles
            else f"{STEMS[folder.name]}.safetensors was expected."
        )
        raise ModelError(f"{folder} holds no .safetensors weights; other formats can run code and are refused. {mend}")
    if weights.index is not None:
        listed = read_json(folder / weights.index, ModelError).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise ModelError(f'{folder / weights.index} has no "weight_map" of tensors to files.')
        if missing := sorted(set(listed.values()) - set(weights.files)):
            raise ModelError(f"{folder} lacks {missing[0]}, which {weights.index} names. Download it again.")
        weights = Weights(tuple(sorted(set(listed.values()))), weights.index, weights.variant)
    return weights


def check_weights(folder: Path) -> Weights:
    """The weights of the part in `folder`, every file checked against its own header."""
    weights = find_weights(folder)
    for name in weights.files:
        read_header(folder / name)
    return weights


def pickle_message(path: Path) -> str:
    """Why a pickled checkpoint is refused, and the command that converts it without running what it may hold."""
    return (
        f"{path} is a pickle, which can run code; a .safetensors file was expected. Convert it with: "
        f"{_CONVERT_FILE}{path} {path.with_suffix('.safetensors')}"
    )


def _parse(header: dict[str, Any]) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    """Tensors, notes, and the number of bytes of data; ValueError, TypeError or KeyError for another layout."""
    metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
    tensors, end = {}, 0
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        shape = tuple(int(side) for side in entry["shape"])
        if not 0 <= first <= last or min(shape, default=0) < 0:
            raise ValueError(name)
        tensors[name] = TensorInfo(str(entry["dtype"]), shape)
        end = max(end, int(last))
    return tensors, metadata, end


def _not_safetensors(path: Path, start: bytes, size: int, length: int) -> str:
    if size == 0:
        return f"{path} is empty. Download it again."
    for beginning, what, mend in _OTHER_FILES:
        if start.startswith(beginning):
            return f"{path} is {what}; a .safetensors file was expected. {mend}."
    if size > _LENGTH_BYTES and length <= _HEADER_LIMIT:
        return f"{path} is cut short: its header alone has {length} bytes, the file has {size}. Download it again."
    return f"{path} is no safetensors file, or a damaged one ({size} bytes). Download it again."
