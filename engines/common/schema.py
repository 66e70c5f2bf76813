"""JSON objects into dataclasses, with all mistakes listed at once.

Knows: how a value fits a field's type, and how a field says its range. Knows nothing about what the fields mean.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from engines.common.quote import list_mistakes, quote, shorten
from engines.errors import DengineError

T = TypeVar("T")
DEEPEST = 32  # objects and lists inside each other, in a field of any kind


def from_object(cls: type[T], value: Mapping[str, Any], error: type[DengineError], where: str) -> T:
    """Build a dataclass from a JSON object; one `error` lists the unknown keys, missing keys and wrong types."""
    mistakes: list[str] = []
    result = _build(cls, value, "", mistakes)
    if mistakes:
        raise error(f"{where}: {list_mistakes(mistakes)}.")
    return typing.cast(T, result)


def in_range(value: object, low: float, high: float) -> bool:
    """Whether all numbers in `value` (one, or a list or an object of them) lie in low..high; NaN lies nowhere."""
    if isinstance(value, Mapping):
        return all(in_range(entry, low, high) for entry in value.values())
    if isinstance(value, list | tuple):
        return all(in_range(entry, low, high) for entry in value)
    return isinstance(value, int | float) and low <= value <= high


def _build(cls: Any, value: Mapping[str, Any], prefix: str, mistakes: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}
    mistakes += [f"unknown key {quote(prefix + str(key))}" for key in value if key not in fields]
    arguments: dict[str, Any] = {}
    for name, item in fields.items():
        if name in value:
            arguments[name] = _convert(hints[name], value[name], f"{prefix}{name}", mistakes)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            mistakes.append(f'missing key "{prefix}{name}"')
    return None if mistakes else cls(**arguments)


def _convert(hint: Any, value: Any, name: str, mistakes: list[str]) -> Any:
    """`value` as JSON gave it, as the annotation `hint` wants it; a mistake is noted, and None returned."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _build(hint, value, f"{name}.", mistakes)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        if value is None and len(options) < len(arguments):
            return None
        for option in options[:-1]:
            wrong: list[str] = []
            result = _convert(option, value, name, wrong)
            if not wrong:
                return result
        return _convert(options[-1], value, name, mistakes)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_convert(kind, entry, f"{name}[{i}]", mistakes) for i, (kind, entry) in pairs)
    if origin is dict and isinstance(value, Mapping):
        return {
            str(key): _convert(arguments[1], entry, f"{name}.{shorten(key)}", mistakes) for key, entry in value.items()
        }
    if hint is Any and not _can_be_written(value):
        mistakes.append(f'"{name}" holds a number that is not finite, or more than {DEEPEST} levels')
        return None
    if hint is Any or (origin is Literal and isinstance(value, str) and value in arguments):
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    mistakes.append(f'"{name}" must be {_kind_name(hint)}, not {quote(value)}')
    return None


def _is_finite(value: float) -> bool:
    """Whether a number is neither NaN nor infinite, nor a whole number too large for a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _can_be_written(value: Any) -> bool:
    """Whether a value of any kind could go into a JSON file again: finite numbers, no depth that ends recursion."""
    level = [value]
    for _ in range(DEEPEST):
        if not level:
            return True
        if not all(_is_finite(one) for one in level if isinstance(one, float)):
            return False
        groups = (one.values() if isinstance(one, Mapping) else one for one in level if isinstance(one, Mapping | list))
        level = [entry for group in groups for entry in group]
    return not level


def _kind_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(str(argument) for argument in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "a list"
    if typing.get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "an object"
    named = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return named.get(hint, str(hint))
