"""What the tests of a review's page share: the browser, and a page of a run of their own."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browsing import Look, page_of
from reviewing import served


@pytest.fixture
def look(browser: Any) -> Iterator[Look]:
    """look(folder, view): the page of a review of that folder, when it is ready."""
    with ExitStack() as stack:

        def opened(folder: Path, view: str = "images", options: dict[str, Any] | None = None, **window: Any) -> Any:
            review = stack.enter_context(served(folder, **options or {}))
            page = stack.enter_context(page_of(browser, f"{review.url}#{view}", **window))
            page.wait_for_selector("body[data-ready]")
            page.review = review
            return page

        yield opened
