"""A verb's options in a YAML file: read as the options of a command line, and written down again.

Knows: how YAML values are spelt as options, which keys a verb has, and the text that `dengine config` prints. A key is
a flag without its dashes, an argument in small letters, or a setting of the library that has no flag. Knows nothing
about what any of them means.
"""

import dataclasses
import difflib
import importlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from dengine_cli.flags import BETWEEN, spelt
from engines.common.quote import list_mistakes, quote, shorten
from engines.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OPTION = "--config"
_LARGEST = 1 << 20  # bytes
_WIDTH = 79  # columns of comments
_DEFAULT = re.compile(r" \[default: (.*)\]$")
_PLAIN = {  # YAML 1.2's own, so that 1:8:16 is a text and 1e-4 a number
    "bool": (r"true|false|True|False", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    "null": (r"~|null|", "~n\0"),
}


@dataclass(frozen=True)
class Given:
    """What a file says."""

    options: dict[str, Any] = field(default_factory=dict)  # parameter -> its value, as a command line has it
    settings: dict[str, Any] = field(default_factory=dict)  # setting of the library without a flag -> value


def taken(args: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file that a command line names, and the rest of that line."""
    rest, file = list(args), None
    for number, word in enumerate(args):
        if word == "--":
            break
        if word == OPTION and number + 1 < len(args):
            file, rest[number : number + 2] = args[number + 1], []
        elif word.startswith(f"{OPTION}="):
            file, rest[number : number + 1] = word.partition("=")[2], []
        else:
            continue
        break
    return None if file is None else Path(file), rest


def read(file: Path, module: ModuleType, parameters: Sequence[Any]) -> Given:
    """What a YAML file says of a verb's parameters. Raises UsageError that lists the keys the verb does not have."""
    known, settings = _names(module, parameters), settings_without_flag(module, parameters)
    options, more, mistakes = dict[str, Any](), dict[str, Any](), list[str]()
    for key, value in _load(file).items():
        name = str(key).replace("-", "_")
        if name in known:
            if value is not None:
                options[known[name].name] = _as_option(known[name], value)
        elif name in settings:
            more[name] = value
        else:
            near = difflib.get_close_matches(name, [*known, *settings], n=1)
            mistakes.append(f"unknown key {quote(str(key))}" + (f" (is it {near[0]}?)" if near else ""))
    if mistakes:
        raise UsageError(f"{file}: {list_mistakes(mistakes)}.")
    return Given(options, more)


def key_of(parameter: Any) -> str:
    """What a parameter is called in a file."""
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    return str(max(parameter.opts, key=len)).lstrip("-").replace("-", "_")


def repeated(verb: str, context: Any, settings: Mapping[str, Any], settled: Mapping[str, Any]) -> str:
    """The file of what a command line gave, flags and file together, but for what was `settled` on the way."""
    import yaml

    keys = {key_of(one) for one in context.command.params}
    given: dict[str, Any] = {
        key_of(one): _plain(context.params[one.name])
        for one in context.command.params
        if one.name in given_in(context) and one.name != "resume"
    }
    if settled.keys() <= keys:  # else they are those of a verb that this one gave
        given = {key: value for key, value in {**given, **settled}.items() if value is not None}
    head = f"# dengine {verb} {OPTION} THIS-FILE repeats this, in the folder that it was given in.\n"
    return head + str(yaml.safe_dump({**given, **settings}, sort_keys=False, allow_unicode=True))


def explained(verb: str, module: ModuleType, parameters: Sequence[Any]) -> str:
    """A file with every key of a verb, what it means and its default. What stands behind a # is not given."""
    import yaml

    first = f"dengine {verb} {OPTION} FILE; flags go first. Keys behind a # are left to their defaults."
    lines = [*_comment(first), ""]
    for one in parameters:
        text = " ".join((one.help or "").split())
        default = _DEFAULT.search(text)
        what = _DEFAULT.sub("", text)
        if one.required:
            lines += [*_comment(f"{what} (needed)"), f"{key_of(one)}:", ""]
        elif one.default is None:
            lines += [*_comment(what), f"# {key_of(one)}:" + (f"  # default: {default[1]}" if default else ""), ""]
        else:
            value = yaml.safe_dump({key_of(one): _plain(one.default)}).strip()
            lines += [*_comment(what), value, ""]
    if more := settings_without_flag(module, parameters):
        lines += [f"# Without a flag: what they are stands in {module.SETTINGS.partition(':')[0]}.", ""]
    for name, value in more.items():
        shown = yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000).removesuffix("...\n").strip()
        lines += [f"# {name}:  # default: {shown}"]
    return "\n".join(lines).rstrip() + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def settings_without_flag(module: ModuleType, parameters: Sequence[Any]) -> dict[str, Any]:
    """Settings of the library that a verb has no flag for, with their defaults."""
    source, _, name = str(module.SETTINGS).partition(":")
    kind: type[DataclassInstance] = getattr(importlib.import_module(source), name)
    flags, names = {one.name for one in parameters}, getattr(module, "FIELDS", {})
    found = {}
    for item in dataclasses.fields(kind):
        if names.get(item.name, item.name) not in flags and item.name not in getattr(module, "NO_KEYS", ()):
            make = item.default_factory
            found[item.name] = item.default if make is dataclasses.MISSING else make()
    return found


def _names(module: ModuleType, parameters: Sequence[Any]) -> dict[str, Any]:
    """The parameter of every key: by its flag, by its own name, by the library's."""
    names = {key_of(one): one for one in parameters}
    own = {str(one.name): one for one in parameters}
    fields = {field: own[name] for field, name in getattr(module, "FIELDS", {}).items()}
    return fields | own | names


def _as_option(parameter: Any, value: Any) -> Any:
    """A value as the parser has it from a command line."""
    many = getattr(parameter, "multiple", False) or parameter.nargs != 1
    if many:
        return [_word(parameter, one) for one in (value if isinstance(value, list) else [value])]
    return value if isinstance(value, bool) else _word(parameter, value)


def _word(parameter: Any, value: Any) -> str:
    """One word of a command line: lists with what stands between their parts, mappings as NAME=VALUE,..."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, list):
        nested = any(isinstance(one, list) for one in value)
        parts = tuple(tuple(one) if isinstance(one, list) else one for one in value)
        return spelt(parts, ":" if nested else BETWEEN.get(parameter.name, ":"))
    return str(value)


def given_in(context: Any) -> list[str]:
    """The parameters that a command line gave, by flags or a file; the others have their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source and source.name in ("COMMANDLINE", "DEFAULT_MAP")]


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _load(file: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file, with YAML 1.2's idea of what is a number. Raises UsageError."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # untyped
        """Plain values only, and no part that repeats another one."""

        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has aliases (*name); write the values out")
            return super().compose_node(parent, index)

    for kind, (pattern, first) in _PLAIN.items():
        letters = [letter.replace("\0", "") for letter in first]
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), letters)
    Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(loader.construct_scalar(node)))
    Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
    try:
        if file.stat().st_size > _LARGEST:
            raise UsageError(f"{file} has more than {_LARGEST >> 20} MiB; a file of settings was expected.")
        found = yaml.load(file.read_text("utf-8"), Loader=Loader)
    except FileNotFoundError:
        raise UsageError(f"{file} does not exist; dengine config VERB prints such a file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as cause:
        raise UsageError(f"{file} is not readable as YAML: {shorten(' '.join(str(cause).split()), 200)}.") from cause
    if found is not None and not isinstance(found, Mapping):
        raise UsageError(f"{file} holds a {type(found).__name__}; keys with values were expected.")
    return found or {}
