"""Values as annotation files hold them: numbers, text and ids, in whatever dress a tool gave them.

Knows: what of it is unambiguous (a number as text, 1.0 for 1, a byte-order mark), and how to say what is not. Knows
nothing about formats.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engines.common.quote import quote, shorten
from engines.errors import DatasetError

_KINDS = {int: "whole number", str: "text", list: "list", dict: "object"}


def listed(names: Iterable[str], longest: int = 160) -> str:
    """Names as messages list them: as many as fit, and how many more there are."""
    every = [shorten(name) for name in names]
    shown = every[:1]
    while len(shown) < len(every) and len(", ".join(every[: len(shown) + 1])) <= longest:
        shown = every[: len(shown) + 1]
    more = f" and {len(every) - len(shown)} more" if len(shown) < len(every) else ""
    return (", ".join(shown) or "none") + more


def number(value: object, where: str) -> float:
    """A finite number, or text that spells one; DatasetError prefixed with `where` for anything else."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            if math.isfinite(result := float(value)):
                return result
        except (OverflowError, ValueError):
            pass
    raise DatasetError(f"{where} is {quote(value)}; a finite number was expected.")


def parsed_number(text: str | None, where: str) -> float:
    """A finite number spelt as text; DatasetError prefixed with `where` for anything else."""
    return number(text or "", where)


def size_of(width: object, height: object) -> tuple[int, int] | None:
    """A stated (width, height); None where it is missing or can't be one: tools write 0, "" or nothing, too."""
    try:
        sides = number(width, ""), number(height, "")
    except DatasetError:
        return None
    return (round(sides[0]), round(sides[1])) if min(sides) >= 1 and max(sides) < 1e9 else None


def identity(mapping: Mapping[str, Any], key: str, where: str) -> str:
    """An id: a whole number (also as 1.0 or "1"), or text; 1, 1.0 and "1" are one id. DatasetError naming the field."""
    value = mapping.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**300:
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    problem = f"is {quote(value)}; a whole number or text was expected" if key in mapping else "is missing"
    raise DatasetError(f"{where}.{key} {problem}.")


def typed(mapping: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """`mapping[key]`, which must be there, of `kind` (bool is no int); DatasetError naming the field."""
    if key not in mapping:
        raise DatasetError(f"{where}.{key} is missing.")
    value = mapping[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = _KINDS.get(kind, kind.__name__)
        raise DatasetError(f"{where}.{key} is {quote(value)}; a {expected} was expected.")
    return value


def entry(value: object, where: str) -> Mapping[str, Any]:
    """A JSON object; DatasetError naming the place for anything else."""
    if not isinstance(value, Mapping):
        raise DatasetError(f"{where} is a {type(value).__name__}; an object was expected.")
    return value


def read_text(path: Path) -> str:
    """A UTF-8 text file, or one that a byte-order mark says to be UTF-16; DatasetError naming an unreadable one."""
    try:
        data = path.read_bytes()
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return data.decode(encoding)
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing.") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise DatasetError(f"{path} cannot be read as text: {cause}. Save it as UTF-8.") from cause


def read_json(path: Path) -> Any:
    """The JSON value of a file in UTF-8, 16 or 32, with or without a byte-order mark; DatasetError naming it."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing.") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as cause:
        raise DatasetError(f"{path} is not readable as JSON: {shorten(str(cause))}.") from cause
