"""A verb's parameters as the settings of the library.

Knows: that a parameter is the setting of its name, or of the name that the verb's `FIELDS` gives it, and how settings
that are written as text are read (`parse`). Names no option itself: one is written in the settings' dataclass, and in
the verb's signature.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dengine_cli import parse

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)

# Of settings that are no text themselves, how their text is read.
_READ: Mapping[str, Callable[[str], Any]] = {
    "amounts": parse.parse_amounts,
    "batches": partial(parse.parse_batches, option="--batch"),
    "engines": parse.parse_list,
    "formats": parse.parse_list,
    "frame": partial(parse.parse_size, option="--frame"),
    "guidance_interval": partial(parse.parse_range, option="--guidance-interval"),
    "mix": partial(parse.parse_range, option="--mix"),
    "near_duplicates": parse.parse_near_duplicates,
    "score": parse.parse_score,
    "shard": parse.parse_shard,
    "size": partial(parse.parse_size, option="--size"),
    "sizes": partial(parse.parse_sizes, option="--size"),
    "stages": parse.parse_list,
    "strength": partial(parse.parse_range, option="--strength"),
}


def settings_of(
    kind: "type[Settings]", parameters: Mapping[str, Any], fields: Mapping[str, str] | None = None, **more: Any
) -> "Settings":
    """The settings that a command's `parameters` make; `fields` says which one stands for a field of another name.

    Parameters that are None were not given, and are left to the settings; so are those that are no field of theirs.
    `more` goes before the parameters. Raises UsageError for a text that cannot be read, and what the settings raise.
    """
    names = fields or {}
    given: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        value = parameters.get(names.get(item.name, item.name))
        if value is not None:
            given[item.name] = _READ[item.name](value) if isinstance(value, str) and item.name in _READ else value
    return kind(**given | more)
