"""A run to review, made without painting, and a review's server in a thread of the test's own process."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from made_runs import run_settings
from PIL import Image, ImageDraw

from engines.labels.boxes import Instances
from engines.labels.rules import drop
from engines.review.server import OpenReview, ReviewSettings, opened
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import IMAGES, Entry, Journal, image_name
from engines.runs.run_folder import start_run

CLASSES = ("cell", "spot", "rod")
SIZE = (160, 120)
_SHADES = ("#b04a5a", "#4a3fa0", "#2f7d4f")


def make_review_run(folder: Path, images: int = 40, *, dataset: bool = True, **changes: Any) -> Path:
    """A finished run: pictures of discs with a box round each, some weak boxes round nothing, prompts and strengths.

    Every tenth image has no label at the run's score, 0.3, and so was never written.
    """
    values = {
        "class_names": CLASSES, "frame": SIZE, "chunk": images, "count": None, "jobs": images,
        "frequencies": {"cell": 3.0, "spot": 2.0, "rod": 1.5}, "reference": None, "reference_hash": None,
    }  # fmt: skip
    settings = run_settings(**values | changes)
    folder.mkdir(parents=True)
    start_run(folder, settings, None)
    rng = np.random.default_rng(7)
    with Journal(folder, 0) as journal:
        journal.begin(range(images))
        for index in range(images):
            found = _boxes(rng, weak=index % 10 == 9)
            dropped = drop(found, settings.rules)
            name = None if dropped else image_name(index, "jpg")
            if name:
                _picture(found, index).save(folder / IMAGES / name, quality=90)
            prompt = f"a microscope photo with {'many' if index % 2 else 'few'} cells"
            strength = None if settings.options.reference is None else 0.4
            journal.add(Entry(index, prompt, None, strength, dropped, name, "0" * 64 if name else None, found))
        journal.flush()
    if dataset:
        finalize(FinalizeSettings(folder))
    return folder


def _boxes(rng: np.random.Generator, weak: bool) -> Instances:
    rows = []
    for _ in range(rng.integers(3, 8)):
        side = rng.uniform(14, 34)
        x, y = rng.uniform(0, SIZE[0] - side), rng.uniform(0, SIZE[1] - side)
        score = rng.uniform(0.06, 0.28) if weak else rng.uniform(0.08, 0.97)
        label = int(rng.choice(3, p=(0.6, 0.3, 0.1)))
        rows.append([round(v, 2) for v in (x, y, x + side, y + side)] + [round(float(score), 4), label])
    if not weak:
        rows[0][4] = max(rows[0][4], 0.5)
    return Instances.from_rows(sorted(rows, key=lambda row: -row[4]))


def _picture(found: Instances, index: int) -> Image.Image:
    image = Image.new("RGB", SIZE, (226 - index % 12, 218, 210))
    pen = ImageDraw.Draw(image)
    for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        if score >= 0.3:
            pen.ellipse(box, fill=_SHADES[label])
    return image


@contextmanager
def served(what: Path, **options: Any) -> Iterator[OpenReview]:
    """A review that answers."""
    with opened(ReviewSettings(what, open=False, **options)) as review:
        thread = threading.Thread(target=review.serve, daemon=True)
        thread.start()
        end = time.monotonic() + 30
        while not review.ready:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.01)
        try:
            yield review
        finally:
            review.stop()
            thread.join(10)


def decisions_in(folder: Path) -> list[dict[str, Any]]:
    """The lines of review.jsonl."""
    path = folder / "review.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
