"""`finalize`: other thresholds and formats from the journal alone, and nothing that points at nothing."""

import errno
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import tree
from made_runs import coco, make_run
from PIL import Image
from refusals import refused
from review_speed import FRAME, make_journal
from typer.testing import CliRunner

from dengine_cli import main as program
from engines.errors import DatasetError, RunError, UsageError
from engines.labels.scores import ScoreLike
from engines.runs import preview as preview_module
from engines.runs.dataset_files import ANNOTATIONS
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import IMAGES, JOURNAL, SPARE, image_name
from engines.runs.near_duplicates import REPEATS_TRAINING
from engines.runs.run_folder import LOCK, PREVIEW, locked


@pytest.fixture(autouse=True)
def _small_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_module, "_CELL", 16)


def images(folder: Path, part: str = IMAGES) -> list[int]:
    return sorted(int(path.stem) for path in (folder / part).glob("*.jpg"))


def test_the_dataset_is_what_the_journal_says(tmp_path: Path) -> None:
    summary = finalize(FinalizeSettings(make_run(tmp_path / "run")))
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
    finalize(FinalizeSettings(run, formats=("yolo", "imagefolder")))
    before = tree(run)
    summary = finalize(FinalizeSettings(run, score=0.5))
    assert summary.images == 3
    assert summary.dropped == {"no box scores 0.5": 4}
    assert (images(run), images(run, SPARE)) == ([0, 3, 6], [1, 4])
    assert [image["file_name"] for image in coco(run)["images"]] == [image_name(i, "jpg") for i in (0, 3, 6)]
    assert len(list((run / "labels").iterdir())) == 3, "formats stay"
    finalize(FinalizeSettings(run))
    assert tree(run) == before
    finalize(FinalizeSettings(run, formats=("coco",)))
    for name in ("labels", "data.yaml", "train.txt", "val.txt", f"{IMAGES}/metadata.jsonl"):
        assert not (run / name).exists()


def test_yolo_and_imagefolder_have_the_images_that_coco_has(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(FinalizeSettings(run, formats=("coco", "yolo", "imagefolder"), score=0.5))
    assert sorted(path.stem for path in (run / "labels").glob("*.txt")) == [f"{i:08d}" for i in (0, 3, 6)]
    lines = (run / IMAGES / "metadata.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == [image_name(i, "jpg") for i in (0, 3, 6)]


def test_yolo_has_a_validation_part_of_its_own_that_finalize_may_change(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    parts = {}
    for fraction in (0.01, 0.99):
        finalize(FinalizeSettings(run, formats=("yolo",), val_fraction=fraction))
        parts[fraction] = [len((run / f"{part}.txt").read_text("utf-8").splitlines()) for part in ("train", "val")]
    assert parts == {0.01: [4, 1], 0.99: [1, 4]}
    with refused(UsageError, "val_fraction", 1.0):
        finalize(FinalizeSettings(run, val_fraction=1.0))


def test_a_card_of_somebody_elses_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(FinalizeSettings(run, formats=("imagefolder",)))
    assert "class_label" in (run / "README.md").read_text("utf-8")
    finalize(FinalizeSettings(run, formats=("coco",)))
    assert "class_label" not in (run / "README.md").read_text("utf-8")
    (run / "README.md").write_text("mine", "utf-8")
    finalize(FinalizeSettings(run, formats=("imagefolder",)))
    finalize(FinalizeSettings(run, formats=("coco",)))
    assert (run / "README.md").read_text("utf-8") == "mine"


def test_a_threshold_below_the_runs_own_needs_the_empty_images(tmp_path: Path) -> None:
    with refused(UsageError, "score", 0.2, 0.3, "`keep_empty=True`"):
        finalize(FinalizeSettings(make_run(tmp_path / "run"), score=0.2))
    kept = make_run(tmp_path / "kept", keep_empty=True)
    assert finalize(FinalizeSettings(kept, score=0.1, keep_empty=False)).images == 6
    assert finalize(FinalizeSettings(kept)).images == 7


def test_empty_images_stay_where_they_are_wanted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    summary = finalize(FinalizeSettings(run, score=0.7, keep_empty=True))
    assert (summary.images, summary.boxes) == (5, 2)
    assert len(coco(run)["images"]) == 5


def test_what_repeats_a_training_image_is_put_away_and_comes_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", keep_empty=True, reference=None, reference_hash=None)
    learned = tmp_path / "learned"
    learned.mkdir()
    for number, name in enumerate(("2", "5")):
        rough = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(rough).resize((32, 24), Image.Resampling.BICUBIC)
        for place in (run / IMAGES / image_name(int(name), "jpg"), learned / f"{name}.png"):
            picture.save(place)
    summary = finalize(FinalizeSettings(run, training=learned))
    assert (summary.images, summary.dropped[REPEATS_TRAINING]) == (5, 2)
    assert images(run, SPARE) == [2, 5]
    assert finalize(FinalizeSettings(run)).images == 7
    assert finalize(FinalizeSettings(run, training=learned, near_duplicates=0.0)).dropped == {REPEATS_TRAINING: 2}
    (learned / "broken.png").write_bytes(b"no image")
    with refused(DatasetError, None, "broken.png"):
        finalize(FinalizeSettings(run, training=learned))
    (tmp_path / "bare").mkdir()
    with refused(UsageError, "training", tmp_path / "bare"):
        finalize(FinalizeSettings(run, training=tmp_path / "bare"))


def test_a_count_takes_the_lowest_indices_of_what_scores_enough(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", count=2)
    summary = finalize(FinalizeSettings(run))
    assert images(run) == [0, 1]
    assert summary.dropped == {"no box scores 0.3": 2, "beyond the count": 3}
    finalize(FinalizeSettings(run, score=0.5))
    assert images(run) == [0, 3]


def test_a_missing_image_is_named_and_nothing_is_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(FinalizeSettings(run))
    before = (run / ANNOTATIONS).read_bytes()
    (run / IMAGES / "00000003.jpg").unlink()
    with refused(RunError, None, "00000003.jpg"):
        finalize(FinalizeSettings(run))
    assert (run / ANNOTATIONS).read_bytes() == before


def test_an_interrupted_run_can_be_finalized_up_to_its_last_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = (run / JOURNAL).read_bytes().splitlines(keepends=True)
    (run / JOURNAL).write_bytes(b"".join(lines[:4]) + lines[4][:50])
    (run / ".labels.tmp").mkdir()
    (run / ".annotations.json.spool").touch()
    assert finalize(FinalizeSettings(run)).images == 3
    assert images(run) == [0, 1, 3]
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == [".dengine"]
    assert sorted(name for name in tree(run) if name.startswith(".")) == [LOCK, PREVIEW]


def agrees(folder: Path) -> bool:
    """Whether COCO, YOLO, imagefolder and the images folder name the same images."""
    listed = {Path(image["file_name"]).stem for image in coco(folder)["images"]}
    lines = (folder / IMAGES / "metadata.jsonl").read_text("utf-8").splitlines()
    others = [
        {path.stem for path in (folder / "labels").glob("*.txt")},
        {Path(json.loads(line)["file_name"]).stem for line in lines},
        {f"{index:08d}" for index in images(folder)},
    ]
    return (folder / "data.yaml").exists() and all(other == listed for other in others)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_dataset_that_agrees_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    formats = ("yolo", "imagefolder")
    finalize(FinalizeSettings(run, formats=formats))
    moments: list[Path] = []

    def before(name: str) -> None:
        real = getattr(os, name)

        def told(*arguments: Any, **options: Any) -> Any:
            moments.append(tmp_path / f"killed-{len(moments)}")
            shutil.copytree(run, moments[-1])
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, told)

    with monkeypatch.context():
        for name in ("rename", "replace", "unlink", "fsync", "rmdir"):
            before(name)
        finalize(FinalizeSettings(run, score=0.5, formats=formats))
    monkeypatch.undo()
    monkeypatch.setattr(preview_module, "_CELL", 16)
    new = tree(run)
    states = {"old": 0, "none": 0, "new": 0}
    for folder in moments:
        if not (folder / ANNOTATIONS).exists():
            states["none"] += 1
        else:
            assert agrees(folder)
            states["old" if len(coco(folder)["images"]) == 5 else "new"] += 1
        finalize(FinalizeSettings(folder, score=0.5, formats=formats))
        assert tree(folder) == new
    assert min(states.values()) > 0


def test_a_full_disk_leaves_the_old_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    finalize(FinalizeSettings(run))
    before = tree(run)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("engines.runs.dataset_files.writing_yolo", full)
        with refused(RunError, None, run):
            finalize(FinalizeSettings(run, score=0.5, formats=("yolo",)))
    assert tree(run) == before


def test_each_class_may_have_its_own_threshold(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")  # even images show class a, odd ones class b
    summary = finalize(FinalizeSettings(run, score={"a": 0.7}))
    assert images(run) == [0, 1, 3, 6]
    assert summary.dropped == {"no box scores what its class needs": 3}
    assert coco(run)["info"]["score"] == {"a": 0.7, "b": 0.3}
    with refused(UsageError, "score", "a=0.7,b=0.2", 0.3):
        finalize(FinalizeSettings(run, score={"a": 0.7, "b": 0.2}))
    with refused(UsageError, "score", "a, b"):
        finalize(FinalizeSettings(run, score={"c": 0.7}))
    nothing: tuple[ScoreLike, ...] = ({}, "adapter")
    for score in nothing:
        with refused(UsageError, "score", "`score=adapter`"):
            finalize(FinalizeSettings(run, score=score))


def test_weak_boxes_make_regions_to_ignore(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", keep_empty=True)
    before = finalize(FinalizeSettings(run, score=0.5))
    summary = finalize(FinalizeSettings(run, score=0.5, ignore_score=0.1, formats=("yolo", "imagefolder")))
    assert (summary.boxes, summary.ignored, before.ignored) == (3, 3, 0)
    found = coco(run)["annotations"]
    assert [(a["image_id"] - 1, a["iscrowd"]) for a in found] == [(0, 0), (1, 1), (2, 1), (3, 0), (4, 1), (6, 0)]
    assert all((a["score"] < 0.5) == bool(a["iscrowd"]) for a in found)
    assert (run / "labels" / "00000001.txt").read_text("utf-8") == "", "YOLO cannot say so"
    line = (run / IMAGES / "metadata.jsonl").read_text("utf-8").splitlines()[1]
    assert json.loads(line)["objects"]["iscrowd"] == [1]
    with refused(UsageError, "ignore_score", "`score`"):
        finalize(FinalizeSettings(run, score=0.5, ignore_score=0.5))


def test_the_command_line_takes_every_rule(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", keep_empty=True)
    rules = ["--score", "a=0.5,b=0.4", "--ignore-score", "0.2", "--min-quality", "0.5", "--near-duplicates", "keep"]
    result = CliRunner().invoke(program.app, ["finalize", str(run), *rules, "--drop-empty"])
    assert result.exit_code == 0, result.output
    assert "3 images with 3 boxes" in result.output
    assert "not in the dataset: doubtful labels: quality below 0.5" in result.output


def test_doubled_labels_go_and_come_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", score=0.05)
    before = finalize(FinalizeSettings(run))
    fewer = finalize(
        FinalizeSettings(run, max_overlap=0.005)
    )  # the two boxes of an image overlap by 0.009; in four they share a class
    assert (fewer.images, fewer.boxes) == (before.images, before.boxes - 4)
    assert finalize(FinalizeSettings(run)).boxes == before.boxes
    with refused(UsageError, "max_overlap", 1.5):
        finalize(FinalizeSettings(run, max_overlap=1.5))


def test_images_with_only_ignored_boxes_are_empty(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", uncertain=0.2)
    assert finalize(FinalizeSettings(run, score=0.5)).images == 3


def test_doubtful_images_go_and_stricter_is_all_that_can_be_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", min_quality=0.4)
    summary = finalize(FinalizeSettings(run, min_quality=0.6))  # quality is about the best box's score
    assert images(run) == [0, 6]
    assert summary.dropped == {"no box scores 0.3": 2, "doubtful labels: quality below 0.6": 3}
    with refused(UsageError, "min_quality", 0.3, 0.4):
        finalize(FinalizeSettings(run, min_quality=0.3))


def test_near_duplicates_go_before_the_count_is_cut(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", keep_empty=True, reference=None, reference_hash=None, count=3)
    rough = np.random.default_rng(0).integers(0, 255, (5, 24, 32, 3), dtype=np.uint8)
    for index, look in enumerate((0, 1, 0, 1, 2, 3, 4)):
        Image.fromarray(rough[look]).save(run / IMAGES / image_name(index, "jpg"))
    assert finalize(FinalizeSettings(run)).images == 3
    summary = finalize(FinalizeSettings(run, near_duplicates=0.95))
    assert images(run) == [0, 1, 4]
    assert summary.dropped == {"nearly repeats an earlier image": 2, "beyond the count": 2}
    finalize(FinalizeSettings(run))
    assert images(run) == [0, 1, 2]
    with refused(UsageError, "near_duplicates", 1.5):
        finalize(FinalizeSettings(run, near_duplicates=1.5))


def test_a_run_of_before_these_rules_reads_as_if_they_were_off(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(FinalizeSettings(run))
    before = tree(run)
    stored = json.loads((run / "run.json").read_text("utf-8"))
    for name in (
        "uncertain",
        "min_quality",
        "max_overlap",
        "near_duplicates",
        "balance",
        "reference_split",
        "short_side",
    ):
        del stored[name]
    (run / "run.json").write_text(json.dumps(stored), "utf-8")
    finalize(FinalizeSettings(run))
    assert {name: data for name, data in tree(run).items() if name != "run.json"} == {
        name: data for name, data in before.items() if name != "run.json"
    }
    (run / "run.json").write_text(json.dumps(stored | {"score": {"a": 0.3}}), "utf-8")
    with refused(RunError, "score", "run.json"):
        finalize(FinalizeSettings(run))


@pytest.mark.parametrize(
    ("field", "value"), [("score", 0.01), ("score", 1.5), ("formats", ("voc",)), ("near_duplicates", -0.1)]
)
def test_options_out_of_range_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    with refused(UsageError, field):
        finalize(FinalizeSettings(make_run(tmp_path / "run"), **{field: value}))


def test_a_folder_that_is_no_run_or_is_in_use_is_refused(tmp_path: Path) -> None:
    with refused(RunError, "run", tmp_path / "nowhere"):
        finalize(FinalizeSettings(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with refused(RunError, "run", tmp_path / "file"):
        finalize(FinalizeSettings(tmp_path / "file"))
    with refused(RunError, "run", tmp_path):
        finalize(FinalizeSettings(tmp_path))
    run = make_run(tmp_path / "run")
    with locked(run), refused(RunError, "run", run):
        finalize(FinalizeSettings(run))


def test_a_run_without_any_image_in_the_dataset_has_no_preview(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(FinalizeSettings(run))
    summary = finalize(FinalizeSettings(run, score=0.95))
    assert (summary.images, summary.preview) == (0, None)
    assert not (run / PREVIEW).exists()
    assert coco(run)["images"] == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_journal(tmp_path: Path) -> None:
    formats = ("coco", "yolo", "imagefolder")
    peaks: list[int] = []
    for images_of_run in (50, 50, 500):  # the first imports what is imported once
        run = make_journal(tmp_path / str(len(peaks)), images_of_run, boxes=4, picture=FRAME)
        tracemalloc.start()
        summary = finalize(FinalizeSettings(run, score=0.35, formats=formats))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert 0 < summary.images <= images_of_run == summary.jobs
    assert peaks[2] < peaks[1] + 200_000
