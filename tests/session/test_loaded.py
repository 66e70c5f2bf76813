"""A bundle held open: images one by one, labels of single pictures, and networks that are prepared once."""

import io
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import CLASS_NAMES, FRAME, FakeBackend, as_backend, make_bundle
from made_data import make_data
from made_objects import make_objects
from painting import Generate, make_paint, make_references
from PIL import Image
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.datasets.images import read_image
from engines.errors import DatasetError, UsageError
from engines.labelling import label_images
from engines.labels.boxes import Instances
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import IMAGES, JOURNAL, read_entries
from engines.runs.run_folder import require_run
from engines.session import loaded
from engines.session.image import PaintedImage
from engines.session.loaded import OF_IMAGES, LoadedBundle


@pytest.fixture
def paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    return make_paint(tmp_path, monkeypatch)


def opened(tmp_path: Path, backend: FakeBackend | None = None, **changes: Any) -> LoadedBundle:
    return LoadedBundle(make_bundle(tmp_path / "bundle", **changes), as_backend(backend or FakeBackend()))


def by_index(images: list[PaintedImage]) -> dict[int, tuple[bytes, list[list[float]], str]]:
    return {one.index: (one.pixels.tobytes(), one.detections.to_rows(), one.prompt) for one in images}


def test_it_paints_what_generate_paints(paint: Generate, tmp_path: Path) -> None:
    options: dict[str, Any] = {"seed": 3, "steps": 6, "slots": 3, "reference": make_references(tmp_path / "data", 3)}
    paint(tmp_path / "run", jobs=7, chunk=7, keep_empty=True, image_format="png", score=0.2, **options)
    images = list(opened(tmp_path).paint(7, score=0.2, **options))
    assert sorted(one.index for one in images) == list(range(7))
    for entry in read_entries(tmp_path / "run" / JOURNAL):
        (image,) = [one for one in images if one.index == entry.index]
        assert np.array_equal(image.pixels, read_image(tmp_path / "run" / IMAGES / str(entry.file)))
        assert image.detections == entry.instances
        assert (image.prompt, image.reference, image.strength) == (entry.prompt, entry.reference, entry.strength)
        assert image.instances == image.detections.take(image.detections.scores >= 0.2)


def test_labels_by_construction_are_those_of_a_run(paint: Generate, tmp_path: Path) -> None:
    options: dict[str, Any] = {"reference": make_objects(tmp_path / "data"), "compose": True, "slots": 3}
    for strength in ((0.0, 0.0), (0.3, 0.3)):
        folder = tmp_path / f"run {strength[0]}"
        paint(folder, jobs=4, chunk=4, keep_empty=True, image_format="png", strength=strength, **options)
        images = {one.index: one for one in opened(tmp_path).paint(4, strength=strength, **options)}
        for entry in read_entries(folder / JOURNAL):
            assert np.array_equal(images[entry.index].pixels, read_image(folder / IMAGES / str(entry.file)))
            assert images[entry.index].instances == entry.labels(require_run(folder).rules)


def test_labels_go_by_the_bundles_own_rules(tmp_path: Path) -> None:
    bundle = opened(tmp_path, generate_defaults={"steps": 4, "guidance": 2.0, "score": {"rbc": 0.9}, "uncertain": 0.1})
    bundle._bundle.adapter_info.thresholds.update(wbc=0.5)
    for image in bundle.paint(6):
        found = image.instances
        for score, label, crowd in zip(found.scores, found.labels, found.crowd, strict=True):
            assert crowd == (score < {"rbc": 0.9, "wbc": 0.5, "platelets": 0.3}[CLASS_NAMES[label]])


def test_networks_are_prepared_once_for_each_size(tmp_path: Path) -> None:
    backend = FakeBackend()
    bundle = opened(tmp_path, backend)
    first = list(bundle.paint(5, slots=2))
    prepared = list(backend.prepared)
    assert by_index(list(bundle.paint(5, slots=2))) == by_index(first)
    list(bundle.paint(3, slots=2, steps=6, seed=9))
    assert backend.prepared == prepared
    list(bundle.paint(1, slots=2, size=(64, 48)))
    assert len(backend.prepared) > len(prepared)
    picture = first[0].pixels
    bundle.label(picture)
    count = len(backend.prepared)
    bundle.label(picture, score=0.5)
    assert len(backend.prepared) == count


def test_networks_of_many_sizes_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "_CALLS_KEPT", 12)
    backend = FakeBackend()
    bundle = opened(tmp_path, backend)
    counts = []
    for side in (64, 80, 96, 96, 64, 64):
        list(bundle.paint(1, slots=2, size=(side, 48)))
        counts.append(len(backend.prepared))
    anew = [second > first for first, second in pairwise([0, *counts])]
    assert anew == [True, True, True, False, True, False]


def test_two_paintings_at_the_same_time_share_nothing(tmp_path: Path) -> None:
    bundle = opened(tmp_path)
    alone = [by_index(list(bundle.paint(5, seed=seed))) for seed in (0, 1)]
    pairs = list(zip(bundle.paint(5, seed=0), bundle.paint(5, seed=1), strict=True))
    assert [by_index(list(images)) for images in zip(*pairs, strict=True)] == alone
    for image in bundle.paint(5, seed=0):  # labelling in between disturbs neither
        found = bundle.label(image.pixels)
        assert by_index([image]).items() <= alone[0].items()
        assert bundle.label(image.pixels) == found


def test_a_painting_that_is_left_can_be_begun_again(tmp_path: Path) -> None:
    bundle = opened(tmp_path)
    whole = by_index(list(bundle.paint(6)))
    images = bundle.paint(6)
    first = next(images)
    images.close()
    assert by_index([first]).items() <= whole.items()
    assert by_index(list(bundle.paint(6))) == whole


def test_between_two_images_torch_has_its_threads_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [torch.get_num_threads() for _ in opened(tmp_path).paint(4)] == [2] * 4
    finally:
        torch.set_num_threads(before)


def test_a_picture_has_its_boxes_in_it(tmp_path: Path) -> None:
    (image,) = opened(tmp_path).paint(1, score=0.05)
    plain = Image.fromarray(image.pixels).resize(image.to_pil().size, Image.Resampling.LANCZOS)
    assert max(image.to_pil().size) == 400
    assert image.to_pil().tobytes() != plain.tobytes()
    with Image.open(io.BytesIO(image._repr_png_())) as shown:
        assert shown.tobytes() == image.to_pil().tobytes()
    assert f"{FRAME[0]}x{FRAME[1]}" in repr(image)


@pytest.mark.parametrize("tta", [1, 2])
def test_it_labels_as_the_verb_does(tmp_path: Path, tta: int) -> None:
    record = make_data(tmp_path / "all").records[0]
    (tmp_path / "data").mkdir()
    file = Path(shutil.copy(record.file, tmp_path / "data"))  # alone, so that it has a call of its own
    data = open_dataset(tmp_path / "data", require_boxes=False)
    options: Any = {"tta": tta}
    label_images(make_bundle(tmp_path / "bundle"), as_backend(FakeBackend()), data, tmp_path / "out", **options)
    bundle = opened(tmp_path)
    found = bundle.label(file, **options)
    written = corners(tmp_path / "out")
    assert len(found) == len(written) > 0
    assert np.allclose(sorted(found.boxes.tolist()), written, atol=0.01)
    pixels = read_image(file)
    with Image.open(file) as picture:
        for same in (str(file), pixels, picture):
            assert bundle.label(same, name=file.name, **options) == found


def corners(folder: Path) -> list[list[float]]:
    """Corners of the boxes in a COCO file."""
    found = json.loads((folder / "annotations.json").read_text("utf-8"))["annotations"]
    return sorted([x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in found))


def test_the_same_pixels_have_the_same_boxes_and_a_score_leaves_some_out(tmp_path: Path) -> None:
    bundle = opened(tmp_path)
    grey = np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1))
    found = bundle.label(grey)
    assert bundle.label(np.stack([grey] * 3, axis=2)) == found
    assert bundle.label(Image.fromarray(grey)) == found
    assert bundle.label(grey, score=0.4) == found.take(found.scores >= 0.4)
    assert (bundle.label(grey, score="adapter").scores >= 0.3).all()
    assert isinstance(found, Instances)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"count": 0}, "count"),
        ({"count": 2.0}, "count"),
        ({"out": "run"}, "out"),
        ({"formats": ("coco",)}, "formats"),
        ({"stepz": 3}, "stepz"),
        ({"steps": 0}, "steps"),
        ({"steps": "few"}, "steps"),
        ({"strength": (0.4, 0.8)}, "strength"),
        ({"size": (33, 20)}, "size"),
        ({"score": {"cat": 0.5}}, "score"),
        ({"score": "matched"}, "score"),
    ],
)
def test_what_cannot_be_painted_is_refused_at_once(tmp_path: Path, given: dict[str, Any], field: str) -> None:
    options = {"count": 1} | given
    with refused(UsageError, field):
        opened(tmp_path).paint(**options)


def test_references_that_are_none_are_refused_at_once(tmp_path: Path) -> None:
    with refused(DatasetError, "reference", "nowhere"):
        opened(tmp_path).paint(1, reference=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("picture", "options", "field"),
    [
        (np.zeros((8, 8, 3), np.float32), {}, "picture"),
        (np.zeros((8, 8, 4), np.uint8), {}, "picture"),
        (np.zeros((0, 8, 3), np.uint8), {}, "picture"),
        (3, {}, "picture"),
        (np.zeros((8, 8, 3), np.uint8), {"score": 0.01}, "score"),
        (np.zeros((8, 8, 3), np.uint8), {"score": True}, "score"),
        (np.zeros((8, 8, 3), np.uint8), {"score": [0.5, 0.5]}, "score"),
        (np.zeros((8, 8, 3), np.uint8), {"score": {"RBC": "0.5"}}, "score"),
        (np.zeros((8, 8, 3), np.uint8), {"name": 5}, "name"),
        (np.zeros((8, 8, 3), np.uint8), {"score": "matched"}, "score"),
        (np.zeros((8, 8, 3), np.uint8), {"score": {"cat": 0.5}}, "score"),
        (np.zeros((8, 8, 3), np.uint8), {"tta": 3}, "tta"),
    ],
)
def test_what_cannot_be_labelled_is_refused(tmp_path: Path, picture: Any, options: dict[str, Any], field: str) -> None:
    with refused(UsageError, field):
        opened(tmp_path).label(picture, **options)


def test_a_strip_is_refused_before_it_is_scaled_to_a_huge_picture(tmp_path: Path) -> None:
    with refused(DatasetError):
        opened(tmp_path).label(np.zeros((3, 360, 3), np.uint8))


def test_a_file_that_is_no_image_and_int8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    with refused(DatasetError, "picture", "text.png"):
        opened(tmp_path).label(tmp_path / "text.png")
    with refused(UsageError, "precision"):
        opened(tmp_path, FakeBackend(precision="int8")).label(np.zeros((8, 8, 3), np.uint8))


def test_options_of_images_are_settings_of_generate() -> None:
    from engines.painting.settings import PaintOptions

    of_runs = {"bundle", "chunk", "count", "engine", "formats", "image_format", "jobs", "jpeg_quality", "keep_empty",
               "min_quality", "near_duplicates", "precision", "shard", "threads", "val_fraction"}  # fmt: skip
    assert set(PaintOptions.__dataclass_fields__) == OF_IMAGES | of_runs, "a new option is of one kind or the other"


def test_the_library_prints_nothing(paint: Generate, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path / "run", count=3, formats=("coco", "yolo", "imagefolder"))
    finalize(FinalizeSettings(tmp_path / "run", score=0.5, keep_empty=True))
    bundle = opened(tmp_path)
    for image in bundle.paint(3):
        bundle.label(image.pixels, score=0.5)
    data = make_data(tmp_path / "data")
    label_images(make_bundle(tmp_path / "bundle"), as_backend(FakeBackend()), data, tmp_path / "labels")
    with pytest.raises(UsageError):
        bundle.paint(0)
    assert capfd.readouterr() == ("", "")
