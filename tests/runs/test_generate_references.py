"""`generate` from references: which are repainted, what repeats them, and what happens when they break or change."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeBackend, FakeCall
from painting import Generate, check_consistent, make_paint, make_references, paint_into
from PIL import Image
from refusals import refused

from engines.errors import DatasetError, RunError
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import IMAGES, JOURNAL, read_entries
from engines.runs.near_duplicates import REPEATS_IMAGE, REPEATS_REFERENCE
from engines.runs.run_folder import RUN


@pytest.fixture
def paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    return make_paint(tmp_path, monkeypatch)


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
    folder = paint_into(paint, tmp_path / "run", strength=(0.1, 0.1), near_duplicates=0.6, **options)
    dropped = [e.file for e in read_entries(folder / JOURNAL) if not (folder / IMAGES / str(e.file)).exists()]
    assert len(dropped) > 3
    summary = finalize(FinalizeSettings(folder, near_duplicates=0.0))
    assert summary.images == 6
    assert finalize(FinalizeSettings(folder)).dropped[REPEATS_REFERENCE] == len(dropped), (
        "finalize finds the references again"
    )


def make_textured(folder: Path) -> Path:
    """Three images of coarse coloured noise."""
    folder.mkdir()
    for i in range(3):
        rough = np.random.default_rng(i).integers(0, 255, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((72, 48), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def test_references_are_repainted_and_named(paint: Generate, tmp_path: Path) -> None:
    references = make_references(tmp_path / "data", 4)
    backend = FakeBackend()
    paint(tmp_path / "run", jobs=8, reference=references, strength=(0.3, 0.3), keep_empty=True, backend=backend)
    entries = list(read_entries(tmp_path / "run" / JOURNAL))
    assert {entry.reference for entry in entries} == {"0.png", "1.png", "2.png", "3.png"}
    assert {entry.strength for entry in entries} == {0.3}
    assert backend.calls["vae_encoder"] == 3  # 3 + 3 in the first chunk, 2 in the second
    assert backend.calls["unet"] == 3 * (4 + 1)  # four steps and a label pass for each
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
            with refused(DatasetError, None, "1.png", "`skip_bad=True`"):
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
    with refused(RunError, "reference_hash"):
        paint(tmp_path / "run", jobs=6, reference=references)


def test_a_run_of_format_2_goes_on_as_it_was_begun(paint: Generate, tmp_path: Path) -> None:
    """A strength was a share of the steps, and of 25 of them where nobody said."""
    references = make_references(tmp_path / "data", 3)
    options: dict[str, Any] = {
        "reference": references,
        "strength": (0.2, 0.6),
        "keep_empty": True,
        "sampler": "ddim",
        "eta": 0.2,
    }
    options["guidance_interval"] = (0.0, 1.0)
    options["changes"] = {"generate_defaults": {}}
    begun = tmp_path / "begun"
    paint(begun, jobs=6, **options)
    value = json.loads((begun / RUN).read_text("utf-8"))
    assert (value["format"], value["steps"]) == (4, 15)
    (begun / RUN).write_text(json.dumps(value | {"format": 2, "steps": 25}), "utf-8")
    backend = FakeBackend()
    paint(begun, jobs=12, backend=backend, **options)
    again = json.loads((begun / RUN).read_text("utf-8"))
    assert (again["format"], again["steps"], again["jobs"]) == (2, 25, 12)
    strengths = [entry.strength or 0.0 for entry in read_entries(begun / JOURNAL)][6:]
    steps = sum(int(25 * strength) for strength in strengths)
    assert steps < 3 * (backend.calls["unet"] - 2) <= steps + 6  # three slots, one of which may be spare at the end
