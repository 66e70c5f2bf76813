"""What a test expects of an error: its type and its field, and what its message must hold, but not its wording."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engines.errors import DengineError


@contextmanager
def refused(kind: type[DengineError], field: str | None = None, *holds: object) -> Iterator[None]:
    """What is done inside raises this kind of error about this field, and the one line holds these values."""
    with pytest.raises(kind) as caught:
        yield
    assert caught.value.field == field, str(caught.value)
    for value in holds:
        assert str(value) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
