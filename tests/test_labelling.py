"""`label`: boxes in the originals' pixels whatever their size, and figures that match classes by name."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import CLASS_NAMES, FakeBackend, FakeCall, as_backend, make_bundle, tree
from made_data import BOX, SIZES, make_data
from refusals import refused

from engines.common.events import Event, EventKind
from engines.datasets.dataset import Dataset, Record
from engines.datasets.learned import LEARNED, write_learned
from engines.errors import DatasetError, NumericalError, RunError, UsageError
from engines.labelling import LabelSettings, LabelSummary, label, label_images
from engines.labels.rules import label_rules


def pointing_backend(seen: list[tuple[int, ...]] | None = None) -> FakeBackend:
    """A backend whose adapter finds BOX of the image (not of its padded frame), as class 0, in every frame."""

    def point(graph: str, call: FakeCall) -> None:
        if graph != "adapter":
            return
        h, w = call.inputs["div1"].shape[2:]
        short = 32
        width, height = {(8, 12): (43, 32), (12, 8): (32, 43), (8, 16): (64, 32), (8, 10): (38, 32)}[(h, w)]
        assert min(width, height) == short
        x, y = width / (4 * w), height / (4 * h)  # share of the frame that the image takes
        x0, y0, x1, y1 = BOX[0] * x, BOX[1] * y, BOX[2] * x, BOX[3] * y
        call.outputs["logits"][:] = -20.0
        call.outputs["logits"][:, 1, 0] = 2.0
        call.outputs["boxes"][:, 1] = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
        if seen is not None:
            seen.append(tuple(call.inputs["div1"].shape))

    return FakeBackend(after=point)


def run(tmp_path: Path, data: Dataset, backend: FakeBackend | None = None, **options: Any) -> LabelSummary:
    bundle = make_bundle(tmp_path / "bundle")
    return label_images(bundle, as_backend(backend or FakeBackend()), data, tmp_path / "out", **options)


def coco(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "annotations.json").read_text("utf-8")))


def test_boxes_are_in_the_pixels_of_images_of_any_size(tmp_path: Path) -> None:
    summary = run(tmp_path, make_data(tmp_path / "data"), pointing_backend())
    assert (summary.images, summary.boxes, summary.boxes_by_class) == (5, 5, {"rbc": 5, "wbc": 0, "platelets": 0})
    found = coco(tmp_path / "out")
    assert [image["file_name"] for image in found["images"]] == [f"{i}.png" for i in range(5)]
    for annotation, (width, height) in zip(found["annotations"], SIZES, strict=True):
        wanted = [0.25 * width, 0.5 * height, 0.25 * width, 0.5 * height]
        assert annotation["bbox"] == pytest.approx(wanted, abs=0.01)
        assert annotation["score"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-4)


def test_two_views_are_said_in_the_file_and_both_count(tmp_path: Path) -> None:
    backend = pointing_backend()
    summary = run(tmp_path, make_data(tmp_path / "data"), backend, tta=2)
    found = coco(tmp_path / "out")
    assert found["info"]["label_views"] == 2
    assert summary.boxes == 10  # on the left, and where the left is in the mirror
    assert [annotation["score"] for annotation in found["annotations"]] == pytest.approx([0.8808] * 10, abs=1e-3)
    with refused(UsageError, "tta", 3):
        LabelSettings(tmp_path, tmp_path / "new", tta=3)


def test_figures_compare_with_the_datasets_own_boxes(tmp_path: Path) -> None:
    summary = run(tmp_path, make_data(tmp_path / "data"), pointing_backend())
    assert summary.figures == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1, "AP/rbc": 1, "AP50/rbc": 1})
    stored = json.loads((tmp_path / "out" / "figures.json").read_text("utf-8"))
    assert stored["figures"] == summary.figures
    assert stored["prompt"] == "generic"


def test_classes_are_matched_by_name_and_others_are_named(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", ("nucleus", "RBC"), label_of_boxes=1)
    summary = run(tmp_path, data, pointing_backend())
    assert summary.figures["AP50/rbc"] == pytest.approx(1)
    assert summary.unknown_classes == ("nucleus",)


def test_without_a_common_class_there_are_no_figures(tmp_path: Path) -> None:
    summary = run(tmp_path, make_data(tmp_path / "data", ("nucleus",)))
    assert (summary.figures, summary.unknown_classes) == ({}, ("nucleus",))
    assert not (tmp_path / "out" / "figures.json").exists()


def test_images_without_annotations_are_labelled_too(tmp_path: Path) -> None:
    summary = run(tmp_path, make_data(tmp_path / "data", label_of_boxes=None), pointing_backend())
    assert (summary.images, summary.figures) == (5, {})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["annotations.json"]


def test_images_that_the_adapter_learned_from_are_named_and_none_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path / "data")
    (tmp_path / "bundle" / "adapter").mkdir(parents=True)
    write_learned(tmp_path / "bundle" / "adapter" / LEARNED, [data.records[3], data.records[0]])
    read, pixels = Counter[str](), Record.pixels
    monkeypatch.setattr(Record, "pixels", lambda self: (read.update([self.name]), pixels(self))[1])
    assert run(tmp_path, data).seen == (data.records[0].name, data.records[3].name)
    assert read == Counter(record.name for record in data.records)


def test_networks_are_prepared_once_for_each_shape(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []
    backend = pointing_backend(seen)
    run(tmp_path, make_data(tmp_path / "data"), backend)
    shapes = [shapes["sample"] for graph, shapes in backend.prepared if graph == "unet"]
    assert sorted(shapes) == [(1, 4, 8, 10), (1, 4, 8, 16), (1, 4, 12, 8), (2, 4, 8, 12)]
    assert sorted(seen) == sorted(shapes)


def test_an_images_labels_do_not_depend_on_the_others(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    run(tmp_path, data)
    alone = Dataset(data.root, data.class_names, [data.records[2]], (), ())
    label_images(make_bundle(tmp_path / "bundle"), as_backend(FakeBackend()), alone, tmp_path / "alone")
    every, one = coco(tmp_path / "out"), coco(tmp_path / "alone")
    wanted = [a["bbox"] for a in every["annotations"] if a["image_id"] == 3]
    assert wanted
    assert [a["bbox"] for a in one["annotations"]] == wanted


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [("generic", {"a microscope photo"}), ("empty", {""}), ("listing", {"a microscope photo with one rbc"})],
)
def test_the_prompt_is_the_one_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, wanted: set[str]
) -> None:
    from engines.painting.networks import TextEncoder

    seen = set()
    real = TextEncoder.__call__

    def note(encoder: TextEncoder, text: str) -> torch.Tensor:
        seen.add(text)
        return real(encoder, text)

    monkeypatch.setattr(TextEncoder, "__call__", note)
    run(tmp_path, make_data(tmp_path / "data"), prompt=prompt)
    assert seen == wanted
    assert coco(tmp_path / "out")["info"]["prompt"] == prompt


def test_listing_needs_annotations_and_prompts_need_a_known_name(tmp_path: Path) -> None:
    with refused(UsageError, "prompt", tmp_path / "data"):
        run(tmp_path, make_data(tmp_path / "data", label_of_boxes=None), prompt="listing")
    with refused(UsageError, "prompt", "poetic", "generic, listing, empty"):
        LabelSettings(tmp_path, tmp_path / "out", prompt="poetic")


def test_a_broken_image_stops_or_is_left_out_by_name(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    (tmp_path / "data" / "images" / "3.png").write_bytes(b"no picture")
    with refused(DatasetError, None, "3.png", "`skip_bad=True`"):
        run(tmp_path, data)
    assert list((tmp_path / "out").iterdir()) == []
    summary = run(tmp_path, data, skip_bad=True)
    assert summary.images == 4
    assert "3.png" in summary.skipped[0]
    assert [image["file_name"] for image in coco(tmp_path / "out")["images"]] == ["0.png", "1.png", "2.png", "4.png"]


def test_labels_that_are_there_are_not_overwritten(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    bundle = make_bundle(tmp_path / "bundle")
    with refused(RunError, "out", tmp_path / "data" / "annotations.json"):
        label_images(bundle, as_backend(FakeBackend()), data, tmp_path / "data")
    with refused(RunError, "out", tmp_path / "data" / "annotations.json"):
        label_images(bundle, as_backend(FakeBackend()), data, tmp_path / "data" / "annotations.json")


def test_with_a_score_the_labels_are_fewer_and_the_figures_the_same(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    every = run(tmp_path, data)
    bundle = make_bundle(tmp_path / "bundle")
    rules = label_rules({"wbc": 0.9}, 0.1, 1.0, {"rbc": 0.5}, CLASS_NAMES)
    assert rules.thresholds == {"rbc": 0.5, "wbc": 0.9, "platelets": 0.3}
    backend = as_backend(FakeBackend())
    summary = label_images(bundle, backend, data, tmp_path / "pseudo", rules=rules)
    assert {name: summary.figures[name] for name in every.figures} == every.figures
    assert {name.partition("/")[0] for name in summary.figures if name not in every.figures} <= {"precision", "recall"}
    found = coco(tmp_path / "pseudo")
    assert [image["file_name"] for image in found["images"]] == [f"{i}.png" for i in range(5)]
    least = dict(enumerate(rules.thresholds.values(), start=1))
    labels = [a for a in found["annotations"] if not a["iscrowd"]]
    crowds = [a for a in found["annotations"] if a["iscrowd"]]
    assert labels
    assert crowds
    assert all(a["score"] >= least[a["category_id"]] for a in labels)
    assert all(0.1 <= a["score"] < least[a["category_id"]] for a in crowds)
    assert (len(labels), len(crowds)) == (summary.boxes, summary.ignored)
    assert summary.boxes < every.boxes
    assert found["info"]["score"] == rules.thresholds


def test_int8_is_not_for_labels(tmp_path: Path) -> None:
    with refused(UsageError, "precision", "`precision=auto`"):
        LabelSettings(tmp_path, tmp_path / "out", precision="int8")


def test_an_ignore_score_needs_a_score(tmp_path: Path) -> None:
    with refused(UsageError, "ignore_score", "`score`"):
        LabelSettings(tmp_path, tmp_path / "out", ignore_score=0.2)
    with refused(UsageError, "max_overlap", "`score`"):
        LabelSettings(tmp_path, tmp_path / "out", max_overlap=0.5)
    with refused(UsageError, "max_overlap", 0):
        LabelSettings(tmp_path, tmp_path / "out", score=0.5, max_overlap=0.0)
    with refused(UsageError, "score", 2):
        label_rules(2.0, 0.0, 1.0, {}, CLASS_NAMES)


def test_a_kill_at_any_moment_leaves_a_folder_that_can_be_labelled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path / "data")
    moments: list[Path] = []
    real = os.replace

    def told(*arguments: Any, **options: Any) -> None:
        for _ in range(2):
            moments.append(tmp_path / f"killed-{len(moments)}")
            shutil.copytree(tmp_path / "out", moments[-1])
            if len(moments) % 2:
                real(*arguments, **options)

    with monkeypatch.context() as watched:
        watched.setattr(os, "replace", told)
        run(tmp_path, data)
    whole = tree(tmp_path / "out")
    assert len(moments) == 4
    for folder in moments[:-1]:
        assert not (folder / "annotations.json").exists()
        label_images(make_bundle(tmp_path / "bundle"), as_backend(FakeBackend()), data, folder)
        assert tree(folder) == whole


def test_nan_is_named_with_graph_and_image(tmp_path: Path) -> None:
    def spoil(graph: str, call: FakeCall) -> None:
        if graph == "vae_encoder":
            call.outputs["latents"][-1, 0, 0, 0] = torch.nan

    with refused(NumericalError, "precision", "vae_encoder", ".png"):
        run(tmp_path, make_data(tmp_path / "data"), FakeBackend(after=spoil))
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_reaches_the_number_of_images(tmp_path: Path) -> None:
    events: list[Event] = []
    run(tmp_path, make_data(tmp_path / "data"), report=events.append)
    done = [event.done or 0 for event in events if event.kind is EventKind.PROGRESS]
    assert done == sorted(done)
    assert done[-1] == 5


def test_label_opens_bundle_and_images_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    monkeypatch.setattr("engines.bundle.bundle.open_bundle", lambda folder: bundle)
    monkeypatch.setattr("engines.backends.registry.open_backend", lambda *_, **__: FakeBackend())
    make_data(tmp_path / "data")
    summary = label(LabelSettings(tmp_path / "data", tmp_path / "out", bundle=tmp_path / "bundle"))
    assert summary.images == 5
    assert summary.backend.startswith("fake")
