"""A verb's parameters as the settings of the library.

Knows: that a parameter is the setting of its name, or of the name that the verb's `FIELDS` gives it, and how settings
that are written as text are read (`parse`). Names no option itself: one is written in the settings' dataclass, and in
the verb's signature.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dengine_cli import parse
from engines.common.files import read_json
from engines.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)

# Of settings that are written otherwise than Python has them, how that is read.
_READ: Mapping[str, Callable[[Any], Any]] = {
    "amounts": parse.parse_amounts,
    "batches": partial(parse.parse_batches, option="--batch"),
    "engines": lambda given: parse.parse_list(given) if isinstance(given, str) else tuple(given),
    "formats": parse.parse_list,
    "generate": lambda file: read_json(file, UsageError),
    "frame": partial(parse.parse_size, option="--frame"),
    "guidance_interval": partial(parse.parse_range, option="--guidance-interval"),
    "loras": parse.parse_loras,
    "mix": partial(parse.parse_range, option="--mix"),
    "near_duplicates": parse.parse_near_duplicates,
    "score": parse.parse_score,
    "shard": parse.parse_shard,
    "size": partial(parse.parse_size, option="--size"),
    "sizes": partial(parse.parse_sizes, option="--size"),
    "stages": parse.parse_list,
    "targets": parse.parse_list,
    "training": lambda file: read_json(file, UsageError),
    "strength": partial(parse.parse_range, option="--strength"),
}


_of_file: Mapping[str, Any] = {}  # settings without a flag, of the verb at work


@contextmanager
def settings_of_file(given: Mapping[str, Any]) -> Iterator[None]:
    """While this lasts, settings that no parameter stands for are what a file `given` says."""
    global _of_file  # one process is one verb
    before, _of_file = _of_file, given
    try:
        yield
    finally:
        _of_file = before


def _as_it_is(value: Any) -> Any:
    return value


def settings_of(
    kind: "type[Settings]", parameters: Mapping[str, Any], fields: Mapping[str, str] | None = None, **more: Any
) -> "Settings":
    """The settings of `values_of`, with `more` in place of the parameters. Raises what the settings raise, too."""
    return kind(**values_of(kind, parameters, fields) | more)


def values_of(
    kind: "type[DataclassInstance]", parameters: Mapping[str, Any], fields: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a command's `parameters` say of a settings' fields; `fields`: which one stands for a field of another name.

    A parameter that is None was not given, and is left to the settings; so is one that is no field of theirs, and
    a switch that is off. Raises UsageError for a text that cannot be read.
    """
    names = fields or {}
    given = {item.name: _of_file[item.name] for item in dataclasses.fields(kind) if item.name in _of_file}
    for item in dataclasses.fields(kind):
        value = parameters.get(names.get(item.name, item.name))
        if value is not None and not (value is False and item.default is False):
            given[item.name] = _READ.get(item.name, _as_it_is)(value)
    return given
