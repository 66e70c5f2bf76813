"""What every verb does with what it is given, before it begins.

Knows: that a verb takes settings of its own class, and functions to tell of progress and to stop by. Knows nothing
about what a verb does.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from engines.common.quote import quote
from engines.errors import DengineError, Mistake, refuse

P = ParamSpec("P")
Summary = TypeVar("Summary")


def verb(function: Callable[P, Summary]) -> Callable[P, Summary]:
    """Refuse settings that are of another class, and what cannot be called where a function is due, with UsageError.

    An error that names no field is about the setting whose folder or file its message begins with.

    >>> import dengine
    >>> dengine.generate("run")
    Traceback (most recent call last):
    UsageError: `settings` is "run"; GenerateSettings was expected.
    """

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Summary:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        refuse(_mistakes(function, given))
        try:
            return function(*args, **kwargs)
        except DengineError as error:
            error.field = error.field or _named_by(str(error), given["settings"])
            raise

    return checked


@contextmanager
def setting(name: str) -> Iterator[None]:
    """Errors that come out of this and name no field are about the setting of this name."""
    try:
        yield
    except DengineError as error:
        error.field = error.field or name
        raise


def _mistakes(function: Callable[..., object], given: dict[str, object]) -> Iterator[Mistake]:
    for name, value in given.items():
        kind = inspect.get_annotations(function, eval_str=True)[name]
        if isinstance(kind, type):
            if not isinstance(value, kind):
                yield name, f"`{name}` is {quote(value)}; {kind.__name__} was expected"
        elif not callable(value) and (value is not None or name != "report"):
            yield name, f"`{name}` is {quote(value)}; a function was expected"


def _named_by(message: str, settings: object) -> str | None:
    """The setting with the path or name that a message begins with; of several the longest."""
    paths = [
        (str(path), item.name)
        for item in fields(cast(Any, settings))
        for value in [getattr(settings, item.name)]
        for path in (value if isinstance(value, tuple) else [value])
        if isinstance(path, Path | str)
    ]
    found = [one for one in paths if re.match(rf"{re.escape(one[0])}:? ", message)]
    return max(found, key=lambda one: len(one[0]))[1] if found else None
