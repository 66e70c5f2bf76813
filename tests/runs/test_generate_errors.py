"""`generate` when something is wrong: settings, folders, the disk, numbers, and images that nothing keeps."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeBackend, FakeCall, tree
from painting import Generate, check_consistent, make_paint, make_references
from refusals import refused

from engines.common.events import Event
from engines.common.files import write_atomic
from engines.errors import NumericalError, RunError, UsageError
from engines.runs.journal import IMAGES, JOURNAL, read_entries
from engines.runs.run_folder import LOCK


@pytest.fixture
def paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    return make_paint(tmp_path, monkeypatch)


def test_other_settings_are_refused_and_shown(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "run", count=4)
    before = tree(tmp_path / "run")
    changes: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
        ({"seed": 1}, "seed", ("0", "1")),
        ({"steps": 3, "guidance": 1.0}, "steps", ("4", "3", "`guidance`", "2.0", "1.0")),
        ({"count": 2}, "count", ("4", "2")),
        ({"count": None, "jobs": 8}, "count", ("4", "`jobs`", "8")),
        ({"chunk": 7}, "chunk", ("6", "7")),
        ({"size": (40, 40)}, "size", ("48:32", "40:40")),
        ({"count": 40, "backend": FakeBackend(threads=2)}, "threads", ("1", "2")),
        ({"changes": {"timestep": 1}}, "bundle_hash", ()),
    ]
    for change, field, shown in changes:
        with refused(RunError, field, *shown):
            paint(tmp_path / "run", **{"count": 4} | change)
    assert tree(tmp_path / "run") == before


def test_many_jobs_without_a_kept_image_stop_the_run_and_keep_stopping_it(paint: Generate, tmp_path: Path) -> None:
    def blind(graph: str, call: FakeCall) -> None:
        if graph == "adapter":
            call.outputs["logits"] -= 20

    for painted in (36, 0):  # the first whole chunk from 32 on
        events: list[Event] = []
        with refused(RunError, None, 36, "no box scores 0.3", "`score`", "`keep_empty=True`"):
            paint(tmp_path / "run", count=4, backend=FakeBackend(after=blind), events=events)
        assert sum(event.image is not None for event in events) == painted
        check_consistent(tmp_path / "run")


def test_a_chunk_of_one_unkept_image_does_not_end_a_run(paint: Generate, tmp_path: Path) -> None:
    summary = paint(tmp_path / "run", count=8, chunk=1, sampler="ddim")
    assert (summary.dataset.images, summary.interrupted) == (8, False)
    assert summary.dataset.jobs > 8


def test_a_long_way_between_two_kept_images_is_counted_across_chunks_and_starts(
    paint: Generate, tmp_path: Path
) -> None:
    def blind(graph: str, call: FakeCall) -> None:
        if graph == "adapter" and backend.calls["adapter"] > 4:
            call.outputs["logits"] -= 20

    backend = FakeBackend(after=blind)
    with refused(RunError):
        paint(tmp_path / "whole", count=90, backend=backend)
    entries = list(read_entries(tmp_path / "whole" / JOURNAL))
    last = max(entry.index for entry in entries if entry.drop is None)
    assert 32 <= len(entries) - 1 - last < 32 + 6
    with (tmp_path / "whole" / JOURNAL).open("rb+") as file:  # a kill in the last chunk
        file.truncate(file.seek(0, os.SEEK_END) - 1)
    events: list[Event] = []
    with refused(RunError):
        paint(tmp_path / "whole", count=90, backend=backend, events=events)
    assert sum(event.image is not None for event in events) == 6


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
    with refused(NumericalError, "precision", graph):
        paint(tmp_path / "run", jobs=24, reference=references, backend=backend)
    lines = {entry.file for entry in read_entries(tmp_path / "run" / JOURNAL)} - {None}
    assert {path.name for path in (tmp_path / "run" / IMAGES).iterdir()} == lines


def test_a_black_picture_is_named_with_the_decoder(paint: Generate, tmp_path: Path) -> None:
    def spoil(graph: str, call: FakeCall) -> None:
        if graph == "vae_decoder":
            call.outputs["pixels"][0] = -1.0

    with refused(NumericalError, "precision", "vae_decoder"):
        paint(tmp_path / "run", jobs=6, backend=FakeBackend(after=spoil))
    assert list((tmp_path / "run" / IMAGES).iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_afterwards(
    paint: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def until_full(path: Path, data: bytes, partial: Path) -> None:
        written.append(path)
        if len(written) > 9:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomic(path, data, partial)

    with monkeypatch.context() as disk:
        disk.setattr("engines.runs.writer.write_atomic", until_full)
        with refused(RunError, None, tmp_path / "run"):
            paint(tmp_path / "run", jobs=18, keep_empty=True)
    paint(tmp_path / "run", jobs=18, keep_empty=True)
    paint(tmp_path / "whole", jobs=18, keep_empty=True)
    assert tree(tmp_path / "run") == tree(tmp_path / "whole")


def test_a_folder_in_use_is_refused(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "run", count=2)
    with (tmp_path / "run" / LOCK).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with refused(RunError, "out", tmp_path / "run"):
            paint(tmp_path / "run", count=20)
    assert paint(tmp_path / "run", count=20).dataset.images == 20


def test_folders_that_cannot_be_a_run_are_refused(paint: Generate, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with refused(RunError, "out", tmp_path / "file"):
        paint(tmp_path / "file", count=1)
    with refused(RunError, None, tmp_path / "file"):
        paint(tmp_path / "file" / "run", count=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("x")
    with refused(RunError, "out", tmp_path / "full"):
        paint(tmp_path / "full", count=1)


def test_a_refused_option_leaves_no_folder_behind(paint: Generate, tmp_path: Path) -> None:
    with refused(UsageError, "size", (50, 32), 8, (48, 32)):
        paint(tmp_path / "run", count=1, size=(50, 32))
    assert not (tmp_path / "run").exists()
