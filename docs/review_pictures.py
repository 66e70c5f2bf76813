"""The pictures of docs/review.md, from a run: `python docs/review_pictures.py RUN`. Needs chromium and playwright.

Knows: which views are shown. The run is copied first: a picture decides nothing.
"""

import shutil
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from engines.review.server import ReviewSettings, opened

OUT = Path(__file__).parent / "review"


def main(run: Path) -> None:
    """Write the pictures."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        copy = Path(shutil.copytree(run, Path(scratch) / "first"))
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with opened(ReviewSettings(copy, open=False)) as review:
            serving = threading.Thread(target=review.serve, daemon=True)
            serving.start()
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            for view in ("images", "crops", "viewer"):
                page.goto(f"{review.url}#{'images' if view == 'viewer' else view}")
                page.reload()
                page.wait_for_selector(".tile[data-place='0']:not(.empty) img.there")
                page.wait_for_timeout(1500)
                if view == "viewer":
                    page.locator(".grid").focus()
                    page.keyboard.press("Enter")
                    page.wait_for_selector(".viewer .box-row")
                    page.keyboard.press("n")
                    page.wait_for_timeout(500)
                _save(page.screenshot(), OUT / f"{view}.png")
            review.stop()
            serving.join()
        browser.close()


def _save(data: bytes, file: Path) -> None:
    """In 256 colours, which are enough for a page."""
    import io

    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
