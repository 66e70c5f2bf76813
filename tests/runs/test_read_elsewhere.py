"""Every format of a run, as the libraries read it that people open datasets with: the right number of rows and boxes.

ultralytics is not installed (it needs torchvision): its rules for YOLO folders are repeated here.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fakes import tree
from made_runs import coco, run_settings
from PIL import Image

from engines.datasets import shard_writers
from engines.labels.boxes import Instances
from engines.runs import dataset_files, preview
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import IMAGES, JOURNAL, SPARE, Entry, Journal, image_name
from engines.runs.run_folder import start_run

ALL = ("coco", "yolo", "imagefolder")
LARGE = ("coco", "imagefolder", "parquet", "webdataset")


def make(folder: Path, images: int, formats: tuple[str, ...]) -> Path:
    """A run of so many images in the dataset, and one that is put away."""
    jobs = images + 1
    settings = run_settings(
        frame=(32, 24), chunk=jobs, count=None, jobs=jobs, keep_empty=True, reference=None, reference_hash=None,
        strength=None,
    )  # fmt: skip
    folder.mkdir()
    start_run(folder, settings, None)
    with Journal(folder, 0) as journal:
        journal.begin(range(jobs))
        for index in range(jobs):
            name, score = image_name(index, "jpg"), 0.9 if index else 0.1
            Image.fromarray(np.full((24, 32, 3), index % 256, np.uint8)).save(folder / IMAGES / name)
            found = Instances.from_rows([[1.5, 2.0, 30.25, 20.0, score, index % 2]])
            journal.add(Entry(index, f"prompt {index}", None, None, None, name, "0" * 64, found))
        journal.flush()
    finalize(FinalizeSettings(folder, score=0.5, keep_empty=False, formats=formats))
    assert (len(list((folder / SPARE).iterdir())), (folder / JOURNAL).exists()) == (1, True)
    return folder


@pytest.fixture(autouse=True)
def _small_preview(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preview, "_CELL", 16)


def huggingface(folder: Path, cache: Path) -> int:
    datasets = pytest.importorskip("datasets")
    shutil.rmtree(cache, ignore_errors=True)
    return len(datasets.load_dataset(str(folder), cache_dir=str(cache))["train"])


def huggingface_imagefolder(folder: Path, cache: Path) -> int:
    datasets = pytest.importorskip("datasets")
    shutil.rmtree(cache, ignore_errors=True)
    return len(datasets.load_dataset("imagefolder", data_dir=str(folder / IMAGES), cache_dir=str(cache))["train"])


def huggingface_root(folder: Path, cache: Path) -> int:
    """The whole folder as an imagefolder: what is no data must not be found."""
    datasets = pytest.importorskip("datasets")
    shutil.rmtree(cache, ignore_errors=True)
    return len(datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(cache))["train"])


def supervision_coco(folder: Path, cache: Path) -> int:
    supervision: Any = pytest.importorskip("supervision")
    found = supervision.DetectionDataset.from_coco(str(folder / IMAGES), str(folder / "annotations.json"))
    assert sum(len(boxes) for boxes in found.annotations.values()) == len(coco(folder)["annotations"])
    return len(found)


def supervision_yolo(folder: Path, cache: Path) -> int:
    supervision: Any = pytest.importorskip("supervision")
    found = supervision.DetectionDataset.from_yolo(
        str(folder / IMAGES), str(folder / "labels"), str(folder / "data.yaml")
    )
    assert sum(len(boxes) for boxes in found.annotations.values()) == len(coco(folder)["annotations"])
    return len(found)


def ultralytics_rules(folder: Path, cache: Path) -> int:
    """As `ultralytics.data`: lists are read from data.yaml's folder, `./` is the list's own, and the label of an image
    lies where its path has `labels` for the last `images`."""
    settings = yaml.safe_load((folder / "data.yaml").read_text("utf-8"))
    assert settings["nc"] == len(settings["names"])
    every: set[Path] = set()
    for part in ("train", "val"):
        for line in (folder / settings[part]).read_text("utf-8").splitlines():
            image = Path(line.replace("./", f"{folder}/", 1) if line.startswith("./") else line)
            head, tail = str(image).rsplit("/images/", 1)
            rows = Path(f"{head}/labels/{tail}").with_suffix(".txt").read_text("utf-8").splitlines()
            assert image.exists()
            assert all(len(row.split()) == 5 and 0 <= float(row.split()[0]) < settings["nc"] for row in rows)
            assert all(0.0 <= float(number) <= 1.0 for row in rows for number in row.split()[1:])
            every.add(image)
    return len(every)


def huggingface_parquet(folder: Path, cache: Path) -> int:
    datasets = pytest.importorskip("datasets")
    shutil.rmtree(cache, ignore_errors=True)
    rows = datasets.load_dataset(str(folder), cache_dir=str(cache))["train"]
    first, wanted = rows[0], coco(folder)["annotations"][0]
    assert rows.features["objects"]["category"].feature.names == ["a", "b"]
    assert (first["image"].size, first["prompt"]) == ((32, 24), "prompt 1")
    assert first["objects"]["bbox"][0] == wanted["bbox"]
    assert first["objects"]["category"][0] + 1 == wanted["category_id"]
    return len(rows)


def webdataset_tars(folder: Path, cache: Path) -> int:
    webdataset: Any = pytest.importorskip("webdataset")
    shards = sorted(map(str, (folder / "webdataset").glob("*.tar")))
    rows = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert [row["__key__"] for row in rows] == [Path(one["file_name"]).stem for one in coco(folder)["images"]]
    assert rows[0]["jpg"].size == (32, 24)
    assert sum(len(row["json"]["objects"]["id"]) for row in rows) == len(coco(folder)["annotations"])
    return len(rows)


READERS: dict[str, tuple[tuple[str, ...], Callable[[Path, Path], int]]] = {
    "datasets, COCO alone": (("coco",), huggingface),
    "datasets, COCO alone, as an imagefolder": (("coco",), huggingface_root),
    "datasets, imagefolder beside COCO": (("coco", "imagefolder"), huggingface_root),
    "datasets, all formats": (ALL, huggingface),
    "datasets, imagefolder": (ALL, huggingface_imagefolder),
    "supervision, COCO": (("coco",), supervision_coco),
    "supervision, YOLO": (ALL, supervision_yolo),
    "ultralytics' rules": (ALL, ultralytics_rules),
    "datasets, Parquet": (LARGE, huggingface_parquet),
    "webdataset": (LARGE, webdataset_tars),
}


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 2, 9, 300])
def test_every_format_has_a_row_for_each_image_wherever_it_is_read(tmp_path: Path, images: int) -> None:
    for formats in (("coco",), ("coco", "imagefolder"), ALL, LARGE):
        folder = make(tmp_path / f"run-{len(formats)}", images, formats)
        assert len(coco(folder)["images"]) == images
        for name, (wanted, read) in READERS.items():
            if wanted == formats:
                assert read(folder, tmp_path / "cache") == images, name


def test_rows_say_what_coco_says(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", 3, ALL)
    lines = (folder / IMAGES / "metadata.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == [one["file_name"] for one in coco(folder)["images"]]


@pytest.mark.slow
def test_large_files_are_cut_repeat_and_go_with_their_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("write_parquet", 2000), ("write_webdataset", 3000)):
        monkeypatch.setattr(dataset_files, name, partial(getattr(dataset_files, name), limit=limit))
    monkeypatch.setattr(shard_writers, "_GROUP", 2)
    found = []
    for run in ("one", "two"):
        folder = make(tmp_path / run, 9, LARGE)
        found.append(
            {name: data for name, data in tree(folder).items() if name.startswith(("parquet/", "webdataset/"))}
        )
        assert huggingface_parquet(folder, tmp_path / "cache") == webdataset_tars(folder, tmp_path / "cache") == 9
    assert found[0] == found[1]
    assert len(found[0]) > 4
    finalize(FinalizeSettings(tmp_path / "one", formats=("coco",)))
    assert not (tmp_path / "one" / "parquet").exists()
    assert not (tmp_path / "one" / "webdataset").exists()
