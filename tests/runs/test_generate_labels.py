"""`generate` with labels by construction: whose they are, composed images, and what is painted at strength 0."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeBackend, tree
from made_objects import USUAL, Disc, make_objects
from painting import Generate, check_consistent, make_paint, make_references
from PIL import Image
from refusals import refused

from engines.common.events import Event
from engines.errors import DatasetError, RunError, UsageError
from engines.painting.settings import GenerateSettings
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import IMAGES, JOURNAL, Entry, read_entries
from engines.runs.merge import MergeSettings, merge


@pytest.fixture
def paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    return make_paint(tmp_path, monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_objects(tmp_path / "data")


def annotations(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "annotations.json").read_text("utf-8"))["annotations"]
    return found


def test_the_references_own_boxes_are_the_labels(paint: Generate, tmp_path: Path, data: Path) -> None:
    paint(tmp_path / "run", jobs=12, reference=data, labels="reference", strength=(0.1, 0.1))
    check_consistent(tmp_path / "run")
    given = 0
    for entry in read_entries(tmp_path / "run" / JOURNAL):
        assert entry.known is not None
        given += len(entry.known)
    assert len(annotations(tmp_path / "run")) == given


def test_the_journal_holds_both_so_that_finalize_may_choose(paint: Generate, tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    options: dict[str, Any] = {"jobs": 12, "reference": data, "strength": (0.1, 0.1), "keep_empty": True}
    paint(run, labels="both", **options)
    both = annotations(run)
    for labels in ("adapter", "reference"):
        paint(tmp_path / labels, labels=labels, **options)
        finalize(FinalizeSettings(run, labels=labels))
        assert annotations(run) == annotations(tmp_path / labels)
    finalize(FinalizeSettings(run))
    assert annotations(run) == both
    with refused(UsageError, "labels"):
        finalize(FinalizeSettings(tmp_path / "adapter", labels="both"))


def test_at_strength_0_no_network_paints_and_without_an_adapter_none_runs(
    paint: Generate, tmp_path: Path, data: Path
) -> None:
    backend = FakeBackend()
    options: dict[str, Any] = {"jobs": 7, "reference": data, "strength": (0.0, 0.0), "image_format": "png"}
    paint(tmp_path / "copied", labels="reference", flip=False, backend=backend, **options)
    assert not backend.calls
    source = {name: np.asarray(Image.open(data / "images" / name)) for name in ("0.png", "1.png", "2.png")}
    for entry in read_entries(tmp_path / "copied" / JOURNAL):
        pixels = np.asarray(Image.open(tmp_path / "copied" / IMAGES / str(entry.file)))
        assert abs(pixels.mean() - source[str(entry.reference)].mean()) < 12
        assert entry.strength == 0.0
        assert len(entry.instances) == 0
    with refused(UsageError, "labels"):
        finalize(FinalizeSettings(tmp_path / "copied", labels="adapter"))
    paint(tmp_path / "read", labels="both", backend=backend, keep_empty=True, **options)
    assert set(backend.calls) == {"vae_encoder", "text_encoder", "unet", "adapter"}
    assert backend.calls["unet"] == 3  # a label pass of three images at a time
    check_consistent(tmp_path / "read")


def test_composed_objects_are_labels_and_can_be_traced(paint: Generate, tmp_path: Path, data: Path) -> None:
    events: list[Event] = []
    options: dict[str, Any] = {"jobs": 12, "reference": data, "strength": (0.0, 0.0), "labels": "reference"}
    paint(tmp_path / "run", compose=True, events=events, **options)
    paint(tmp_path / "plain", **options)
    pasted = 0
    for entry, other in zip(*(read_entries(tmp_path / name / JOURNAL) for name in ("run", "plain")), strict=True):
        assert entry.given is not None
        assert other.given is not None
        assert (entry.reference, entry.given.instances.boxes[: len(other.given.instances)].tolist()) == (
            other.reference,
            other.given.instances.boxes.tolist(),
        )
        assert len(entry.given.instances) == len(other.given.instances) + len(entry.given.pasted)
        for place, origin in entry.given.origins:
            label = int(entry.given.instances.labels[place])
            discs = {disc[2] for disc in _discs(origin.reference)}
            assert label in discs
        pasted += len(entry.given.pasted)
        assert Entry.from_line(entry.to_line()).given is not None
        assert Entry.from_line(entry.to_line()).to_line() == entry.to_line()
    assert pasted > 5


def test_only_what_was_pasted_is_painted_where_that_is_asked_for(paint: Generate, tmp_path: Path, data: Path) -> None:
    options: dict[str, Any] = {"jobs": 6, "reference": data, "compose": True, "image_format": "png", "keep_empty": True}
    paint(tmp_path / "pasted", strength=(0.0, 0.0), labels="reference", **options)
    paint(tmp_path / "all", strength=(0.9, 0.9), labels="reference", **options)
    paint(tmp_path / "some", strength=(0.9, 0.9), labels="reference", repaint="pasted", **options)
    objects = 0
    for entry in read_entries(tmp_path / "some" / JOURNAL):
        before, whole, some = (
            np.asarray(Image.open(tmp_path / name / IMAGES / str(entry.file)), dtype=np.float64)
            for name in ("pasted", "all", "some")
        )
        assert entry.given is not None
        away = np.ones(before.shape[:2], dtype=np.bool_)
        for place, _ in entry.given.origins:
            x0, y0, x1, y1 = entry.given.instances.boxes[place].round().astype(int).tolist()
            away[max(y0 - 12, 0) : y1 + 12, max(x0 - 12, 0) : x1 + 12] = False
            middle = slice((y0 + y1) // 2 - 1, (y0 + y1) // 2 + 1), slice((x0 + x1) // 2 - 1, (x0 + x1) // 2 + 1)
            assert np.ptp(some[middle] - whole[middle], axis=(0, 1)).max() <= 4  # the same but for a cast of colour
            objects += 1
        assert (some[away] == before[away]).all()
        assert away.all() or (some != before).any()
    assert objects
    with refused(UsageError, "repaint"):
        paint(tmp_path / "new", jobs=1, reference=data, repaint="pasted")


def _discs(name: str) -> Sequence[Disc]:
    return USUAL[int(name.partition(".")[0])]


@pytest.mark.slow
@pytest.mark.parametrize("strength", [(0.0, 0.0), (0.3, 0.3)])
def test_a_composed_run_is_the_same_in_parts_and_after_a_stop(
    paint: Generate, tmp_path: Path, data: Path, strength: tuple[float, float]
) -> None:
    options: dict[str, Any] = {"jobs": 12, "reference": data, "compose": True, "strength": strength, "keep_empty": True}
    paint(tmp_path / "whole", **options)
    for number in (1, 2):
        paint(tmp_path / f"shard{number}", shard=(number, 2), **options)
    merge(MergeSettings([tmp_path / "shard1", tmp_path / "shard2"], tmp_path / "merged"))
    asked = iter([False] * 5 + [True] * 1000)
    first = paint(tmp_path / "stopped", stop=lambda: next(asked), **options)
    assert first.interrupted
    paint(tmp_path / "stopped", **options)
    whole = tree(tmp_path / "whole")
    for other in ("merged", "stopped"):
        found = tree(tmp_path / other)
        assert {name: data for name, data in found.items() if "lock" not in name} == {
            name: data for name, data in whole.items() if "lock" not in name
        }


def test_what_cannot_be_had_is_said_at_once(paint: Generate, tmp_path: Path, data: Path) -> None:
    bare = make_references(tmp_path / "bare", 2)
    asked: dict[str, Any]
    for asked in ({"labels": "reference"}, {"compose": True}):
        with refused(DatasetError, next(iter(asked))):
            paint(tmp_path / "run", jobs=2, reference=bare, **asked)
        with refused(UsageError, next(iter(asked))):
            GenerateSettings(out=tmp_path / "run", count=2, **asked)
    others = make_objects(tmp_path / "others", names=("rbc", "wbc", "dust"))
    with refused(DatasetError, "labels", "dust"):
        paint(tmp_path / "run", jobs=2, reference=others, compose=True)
    edges = make_objects(tmp_path / "edges", [((3, 8, 0),)])
    with refused(DatasetError, "compose"):
        paint(tmp_path / "run", jobs=2, reference=edges, compose=True)
    assert not (tmp_path / "run").exists()
    wrong: dict[str, Any]
    for wrong in ({"strength": (0.0, 0.5)}, {"rotate": True}, {"labels": "mine"}):
        with refused(UsageError, next(iter(wrong))):
            GenerateSettings(out=tmp_path / "run", count=2, reference=data, **wrong)


def test_composed_images_keep_the_detail_of_their_references_and_runs_of_before_do_not(
    paint: Generate, tmp_path: Path, data: Path
) -> None:
    options: dict[str, Any] = {"reference": data, "compose": True, "labels": "reference", "image_format": "png"}
    run, plain, pasted = (tmp_path / name for name in ("run", "plain", "pasted"))
    paint(run, jobs=4, strength=(0.1, 0.1), **options)
    paint(plain, jobs=4, strength=(0.1, 0.1), keep_detail=False, **options)
    paint(pasted, jobs=4, strength=(0.0, 0.0), **options)

    def off(folder: Path) -> float:
        """How far images lie from what was pasted together for them."""
        names = sorted(path.name for path in (pasted / IMAGES).iterdir())
        found = [
            [np.asarray(Image.open(one / IMAGES / name), dtype=float) for one in (folder, pasted)] for name in names
        ]
        return float(np.mean([np.abs(ours - theirs).mean() for ours, theirs in found]))

    assert off(run) < 0.9 * off(plain)
    stored = json.loads((run / "run.json").read_text("utf-8"))
    assert stored["keep_detail"] is True
    assert "keep_detail" not in json.loads((plain / "run.json").read_text("utf-8"))
    paint(plain, jobs=6, strength=(0.1, 0.1), **options)  # begun without, as in every run of before: it goes on so
    paint(tmp_path / "whole", jobs=6, strength=(0.1, 0.1), keep_detail=False, **options)
    assert tree(plain / IMAGES) == tree(tmp_path / "whole" / IMAGES)
    with refused(RunError, "keep_detail"):
        paint(run, jobs=4, strength=(0.1, 0.1), keep_detail=False, **options)
    with refused(UsageError, "keep_detail"):
        GenerateSettings(out=tmp_path, count=1, keep_detail=True)
