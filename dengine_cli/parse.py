"""Values written as text: ranges, sizes, scores, amounts, lists.

Knows: their spelling, and what to say about a wrong one. Knows nothing about which values make sense: the settings
that are made of them check that.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.common.quote import quote
from engines.errors import UsageError

if TYPE_CHECKING:
    from engines.labels.scores import ScoreLike
    from engines.worth.settings import Amount


_SCORES = re.compile(r"\s*(.+?)\s*=\s*([0-9.eE+-]+)\s*(?:,(?=.)|$)", re.DOTALL)


_DIGITS = 18  # of a whole number that is read


def _is_whole(text: str) -> bool:
    """Whether a text is a whole number from 0 on, of a length that makes sense."""
    return text.isdecimal() and len(text) <= _DIGITS


def parse_range(text: str | None, option: str) -> tuple[float, float] | None:
    """`0.4:0.8` to (0.4, 0.8), and `0.6` to (0.6, 0.6)."""
    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        return float(low), float(high if colon else low)
    except ValueError:
        raise UsageError(f"{option} is {quote(text)}; a number, or two such as 0.4:0.8, was expected.") from None


def parse_size(text: str | None, option: str) -> tuple[int, int] | None:
    """`320x256` to (320, 256): width and height in pixels."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (_is_whole(width) and _is_whole(height)):
        raise UsageError(f"{option} is {quote(text)}; width x height in pixels was expected, such as 320x256.")
    return int(width), int(height)


def parse_batches(text: str | None, option: str) -> tuple[int, int, int] | None:
    """`1:8:16` to (1, 8, 16), and `8` to (8, 8, 8)."""
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(map(_is_whole, parts)):
        raise UsageError(f"{option} is {quote(text)}; a number, or least:usual:most, was expected, such as 1:8:16.")
    least, usual, most = (int(part) for part in (parts if len(parts) == 3 else parts * 3))
    if not 1 <= least <= usual <= most:
        raise UsageError(f"{option} is {quote(text)}; three rising numbers from 1 on were expected, such as 1:8:16.")
    return least, usual, most


def parse_sizes(text: str | None, option: str) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """`512x512:768x512:768x768` to its three sizes, and `512x512` to three times that one."""
    if text is None:
        return None
    sizes = [parse_size(part, option) or (0, 0) for part in text.split(":")]
    if len(sizes) not in (1, 3):
        raise UsageError(f"{option} is {quote(text)}; a size, or least:usual:largest, was expected, such as 512x512.")
    least, usual, largest = sizes if len(sizes) == 3 else sizes * 3
    return least, usual, largest


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`2/4` to (2, 4)."""
    if text is None:
        return None
    first, _, second = text.partition("/")
    if not (_is_whole(first) and _is_whole(second)):
        raise UsageError(f"--shard is {quote(text)}; part and number of parts were expected, such as 2/4.")
    return int(first), int(second)


def parse_score(text: str | None) -> "ScoreLike | None":
    """`0.5` to 0.5, `RBC=0.5,WBC=0.3` to {"RBC": 0.5, "WBC": 0.3}; `adapter` and `matched` are what they are.

    A name ends at the last = before a number, so that it may hold commas: `bolt, hex=0.5`.
    """
    if text is None:
        return None
    if text == "adapter":
        return "adapter"
    if text == "matched":
        return "matched"
    try:
        if "=" not in text:
            return float(text)
        pairs = _SCORES.findall(text)
        scores = {name.strip(): float(number) for name, number in pairs}
        if len(scores) == len(pairs) and all(scores) and _SCORES.sub("", text) == "":
            return scores
    except ValueError:
        pass
    raise UsageError(f"--score is {quote(text)}; adapter, matched, a number, or CLASS=NUMBER,... was expected.")


def parse_near_duplicates(text: str) -> float:
    """`keep` to 0, `drop` to the usual correlation, `0.97` to 0.97."""
    from engines.datasets.duplicates import NEAR

    if text in ("keep", "drop"):
        return NEAR if text == "drop" else 0.0
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--near-duplicates is {quote(text)}; keep, drop, or a correlation was expected.") from None


def parse_amounts(text: str | None) -> "tuple[Amount, ...]":
    """`0,1x,20` to (0, Times(1.0), 20)."""
    from engines.worth.settings import Times

    found: list[Amount] = []
    for part in parse_list(text):
        amount = re.fullmatch(r"(?P<times>\d+(?:\.\d+)?)x|(?P<images>\d{1,18})", part)
        if amount is None:
            raise UsageError(f"--amounts holds {quote(part)}; multiples such as 2x, or whole numbers, were expected.")
        found.append(Times(float(amount["times"])) if amount["times"] else int(amount["images"]))
    return tuple(found)


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
