"""Training a detector on real and generated images, and the folder it is kept in."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from safetensors.torch import load_file

from engines.common.events import Event
from engines.common.rng import generator
from engines.common.training_log import LOG
from engines.datasets.dataset import Record
from engines.datasets.images import read_image
from engines.errors import BackendError, ModelError, TrainingError, UsageError
from engines.labels.boxes import Instances
from engines.training.augment import FrameOptions
from engines.worth.detectors import rt_detr
from engines.worth.detectors.batches import MixedBatches, Sample, frame_size
from engines.worth.detectors.config import (
    INFO_FILE,
    KINDS,
    PRESETS,
    WEIGHTS_FILE,
    DetectorInfo,
    DetectorOptions,
    NetworkConfig,
    preset,
)
from engines.worth.detectors.model import Detector, check_library, load_detector, new_detector
from engines.worth.detectors.train import TrainingSet, detect, measure, train_detector

NAMES = ("square", "bar")
TINY = NetworkConfig(
    backbone_width=16, depths=(1, 1, 1, 1), width=32, heads=2, decoder_layers=2, queries=8, denoising=8
)
OPTIONS = DetectorOptions(TINY, short_side=64, steps=3, batch=2, warmup=2, precision="f32", scale=(0.9, 1.1))


def shape_record(folder: Path, number: int, size: tuple[int, int] = (96, 64)) -> Record:
    """An image with a red square and a blue bar or two, in pixels that grow with the image, on dark ground."""
    rng = generator(7, number)
    unit = size[1] // 16
    pixels = rng.integers(0, 40, size=(size[1], size[0], 3)).astype(np.uint8)
    boxes, labels = [], []
    for _ in range(int(rng.integers(1, 4))):
        label = int(rng.integers(2))
        width, height = ((5 * unit, 5 * unit), (8 * unit, 3 * unit))[label]
        left, top = int(rng.integers(size[0] - width)), int(rng.integers(size[1] - height))
        pixels[top : top + height, left : left + width] = ((250, 60, 60), (60, 60, 250))[label]
        boxes.append([left, top, left + width, top + height])
        labels.append(label)
    name = f"{number:03}.png"
    Image.fromarray(pixels).save(folder / name)
    return make_record(folder / name, boxes, labels, size)


def make_record(
    file: Path,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    size: tuple[int, int],
    crowd: Sequence[int] = (),
) -> Record:
    found = Instances.of(boxes, labels, crowd=[index in crowd for index in range(len(labels))])
    return Record(file, file.name, *size, found, None)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Two dozen small images."""
    folder = tmp_path_factory.mktemp("shapes")
    return [shape_record(folder, number) for number in range(24)]


def samples(records: Sequence[Record], short_side: int = 64) -> list[Sample]:
    return [Sample(record, short_side) for record in records]


def mixed(real: list[Sample], generated: list[Sample], **changes: Any) -> MixedBatches:
    frame = FrameOptions(96, 64, short_side=64)
    options: dict[str, Any] = {"mix": (0.25, 0.25), "frame": frame, "batch": 4, "steps": 200, "seed": 3} | changes
    return MixedBatches(real, generated, **options)


def train(
    records: Sequence[Record], folder: Path, options: DetectorOptions = OPTIONS, **changes: Any
) -> tuple[Detector, list[Event]]:
    seen: list[Event] = []
    arguments = {"short_side": 64, "seed": 0, "resume": False} | changes
    return train_detector(TrainingSet(NAMES, samples(records)), options, folder, report=seen.append, **arguments), seen


def assert_same(first: Sequence[Instances], second: Sequence[Instances]) -> None:
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_generated_images_are_drawn_with_the_probability_asked_for(shapes: list[Record]) -> None:
    batches = mixed(samples(shapes[:5]), samples(shapes[5:20]))
    drawn = [batches.drawn(draw) for draw in range(800)]
    assert 0.2 < np.mean([kind for kind, _ in drawn]) < 0.3
    for kind, images in ((0, 5), (1, 15)):
        places = [place for this, place in drawn if this == kind]
        passes = [sorted(places[start : start + images]) for start in range(0, len(places) - images, images)]
        assert all(one == list(range(images)) for one in passes)


def test_the_probability_of_generated_images_goes_evenly_from_the_first_to_the_last(shapes: list[Record]) -> None:
    batches = mixed(samples(shapes[:5]), samples(shapes[5:20]), mix=(0.8, 0.0), steps=1000)
    kinds = np.array([batches.drawn(draw)[0] for draw in range(4000)])
    quarters = kinds.reshape(4, 1000).mean(axis=1)
    np.testing.assert_allclose(quarters, [0.7, 0.5, 0.3, 0.1], atol=0.04)
    assert kinds[-20:].sum() == 0


def test_a_steady_mix_draws_by_one_random_number_a_draw(shapes: list[Record]) -> None:
    batches = mixed(samples(shapes[:5]), samples(shapes[5:20]), mix=(0.3, 0.3))
    assert [batches.drawn(draw)[0] for draw in range(800)] == (generator(3, 40).random(800) < 0.3).astype(int).tolist()


def test_a_steady_mix_is_written_as_one_number_and_a_moving_one_as_two(shapes: list[Record]) -> None:
    parts = NAMES, samples(shapes[:5]), samples(shapes[5:20])
    assert TrainingSet(*parts, (0.3, 0.3)).digest()["mix"] == 0.3
    assert TrainingSet(*parts, (0.6, 0.0)).digest()["mix"] == [0.6, 0.0]


def test_without_generated_images_every_draw_is_real(shapes: list[Record]) -> None:
    batches = mixed(samples(shapes[:5]), [], mix=(0.9, 0.9))
    assert {batches.drawn(draw)[0] for draw in range(800)} == {0}


def test_a_batch_follows_from_seed_and_step_alone(shapes: list[Record]) -> None:
    parts = samples(shapes[:9]), samples(shapes[9:])
    first, second, other = mixed(*parts), mixed(*parts), mixed(*parts, seed=4)
    first.at(0)
    for (pixels, targets), (pixels_again, targets_again) in zip([first.at(7)], [second.at(7)], strict=True):
        assert torch.equal(pixels, pixels_again)
        assert all(torch.equal(a[key], b[key]) for a, b in zip(targets, targets_again, strict=True) for key in a)
    assert not torch.equal(first.at(7)[0], other.at(7)[0])
    assert first.at(7)[0].shape == (4, 3, 64, 96)
    assert 0.0 <= float(first.at(7)[0].min()) < float(first.at(7)[0].max()) <= 1.0


def test_objects_of_large_and_small_originals_come_to_one_scale(tmp_path: Path) -> None:
    large = make_record(tmp_path / "large.png", [[40, 40, 120, 120]], [0], (384, 256))
    small = make_record(tmp_path / "small.png", [[10, 10, 30, 30]], [0], (80, 80))
    for record in (large, small):
        Image.fromarray(np.zeros((record.height, record.width, 3), np.uint8)).save(record.file)
    # The small one was painted at a scale of 64 pixels to the short side of the large kind, in a frame of 80.
    frame = FrameOptions(96, 64, 64, scale=(1.0, 1.0))
    batches = mixed([Sample(large, 64)], [Sample(small, 80)], mix=(0.5, 0.5), frame=frame)
    sides = {0: set(), 1: set()}  # type: dict[int, set[int]]
    for step in range(20):
        for place, target in enumerate(batches.at(step)[1]):
            for x0, y0, x1, y1 in target["boxes"].tolist():
                if min(x0, y0) > 0 and x1 < 96 and y1 < 64:
                    sides[batches.drawn(4 * step + place)[0]] |= {round(x1 - x0), round(y1 - y0)}
    assert sides == {0: {20}, 1: {20}}


def test_crowds_are_no_targets(tmp_path: Path) -> None:
    record = make_record(tmp_path / "a.png", [[0, 0, 90, 60], [20, 20, 50, 50]], [0, 1], (96, 64), crowd=[0])
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(record.file)
    plain = FrameOptions(96, 64, 64, scale=(1.0, 1.0), flips=False, colour=0.0)
    for target in mixed([Sample(record, 64)], [], frame=plain).at(0)[1]:
        assert target["labels"].tolist() == [1]
        assert target["boxes"].tolist() == [[20, 20, 50, 50]]
        assert target["crowds"].tolist() == [[0, 0, 90, 60]]
        assert target["crowd_labels"].tolist() == [0]


def test_nothing_is_taught_to_be_background_in_a_crowd() -> None:
    torch.manual_seed(1)
    network = rt_detr.build(TINY, 2).train()
    pixels, nothing = torch.rand(2, 3, 64, 96), torch.zeros(0, 4)
    target = {"boxes": nothing, "labels": torch.zeros(0, dtype=torch.int64)}
    heads = [weight for name, weight in network.named_parameters() if "class_embed" in name or "score_head" in name]
    for crowds, silent in ((torch.tensor([[-96.0, -64.0, 192.0, 128.0]] * 2), True), (nothing, False)):
        network.zero_grad()
        crowded = target | {"crowds": crowds, "crowd_labels": torch.arange(len(crowds))}
        loss, _ = network.loss(pixels, [crowded] * 2)
        torch.autograd.backward(loss)
        taught = [weight for weight in heads if weight.grad is not None and weight.grad.any()]
        assert (not taught) == silent


@pytest.mark.parametrize(
    ("sizes", "short_side", "expected"),
    [([(640, 480)] * 2 + [(100, 100)], 256, (320, 256)), ([(50, 100)], 64, (64, 128)), ([(30, 20)], 32, (32, 32))],
)
def test_the_frame_is_the_commonest_image_cut_to_the_networks_steps(
    tmp_path: Path, sizes: list[tuple[int, int]], short_side: int, expected: tuple[int, int]
) -> None:
    records = [make_record(tmp_path / f"{i}.png", [], [], size) for i, size in enumerate(sizes)]
    assert frame_size(records, short_side) == expected


@pytest.mark.slow
def test_a_detector_learns_to_tell_two_shapes_apart(shapes: list[Record], tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=140, batch=2, lr=3e-3, warmup=10, ema_decay=0.95, colour=0.0)
    detector, _ = train(shapes[:18], tmp_path / "detector", options)
    assert measure(detector, shapes[18:])["AP50"] > 0.4
    assert [path.name for path in sorted((tmp_path / "detector").iterdir())] == [INFO_FILE, WEIGHTS_FILE, LOG]


@pytest.mark.slow
def test_a_stopped_and_resumed_training_gives_the_same_detector(
    shapes: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, checkpoint_minutes=0.0)
    whole, _ = train(shapes, tmp_path / "whole", options)
    at = MixedBatches.at

    def stopped(self: MixedBatches, step: int) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return at(self, step)

    monkeypatch.setattr(MixedBatches, "at", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(shapes, tmp_path / "parts", options)
    monkeypatch.setattr(MixedBatches, "at", at)
    with refused(TrainingError, "resume", tmp_path / "parts"):
        train(shapes, tmp_path / "parts", options)
    with refused(TrainingError, None, "options.lr"):
        train(shapes, tmp_path / "parts", replace(options, lr=0.5), resume=True)
    parts, _ = train(shapes, tmp_path / "parts", options, resume=True)
    assert_same(detect(whole, shapes[:3]), detect(parts, shapes[:3]))


@pytest.mark.slow
def test_a_saved_detector_finds_the_same_things(shapes: list[Record], tmp_path: Path) -> None:
    trained, _ = train(shapes, tmp_path / "detector")
    loaded = load_detector(tmp_path / "detector")
    assert loaded.info == replace(trained.info, training=loaded.info.training)
    assert loaded.info.training["seed"] == 0
    assert_same(detect(trained, shapes[:3]), detect(loaded, shapes[:3]))
    with refused(TrainingError, None, tmp_path / "detector"):
        train(shapes, tmp_path / "detector")


def test_boxes_come_in_the_pixels_of_images_of_any_size(tmp_path: Path) -> None:
    detector = new_detector(NAMES, OPTIONS, 64, seed=0)
    sizes = [(96, 64), (300, 500), (96, 64), (33, 31)]
    pictures = [np.zeros((height, width, 3), dtype=np.uint8) for width, height in sizes]
    found = detector.predict(pictures)
    for (width, height), one in zip(sizes, found, strict=True):
        assert 0 < len(one.boxes) <= 100
        assert one.boxes.dtype == np.float32
        assert (one.boxes >= 0).all()
        assert (one.boxes <= np.array([width, height] * 2)).all()
        assert (np.diff(one.scores) <= 0).all()
        assert set(one.labels.tolist()) <= {0, 1}
    assert_same(detector.predict(pictures[1:2]), found[1:2])
    assert found[1].boxes.max() > 96


def test_the_seed_decides_the_first_weights(tmp_path: Path) -> None:
    noise = [generator(1).integers(0, 256, size=(64, 96, 3)).astype(np.uint8)]
    first, again, other = (new_detector(NAMES, OPTIONS, 64, seed).predict(noise) for seed in (1, 1, 2))
    assert_same(first, again)
    assert not np.array_equal(first[0].boxes, other[0].boxes)


def test_in_bf16_boxes_and_losses_keep_float32() -> None:
    torch.manual_seed(1)
    network = rt_detr.build(TINY, 2).train()
    pixels = torch.rand(2, 3, 64, 96)
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}] * 2
    nothing = {"crowds": torch.zeros(0, 4), "crowd_labels": torch.zeros(0, dtype=torch.int64)}
    targets = [target | nothing for target in targets]
    torch.manual_seed(0)
    exact, _ = network.loss(pixels, targets)
    kinds: list[torch.dtype] = []
    network.network.model.backbone.model.embedder.register_forward_hook(lambda *values: kinds.append(values[2].dtype))
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rough, parts = network.loss(pixels, targets)
        found = network.eval().detect(pixels)
    assert kinds == [torch.bfloat16] * 2
    assert rough.dtype == found[0].boxes.dtype == found[0].scores.dtype == torch.float32
    assert float(rough.detach()) == pytest.approx(float(exact.detach()), rel=0.25)
    assert set(parts) == {"vfl", "bbox", "giou", "denoising"}


@pytest.mark.slow
def test_training_can_begin_with_another_detectors_weights(shapes: list[Record], tmp_path: Path) -> None:
    train(shapes, tmp_path / "first")
    still = replace(OPTIONS, steps=1, lr=1e-12, ema_decay=0.0)
    train(shapes, tmp_path / "same", still, weights=tmp_path / "first")
    before, after = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("first", "same"))
    torch.testing.assert_close(after["network.model.encoder_input_proj.0.0.weight"],
                               before["network.model.encoder_input_proj.0.0.weight"])  # fmt: skip
    data = TrainingSet((*NAMES, "ring"), samples(shapes))
    wider = train_detector(
        data, still, tmp_path / "wider", short_side=64, seed=0, resume=False, report=lambda _: None,
        weights=tmp_path / "first",
    )  # fmt: skip
    weights = dict(wider.network.named_parameters())
    torch.testing.assert_close(
        weights["network.model.encoder_input_proj.0.0.weight"].data,
        before["network.model.encoder_input_proj.0.0.weight"],
    )
    assert weights["network.model.enc_score_head.weight"].shape == (3, 32)


@pytest.mark.slow
def test_training_can_begin_with_a_checkpoint_of_transformers(shapes: list[Record], tmp_path: Path) -> None:
    source = rt_detr.build(TINY, 80)
    source.network.save_pretrained(tmp_path / "checkpoint")
    trained, _ = train(shapes, tmp_path / "detector", weights=tmp_path / "checkpoint")
    assert trained.info.library["d_model"] == 32
    assert trained.network.network.config.num_labels == 2  # type: ignore[union-attr]
    loaded = load_detector(tmp_path / "detector")
    assert_same(detect(trained, shapes[:2]), detect(loaded, shapes[:2]))


def test_weights_of_something_else_are_refused(shapes: list[Record], tmp_path: Path) -> None:
    train(shapes, tmp_path / "detector")
    other = replace(OPTIONS, network=replace(TINY, kind="retinanet"))
    with refused(ModelError, None, '"rt_detr"', '"retinanet"'):
        train(shapes, tmp_path / "out", other, weights=tmp_path / "detector")
    with refused(ModelError, None, tmp_path, "detector.json"):
        train(shapes, tmp_path / "out", weights=tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with refused(ModelError, None, '"detr"', '"rt_detr_v2"'):
        train(shapes, tmp_path / "out", weights=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_spoilt_folder_is_refused_with_its_mistake(shapes: list[Record], tmp_path: Path) -> None:
    train(shapes, tmp_path)
    value = json.loads((tmp_path / INFO_FILE).read_text())
    (tmp_path / INFO_FILE).write_text(json.dumps(value | {"network": value["network"] | {"width": 64}}))
    with refused(ModelError, None, "detector.safetensors"):
        load_detector(tmp_path)
    (tmp_path / INFO_FILE).write_text(json.dumps(value | {"colour": 1}))
    with refused(ModelError, None, "colour"):
        DetectorInfo.read(tmp_path)
    (tmp_path / INFO_FILE).write_text(json.dumps(value | {"format": 9}))
    with refused(ModelError, None, 9):
        DetectorInfo.read(tmp_path)


def test_there_is_a_preset_of_every_size_for_every_kind() -> None:
    for name in PRESETS:
        for kind in KINDS:
            options, seeds = preset(name, kind)
            assert options.network.kind == kind
            assert seeds > 0
    with refused(UsageError, "preset", "huge", "quick, small, paper"):
        preset("huge", "rt_detr")
    with refused(UsageError, "detector", "yolo", "rt_detr, retinanet, faster_rcnn"):
        preset("quick", "yolo")


def test_wrong_settings_are_listed_together() -> None:
    with refused(UsageError, "steps", "`steps`", "`batch`", "`scale`"):
        DetectorOptions(steps=0, batch=1, scale=(2.0, 1.0))
    with refused(ModelError, "queries", "`queries`", "`depths`"):
        NetworkConfig(queries=0, depths=(1, 0, 1, 1))
    with refused(ModelError, "width", 48):
        NetworkConfig(width=48)


def test_a_missing_torchvision_is_one_line_and_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    check_library("rt_detr")
    with refused(BackendError, "detector", "pip install torchvision", "`detector=rt_detr`"):
        check_library("retinanet")


def test_read_images_are_what_a_detector_sees(shapes: list[Record]) -> None:
    detector = new_detector(NAMES, OPTIONS, 64, seed=0)
    assert_same(detect(detector, shapes[:2]), detector.predict([read_image(record.file) for record in shapes[:2]]))
