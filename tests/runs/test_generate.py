"""`generate` as a whole, on a backend without networks: what is on disk whenever it stops, and that it repeats."""

import dataclasses
import itertools
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeBackend, FakeCall, make_bundle, tree
from painting import Generate, check_consistent, make_paint, make_references, paint_into
from PIL import Image
from refusals import refused

from engines.common.events import Event, EventKind
from engines.diffusion.base_model import BASE_NOTES
from engines.diffusion.base_notes import QUALITY
from engines.diffusion.latents import quantise
from engines.errors import RunError
from engines.labels.rules import quality
from engines.painting.settings import GenerateSettings
from engines.quality.verdicts import BaseQuality, judge_base
from engines.runs import journal as journal_module
from engines.runs import preview as preview_module
from engines.runs.dataset_files import ANNOTATIONS
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.generate import generate
from engines.runs.journal import IMAGES, JOURNAL, SPARE, read_entries
from engines.runs.run_folder import PREVIEW


@pytest.fixture
def paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    return make_paint(tmp_path, monkeypatch)


def test_a_count_gives_that_many_labelled_images(paint: Generate, tmp_path: Path) -> None:
    events: list[Event] = []
    summary = paint(
        tmp_path / "run", count=8, sampler="ddim", events=events
    )  # which leaves some of the fakes without a box
    dataset = summary.dataset
    assert dataset.images == 8
    assert dataset.boxes == sum(dataset.boxes_by_class.values()) >= 8
    assert dataset.jobs == summary.painted
    assert sum(dataset.dropped.values()) == dataset.jobs - 8
    assert any(reason.startswith("no box") for reason in dataset.dropped)
    assert not summary.interrupted
    assert summary.first_image_seconds is not None
    assert summary.images_per_second > 0
    check_consistent(tmp_path / "run")
    with Image.open(tmp_path / "run" / PREVIEW) as preview:
        assert preview.width > 400
    painted = [event for event in events if event.image is not None]
    assert len(painted) == summary.painted
    assert (painted[-1].done or 0) >= 8 == painted[-1].total
    kinds = {event.kind for event in events} - {EventKind.PROGRESS}  # of ticks, where they take long
    assert kinds == {EventKind.NOTE, EventKind.PLANNED, EventKind.STARTED, EventKind.IMAGE}
    assert all(str(event) for event in events)
    news = [event.image for event in events if event.image is not None]
    assert sum(one.kept for one in news) == 8 + dataset.dropped.get("beyond the count", 0)
    assert summary.ticks >= 4


def test_a_base_that_paints_other_shapes_is_named_where_it_paints_from_text(paint: Generate, tmp_path: Path) -> None:
    figures = {"images": 8, "held_back": True, "psnr": 31.0, "chroma_kept": 0.9, "detail_kept": 0.9, "painted": 4}
    quality = judge_base(BaseQuality(**figures, painted_chroma=1.0, painted_detail=1.0, apart=3.25))  # type: ignore[arg-type]
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / BASE_NOTES).write_text(json.dumps({QUALITY: dataclasses.asdict(quality)}))
    references = make_references(tmp_path / "references", 3)
    for number, (reference, said) in enumerate(((None, True), (references, False))):
        events: list[Event] = []
        paint(tmp_path / f"run{number}", count=1, events=events, reference=reference)
        assert any("3.2 times" in event.text for event in events) == said


def test_the_same_command_gives_the_same_bytes(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "a", count=7, formats=("coco", "yolo", "imagefolder"))
    paint(tmp_path / "b", count=7, formats=("coco", "yolo", "imagefolder"))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    paint(tmp_path / "c", count=7, seed=1)
    assert (tmp_path / "a" / JOURNAL).read_bytes() != (tmp_path / "c" / JOURNAL).read_bytes()


def test_a_finished_run_is_left_as_it_is_and_says_so(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "run", count=5)
    before = tree(tmp_path / "run")
    backend, events = FakeBackend(), list[Event]()
    summary = paint(tmp_path / "run", count=5, backend=backend, events=events)
    assert summary.painted == 0
    assert not backend.calls
    assert any(event.kind is EventKind.NOTE and "complete" in event.text for event in events)
    assert tree(tmp_path / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize("keep_empty", [False, True])
def test_a_kill_at_any_moment_and_a_resume_give_the_same_bytes(
    paint: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_empty: bool
) -> None:
    moments: list[Path] = []
    every = 3

    def snapshot(graph: str, call: FakeCall) -> None:  # what a kill would leave: the folder as it is at this moment
        if sum(backend.calls.values()) % every == 0:
            moments.append(tmp_path / f"killed-{len(moments)}")
            shutil.copytree(tmp_path / "whole", moments[-1], copy_function=_copy_if_there)

    monkeypatch.setattr(journal_module, "_BATCH", 2)
    backend = FakeBackend(after=snapshot)
    options: dict[str, Any] = {"count": 12, "keep_empty": keep_empty, "formats": ("coco", "yolo")}
    if keep_empty:  # and jobs of different lengths, which are not begun in the order of their numbers
        options |= {"reference": make_references(tmp_path / "data", 3), "strength": (0.2, 0.9), "steps": 10}
        options |= {"tta": 2}
    paint(tmp_path / "whole", backend=backend, **options)
    whole = tree(tmp_path / "whole")
    assert len(moments) > 8
    for folder in moments:
        summary = paint(folder, **options)
        assert tree(folder) == whole
        assert summary.painted <= summary.dataset.jobs


def _copy_if_there(source: str, target: str) -> None:
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:  # a temporary file that was renamed meanwhile
        return


@pytest.mark.parametrize(("options", "ahead"), [({"jobs": 12}, True), ({"count": 5}, False)])
def test_the_next_chunk_begins_while_the_last_images_of_one_are_finished_where_it_is_sure(
    paint: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], ahead: bool
) -> None:
    """A count of 5 may be reached by the 6 jobs of the first chunk: the second one waits for its labels."""
    counted = FakeBackend()
    paint(tmp_path / "plain", backend=counted, keep_empty=True, **options)
    in_a_chunk = counted.calls["unet"] // (2 if ahead else 1)
    next_one, batches = threading.Event(), itertools.count(1)

    def note(graph: str, call: FakeCall) -> None:
        if backend.calls["unet"] > in_a_chunk:
            next_one.set()

    def slow(pixels: torch.Tensor) -> torch.Tensor:
        if next(batches) == 2:  # the last of the first chunk
            assert next_one.wait(20 if ahead else 0.2) is ahead
        return quantise(pixels)

    monkeypatch.setattr("engines.painting.finisher.quantise", slow)
    backend = FakeBackend(after=note)
    paint(tmp_path / "run", backend=backend, keep_empty=True, **options)
    assert backend.calls == counted.calls
    assert tree(tmp_path / "run") == tree(tmp_path / "plain")


def test_a_resume_paints_no_whole_chunk_again(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "run", jobs=12)
    with (tmp_path / "run" / JOURNAL).open("rb+") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 1)
    assert paint(tmp_path / "run", jobs=12).painted == 6


def test_ctrl_c_finishes_the_slots_and_leaves_a_valid_dataset(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "whole", jobs=18, keep_empty=True)
    painted: list[Event] = []

    def stop() -> bool:
        return sum(event.image is not None for event in painted) >= 7

    summary = paint(tmp_path / "run", jobs=18, keep_empty=True, events=painted, stop=stop)
    assert summary.interrupted
    assert 7 <= summary.dataset.images < 18
    assert summary.dataset.images == summary.painted
    check_consistent(tmp_path / "run")
    again = paint(tmp_path / "run", jobs=18, keep_empty=True)
    assert not again.interrupted
    assert again.painted == 18 - summary.dataset.images // 6 * 6
    assert tree(tmp_path / "run") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_loses_no_finished_image_though_short_jobs_come_last(paint: Generate, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "jobs": 24, "chunk": 24, "steps": 10, "strength": (0.2, 0.9), "keep_empty": True, "sampler": "ddim",
        "guidance_interval": (0.0, 1.0),
        "reference": make_references(tmp_path / "data", 3),
    }  # fmt: skip
    for name in ("whole", "run"):  # begun by a dengine whose steps followed the strength: jobs are of different lengths
        paint(tmp_path / name, stop=lambda: True, **options)
        begun = json.loads((tmp_path / name / "run.json").read_text("utf-8"))
        (tmp_path / name / "run.json").write_text(json.dumps(begun | {"format": 2}), "utf-8")
    paint(tmp_path / "whole", **options)
    painted: list[Event] = []

    def stop() -> bool:
        return sum(event.image is not None for event in painted) >= 6

    summary = paint(tmp_path / "run", events=painted, stop=stop, **options)
    indices = [entry.index for entry in read_entries(tmp_path / "run" / JOURNAL)]
    assert summary.interrupted
    assert 6 <= summary.painted == summary.dataset.images == len(indices) < 24
    assert indices == sorted(indices) != list(range(len(indices))), "there are gaps, or the test shows nothing"
    check_consistent(tmp_path / "run")
    assert finalize(FinalizeSettings(tmp_path / "run")).images == summary.painted
    assert paint(tmp_path / "run", **options).painted == 24
    assert tree(tmp_path / "run") == tree(tmp_path / "whole")


def test_a_stop_before_the_first_image_leaves_an_empty_dataset_that_goes_on(paint: Generate, tmp_path: Path) -> None:
    summary = paint(tmp_path / "run", count=3, stop=lambda: True)
    assert summary.interrupted
    assert summary.dataset.images == 0
    assert summary.dataset.preview is None
    assert paint(tmp_path / "run", count=3).dataset.images == 3


def test_slots_and_rows_change_no_label_and_no_image(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "a", jobs=12, slots=1)
    paint(tmp_path / "b", jobs=12, slots=5, rows=4)
    one, other = tree(tmp_path / "a"), tree(tmp_path / "b")
    del one["run.json"], other["run.json"]
    assert one == other


def test_a_run_ends_after_the_first_whole_chunk_that_reaches_the_count(paint: Generate, tmp_path: Path) -> None:
    summary = paint(tmp_path / "run", count=5)
    entries = list(read_entries(tmp_path / "run" / JOURNAL))
    assert len(entries) % 6 == 0
    kept = [entry for entry in entries if entry.drop is None]
    assert len(kept) >= 5 > sum(entry.drop is None for entry in entries[:-6])
    names = sorted(path.name for path in (tmp_path / "run" / IMAGES).iterdir())
    assert names == [entry.file for entry in kept[:5]]
    spare = [path.name for path in (tmp_path / "run" / SPARE).glob("*")]
    assert sorted(spare) == [entry.file for entry in kept[5:]]
    assert summary.dataset.dropped.get("beyond the count", 0) == len(spare)


def test_a_larger_count_goes_on_and_equals_the_run_that_began_with_it(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "whole", count=15)
    paint(tmp_path / "run", count=4)
    summary = paint(tmp_path / "run", count=15)
    assert 0 < summary.painted < summary.dataset.jobs
    assert tree(tmp_path / "run") == tree(tmp_path / "whole")


def test_more_jobs_redo_the_last_short_chunk(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "whole", jobs=17)
    paint(tmp_path / "run", jobs=8)
    assert paint(tmp_path / "run", jobs=17).painted == 11
    assert tree(tmp_path / "run") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_what_was_left_to_dengine_stays_at_a_resume(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "run", count=9, chunk=None, slots=None)
    before = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    paint(tmp_path / "run", count=90, chunk=None, slots=None)
    after = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert after == before | {"count": 90}


def test_the_adapters_own_thresholds_hold_unless_told_otherwise(paint: Generate, tmp_path: Path) -> None:
    info = make_bundle(tmp_path).adapter_info
    info.thresholds.update({"rbc": 0.6, "wbc": 0.2})
    changes = {"adapter_info": info}
    asked: dict[str, dict[str, Any]] = {"own": {}, "one": {"score": 0.4}, "some": {"score": {"RBC": 0.9}}}
    found = {}
    for name, options in asked.items():
        folder = paint_into(paint, tmp_path / name, jobs=12, keep_empty=True, changes=changes, **options)
        found[name] = json.loads((folder / "run.json").read_text("utf-8"))["score"]
        coco = json.loads((folder / ANNOTATIONS).read_text("utf-8"))
        lowest = found[name] if isinstance(found[name], dict) else dict.fromkeys(("rbc", "wbc", "platelets"), 0.4)
        names = {category["id"]: category["name"] for category in coco["categories"]}
        assert coco["annotations"]
        assert all(a["score"] >= lowest[names[a["category_id"]]] for a in coco["annotations"])
        assert coco["info"]["score"] == found[name]
    assert found == {
        "own": {"rbc": 0.6, "wbc": 0.2, "platelets": 0.3},
        "one": 0.4,
        "some": {"rbc": 0.9, "wbc": 0.2, "platelets": 0.3},
    }
    with refused(RunError, "score", "rbc=0.6,wbc=0.2,platelets=0.3"):
        paint(tmp_path / "own", jobs=12, keep_empty=True, changes=changes, score=0.3)


def test_doubtful_images_do_not_count_and_are_not_written(paint: Generate, tmp_path: Path) -> None:
    summary = paint(tmp_path / "run", count=6, min_quality=0.75)
    entries = list(read_entries(tmp_path / "run" / JOURNAL))
    assert summary.dataset.images == 6
    assert summary.dataset.dropped["doubtful labels: quality below 0.75"] > 0
    assert min(quality(entry.instances) for entry in entries if entry.drop is None) >= 0.75
    check_consistent(tmp_path / "run")
    paint(tmp_path / "all", jobs=len(entries), keep_empty=True)
    finalize(FinalizeSettings(tmp_path / "all", min_quality=0.75, keep_empty=False))
    kept = {entry.file for entry in entries if entry.file}
    assert {path.name for path in (tmp_path / "all" / IMAGES).glob("*.jpg")} == kept, "finalize decides the same"


def test_rows_follow_from_how_many_steps_are_guided(paint: Generate, tmp_path: Path) -> None:
    variants: dict[str, dict[str, Any]] = {
        "all": {"guidance": 3.0},
        "none": {"guidance": 1.0},
        "half": {"guidance": 3.0, "guidance_interval": (0.0, 0.5), "steps": 10},
    }
    rows = {}
    for name, options in variants.items():
        paint(tmp_path / name, jobs=4, slots=4, **options)
        rows[name] = json.loads((tmp_path / name / "run.json").read_text("utf-8"))["rows"]
    assert rows == {"all": 8, "none": 4, "half": 6}


def test_networks_are_prepared_once_at_fixed_shapes(paint: Generate, tmp_path: Path) -> None:
    backend = FakeBackend()
    paint(tmp_path / "run", jobs=13, backend=backend, slots=3, size=(64, 32))
    assert sorted((graph, next(iter(shapes.values()))) for graph, shapes in backend.prepared) == [
        ("adapter", (3, 4, 8, 16)),
        ("text_encoder", (1, 8)),
        ("unet", (3, 4, 8, 16)),
        ("unet", (6, 4, 8, 16)),
        ("vae_decoder", (3, 4, 8, 16)),
    ]


def test_settings_of_the_bundle_take_effect_where_none_are_given(paint: Generate, tmp_path: Path) -> None:
    changes = {"generate_defaults": {"steps": 3, "score": 0.5, "strength": [0.5, 0.5]}}
    paint(tmp_path / "run", count=2, changes=changes, score=0.2)
    stored = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert (stored["steps"], stored["score"], stored["guidance"]) == (3, 0.2, 4.0)


def test_images_are_journalled_with_their_own_hash(paint: Generate, tmp_path: Path) -> None:
    import hashlib

    paint(tmp_path / "run", jobs=6, keep_empty=True, image_format="png")
    for entry in read_entries(tmp_path / "run" / JOURNAL):
        data = (tmp_path / "run" / IMAGES / str(entry.file)).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry.sha256


def test_the_summary_counts_what_this_start_painted(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "run", jobs=6)
    summary = paint(tmp_path / "run", jobs=12)
    assert (summary.painted, summary.dataset.jobs) == (6, 12)
    assert dataclasses.is_dataclass(summary)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_a_real_bundle_paints_labels_and_repeats(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr(preview_module, "_CELL", 16)
    references = make_references(tmp_path / "data", 3)
    for name in ("a", "b"):
        settings = GenerateSettings(
            out=tmp_path / name, bundle=toy_bundle, jobs=5, chunk=3, slots=2, steps=3, reference=references,
            size=(64, 48), keep_empty=True, engine=engine, precision="f32", threads=1, image_format="png",
        )  # fmt: skip
        summary = generate(settings)
    assert (summary.dataset.images, summary.painted) == (5, 5)
    check_consistent(tmp_path / "a")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
