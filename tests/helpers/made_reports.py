"""Folders and files that reports are drawn of, as verbs leave them, and a report of `bench`."""

import json
from pathlib import Path
from typing import Any

from made_datasets import picture
from made_worth import make_arms
from PIL import Image

from engines.adapter.info import AdapterConfig, AdapterInfo
from engines.common.files import write_json
from engines.common.training_log import write_log
from engines.datasets.writers import AnnotatedImage, write_coco
from engines.labels.boxes import Instances

ONE = ("rbc", "w<b>c")


def labelled(folder: Path, images: Path, *, score: float | None = None) -> Path:
    """A folder as `label` writes one, of three pictures, the second of which has no box."""
    rows = {"0.png": [[4, 4, 20, 24, 0.9, 0], [30, 10, 60, 40, 0.4, 1]], "1.png": [], "2.png": [[5, 5, 9, 9, 0.3, 1]]}
    found = [AnnotatedImage(picture(images / name).name, 64, 48, Instances.from_rows(of)) for name, of in rows.items()]
    info = {"bundle_sha256": "0" * 64, "prompt": "generic", "label_views": 1, "images": str(images)}
    folder.mkdir(parents=True, exist_ok=True)
    write_coco(folder / "annotations.json", found, ONE, info | ({} if score is None else {"score": score}))
    write_json(folder / "figures.json", {"figures": {"AP": 0.5, "AP/rbc": 0.625, "precision/rbc": 0.75}})
    return folder


def adapter(folder: Path) -> Path:
    """The folder of an adapter, as far as a report reads it."""
    folder.mkdir(parents=True)
    chosen = {"goal": 0.9, "rbc": {"tune_boxes": 36, "precision": 0.9697, "recall": 0.8889}, ONE[1]: {"tune_boxes": 1}}
    figures = {"steps": 40, "best_step": 20, "tune": {"generic": {"AP": 0.75, "AP50": 0.875}}, "thresholds": chosen}
    info = AdapterInfo(
        ONE, 1, 64, (64, 48), 32, "photo", {}, "0" * 64, AdapterConfig((8, 16), 2), (), 50, {"rbc": 40, ONE[1]: 3},
        {"rbc": 0.63}, figures=figures,
    )  # fmt: skip
    write_json(folder / "adapter.json", info.to_json())
    rows = [
        {"step": step, "loss": 10.0 / step} | ({"AP": 0.5, "AP50": 0.7} if step % 20 == 0 else {})
        for step in (10, 20, 30, 40)
    ]
    write_log(folder, {"adapter": rows})
    return folder


def base(folder: Path) -> Path:
    """The folder of a base model, as far as a report reads it."""
    folder.mkdir(parents=True)
    write_json(folder / "model_index.json", {})
    quality = {"verdict": "VAE 20.6 dB. Not good enough: train longer."}
    write_json(
        folder / "dengine.json", {"style": "photo", "class_names": list(ONE), "short_side": 64, "quality": quality}
    )
    Image.new("RGB", (900, 300), (90, 120, 60)).save(folder / "samples.png")
    write_log(
        folder, {"vae": [{"step": 10, "loss": 0.5}], "unet": [{"step": 10, "loss": 0.9}, {"step": 20, "loss": 0.6}]}
    )
    return folder


def comparison(folder: Path) -> Path:
    """The folder of a comparison, as far as a report reads it."""
    folder.mkdir(parents=True)
    data = {
        "real": "data",
        "real_images": 10,
        "synthetic": ["run"],
        "generated_images": 40,
        "notes": [],
        "short_side": 64,
    }
    arms = [json.loads(json.dumps(arm, default=vars)) for arm in make_arms()]
    sets = [{"name": name, "images": 20, "left_out": [], "arms": arms} for name in ("val", "other <val>")]
    detector = {"network": {"kind": "rt_detr"}, "steps": 100}
    content = {"data": data, "sets": sets, "seeds": [0, 1], "detector": detector, "mix": 0.5, "weights": None}
    write_json(folder / "comparison.json", content)
    Image.new("RGB", (600, 400), "white").save(folder / "comparison.png")
    return folder


def bench(**changes: Any) -> dict[str, Any]:
    """What `bench` reports: one engine and one baseline row."""
    engine = {
        "engine": "openvino",
        "backend": "openvino 1",
        "slots": 4,
        "images_per_second": 2.0,
        "outside_share": None,
        "graphs": {"unet": {"batch": 8, "seconds": {"median": 0.5, "calls": 20}}},
    }
    value: dict[str, Any] = {
        "format": 1,
        "machine": {"processor": "one", "cores": 2},
        "versions": {"torch": "2.13"},
        "settings": {"precision": "auto"},
        "engines": [engine | changes.pop("engine", {})],
        "baseline": [{"role": "batch 1", "batch": 1, "compiled": False, "images_per_second": 0.5}],
        "roofline": {"cpu": {"best": {"f32": {"flops_per_second": 1e11, "size": 2048}}}},
    }
    return value | changes
