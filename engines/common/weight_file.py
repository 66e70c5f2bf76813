"""One safetensors file: its header, whether it holds what something else describes, and how one is written.

Knows: the safetensors layout (8 bytes of header length, a JSON header, the data), how to tell a whole file from a
damaged one by its header alone, and how a header is held against a network before memory is taken for either.
Does not know what the tensors mean, or which files a model has.

Every error of reading is a ModelError in one line, raised before any weight is read, but for numbers that are not
finite.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.common.files import LFS_POINTER, replacing, usual_mode
from engines.common.quote import quote, shorten
from engines.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("F32", "F16", "BF16", "F64")  # of weights that can be computed with as they are
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_QUANTISED = (  # text in the names that quantisers give what they add
    "scaled_fp8", ".scale_weight", ".weight_scale", ".scale_input", ".input_scale", ".comfy_quant", ".absmax",
    ".quant_map", ".quant_state", ".qweight", ".qzeros", ".SCB", ".weight_format",
)  # fmt: skip
_HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit
_LENGTH_BYTES = 8
_OTHER_FILES = (  # how files begin that are often found where weights should be
    (LFS_POINTER.encode(), "a Git LFS pointer and not the weights", 'Run "git lfs pull" where it came from'),
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


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against the file's size. Raises ModelError for a damaged file."""
    from safetensors import SafetensorError, safe_open

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
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as cause:
        raise ModelError(f"{path} is damaged: its safetensors header is not readable. Download it again.") from cause
    expected = _LENGTH_BYTES + length + end
    if size != expected:
        kind = "is cut short" if size < expected else "is damaged"
        raise ModelError(f"{path} {kind}: its header speaks of {expected} bytes, it has {size}. Download it again.")
    try:
        with safe_open(path, "np"):  # which is stricter about types than `_parse`
            return Header(tensors, metadata)
    except (OSError, SafetensorError) as cause:
        raise ModelError(f"{path} is damaged: {shorten(cause, 150)}. Download it again.") from cause


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Write a safetensors file of tensors on the CPU, whole or not at all, for whoever may read its folder."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, temporary)
        usual_mode(temporary)


def check_no_quantisation(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise ModelError for weights that are scaled or packed, or of a dtype that nothing here computes with."""
    for name, info in tensors.items():
        if any(mark in name for mark in _QUANTISED):
            raise ModelError(
                f"{path} is quantised: it holds {quote(name)}. Give the same model in float32, float16 or bfloat16."
            )
        if info.dtype not in FLOATS and math.prod(info.shape) > 1 and not name.endswith("position_ids"):
            raise ModelError(
                f"{path} holds {shorten(info.dtype, 20)} weights ({quote(name)}); float32, float16 or bfloat16 was "
                "expected. Give the same model in one of these."
            )


def check_described(
    where: Path, stored: Mapping[str, TensorInfo], described: Mapping[str, "Tensor"], by: str, *, spare: bool = False
) -> None:
    """Raise ModelError unless a header holds every weight of a described network in its shape, and no other.

    Args:
        where: the file or folder, for the message.
        stored: what the headers say, under the network's own names.
        described: the network's state, without memory behind it.
        by: what describes it, such as adapter.json.
        spare: weights that the network has no use for are passed over.
    """
    missing = [name for name in described if name not in stored]
    unknown = [] if spare else [name for name in stored if name not in described]
    if missing:
        raise ModelError(
            f"{where} is not whole: its weights lack {quote(missing[0])} ({len(missing)} of {len(described)} that "
            f"{by} describes are missing). Give the whole model."
        )
    if unknown:
        raise ModelError(
            f"{where} is not what {by} describes: it holds {quote(unknown[0])} ({len(unknown)} such weights), which "
            f"that network does not have. Give the {by} that belongs to these weights."
        )
    for name, value in described.items():
        if stored[name].shape != tuple(value.shape):
            raise ModelError(
                f"{where} is not what {by} describes: {quote(name)} is {by_sides(stored[name].shape)}, and "
                f"{by_sides(tuple(value.shape))} was described. Give the {by} that belongs to these weights."
            )


def check_finite(where: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Raise ModelError, naming the first, for weights with NaN or infinity in them. Reads every number once."""
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel():
            low, high = value.aminmax()
            if not math.isfinite(float(low)) or not math.isfinite(float(high)):
                raise ModelError(
                    f"{where}: {quote(name)} holds NaN or infinity; the model is broken. Give another copy of it."
                )


def by_sides(shape: tuple[int, ...]) -> str:
    """A shape in words: 320x4x3x3."""
    return shorten("x".join(map(str, shape)) or "a single number")


def _parse(header: dict[str, Any]) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    """Tensors, notes, and the number of bytes of data; ValueError, TypeError or KeyError for another layout."""
    metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
    tensors, end = {}, 0
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        shape = tuple(int(side) for side in entry["shape"])
        if not 0 <= first <= last or min(shape, default=0) < 0:
            raise ValueError(name)
        width = _BYTES.get(str(entry["dtype"]))
        if width is not None and width * math.prod(shape) != last - first:
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
