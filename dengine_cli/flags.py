"""Settings as flags: what the library calls `keep_empty` is `--keep-empty` on the command line.

Knows: how a message of the library marks a setting, or a call that it advises (`engines.errors`), how values are spelt
as text, and which verb makes which call. Knows nothing about what they mean.
"""

import ast
import re
import shlex
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SETTING = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]+))?`")
_CALL = re.compile(r"`([a-z][a-z0-9_]*\([^`]*\))`")
BETWEEN = {"size": "x", "frame": "x", "shard": "/"} | dict.fromkeys(
    ("amounts", "check_on", "engines", "formats", "stages", "targets"), ","
)  # the parts of a tuple; ":" for all others
_WORDS = {("score", "{}"): "adapter", ("near_duplicates", "0"): "keep"}  # values that have a word of their own


# What flags were called up to 0.1; a verb takes the old name where it has the new one.
RENAMED = {
    "--label-views": "--tta",
    "--tune-fraction": "--dev-fraction",
    "--turns": "--rotate",
    "--uncertain": "--ignore-score",
}


@dataclass(frozen=True)
class Spelling:
    """How the command line makes a call of the library."""

    verb: str
    flags: Mapping[str, str]  # of the call's parameters, those without a keyword first and in their order
    always: tuple[str, ...] = ()  # said in every such command, after what has no keyword


CALLS = {
    "build_plans": Spelling(
        "export", {"bundle": "--bundle", "batches": "--batch", "sizes": "--size"}, ("--engine", "tensorrt")
    ),
    "export": Spelling(
        "export", {"base": "--model", "adapter": "--adapter", "out": "--out", "graph_dtype": "--graph-dtype"}
    ),
}


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """The message with each marked setting as its flag: `score` becomes --score, `size=(256, 192)` --size 256x192.

    `flags` maps the library's names to flags; what it does not hold stays as it is. A marked call becomes the command
    that makes it, where there is one.
    """

    def shown(match: re.Match[str]) -> str:
        flag = flags.get(match[1])
        if flag is None:
            return match[0]
        if match[2] in (None, "True"):
            return flag
        if match[2] == "False":
            return f"--no-{flag.removeprefix('--')}"
        return f"{flag} {_value(match[1], match[2])}"

    message = _CALL.sub(lambda match: _command(match[1]) or match[0], message)
    return _SETTING.sub(shown, message)


def renewed(args: Sequence[str], known: Container[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """A command line with flags by their new names, and which (old, new) stood there by the old one.

    `known` are the verb's flags: others stay as they are, for the parser to refuse.
    """
    found, renamed = [], []
    for word in args:
        old, equals, value = word.partition("=")
        new = RENAMED.get(old, "")
        if new in known:
            renamed.append((old, new))
            word = f"{new}{equals}{value}"
        found.append(word)
    return found, renamed


def _value(name: str, text: str) -> str:
    """A value of a message as the command line spells it."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a word without quotes, such as auto
        return text
    if isinstance(value, tuple):
        return spelt(value, BETWEEN.get(name, ":"))
    return _WORDS.get((name, text), text)


def spelt(value: Any, between: str) -> str:
    """A tuple as one word: sizes 256x192, ranges 0.4:0.8, ranges of sizes 256x192:512x512; 8 for a range 8:8:8."""
    if not isinstance(value, tuple):
        return str(value)
    if between == ":" and len(set(value)) == 1:
        value = value[:1]
    return between.join(spelt(part, "x") for part in value)


def _command(call: str) -> str | None:
    """The command line of a call, in quotes; None for a function that no verb stands for."""
    try:
        found = ast.parse(call, mode="eval").body
        if not (isinstance(found, ast.Call) and isinstance(found.func, ast.Name)):
            return None
        spelling, (settings,) = CALLS[found.func.id], found.args
        if not isinstance(settings, ast.Call):
            return None
        named = zip(spelling.flags, settings.args, strict=False)
        plain = [(name, ast.literal_eval(value)) for name, value in named]
        keywords = [(str(keyword.arg), ast.literal_eval(keyword.value)) for keyword in settings.keywords]
        words = ["dengine", spelling.verb, *_words(spelling, plain), *spelling.always, *_words(spelling, keywords)]
    except (SyntaxError, ValueError, KeyError):
        return None
    return f'"{shlex.join(words)}"'


def _words(spelling: Spelling, given: list[tuple[str, Any]]) -> list[str]:
    return [word for name, value in given for word in (spelling.flags[name], spelt(value, ":"))]
