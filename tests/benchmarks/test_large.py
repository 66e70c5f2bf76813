"""The benchmark of a large run: it finds what is wrong with a dataset, and its shards and bars are what they say."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fakes import FakeBackend, make_bundle
from scripts import load

from engines.runs import preview as preview_module
from engines.runs.finalize import FinalizeSettings, finalize

IMAGES, SHARDS = 20, 2


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """large, large_checks and large_report; every process of the first is this one, and paints with fakes."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds the repository
    checks, report, large = (load(name) for name in ("large_checks", "large_report", "large"))
    monkeypatch.setattr("engines.backends.registry.open_backend", lambda *_, **__: FakeBackend(), raising=False)
    monkeypatch.setattr(preview_module, "_CELL", 16)
    return large, checks, report


@pytest.fixture
def asked(scripts: tuple[Any, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    large: Any = scripts[0]
    bundle = make_bundle(tmp_path / "bundle")
    monkeypatch.setattr("engines.bundle.bundle.open_bundle", lambda folder: bundle, raising=False)

    def here(action: Callable[..., None], *values: Any) -> Any:
        action(*values)
        return ModuleType("process")

    monkeypatch.setattr(large, "in_process", here)
    monkeypatch.setattr(large, "paint_shards", lambda asked, work, shards: paint_one_by_one(large, asked, work, shards))
    return large.Asked(tmp_path / "bundle", IMAGES, steps=2, engine="auto", precision="auto", threads=1)


def paint_one_by_one(large: Any, asked: Any, work: Path, shards: int) -> dict[str, float]:
    for number in range(1, shards + 1):
        large.paint(asked, large.shard_folder(work, number, shards), (number, shards), work / "notes.json")
    return {"shard_seconds": 1.0}


@pytest.fixture
def painted(scripts: tuple[Any, Any, Any], asked: Any, tmp_path: Path) -> Path:
    """A run without a mistake."""
    folder = tmp_path / "whole"
    scripts[0].paint(asked, folder, None, tmp_path / "notes.json")
    assert scripts[1].find_mistakes(folder, IMAGES) == []
    return folder


def test_the_run_its_shards_and_finalize_give_one_dataset(
    scripts: tuple[Any, Any, Any], asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, _, report = scripts
    result = large.measure(asked, tmp_path, SHARDS)
    assert [part["images"] for part in result["parts"]] == list(range(2, IMAGES + 1, 2))
    assert all(part["images_per_second"] > 0 and part["rss_mb"] > 10 for part in result["parts"])
    assert (result["mistakes"], result["finalize_changed"], result["different"]) == ([], [], [])
    assert result["files"] > IMAGES
    assert result["boxes"] > 0
    text = report.markdown(result)
    assert "| mistakes in journal, COCO file and images | 0 | 0 | yes |" in text
    parts = text.partition("| after images |")[2].splitlines()[2:]
    assert [line.split(" | ")[0] for line in parts[: len(result["parts"])]] == [
        f"| {images}" for images in range(2, IMAGES + 1, 2)
    ]
    json.dumps(result)
    monkeypatch.setattr(large, "paint", None)  # nothing is painted twice
    broken_off = finalize(
        FinalizeSettings(tmp_path / "whole", near_duplicates=0.01)
    )  # in the search for near duplicates
    assert broken_off.images < IMAGES
    again = large.measure(asked, tmp_path, SHARDS)
    assert again["parts"] == result["parts"]
    assert (again["mistakes"], again["finalize_changed"], again["different"]) == ([], [], [])


def test_all_mistakes_are_counted_and_few_are_named(
    scripts: tuple[Any, Any, Any], asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, checks, _ = scripts
    monkeypatch.setattr(large, "merge_shards", lambda work, out, shards: (out / "images").mkdir(parents=True))
    result = large.measure(asked, tmp_path, SHARDS)
    (bar,) = [bar for bar in result["bars"] if "merged shards" in bar["what"]]
    assert (bar["found"], bar["met"]) == (result["files"], False)
    assert len(result["different"]) == checks.SHOWN


def test_a_merged_file_that_differs_is_named(scripts: tuple[Any, Any, Any], painted: Path) -> None:
    checks = scripts[1]
    expected = checks.read_hashes(painted)
    (painted / "annotations.json").write_text("{}", "utf-8")
    (painted / "images" / "00000003.jpg").unlink()
    (painted / "new").touch()
    found = checks.different_files(expected, checks.read_hashes(painted))
    assert found == ["annotations.json differs", "images/00000003.jpg differs", "new differs"]


def change_journal(folder: Path, number: int, **fields: Any) -> None:
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text("utf-8").splitlines()]
    lines[number] |= fields
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def change_coco(folder: Path, part: str, number: int, **fields: Any) -> None:
    coco = json.loads((folder / "annotations.json").read_text("utf-8"))
    coco[part][number] |= fields
    (folder / "annotations.json").write_text(json.dumps(coco), "utf-8")


def change_file(folder: Path) -> None:
    path = folder / "images" / "00000004.jpg"
    path.write_bytes(path.read_bytes() + b"x")


def remove_box(folder: Path) -> None:
    coco = json.loads((folder / "annotations.json").read_text("utf-8"))
    coco["annotations"].pop()
    (folder / "annotations.json").write_text(json.dumps(coco), "utf-8")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: change_journal(folder, 5, index=4), "indices are not 0 to 19 in order"),
        (lambda folder: change_journal(folder, 5, file="00000099.jpg"), "00000099.jpg is in the journal, but not on"),
        (change_file, "00000004.jpg is not the file that the journal has the hash of"),
        (lambda folder: (folder / "images" / "00000030.jpg").touch(), "00000030.jpg is on disk, but not in"),
        (lambda folder: change_coco(folder, "images", 2, file_name="00000001.jpg"), "each once and in order"),
        (lambda folder: change_coco(folder, "images", 2, id=1), "image id 1 is there 2 times"),
        (lambda folder: change_coco(folder, "annotations", 2, id=1), "annotation id 1 is there 2 times"),
        (lambda folder: change_coco(folder, "annotations", 2, bbox=[40, 1, 9, 9]), "annotation 3 is not inside its"),
        (lambda folder: change_coco(folder, "annotations", 2, bbox=[4, 1, 9, 0]), "annotation 3 is not inside its"),
        (lambda folder: change_coco(folder, "annotations", 2, category_id=9), "annotation 3 has no image or no cat"),
        (remove_box, "boxes where the journal has"),
    ],
)
def test_what_is_wrong_with_a_dataset_is_found(
    scripts: tuple[Any, Any, Any], painted: Path, harm: Callable[[Path], None], said: str
) -> None:
    harm(painted)
    assert any(said in mistake for mistake in scripts[1].find_mistakes(painted, IMAGES))


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({}, []),
        ({"parts": [{"images": 1, "images_per_second": 10.0, "rss_mb": 400.0}] * 9
          + [{"images": 10, "images_per_second": 8.9, "rss_mb": 431.0}]}, [0, 1]),
        ({"parts": [{"images": 1, "images_per_second": 10.0, "rss_mb": None}] * 2}, [0]),
        ({"mistakes": ["one"]}, [2]),
        ({"finalize_seconds": 10.1}, [3]),
        ({"finalize_changed": ["one"]}, [4]),
        ({"different": ["one"]}, [5]),
        ({"boxes": 0}, [6]),
    ],
)  # fmt: skip
def test_a_bar_that_is_not_met_is_told(
    scripts: tuple[Any, Any, Any], change: dict[str, Any], failing: list[int]
) -> None:
    good = {
        "parts": [{"images": 1, "images_per_second": 10.0, "rss_mb": 400.0},
                  {"images": 10, "images_per_second": 9.0, "rss_mb": 430.0}],
        "mistakes": [], "finalize_seconds": 9.9, "finalize_changed": [], "different": [], "shards": 3, "files": 30,
        "boxes": 1,
    }  # fmt: skip
    found = scripts[2].bars(good | change)
    assert [number for number, bar in enumerate(found) if not bar["met"]] == failing
