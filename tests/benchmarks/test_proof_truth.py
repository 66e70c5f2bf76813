"""`benchmarks/proof/truth.py`: true labels lie where the picture shows their objects, whatever crop a job took."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fake_proof import NAMES, write_voc
from made_runs import run_settings
from PIL import Image

from benchmarks.proof.truth import read_labels
from engines.datasets.dataset import open_dataset
from engines.painting.jobs import make_job
from engines.painting.painter import read_crop
from engines.painting.resolve import dataset_hash
from engines.runs.journal import IMAGES, Entry, Journal, image_name
from engines.runs.near_duplicates import reference_plan
from engines.runs.run_folder import start_run


@dataclass
class Folders:
    """The part of a workplace that is asked for."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    def folder(self, name: str) -> Path:
        return self.root / name


@pytest.fixture
def place(tmp_path: Path) -> Folders:
    """Six images in which each class is a rectangle of a channel of its own."""
    place = Folders(tmp_path)
    write_voc(place.data, {"train": [f"train_{number}" for number in range(6)]})
    for record in open_dataset(place.data, split="train").records:
        pixels = np.zeros((record.height, record.width, 3), np.uint8)
        for (x0, y0, x1, y1), label in zip(record.boxes.astype(int).tolist(), record.labels.tolist(), strict=True):
            pixels[y0:y1, x0:x1, label] = 255
        Image.fromarray(pixels).save(record.file, quality=100, subsampling=0)
    return place


def write_labels(folder: Path, found: dict[str, list[tuple[list[float], int, int]]], size: tuple[int, int]) -> None:
    """A COCO file of boxes, labels and crowds."""
    names = sorted(found)
    boxes = [(names.index(name), *one) for name in names for one in found[name]]
    content = {
        "images": [
            {"id": number, "file_name": name, "width": size[0], "height": size[1]} for number, name in enumerate(names)
        ],
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": label + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": crowd,
                "score": 0.9,
            }
            for number, (image, (x0, y0, x1, y1), label, crowd) in enumerate(boxes)
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(content))


def seen(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> list[tuple[list[float], int, int]]:
    """A box around each channel's rectangle, where 0.35 of its 19x19 pixels are in view."""
    found = []
    for label in range(3):
        ys, xs = np.nonzero(pixels[..., label] > 127)
        if len(xs) > 0.35 * 19 * 19:
            found.append(([float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)], label, 0))
    return found


def test_what_a_painted_image_shows_is_where_its_labels_should_be(place: Folders) -> None:
    dataset = open_dataset(place.data, split="train")
    settings = run_settings(
        reference=str(place.data), reference_split="train", reference_hash=dataset_hash(dataset), count=24, chunk=24,
        frame=(40, 40), short_side=48, strength=(0.1, 0.5), seed=5, flip=True, keep_empty=True,
    )  # fmt: skip
    run = place.folder("painted")
    run.mkdir()
    start_run(run, settings, None)
    plan = reference_plan(settings)
    assert plan is not None
    jobs = [make_job(plan, settings.seed, index) for index in range(24)]
    assert {job.flip for job in jobs} == {False, True}
    labels = {}
    with Journal(run, 0) as journal:
        journal.begin(range(24))
        for job in jobs:
            name, pixels = image_name(job.index, "jpg"), read_crop(plan, job)
            labels[name] = seen(pixels)
            Image.fromarray(pixels).save(run / IMAGES / name)
            reference = plan.references[job.reference or 0].name
            journal.add(Entry(job.index, "", reference, job.strength, None, name, "0" * 64, ()))
        journal.flush()
    write_labels(run, labels, (40, 40))
    rows = read_labels(place, {"painted": "painted"})["rows"]  # type: ignore[arg-type]
    ranges = [row["strengths"] for row in rows]
    assert [low <= high < end for (low, high), end in zip(ranges, (0.2, 0.3, 0.45, 0.6), strict=True)] == [True] * 4
    assert sum(row["images"] for row in rows) == 24
    for row in rows:
        assert {
            name: value for name, value in row["figures"].items() if name.startswith("precision") and value < 1
        } == {}
        assert min(row["figures"].values()) > 0.6


def test_labels_of_photographs_are_counted_and_crowds_are_none(place: Folders) -> None:
    records = open_dataset(place.data, split="train").records[:2]
    first, second = ({"name": one.name, "boxes": one.boxes.tolist()} for one in records)
    folder = place.folder("pseudo")
    (folder / "images").mkdir(parents=True)
    for one in records:
        Image.open(one.file).save(folder / "images" / one.name)
    right, wrong = first["boxes"], [[40.0, 30.0, 60.0, 45.0]]
    labels = {
        first["name"]: [(right[0], 0, 0), (right[1], 1, 0), (wrong[0], 0, 0)],
        second["name"]: [(second["boxes"][0], 0, 1)],
    }
    write_labels(folder, labels, (64, 48))
    (row,) = read_labels(place, {"pseudo": "other"})["rows"]  # type: ignore[arg-type]
    assert row == {
        "labels": "pseudo",
        "strengths": None,
        "images": 2,
        "figures": {"precision/a": 0.5, "recall/a": 0.5, "precision/b": 1.0, "recall/b": 0.5, "recall/c": 0.0},
    }
