"""`finalize`: other thresholds and formats from the journal alone, and nothing that points at nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import tree
from PIL import Image
from test_settings import run_settings

from engines.errors import RunError, UsageError
from engines.generation import preview as preview_module
from engines.generation.finalize import ANNOTATIONS, PREVIEW, finalize
from engines.generation.journal import IMAGES, JOURNAL, SPARE, Box, Entry, Journal, image_name
from engines.generation.run_folder import locked, start_run

SCORES = (0.9, 0.45, 0.1, 0.6, 0.31, 0.05, 0.8)  # the best box of each image


@pytest.fixture(autouse=True)
def _small_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_module, "_CELL", 16)


def make_run(folder: Path, **changes: Any) -> Path:
    """A finished run of seven images, painted with `--score 0.3` unless told otherwise."""
    settings = run_settings(**{"frame": (32, 24), "chunk": len(SCORES), "count": 7} | changes)
    folder.mkdir()
    start_run(folder, settings, None)
    with Journal(folder, 0) as journal:
        journal.begin(range(len(SCORES)))
        for index, score in enumerate(SCORES):
            kept = settings.keep_empty or score >= settings.score
            name = image_name(index, "jpg") if kept else None
            if name:
                Image.fromarray(np.full((24, 32, 3), 20 * index, np.uint8)).save(folder / IMAGES / name)
            boxes = (Box(1.5, 2.0, 30.25, 20.0, score, index % 2), Box(0.0, 0.0, 4.0, 4.0, 0.05, 0))
            reason = None if kept else f"no box scores {settings.score}"
            journal.add(Entry(index, f"prompt {index}", None, None, reason, name, "0" * 64 if kept else None, boxes))
        journal.flush()
    return folder


def coco(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / ANNOTATIONS).read_text("utf-8")))


def images(folder: Path, part: str = IMAGES) -> list[int]:
    return sorted(int(path.stem) for path in (folder / part).glob("*.jpg"))


def test_the_dataset_is_what_the_journal_says(tmp_path: Path) -> None:
    summary = finalize(make_run(tmp_path / "run"))
    assert (summary.images, summary.boxes, summary.jobs) == (5, 5, 7)
    assert summary.boxes_by_class == {"a": 3, "b": 2}
    assert summary.dropped == {"no box scores 0.3": 2}
    found = coco(tmp_path / "run")
    assert [image["file_name"] for image in found["images"]] == [image_name(i, "jpg") for i in (0, 1, 3, 4, 6)]
    assert [image["prompt"] for image in found["images"]] == [f"prompt {i}" for i in (0, 1, 3, 4, 6)]
    assert found["annotations"][0]["bbox"] == [1.5, 2.0, 28.75, 18.0]
    assert [a["score"] for a in found["annotations"]] == pytest.approx([0.9, 0.45, 0.6, 0.31, 0.8])
    assert [category["name"] for category in found["categories"]] == ["a", "b"]
    assert summary.preview == tmp_path / "run" / PREVIEW


def test_a_higher_threshold_puts_images_away_and_the_old_one_brings_them_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(run, formats=("yolo", "imagefolder"))
    before = tree(run)
    summary = finalize(run, score=0.5)
    assert summary.images == 3
    assert summary.dropped == {"no box scores 0.5": 4}
    assert (images(run), images(run, SPARE)) == ([0, 3, 6], [1, 4])
    assert [image["file_name"] for image in coco(run)["images"]] == [image_name(i, "jpg") for i in (0, 3, 6)]
    assert not (run / "labels").exists()
    assert not (run / "data.yaml").exists()
    assert not (run / IMAGES / "metadata.jsonl").exists()
    finalize(run, formats=("yolo", "imagefolder"))
    assert tree(run) == before


def test_yolo_and_imagefolder_have_the_images_that_coco_has(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(run, formats=("coco", "yolo", "imagefolder"), score=0.5)
    assert sorted(path.stem for path in (run / "labels").glob("*.txt")) == [f"{i:08d}" for i in (0, 3, 6)]
    lines = (run / IMAGES / "metadata.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == [image_name(i, "jpg") for i in (0, 3, 6)]


def test_a_threshold_below_the_runs_own_needs_the_empty_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"below the run's own, 0\.3"):
        finalize(make_run(tmp_path / "run"), score=0.2)
    kept = make_run(tmp_path / "kept", keep_empty=True)
    assert finalize(kept, score=0.1, keep_empty=False).images == 6
    assert finalize(kept).images == 7


def test_empty_images_stay_where_they_are_wanted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    summary = finalize(run, score=0.7, keep_empty=True)
    assert (summary.images, summary.boxes) == (5, 2)
    assert len(coco(run)["images"]) == 5


def test_a_count_takes_the_lowest_indices_of_what_scores_enough(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", count=2)
    summary = finalize(run)
    assert images(run) == [0, 1]
    assert summary.dropped == {"no box scores 0.3": 2, "beyond the count": 3}
    finalize(run, score=0.5)
    assert images(run) == [0, 3]


def test_a_missing_image_is_named_and_nothing_is_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(run)
    before = (run / ANNOTATIONS).read_bytes()
    (run / IMAGES / "00000003.jpg").unlink()
    with pytest.raises(RunError, match=r"00000003\.jpg is missing"):
        finalize(run)
    assert (run / ANNOTATIONS).read_bytes() == before


def test_an_interrupted_run_can_be_finalized_up_to_its_last_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = (run / JOURNAL).read_bytes().splitlines(keepends=True)
    (run / JOURNAL).write_bytes(b"".join(lines[:4]) + lines[4][:50])
    (run / ".labels.tmp").mkdir()
    (run / ".annotations.json.spool").touch()
    assert finalize(run).images == 3
    assert images(run) == [0, 1, 3]
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == [".lock"]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"score": 0.01}, "0.05 to 1"), ({"score": 1.5}, "0.05 to 1"), ({"formats": ("voc",)}, "voc is unknown")],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        finalize(make_run(tmp_path / "run"), **options)


def test_a_folder_that_is_no_run_or_is_in_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        finalize(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        finalize(tmp_path / "file")
    with pytest.raises(RunError, match="not a run"):
        finalize(tmp_path)
    run = make_run(tmp_path / "run")
    with locked(run), pytest.raises(RunError, match="in use"):
        finalize(run)


def test_a_run_without_any_image_in_the_dataset_has_no_preview(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(run)
    summary = finalize(run, score=0.95)
    assert (summary.images, summary.preview) == (0, None)
    assert not (run / PREVIEW).exists()
    assert coco(run)["images"] == []
