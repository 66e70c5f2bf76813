"""`generate` as a whole, on a backend without networks: what is on disk whenever it stops, and that it repeats."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeBackend, FakeCall, make_bundle, tree
from PIL import Image

from engines.errors import DatasetError, NumericalError, RunError, UsageError
from engines.files import write_atomic
from engines.generation import journal as journal_module
from engines.generation import preview as preview_module
from engines.generation.events import Event, Opened, Painted, RunSummary, Stage, Tick
from engines.generation.filters import quality
from engines.generation.finalize import ANNOTATIONS, PREVIEW, finalize
from engines.generation.journal import IMAGES, JOURNAL, SPARE, read_entries
from engines.generation.loop import generate
from engines.generation.repeats import REPEATS_IMAGE, REPEATS_REFERENCE
from engines.generation.settings import GenerateSettings

Generate = Callable[..., RunSummary]


@pytest.fixture
def paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    """`generate` on the fake backend: paint(out, backend=..., events=..., stop=..., option=...)."""

    def run(
        out: Path,
        *,
        backend: FakeBackend | None = None,
        events: list[Event] | None = None,
        stop: Callable[[], bool] = lambda: False,
        changes: dict[str, Any] | None = None,
        **options: Any,
    ) -> RunSummary:
        monkeypatch.setattr(preview_module, "_CELL", 16)  # a large contact sheet takes longer than the rest
        bundle = make_bundle(tmp_path / "bundle", **changes or {})
        monkeypatch.setattr("engines.bundle.open_bundle", lambda folder: bundle, raising=False)
        monkeypatch.setattr("engines.backends.open_backend", lambda *_, **__: backend or FakeBackend(), raising=False)
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


def test_a_count_gives_that_many_labelled_images(paint: Generate, tmp_path: Path) -> None:
    events: list[Event] = []
    summary = paint(tmp_path / "run", count=8, events=events)
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
    painted = [event for event in events if isinstance(event, Painted)]
    assert len(painted) == summary.painted
    assert painted[-1].done >= 8 == painted[-1].target
    assert {type(event) for event in events} == {Stage, Opened, Tick, Painted}


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
    assert any(isinstance(event, Stage) and "complete" in event.text for event in events)
    assert tree(tmp_path / "run") == before


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


def test_a_resume_paints_no_whole_chunk_again(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "run", jobs=12)
    with (tmp_path / "run" / JOURNAL).open("rb+") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 1)
    assert paint(tmp_path / "run", jobs=12).painted == 6


def test_ctrl_c_finishes_the_slots_and_leaves_a_valid_dataset(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "whole", jobs=18, keep_empty=True)
    painted: list[Event] = []

    def stop() -> bool:
        return sum(isinstance(event, Painted) for event in painted) >= 7

    summary = paint(tmp_path / "run", jobs=18, keep_empty=True, events=painted, stop=stop)
    assert summary.interrupted
    assert 7 <= summary.dataset.images < 18
    assert summary.dataset.images >= summary.painted - 3  # all but what a missing earlier index holds back
    check_consistent(tmp_path / "run")
    again = paint(tmp_path / "run", jobs=18, keep_empty=True)
    assert not again.interrupted
    assert again.painted == 12
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
    kept = [entry for entry in entries if entry.reason is None]
    assert len(kept) >= 5 > sum(entry.reason is None for entry in entries[:-6])
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


def test_other_settings_are_refused_and_shown(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "run", count=4)
    before = tree(tmp_path / "run")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"seed": 1}, "seed is 0 in the run, 1 was asked for"),
        ({"steps": 3, "guidance": 1.0}, "steps is 4 in the run, 3 was asked for; guidance is 2.0 in the run, 1.0"),
        ({"count": 2}, "count is 4 in the run, 2"),
        ({"count": None, "jobs": 8}, "jobs is not set in the run, 8"),
        ({"chunk": 7}, "chunk is 6 in the run, 7"),
        ({"size": (40, 40)}, "frame is 48:32 in the run, 40:40"),
        ({"backend": FakeBackend(threads=2)}, "threads is 1 in the run, 2"),
        ({"changes": {"timestep": 1}}, "bundle-hash"),
    ]
    for change, shown in refused:
        with pytest.raises(RunError, match="other settings") as error:
            paint(tmp_path / "run", **{"count": 4} | change)
        assert shown in str(error.value)
    assert tree(tmp_path / "run") == before


def test_what_was_left_to_dengine_stays_at_a_resume(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "run", count=9, chunk=None, slots=None)
    before = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    paint(tmp_path / "run", count=90, chunk=None, slots=None)
    after = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert after == before | {"count": 90}


def test_many_jobs_without_a_kept_image_stop_the_run_and_keep_stopping_it(paint: Generate, tmp_path: Path) -> None:
    def blind(graph: str, call: FakeCall) -> None:
        if graph == "adapter":
            call.outputs["logits"] -= 20

    for painted in (36, 0):  # the first whole chunk from 32 on
        events: list[Event] = []
        with pytest.raises(RunError, match=r"None of the last 36 images was kept.*no box scores 0\.3"):
            paint(tmp_path / "run", count=4, backend=FakeBackend(after=blind), events=events)
        assert sum(isinstance(event, Painted) for event in events) == painted
        check_consistent(tmp_path / "run")


def test_a_chunk_of_one_unkept_image_does_not_end_a_run(paint: Generate, tmp_path: Path) -> None:
    summary = paint(tmp_path / "run", count=8, chunk=1)
    assert (summary.dataset.images, summary.interrupted) == (8, False)
    assert summary.dataset.jobs > 8


def test_a_long_way_between_two_kept_images_is_counted_across_chunks_and_starts(
    paint: Generate, tmp_path: Path
) -> None:
    def blind(graph: str, call: FakeCall) -> None:
        if graph == "adapter" and backend.calls["adapter"] > 4:
            call.outputs["logits"] -= 20

    backend = FakeBackend(after=blind)
    with pytest.raises(RunError, match="None of the last"):
        paint(tmp_path / "whole", count=90, backend=backend)
    entries = list(read_entries(tmp_path / "whole" / JOURNAL))
    last = max(entry.index for entry in entries if entry.reason is None)
    assert 32 <= len(entries) - 1 - last < 32 + 6
    with (tmp_path / "whole" / JOURNAL).open("rb+") as file:  # a kill in the last chunk
        file.truncate(file.seek(0, os.SEEK_END) - 1)
    events: list[Event] = []
    with pytest.raises(RunError, match="None of the last"):
        paint(tmp_path / "whole", count=90, backend=backend, events=events)
    assert sum(isinstance(event, Painted) for event in events) == 6


def _run(paint: Generate, folder: Path, **options: Any) -> Path:
    paint(folder, **options)
    return folder


def test_the_adapters_own_thresholds_hold_unless_told_otherwise(paint: Generate, tmp_path: Path) -> None:
    info = make_bundle(tmp_path).adapter_info
    info.thresholds.update({"rbc": 0.6, "wbc": 0.2})
    changes = {"adapter_info": info}
    asked: dict[str, dict[str, Any]] = {"own": {}, "one": {"score": 0.4}, "some": {"score": {"RBC": 0.9}}}
    found = {}
    for name, options in asked.items():
        folder = _run(paint, tmp_path / name, jobs=12, keep_empty=True, changes=changes, **options)
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
    with pytest.raises(RunError, match=r"score is rbc=0\.6,wbc=0\.2,platelets=0\.3 in the run, 0\.3 was asked"):
        paint(tmp_path / "own", jobs=12, keep_empty=True, changes=changes, score=0.3)


def test_doubtful_images_do_not_count_and_are_not_written(paint: Generate, tmp_path: Path) -> None:
    summary = paint(tmp_path / "run", count=6, min_quality=0.75)
    entries = list(read_entries(tmp_path / "run" / JOURNAL))
    assert summary.dataset.images == 6
    assert summary.dataset.dropped["doubtful labels: quality below 0.75"] > 0
    assert min(quality(entry.boxes) for entry in entries if entry.reason is None) >= 0.75
    check_consistent(tmp_path / "run")
    paint(tmp_path / "all", jobs=len(entries), keep_empty=True)
    finalize(tmp_path / "all", min_quality=0.75, keep_empty=False)
    kept = {entry.file for entry in entries if entry.file}
    assert {path.name for path in (tmp_path / "all" / IMAGES).glob("*.jpg")} == kept, "finalize decides the same"


def test_near_duplicates_are_dropped_and_the_count_is_made_up_from_the_rest(paint: Generate, tmp_path: Path) -> None:
    def same(graph: str, call: FakeCall) -> None:
        if graph == "vae_decoder":
            call.outputs["pixels"][0] = torch.linspace(-1, 1, 48)

    options: dict[str, Any] = {"count": 6, "near_duplicates": 0.95, "keep_empty": True, "slots": 2}
    summary = paint(tmp_path / "run", backend=FakeBackend(after=same), **options | {"chunk": 12})
    assert summary.dataset.dropped[REPEATS_IMAGE] > 1
    assert summary.dataset.images == 6
    check_consistent(tmp_path / "run")


def test_a_low_strength_repeats_its_reference(paint: Generate, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "jobs": 6,
        "keep_empty": True,
        "steps": 10,
        "reference": make_textured(tmp_path / "data"),
    }
    folder = _run(paint, tmp_path / "run", strength=(0.1, 0.1), near_duplicates=0.6, **options)
    dropped = [e.file for e in read_entries(folder / JOURNAL) if not (folder / IMAGES / str(e.file)).exists()]
    assert len(dropped) > 3
    summary = finalize(folder, near_duplicates=0.0)
    assert summary.images == 6
    assert finalize(folder).dropped[REPEATS_REFERENCE] == len(dropped), "finalize finds the references again"


def make_textured(folder: Path) -> Path:
    """Three images of coarse coloured noise."""
    folder.mkdir()
    for i in range(3):
        rough = np.random.default_rng(i).integers(0, 255, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((72, 48), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def test_jobs_without_a_kept_image_are_an_empty_dataset(paint: Generate, tmp_path: Path) -> None:
    summary = paint(tmp_path / "run", jobs=12, score=1.0)
    assert (summary.dataset.images, summary.dataset.jobs) == (0, 12)
    assert list((tmp_path / "run" / IMAGES).iterdir()) == []


@pytest.mark.parametrize(
    ("graph", "output"),
    [
        ("text_encoder", "encoder_hidden_states"),
        ("vae_encoder", "latents"),
        ("unet", "model_output"),
        ("unet", "div1"),
        ("adapter", "logits"),
        ("adapter", "boxes"),
        ("vae_decoder", "pixels"),
    ],
)
def test_nan_is_named_with_its_graph_and_never_written(
    paint: Generate, tmp_path: Path, graph: str, output: str
) -> None:
    references = make_references(tmp_path / "data", 3)

    def spoil(name: str, call: FakeCall) -> None:
        if name == graph and backend.calls[name] >= (4 if graph != "text_encoder" else 2):
            call.outputs[output].view(-1)[0] = torch.nan

    backend = FakeBackend(after=spoil)
    with pytest.raises(NumericalError, match=graph):
        paint(tmp_path / "run", jobs=24, reference=references, backend=backend)
    lines = {entry.file for entry in read_entries(tmp_path / "run" / JOURNAL)} - {None}
    assert {path.name for path in (tmp_path / "run" / IMAGES).iterdir()} == lines


def test_a_black_picture_is_named_with_the_decoder(paint: Generate, tmp_path: Path) -> None:
    def spoil(graph: str, call: FakeCall) -> None:
        if graph == "vae_decoder":
            call.outputs["pixels"][0] = -1.0

    with pytest.raises(NumericalError, match=r"vae_decoder.*black"):
        paint(tmp_path / "run", jobs=6, backend=FakeBackend(after=spoil))
    assert list((tmp_path / "run" / IMAGES).iterdir()) == []


def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_afterwards(
    paint: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def until_full(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) > 9:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomic(path, data)

    with monkeypatch.context() as disk:
        disk.setattr("engines.generation.writer.write_atomic", until_full)
        with pytest.raises(RunError, match="No space left on the disk"):
            paint(tmp_path / "run", jobs=18, keep_empty=True)
    paint(tmp_path / "run", jobs=18, keep_empty=True)
    paint(tmp_path / "whole", jobs=18, keep_empty=True)
    assert tree(tmp_path / "run") == tree(tmp_path / "whole")


def test_a_folder_in_use_is_refused(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "run", count=2)
    with (tmp_path / "run" / ".lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use"):
            paint(tmp_path / "run", count=20)
    assert paint(tmp_path / "run", count=20).dataset.images == 20


def test_folders_that_cannot_be_a_run_are_refused(paint: Generate, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        paint(tmp_path / "file", count=1)
    with pytest.raises(RunError, match="file where a folder"):
        paint(tmp_path / "file" / "run", count=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("x")
    with pytest.raises(RunError, match="not empty"):
        paint(tmp_path / "full", count=1)


def test_a_refused_option_leaves_no_folder_behind(paint: Generate, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--size 50x32.*multiples of 8.*48x32"):
        paint(tmp_path / "run", count=1, size=(50, 32))
    assert not (tmp_path / "run").exists()


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


def test_a_strength_that_leaves_no_step_is_refused_at_the_start(paint: Generate, tmp_path: Path) -> None:
    references = make_references(tmp_path / "data", 2)
    with pytest.raises(UsageError, match="leaves no step"):
        paint(tmp_path / "run", count=1, reference=references, strength=(0.1, 0.9))
    assert not (tmp_path / "run").exists()


def test_every_prompt_is_encoded_once(paint: Generate, tmp_path: Path) -> None:
    backend = FakeBackend()
    paint(tmp_path / "run", jobs=40, backend=backend)
    prompts = {entry.prompt for entry in read_entries(tmp_path / "run" / JOURNAL)}
    assert backend.calls["text_encoder"] == len(prompts | {""})


def test_networks_are_prepared_once_at_fixed_shapes(paint: Generate, tmp_path: Path) -> None:
    backend = FakeBackend()
    paint(tmp_path / "run", jobs=13, backend=backend, slots=3, size=(64, 32))
    assert [(graph, next(iter(shapes.values()))) for graph, shapes in backend.prepared] == [
        ("text_encoder", (1, 8)),
        ("unet", (6, 4, 8, 16)),
        ("unet", (3, 4, 8, 16)),
        ("adapter", (3, 4, 8, 16)),
        ("vae_decoder", (3, 4, 8, 16)),
    ]


def make_references(folder: Path, count: int) -> Path:
    """A folder of images of several sizes, without labels."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.full((40 + 8 * i, 60, 3), 40 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_references_are_repainted_and_named(paint: Generate, tmp_path: Path) -> None:
    references = make_references(tmp_path / "data", 4)
    backend = FakeBackend()
    paint(tmp_path / "run", jobs=8, reference=references, strength=(0.3, 0.3), keep_empty=True, backend=backend)
    entries = list(read_entries(tmp_path / "run" / JOURNAL))
    assert {entry.reference for entry in entries} == {"0.png", "1.png", "2.png", "3.png"}
    assert {entry.strength for entry in entries} == {0.3}
    assert backend.calls["vae_encoder"] == 3  # 3 + 3 in the first chunk, 2 in the second
    assert backend.calls["unet"] < 20  # one of four steps
    means = {
        entry.reference: np.asarray(Image.open(tmp_path / "run" / IMAGES / str(entry.file))).mean() for entry in entries
    }
    assert means["0.png"] < means["1.png"] < means["2.png"] < means["3.png"]


def test_a_reference_that_breaks_during_the_run_stops_it_or_is_dropped_by_name(paint: Generate, tmp_path: Path) -> None:
    def break_it(graph: str, call: FakeCall) -> None:
        (references / "1.png").write_bytes(b"no picture")

    for skip_bad in (False, True):
        references = make_references(tmp_path / "data", 3)
        backend = FakeBackend(after=break_it)
        options: dict[str, Any] = {"jobs": 9, "reference": references, "keep_empty": True, "backend": backend}
        if not skip_bad:
            with pytest.raises(DatasetError, match=r"1\.png.*--skip-bad"):
                paint(tmp_path / "run", **options)
            continue
        summary = paint(tmp_path / "other", skip_bad=True, **options)
        assert summary.dataset.images == 6
        assert len(summary.dataset.dropped) == 1
        ((reason, number),) = summary.dataset.dropped.items()
        assert (reason.startswith("broken reference: 1.png is "), number) == (True, 3)
        assert str(tmp_path) not in (tmp_path / "other" / JOURNAL).read_text("utf-8")
        make_references(tmp_path / "data", 3)
        dropped = paint(tmp_path / "third", skip_bad=True, **options | {"keep_empty": False}).dataset.dropped
        assert dropped[reason] == 3, "a count of its own where empty images are dropped, too"
        check_consistent(tmp_path / "other")


def test_changed_references_are_refused(paint: Generate, tmp_path: Path) -> None:
    references = make_references(tmp_path / "data", 3)
    paint(tmp_path / "run", jobs=3, reference=references)
    make_references(references, 4)
    with pytest.raises(RunError, match="reference-hash"):
        paint(tmp_path / "run", jobs=6, reference=references)


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
