"""Options that several verbs have, and values written as text: ranges, sizes, lists, names in a file.

Knows: their spelling, and what to say about a wrong one. Knows nothing about which values make sense.
"""

from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from engines.errors import UsageError

Loras = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE:SCALE", help="LoRA to add to the base model; may be given again.  [default: none]"),
]
PredictionType = Annotated[
    str | None, typer.Option(help="What a single-file SD 2.x checkpoint predicts: epsilon or v_prediction.")
]

Slots = Annotated[int | None, typer.Option(help="Images in work at once.  [default: by device]")]
Precision = Annotated[str, typer.Option(help="f32, bf16, f16, int8, or auto: the widest that is fast here.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.  [default: what suits the engine]")]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the networks first (torch on CUDA; takes minutes).")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.  [default: the engine's choice]")]


def parse_range(text: str | None, option: str) -> tuple[float, float] | None:
    """`0.4:0.8` to (0.4, 0.8), and `0.6` to (0.6, 0.6)."""
    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        return float(low), float(high if colon else low)
    except ValueError:
        raise UsageError(f"{option} is {text!r}; a number, or two such as 0.4:0.8, was expected.") from None


def parse_size(text: str | None, option: str) -> tuple[int, int] | None:
    """`320x256` to (320, 256): width and height in pixels."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"{option} is {text!r}; width x height in pixels was expected, such as 320x256.")
    return int(width), int(height)


def parse_batches(text: str | None, option: str) -> tuple[int, int, int] | None:
    """`1:8:16` to (1, 8, 16), and `8` to (8, 8, 8)."""
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise UsageError(f"{option} is {text!r}; a number, or least:usual:most, was expected, such as 1:8:16.")
    least, usual, most = (int(part) for part in (parts if len(parts) == 3 else parts * 3))
    if not 1 <= least <= usual <= most:
        raise UsageError(f"{option} is {text!r}; three rising numbers from 1 on were expected, such as 1:8:16.")
    return least, usual, most


def parse_sizes(text: str | None, option: str) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """`512x512:768x512:768x768` to its three sizes, and `512x512` to three times that one."""
    if text is None:
        return None
    sizes = [parse_size(part, option) or (0, 0) for part in text.split(":")]
    if len(sizes) not in (1, 3):
        raise UsageError(f"{option} is {text!r}; a size, or least:usual:largest, was expected, such as 512x512.")
    least, usual, largest = sizes if len(sizes) == 3 else sizes * 3
    return least, usual, largest


def parse_list(text: str | None) -> tuple[str, ...]:
    """`coco, yolo` to ("coco", "yolo")."""
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def parse_loras(texts: Sequence[str]) -> tuple[tuple[Path, float], ...]:
    """`style.safetensors:0.8` to (style.safetensors, 0.8), and a file without a scale to (file, 1.0)."""
    found = []
    for text in texts:
        file, _, scale = text.rpartition(":")
        try:
            found.append((Path(file), float(scale)) if file else (Path(text), 1.0))
        except ValueError:  # a colon that belongs to the path
            found.append((Path(text), 1.0))
    return tuple(found)


def parse_labels(text: str, names: Collection[str]) -> set[str] | None:
    """The images, of those called `names`, whose labels `--labels` lets be read; None for all of them.

    `text` is "none", "all", or a text file with one image name (or name without its suffix) a line.
    """
    if text in ("none", "all"):
        return None if text == "all" else set()
    file = Path(text)
    try:
        wanted = {line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()}
    except FileNotFoundError:
        raise UsageError(f"--labels is {text!r}; none, all, or a file of image names was expected.") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"--labels: {file} cannot be read as a list of image names: {cause}.") from cause
    found = {name for name in names if wanted & _spellings(name)}
    unknown = sorted(wanted - {spelling for name in found for spelling in _spellings(name)})
    if unknown:
        raise UsageError(f"--labels: {file} names {len(unknown)} images that DATA does not have, {unknown[0]!r} first.")
    return found


def _spellings(name: str) -> set[str]:
    """How a list may name an image: its path in the image folder, its file name, either without the suffix."""
    path = PurePosixPath(name)
    return {name, path.name, path.with_suffix("").as_posix(), path.stem}
