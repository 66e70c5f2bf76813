"""Values into the fields of dataclasses: from JSON objects, or as a caller gave them; all mistakes listed at once.

Knows: how a value fits a field's type, how a dataclass lies flat among the keys of another one's JSON object, and how
a part of some settings is cut out of them. Knows nothing about what the fields mean.
"""

import dataclasses
import math
import numbers
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from engines.common.quote import list_mistakes, quote, shorten
from engines.errors import DengineError, Mistake, refuse

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    AnyPath = Any
else:
    AnyPath = Path  # of settings: a Path, or text that `settle` makes one of, which is all the same to a type checker

T = TypeVar("T")
Wrong = tuple[str, str, str]  # a field's path, and what is said before and behind it

FLAT = {"flat": True}  # metadata of a field: its dataclass's keys lie among the owner's, and all must be there ...
OLDER = "older"  # ... but those whose metadata say what they are where an older file lacks them
DEEPEST = 32  # objects and lists inside each other, in a field of any kind
KEY = "key"  # metadata: the field's name in JSON, where it has another one there; it is read under both


def from_object(cls: type[T], value: Mapping[str, Any], error: type[DengineError], where: str) -> T:
    """Build a dataclass from a JSON object; one `error` lists the unknown keys, missing keys and wrong types."""
    wrong: list[Wrong] = []
    result = _build(cls, value, "", wrong)
    if wrong:
        raise error(f"{where}: {list_mistakes([_said(one, chr(34)) for one in wrong])}.")
    return typing.cast(T, result)


@contextmanager
def walked(error: type[DengineError], message: str) -> Iterator[None]:
    """Turn what Python raises where a JSON value is not built as its reader expects into one `error`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as cause:
        raise error(message) from cause


def hold(
    value: object, checks: Iterable[tuple[str, str, bool]], error: type[DengineError], where: str, mend: str = ""
) -> None:
    """Raise one `error` that lists the wrong fields, of (field, what it must be beyond its type, whether it is).

    `mend`: a sentence on how to get a better one.
    """
    wrong = [
        f'"{name}" must be {wanted}, not {quote(getattr(value, name))}' for name, wanted, fits in checks if not fits
    ]
    if wrong:
        raise error(f"{where}: {list_mistakes(wrong)}. {mend}".rstrip())


def in_range(value: object, low: float, high: float) -> bool:
    """Whether all numbers in `value` (one, or a list or an object of them) lie in low..high; NaN lies nowhere."""
    if isinstance(value, Mapping):
        return all(in_range(entry, low, high) for entry in value.values())
    if isinstance(value, list | tuple):
        return all(in_range(entry, low, high) for entry in value)
    return isinstance(value, int | float) and low <= value <= high


def to_object(value: "DataclassInstance") -> dict[str, Any]:
    """The object that `from_object` reads: fields in their order, those of a flat one in its place.

    Dataclasses become objects and paths text; all else stays as it is.
    """
    found: dict[str, Any] = {}
    for item in dataclasses.fields(value):
        own = getattr(value, item.name)
        if item.metadata.get("flat"):
            found |= to_object(own)
        else:
            found[key_of(item)] = _to_value(own)
    return found


def _to_value(own: Any) -> Any:
    if dataclasses.is_dataclass(own) and not isinstance(own, type):
        return to_object(own)
    return str(own) if isinstance(own, Path) else own


def key_of(item: "dataclasses.Field[Any]") -> str:
    """What a field is called in JSON."""
    return str(item.metadata.get(KEY, item.name))


def settle(settings: "DataclassInstance") -> None:
    """Bring the fields of fresh settings to their types: text to a path, a list to a tuple, a number to a plain one.

    For `__post_init__`; None stays where it is the default. Raises UsageError that lists every field of another type.
    """
    hints = typing.get_type_hints(type(settings))
    mistakes: list[Mistake] = []
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if value is None and item.default is None:
            continue
        wrong: list[Wrong] = []
        fitting = _convert(hints[item.name], value, item.name, wrong)
        mistakes += [(item.name, _said(one, "`")) for one in wrong[:1]]
        if not wrong:
            object.__setattr__(settings, item.name, fitting)
    refuse(mistakes)


def part_of(kind: type[T], settings: object, **changes: Any) -> T:
    """A dataclass with the values that `settings` has under the same names, but for `changes`."""
    names = (item.name for item in dataclasses.fields(typing.cast(Any, kind)))
    return kind(**{name: changes[name] if name in changes else getattr(settings, name) for name in names})


def _said(wrong: Wrong, mark: str) -> str:
    path, before, behind = wrong
    return f"{before}{mark}{path}{mark}{behind}"


def _build(cls: Any, value: Mapping[str, Any], prefix: str, wrong: list[Wrong]) -> Any:
    """The dataclass, or None where something is wrong."""
    before, arguments = len(wrong), {}
    owned = [item for owner in (cls, *_flat_ones(cls)) for item in dataclasses.fields(owner)]
    known = {name for item in owned for name in (key_of(item), item.name)}
    wrong += [(f"{prefix}{shorten(key)}", "unknown key ", "") for key in value if key not in known]
    for item, hint in _fields(cls):
        key = item.name if item.name in value else key_of(item)
        if item.metadata.get("flat"):
            arguments[item.name] = _flat(hint, value, wrong)
        elif key in value:
            arguments[item.name] = _convert(hint, value[key], f"{prefix}{key}", wrong)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            wrong.append((f"{prefix}{key}", "missing key ", ""))
    return None if len(wrong) > before else cls(**arguments)


def _flat(cls: Any, value: Mapping[str, Any], wrong: list[Wrong]) -> Any:
    """A dataclass whose keys lie among others, every one of them but those that an older file lacks."""
    before, arguments = len(wrong), {}
    for item, hint in _fields(cls):
        key = item.name if item.name in value else key_of(item)
        if key in value:
            none = value[key] is None and item.default is None
            arguments[item.name] = None if none else _convert(hint, value[key], key, wrong)
        elif OLDER in item.metadata:
            arguments[item.name] = item.metadata[OLDER]
        else:
            wrong.append((key, "missing key ", ""))
    return None if len(wrong) > before else cls(**arguments)


def _flat_ones(cls: Any) -> Iterator[Any]:
    """The dataclasses of the flat fields."""
    return (hint for item, hint in _fields(cls) if item.metadata.get("flat"))


def _fields(cls: Any) -> "Iterator[tuple[dataclasses.Field[Any], Any]]":
    hints = typing.get_type_hints(cls)
    return ((item, hints[item.name]) for item in dataclasses.fields(cls))


def _convert(hint: Any, value: Any, path: str, wrong: list[Wrong]) -> Any:
    """`value` as the annotation `hint` wants it; a mistake is noted, and None returned."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _build(hint, value, f"{path}.", wrong)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path, wrong)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_convert(kind, entry, f"{path}[{i}]", wrong) for i, (kind, entry) in pairs)
    if origin is Sequence and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], entry, f"{path}[{i}]", wrong) for i, entry in enumerate(value))
    if isinstance(origin, type) and issubclass(dict, origin) and isinstance(value, Mapping):
        return {
            str(key): _convert(arguments[1], entry, f"{path}.{shorten(key)}", wrong) for key, entry in value.items()
        }
    if hint is Any and not _can_be_written(value):
        wrong.append((path, "", f" holds a number that is not finite, or more than {DEEPEST} levels"))
        return None
    if hint is Any or (origin is Literal and any(value is one or value == one for one in arguments)):
        return value
    if hint is Path and isinstance(value, str | os.PathLike):
        return Path(value)
    if hint is float and not isinstance(value, bool) and isinstance(value, numbers.Real) and _is_finite(value):
        return float(value)
    if hint is int and not isinstance(value, bool) and isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is not int or not isinstance(value, bool)):
        return value
    wrong.append((path, "", f" must be {_kind_name(hint)}, not {quote(value)}"))
    return None


def _is_finite(value: Any) -> bool:
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


def _convert_union(options: tuple[Any, ...], value: Any, path: str, wrong: list[Wrong]) -> Any:
    """The first option that fits; the mistake of the last one where none does."""
    named = [option for option in options if option is not type(None)]
    if value is None and len(named) < len(options):
        return None
    for option in named[:-1]:
        mistakes: list[Wrong] = []
        result = _convert(option, value, path, mistakes)
        if not mistakes:
            return result
    return _convert(named[-1], value, path, wrong)


_SEVERAL = {(int, int): "two whole numbers", (float, float): "two numbers"}


def _kind_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(str(argument) for argument in arguments)
    if origin is tuple:
        if arguments in _SEVERAL:
            return _SEVERAL[arguments]
        kinds = arguments[:1] if arguments[-1] is Ellipsis else arguments
        return f"a tuple of {' and '.join(dict.fromkeys(_kind_name(kind) for kind in kinds))}"
    if dataclasses.is_dataclass(hint) or (isinstance(origin, type) and issubclass(dict, origin)):
        return "an object"
    named = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", Path: "a path"}
    return named.get(hint, str(getattr(hint, "__name__", hint)))
