"""`audit`, from a dataset to its page, its list and its completed copy."""

import json
import re
from pathlib import Path
from typing import Any

import made_data
import numpy as np
import pytest
from fakes import CLASS_NAMES, FakeBackend, FakeCall, as_backend, make_bundle
from made_data import BOX, make_data
from refusals import refused

import engines.audit.audit
import engines.backends.registry
import engines.bundle.bundle
from engines.audit.audit import agreed, audit
from engines.audit.complete import write_completed
from engines.audit.page import write_page
from engines.audit.settings import AuditSettings, AuditSummary
from engines.common.events import Event
from engines.common.files import sha256_file
from engines.datasets.dataset import Dataset, open_dataset
from engines.datasets.writers import AnnotatedImage, write_coco
from engines.errors import DengineError, RunError, UsageError
from engines.labels.boxes import Instances
from engines.labels.findings import Finding, FindingKind, Judgement, Picture

FOUND = (0.6, 0.1, 0.9, 0.6)  # a place in the frame where the adapter finds class 1, too


@pytest.fixture
def looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle whose adapter finds a class 1 at FOUND of every frame, and nothing else."""
    bundle = make_bundle(tmp_path / "bundle")

    def point(graph: str, call: FakeCall) -> None:
        if graph == "adapter":
            x0, y0, x1, y1 = FOUND
            call.outputs["logits"][:] = -20.0
            call.outputs["logits"][:, 1, 1] = 2.0
            call.outputs["boxes"][:, 1] = call.outputs["boxes"].new_tensor(
                [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
            )

    monkeypatch.setattr(engines.bundle.bundle, "open_bundle", lambda folder: bundle)
    monkeypatch.setattr(
        engines.backends.registry, "open_backend", lambda *_, **__: as_backend(FakeBackend(after=point))
    )


def run(tmp_path: Path, **settings: Any) -> AuditSummary:
    return audit(AuditSettings(data=tmp_path / "data", out=tmp_path / "out", bundle=tmp_path / "bundle", **settings))


def tree(folder: Path) -> dict[str, str]:
    return {str(path): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("looking")
def test_what_is_found_is_written_and_the_dataset_is_left_alone(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    before = tree(tmp_path / "data")
    summary = run(tmp_path, complete="labels")
    assert (summary.images, summary.labels) == (5, 5)
    assert tree(tmp_path / "data") == before
    assert summary.counts["missing"] == {"rbc": 0, "wbc": 5, "platelets": 0}
    content = json.loads(summary.report.read_text("utf-8"))
    assert set(content) == {"format", "dataset", "classes", "images", "findings"}
    assert content["images"][0] == {"file": "0.png", "width": 64, "height": 48}
    first = content["findings"][0]
    assert set(first) == {"image", "kind", "confidence", "box", "label", "given", "given_box", "given_label"}
    assert (first["kind"], first["label"], first["given"]) == ("missing", 1, None)
    assert [one["confidence"] for one in content["findings"]] == sorted(
        (one["confidence"] for one in content["findings"]), reverse=True
    )


@pytest.mark.usefixtures("looking")
def test_the_completed_dataset_has_the_old_labels_and_the_missing_ones_marked(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    for complete in ("labels", "crowds"):
        summary = run(tmp_path, complete=complete)
        assert summary.completed is not None
        again = open_dataset(summary.completed)
        for before, after in zip(data.records, again.records, strict=True):
            assert np.array_equal(before.pixels(), after.pixels())
            assert after.instances.labels.tolist() == [0, 1]
            np.testing.assert_allclose(after.instances.boxes[0], before.instances.boxes[0], atol=1e-3)
            assert after.instances.crowd.tolist() == [False, complete == "crowds"]
        rows = json.loads((summary.completed / "annotations.json").read_text("utf-8"))["annotations"]
        assert [row.get("added") for row in rows] == [None, True] * 5
        assert all(0 < row["score"] <= 1 for row in rows[1::2])
        assert "score" not in rows[0]


@pytest.mark.usefixtures("looking")
def test_refined_boxes_lie_between_label_and_find_and_keep_their_own_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_data, "BOX", (0.65, 0.15, 0.9, 0.6))
    data = make_data(tmp_path / "data", label_of_boxes=1)
    plain, summary = (run(tmp_path, complete="labels", refine=refine) for refine in (False, True))
    assert (plain.moved, summary.moved) == (0, 5)
    assert summary.completed is not None
    rows = json.loads((summary.completed / "annotations.json").read_text("utf-8"))["annotations"]
    for row, before in zip(rows, data.records, strict=True):
        x, y, right, bottom = before.instances.boxes[0].tolist()
        np.testing.assert_allclose(row["given_bbox"], [x, y, right - x, bottom - y], atol=0.01)
        assert row["bbox"][1] == pytest.approx(0.125 * before.height, abs=0.5)  # finds begin at 0.1


@pytest.mark.usefixtures("looking")
def test_the_page_stands_alone_and_has_no_names_of_others_in_it(tmp_path: Path) -> None:
    make_data(tmp_path / "data", ("<b>rbc</b>", "wbc"))
    page = run(tmp_path, worst=3).page.read_text("utf-8")
    assert page.count("<figure>") == page.count("data:image/jpeg;base64,") == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "<b>rbc" not in page


@pytest.mark.usefixtures("looking")
def test_classes_are_matched_by_name_and_others_are_not_judged(tmp_path: Path) -> None:
    make_data(tmp_path / "data", ("nucleus", "WBC"), label_of_boxes=0)
    summary = run(tmp_path)
    assert summary.unknown_classes == ("nucleus",)
    assert {one.kind for one in summary.judgement.findings} == {FindingKind.MISSING}
    make_data(tmp_path / "other", ("nucleus",))
    with refused(UsageError, "bundle", "nucleus"):
        audit(AuditSettings(data=tmp_path / "other", out=tmp_path / "new", bundle=tmp_path / "bundle"))
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("looking")
def test_a_broken_image_is_an_error_or_left_out(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    file = tmp_path / "data" / "images" / "1.png"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DengineError):
        run(tmp_path)
    summary = run(tmp_path, skip_bad=True)
    assert summary.images == 4
    assert len(summary.skipped) == 1
    images = json.loads(summary.report.read_text("utf-8"))["images"]
    assert [one["file"] for one in images] == ["0.png", "2.png", "3.png", "4.png"]


def test_labels_that_leave_the_picture_are_told_by_the_dataset(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    path = tmp_path / "data" / "annotations.json"
    content = json.loads(path.read_text("utf-8"))
    content["annotations"][0]["bbox"] = [49, 8, 20, 20]  # of 64 pixels: a quarter of it is outside
    path.write_text(json.dumps(content), "utf-8")
    records = open_dataset(tmp_path / "data", boxes="written").records
    assert records[0].outside == pytest.approx((0.25,))
    assert all(record.outside == () for record in records[1:])


def test_a_page_does_not_grow_beyond_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(tmp_path / "data")
    monkeypatch.setattr("engines.audit.page.LARGEST_PAGE", 6000)
    found = tuple(
        Finding(i, FindingKind.SPURIOUS, 0.9, given=0, given_box=(0, 0, 5, 5), given_label=0) for i in range(5)
    )
    pictures = [Picture(one.width, one.height, one.instances, Instances.none()) for one in data.records]
    write_page(tmp_path / "a.html", data.records, pictures, Judgement(found, (None,) * 3), CLASS_NAMES, 30, 0.5)
    page = (tmp_path / "a.html").read_text("utf-8")
    assert 0 < page.count("<figure>") < 5


def test_completion_copies_images_in_folders_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "data" / "images" / "deep").mkdir(parents=True)
    made = make_data(tmp_path / "made")
    (tmp_path / "data" / "images" / "deep" / "x.png").write_bytes(made.records[0].file.read_bytes())
    row = AnnotatedImage("deep/x.png", 64, 48, made.records[0].instances, scored=False)
    write_coco(tmp_path / "data" / "annotations.json", [row], CLASS_NAMES, {})
    data = open_dataset(tmp_path / "data")
    write_completed(tmp_path / "new", data.records, [], CLASS_NAMES, crowds=False)
    (record,) = open_dataset(tmp_path / "new").records
    assert record.name == "deep/x.png"
    assert record.instances == data.records[0].instances


def test_a_completed_dataset_has_its_own_images_whatever_lay_there(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    write_completed(tmp_path / "new", data.records, [], CLASS_NAMES, crowds=False)
    whole, images = tree(tmp_path / "new"), sorted((tmp_path / "new" / "images").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:100])  # as a kill leaves it
    images[1].write_bytes(images[2].read_bytes())  # of another dataset
    write_completed(tmp_path / "new", data.records, [], CLASS_NAMES, crowds=False)
    assert tree(tmp_path / "new") == whole


def test_settings_that_make_no_sense_are_refused() -> None:
    good: dict[str, Any] = {"data": "data", "out": "out"}
    for field, value in (
        ("folds", 1),
        ("rounds", 0),
        ("complete", "all"),
        ("confidence", 0.0),
        ("worst", -1),
        ("tta", 3),
    ):
        with refused(UsageError, field):
            AuditSettings(**(good | {field: value}))
    for field, other in (("base", "base"), ("training", {"steps": 5}), ("steps_scale", 0.5)):
        with refused(UsageError, field, "folds"):
            AuditSettings(**(good | {field: other}))
    with refused(UsageError, "refine", "complete"):
        AuditSettings(**good, refine=True)
    AuditSettings(**good, folds=2, tta=8, training={"turns": True})
    AuditSettings(**good, folds=2, tta=2)
    with refused(UsageError, "tta", "turns", "training"):
        AuditSettings(**good, folds=2, tta=4)
    for field, other in (("engine", "torch"), ("threads", 1)):
        AuditSettings(**(good | {field: other}))
        with refused(UsageError, field, "folds"):
            AuditSettings(**(good | {field: other, "folds": 2}))
    with refused(UsageError, "base"):
        AuditSettings(**good, folds=2, base="base", bundle="bundle")
    with refused(UsageError, None, "stepz"):
        AuditSettings(**good, folds=2, training={"stepz": 5})


def test_a_second_round_learns_with_what_the_first_found_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_data(tmp_path / "data")
    learned: list[tuple[Path, list[int]]] = []

    def finds(dataset: Dataset, base: Path, out: Path, *_: Any, looks: int) -> list[Instances]:
        assert looks == 2
        learned.append((out, [len(record.instances) for record in dataset.records]))
        return [Instances.of([(1.0, 1.0, 6.0, 5.0)], [1], [0.9])] * len(dataset.records)

    monkeypatch.setattr(engines.audit.audit, "out_of_fold", finds)
    monkeypatch.setattr(engines.audit.audit, "local_folder", lambda *_: tmp_path)
    asked: dict[str, Any] = {"data": tmp_path / "data", "folds": 2, "base": "base", "tta": 2, "complete": "labels"}
    summary = audit(AuditSettings(out=tmp_path / "out", **asked))
    assert learned == [(tmp_path / "out", [1] * 5), (tmp_path / "out" / "round-2", [2] * 5)]
    assert summary.added == 5  # judged by the dataset's own labels, in the last round, too
    learned.clear()
    audit(AuditSettings(out=tmp_path / "once", rounds=1, **asked))
    assert learned == [(tmp_path / "once", [1] * 5)]


def test_a_folds_training_is_as_long_as_was_asked() -> None:
    asked = AuditSettings(data="data", out="out", folds=2, steps_scale=0.5, training={"steps": 100}, device="cpu")
    assert asked.fold_options().steps == 50
    assert asked.fold_options().ignore_finds > 0
    assert AuditSettings(data="data", out="out", folds=2, training={"ignore_finds": 0}).fold_options().ignore_finds == 0


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with refused(RunError, "out"):
        audit(AuditSettings(data=tmp_path, out=tmp_path / "out"))


def test_the_page_says_when_there_is_nothing_to_see(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    pictures = [Picture(one.width, one.height, one.instances, one.instances) for one in data.records]
    write_page(tmp_path / "a.html", data.records, pictures, Judgement((), (1.0, None, None)), CLASS_NAMES, 30, 0.5)
    page = (tmp_path / "a.html").read_text("utf-8")
    assert "<figure>" not in page
    assert "100%" in page


def test_events_are_lines(tmp_path: Path, looking: None) -> None:
    make_data(tmp_path / "data")
    told: list[Event] = []
    audit(AuditSettings(data=tmp_path / "data", out=tmp_path / "out", bundle=tmp_path / "bundle"), report=told.append)
    assert all(str(event) for event in told)
    assert BOX  # the labels lie elsewhere than what is found


def test_rounds_agree_on_a_find_by_the_mean_of_their_scores() -> None:
    first = Instances.of([(0, 0, 10, 10), (0, 0, 9, 10), (50, 50, 60, 60)], [1, 1, 0], [0.4, 0.2, 0.9])
    last = Instances.of([(0, 0, 10, 9), (50, 50, 60, 60), (80, 80, 90, 90)], [1, 1, 0], [0.8, 0.6, 0.5])
    both = agreed([first, last])
    np.testing.assert_array_equal(both.boxes, last.boxes)
    np.testing.assert_allclose(both.scores, [0.6, 0.3, 0.25])  # the second is of another class there
    assert agreed([last]).scores.tolist() == last.scores.tolist()
    assert agreed([Instances.of([], [], []), last]).scores.tolist() == pytest.approx([0.4, 0.3, 0.25])
