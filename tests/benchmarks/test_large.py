"""The benchmark of a large run: it finds what is wrong with a dataset, and its shards and bars are what they say."""

import json
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from fakes import FakeBackend, make_bundle

from benchmarks import large
from benchmarks.large_checks import SHOWN, different_files, find_mistakes, read_hashes
from benchmarks.records import here
from engines.runs import preview as preview_module

IMAGES, SHARDS = 20, 2


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What every process was asked: each is this one, one after the other, and paints with fakes."""
    bundle, asked, lock = make_bundle(tmp_path / "bundle"), list[dict[str, Any]](), Lock()
    monkeypatch.setattr("engines.backends.registry.open_backend", lambda *_, **__: FakeBackend(), raising=False)
    monkeypatch.setattr("engines.bundle.bundle.open_bundle", lambda folder, **_: bundle, raising=False)
    monkeypatch.setattr(large, "open_bundle", lambda folder, **_: bundle)
    monkeypatch.setattr(preview_module, "_CELL", 16)

    def run_alone(task: str, arguments: dict[str, Any]) -> dict[str, Any]:
        with lock:
            asked.append(arguments)
            found: dict[str, Any] = json.loads(json.dumps(large.paint_task(arguments, lambda line: None)))
            return found

    monkeypatch.setattr(large, "run_alone", run_alone)
    return asked


@pytest.fixture
def painted(alone: list[dict[str, Any]], tmp_path: Path) -> Path:
    """A run without a mistake."""
    folder = tmp_path / "whole"
    asked = {"bundle": str(tmp_path / "bundle"), "images": IMAGES, "out": str(folder), "shard": None}
    large.paint_task(asked, lambda line: None)
    assert find_mistakes(folder, IMAGES) == []
    return folder


@pytest.mark.slow
def test_the_run_its_shards_and_finalize_give_one_dataset(alone: list[dict[str, Any]], tmp_path: Path) -> None:
    result = large.measure(tmp_path, tmp_path / "bundle", IMAGES, SHARDS)
    assert alone[0]["shard"] is None
    assert sorted(asked["shard"] for asked in alone[1:]) == [(1, SHARDS), (2, SHARDS)]  # which run side by side
    assert [part["images"] for part in result["parts"]] == list(range(2, IMAGES + 1, 2))
    assert all(part["images_per_second"] > 0 and part["rss_mb"] > 10 for part in result["parts"])
    assert result["counted"] == {"mistakes": 0, "changed": 0, "different": 0}
    assert result["files"] > IMAGES
    assert result["boxes"] > 0
    text = "\n".join(large.report(here() | result))
    assert "| mistakes in journal, COCO file and images | 0 | 0 | met |" in text
    assert [line.split(" | ")[0] for line in text.partition("| after images |")[2].splitlines()[2:12]] == [
        f"| {images}" for images in range(2, IMAGES + 1, 2)
    ]
    again = large.measure(tmp_path, tmp_path / "bundle", IMAGES, SHARDS)
    assert len(alone) == 1 + SHARDS  # nothing is painted twice
    assert (again["parts"], again["counted"]) == (result["parts"], result["counted"])


def test_all_mistakes_are_counted_and_few_are_named(
    alone: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "merge", lambda asked: (Path(asked.out) / "images").mkdir(parents=True))
    result = large.measure(tmp_path, tmp_path / "bundle", IMAGES, SHARDS)
    (bar,) = [bar for bar in large.bars(result) if "merged shards" in bar[0]]
    assert bar[2:] == (result["files"], False)
    assert len(result["named"]["different"]) == SHOWN < result["files"]


def test_a_merged_file_that_differs_is_named(painted: Path) -> None:
    expected = read_hashes(painted)
    (painted / "annotations.json").write_text("{}", "utf-8")
    (painted / "images" / "00000003.jpg").unlink()
    (painted / "new").touch()
    found = different_files(expected, read_hashes(painted))
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


@pytest.mark.slow
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
def test_what_is_wrong_with_a_dataset_is_found(painted: Path, harm: Callable[[Path], None], said: str) -> None:
    harm(painted)
    assert any(said in mistake for mistake in find_mistakes(painted, IMAGES))


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({}, []),
        ({"parts": [{"images": 1, "images_per_second": 10.0, "rss_mb": 400.0}] * 9
          + [{"images": 10, "images_per_second": 8.9, "rss_mb": 431.0}]}, [0, 1]),
        ({"parts": [{"images": 1, "images_per_second": 10.0, "rss_mb": None}] * 2}, [0]),
        ({"finalize_seconds": 10.1}, [2]),
        ({"counted": {"mistakes": 1, "changed": 0, "different": 0}}, [3]),
        ({"counted": {"mistakes": 0, "changed": 1, "different": 0}}, [4]),
        ({"counted": {"mistakes": 0, "changed": 0, "different": 1}}, [5]),
        ({"boxes": 0}, [6]),
    ],
)  # fmt: skip
def test_a_bar_that_is_not_met_is_told(change: dict[str, Any], failing: list[int]) -> None:
    good = {
        "parts": [{"images": 1, "images_per_second": 10.0, "rss_mb": 400.0},
                  {"images": 10, "images_per_second": 9.0, "rss_mb": 430.0}],
        "counted": {"mistakes": 0, "changed": 0, "different": 0}, "finalize_seconds": 9.9, "shards": 3, "files": 30,
        "boxes": 1,
    }  # fmt: skip
    found = large.bars(good | change)
    assert [number for number, (*_, reached) in enumerate(found) if not reached] == failing
