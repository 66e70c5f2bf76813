"""Runs and their settings, made without painting."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engines.composing.given import Given, Origin
from engines.labels.boxes import Instances
from engines.labels.rules import Drop, DropReason
from engines.painting.run_settings import FORMAT, RunSettings
from engines.runs.dataset_files import ANNOTATIONS
from engines.runs.journal import IMAGES, Entry, Journal, image_name
from engines.runs.run_folder import start_run


def run_settings(**changes: Any) -> RunSettings:
    values: dict[str, Any] = {
        "bundle": None, "bundle_hash": "0" * 64, "class_names": ("a", "b"), "reference": "data",
        "reference_hash": "1" * 64, "count": 8, "jobs": None, "shard": None, "seed": 2**40, "strength": (0.4, 0.8),
        "flip": True, "frame": (64, 48), "steps": 25, "sampler": "ddim", "eta": 0.0, "guidance": 4.0,
        "guidance_interval": None, "prompt_template": None, "negative_prompt": "", "score": 0.3, "keep_empty": False,
        "chunk": 8, "slots": 4, "rows": 8, "engine": "torch", "precision": "f32", "threads": 1, "backend": "torch, cpu",
        "formats": ("coco",), "image_format": "jpeg", "jpeg_quality": 95, "skip_bad": False,
    }  # fmt: skip
    return RunSettings.from_json({"format": FORMAT} | values | changes, "made run")


SCORES = (0.9, 0.45, 0.1, 0.6, 0.31, 0.05, 0.8)  # the best box of each image


def make_run(folder: Path, **changes: Any) -> Path:
    """A finished run of seven images, painted with `--score 0.3` unless told otherwise."""
    settings = run_settings(**{"frame": (32, 24), "chunk": len(SCORES), "count": 7} | changes)
    folder.mkdir()
    start_run(folder, settings, None)
    with Journal(folder, 0) as journal:
        journal.begin(range(len(SCORES)))
        for index, score in enumerate(SCORES):
            kept = settings.options.keep_empty or score >= max(settings.thresholds.values())
            name = image_name(index, "jpg") if kept else None
            if name:
                Image.fromarray(np.full((24, 32, 3), 20 * index, np.uint8)).save(folder / IMAGES / name)
            found = Instances.from_rows([[1.5, 2.0, 30.25, 20.0, score, index % 2], [0.0, 0.0, 4.0, 4.0, 0.05, 0]])
            given = None
            if settings.gives:
                labels = Instances.of([[2.0, 2.0, 9.5, 8.0], [3.0, 9.0, 30.0, 20.0]], [0, 1], crowd=[index == 3, False])
                given = Given(labels, (Origin("a.png", index, (1.0, 2.0, 8.5, 8.0)),))
            drop = None if kept else Drop(DropReason.NO_BOX, f"no box scores {settings.score}")
            journal.add(
                Entry(index, f"prompt {index}", None, None, drop, name, "0" * 64 if kept else None, found, given)
            )
        journal.flush()
    return folder


def coco(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / ANNOTATIONS).read_text("utf-8")))
