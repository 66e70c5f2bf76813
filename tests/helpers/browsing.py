"""A real browser for tests: headless Chromium, driven by Playwright, that notes what no page of ours may do."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

Look = Callable[..., Any]  # look(folder, view): a page that is ready

CHROMIUM = os.environ.get("DENGINE_CHROMIUM") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, one for all tests of a process. Skips without it, or without Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="no browser: playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no browser: chromium is not installed")
    with api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@contextmanager
def page_of(
    browser: Any, url: str, *, width: int = 1280, height: int = 800, scheme: str = "light", offline: bool = False
) -> Iterator[Any]:
    """A page in a window of its own. At its end: no error, no warning, and no request to anywhere else."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=offline, reduced_motion="reduce"
    )
    context.set_default_timeout(20_000)
    page = context.new_page()
    wrong: list[str] = []
    page.wrong = wrong
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    home = urlsplit(url).netloc

    def asked(request: Any) -> None:
        if not request.url.startswith(("data:", "blob:")) and urlsplit(request.url).netloc != home:
            wrong.append(f"request to {request.url}")

    page.on("request", asked)
    try:
        page.goto(url)
        yield page
        assert wrong == []
    finally:
        context.close()


def violations(page: Any) -> list[str]:
    """What axe-core finds against WCAG 2.2, levels A and AA."""
    from axe_playwright_python.sync_playwright import Axe

    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": tags}, "resultTypes": ["violations"]})
    return [
        f"{one['id']}: {node['target']} {node.get('failureSummary', '')[:200]}"
        for one in found.response["violations"]
        for node in one["nodes"]
    ]


def expect(locator: Any) -> Any:
    """Playwright's assertions, which wait until what they say is so."""
    from playwright.sync_api import expect as assertions

    return assertions(locator)
