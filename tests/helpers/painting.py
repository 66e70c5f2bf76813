"""`generate` on fakes, as several test files need it: how it is called, its references, and what must always hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeBackend, make_bundle
from PIL import Image

from engines.common.events import Event
from engines.painting.settings import GenerateSettings
from engines.runs import preview as preview_module
from engines.runs.dataset_files import ANNOTATIONS
from engines.runs.generate import generate
from engines.runs.journal import IMAGES, JOURNAL, read_entries
from engines.runs.summaries import GenerateSummary

Generate = Callable[..., GenerateSummary]


def make_paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    """`generate` on the fake backend, for a fixture: paint(out, backend=..., events=..., stop=..., option=...)."""

    def run(
        out: Path,
        *,
        backend: FakeBackend | None = None,
        events: list[Event] | None = None,
        stop: Callable[[], bool] = lambda: False,
        changes: dict[str, Any] | None = None,
        **options: Any,
    ) -> GenerateSummary:
        monkeypatch.setattr(preview_module, "_CELL", 16)  # a large contact sheet takes longer than the rest
        bundle = make_bundle(tmp_path / "bundle", **changes or {})
        monkeypatch.setattr("engines.bundle.bundle.open_bundle", lambda folder: bundle, raising=False)
        monkeypatch.setattr(
            "engines.backends.registry.open_backend", lambda *_, **__: backend or FakeBackend(), raising=False
        )
        settings = GenerateSettings(out=out, bundle=tmp_path / "bundle", **{"chunk": 6, "slots": 3} | options)
        told: list[Event] = [] if events is None else events
        return generate(settings, report=told.append, stop=stop)

    return run


def check_consistent(folder: Path) -> None:
    """COCO, images and journal say the same, and every box lies inside its image."""
    coco = json.loads((folder / ANNOTATIONS).read_text("utf-8"))
    files = {path.name for path in (folder / IMAGES).iterdir()} - {"metadata.jsonl"}
    assert {image["file_name"] for image in coco["images"]} == files
    kept = {entry.file: entry for entry in read_entries(folder / JOURNAL) if entry.file}
    assert files <= set(kept)
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    assert len(sizes) == len(coco["images"])
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"])
    for annotation in coco["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert min(width, height) > 0
        assert min(x, y) >= 0
        assert x + width <= sizes[annotation["image_id"]][0]
        assert y + height <= sizes[annotation["image_id"]][1]
    assert not list(folder.rglob("*.tmp"))


def make_references(folder: Path, count: int) -> Path:
    """A folder of images of several sizes, without labels."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.full((40 + 8 * i, 60, 3), 40 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def paint_into(paint: Generate, folder: Path, **options: Any) -> Path:
    paint(folder, **options)
    return folder
