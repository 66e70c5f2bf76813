"""How fast the review's page is on a large run, in a real headless browser.

    python tests/helpers/review_speed.py --images 100000

Measures, several times each, with medians: from the start of the command to the first picture on the screen; the
longest frame while the grid scrolls through 1,000 rows, beside that of an empty page that does nothing; from a move of
a threshold's slider to new boxes and new counts on the screen; the most memory that the server took. The run is
synthetic: one picture under many names, 12 boxes each.

Knows: what is measured, and how. Knows nothing about how the page works. Needs chromium and playwright.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from engines.painting.run_settings import FORMAT, RunSettings
from engines.runs.journal import IMAGES, JOURNAL, image_name
from engines.runs.run_folder import start_run

CLASSES = ("cell", "spot", "rod")
FRAME = (160, 120)
_SETTINGS: dict[str, Any] = {
    "format": FORMAT, "bundle": None, "bundle_hash": "0" * 64, "class_names": CLASSES, "reference": None,
    "reference_hash": None, "count": None, "shard": None, "seed": 0, "strength": None, "flip": True, "frame": FRAME,
    "steps": 25, "sampler": "ddim", "eta": 0.0, "guidance": 4.0, "guidance_interval": None, "prompt_template": None,
    "negative_prompt": "", "score": 0.3, "keep_empty": False, "chunk": 1000, "slots": 4, "rows": 8, "engine": "torch",
    "precision": "f32", "threads": 1, "backend": "none: synthetic", "formats": ("coco",), "image_format": "jpeg",
    "jpeg_quality": 95, "skip_bad": False,
}  # fmt: skip
_SCROLL = """async rows => {
  const grid = document.querySelector('.grid'), tile = document.querySelector('.tile:not([hidden])');
  const step = tile.getBoundingClientRect().height + 10, frames = [];
  let last = performance.now();
  for (let row = 0; row < rows; row += 2) {
    grid.scrollTop += 2 * step;
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - last); last = now;
  }
  return frames.slice(1);
}"""
_IDLE = """async seconds => {
  const frames = [], end = performance.now() + 1000 * seconds;
  let last = performance.now();
  while (last < end) {
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - last); last = now;
  }
  return frames.slice(1);
}"""
_SLIDE = """async value => {
  const slider = document.querySelector('#threshold-0'), totals = document.querySelector('#totals');
  const before = totals.textContent, start = performance.now();
  slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true}));
  await new Promise(requestAnimationFrame); await new Promise(requestAnimationFrame);
  const drawn = performance.now() - start;
  while (totals.textContent === before) await new Promise(done => setTimeout(done, 1));
  return [drawn, performance.now() - start];
}"""


def make_journal(folder: Path, images: int, boxes: int = 12, picture: tuple[int, int] = (512, 384)) -> Path:
    """A finished run of very many images; `picture`: width and height of the files, which a page shows."""
    folder.mkdir(parents=True)
    start_run(folder, RunSettings.from_json(_SETTINGS | {"jobs": images}, "synthetic run"), None)
    rng = np.random.default_rng(0)
    first = folder / IMAGES / image_name(0, "jpg")
    noise = rng.integers(60, 220, (FRAME[1], FRAME[0], 3), dtype=np.uint8)
    Image.fromarray(noise).resize(picture).save(first, quality=85)
    with (folder / JOURNAL).open("w", encoding="utf-8") as file:
        for index in range(images):
            corners = rng.uniform(0, 100, (boxes, 2))
            table = np.concatenate([corners, corners + rng.uniform(5, 20, (boxes, 2))], axis=1).round(2)
            scores = np.sort(rng.uniform(0.05, 1.0, boxes))[::-1].round(4)
            labels = rng.integers(0, len(CLASSES), boxes)
            rows = [[*row, float(s), int(c)] for row, s, c in zip(table.tolist(), scores, labels, strict=True)]
            name = image_name(index, "jpg")
            if index:
                _copy(first, folder / IMAGES / name)
            line = {"index": index, "outcome": "kept", "file": name, "sha256": "0" * 64, "prompt": f"prompt {index}"}
            file.write(json.dumps(line | {"reference": None, "strength": 0.5, "boxes": rows}) + "\n")
    return folder


def _copy(first: Path, path: Path) -> None:
    """A hard link, or where a file has as many of these as it may have, a file of its own."""
    try:
        path.hardlink_to(first)
    except OSError:
        path.write_bytes(first.read_bytes())


def measure(run: Path, browser: Any) -> dict[str, float]:
    """One review of the run, from its start to its end."""
    shutil.rmtree(run / ".dengine", ignore_errors=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "dengine", "review", str(run), "--no-open"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        url = re.findall(r"http://\S+", server.stderr.readline())[0]
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.wait_for_selector(".tile img.there", timeout=120_000)
        first = time.monotonic() - began
        page.wait_for_function("() => !document.querySelector('#progress').textContent.includes('%')", timeout=300_000)
        read = time.monotonic() - began
        page.wait_for_timeout(1500)
        frames = page.evaluate(_SCROLL, 1000)
        blank = browser.new_page()
        idle = blank.evaluate(_IDLE, 8)
        blank.close()
        moves = [page.evaluate(_SLIDE, value) for value in (0.4, 0.55, 0.62, 0.35, 0.5, 0.45, 0.7)]
        page.close()
        status = Path(f"/proc/{server.pid}/status").read_text()
        peak = int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024
    finally:
        server.terminate()
        server.wait()
    return {
        "first_picture_s": first, "journal_read_s": read,
        "longest_frame_ms": max(frames), "median_frame_ms": median(frames),
        "late_frames": sum(one > 100 for one in frames), "empty_page_longest_frame_ms": max(idle),
        "slider_boxes_ms": median(one for one, _ in moves), "slider_counts_ms": median(two for _, two in moves),
        "slider_counts_most_ms": max(two for _, two in moves), "server_mb": peak,
    }  # fmt: skip


def main() -> None:
    """Make the run, measure it, and print one line of JSON last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", type=Path, help="a run made before, by this script")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    asked = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        run = asked.run or make_journal(Path(scratch) / "run", asked.images)
        browser = driver.chromium.launch(executable_path=asked.chromium, args=["--no-sandbox", "--disable-gpu"])
        found = [measure(run, browser) for _ in range(asked.repeats)]
        browser.close()
    for one in found:
        print({name: round(value, 2) for name, value in one.items()})  # noqa: T201
    print(json.dumps({name: round(median(one[name] for one in found), 2) for name in found[0]}))  # noqa: T201


if __name__ == "__main__":
    main()
