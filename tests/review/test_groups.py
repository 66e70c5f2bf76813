"""Near duplicates are looked for in a thread that nobody waits for."""

from types import SimpleNamespace
from typing import Any

import pytest
from refusals import refused

from engines.errors import RunError
from engines.review.answers import Pages
from engines.review.groups import Groups


@pytest.mark.parametrize("cause", [OSError("the disk is gone"), RuntimeError("the disk is gone")])
def test_a_search_that_ends_early_says_why_and_the_next_one_begins_anew(cause: Exception) -> None:
    def look(_: int) -> Any:
        raise cause

    session: Any = SimpleNamespace(look=look, source=SimpleNamespace(run=None))
    pages = Pages(session, (), ())
    pages._groups = Groups([0, 1])
    pages._groups.find(session)
    with refused(RunError, None, "disk is gone"):
        pages.near({})
    session.result = lambda _: SimpleNamespace(tolist=list)
    assert pages.near({"query": 0})["total"] == 0
