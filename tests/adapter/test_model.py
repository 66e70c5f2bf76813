"""The Detection-Adapter's network, its folder, and its way from frames to boxes on images."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from torch import Tensor

from engines.adapter.attention import DeformableAttention
from engines.adapter.geometry import anchor_logits, flatten_levels, split_levels
from engines.adapter.inference import detections, fuse, prepare_frame
from engines.adapter.info import INFO_FILE, WEIGHTS_FILE, AdapterConfig, AdapterInfo
from engines.adapter.model import DetectionAdapter, load_adapter, save_adapter
from engines.common.rng import generator
from engines.errors import ModelError
from engines.labels.boxes import Instances, iou_matrix

SMALL: dict[str, Any] = {"width": 16, "heads": 2, "ffn_width": 16, "decoder_layers": 2, "queries": 12, "denoising": 8}
HEADS: tuple[dict[str, Any], ...] = ({"head": "rt_detr"}, {"head": "deformable_detr", "extra_levels": 1})


def _adapter(channels: tuple[int, ...] = (24, 40), classes: int = 3, **changes: Any) -> DetectionAdapter:
    torch.manual_seed(0)
    return DetectionAdapter(AdapterConfig(channels, classes, **{**SMALL, **changes}))


def _pyramid(model: DetectionAdapter, batch: int = 2, height: int = 8, width: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, channels, height >> level, width >> level, generator=generator)
        for level, channels in enumerate(model.config.channels)
    ]


def _target(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(count)
    centre = 0.2 + 0.6 * torch.rand(count, 2, generator=generator)
    size = 0.1 + 0.2 * torch.rand(count, 2, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    nothing = {"crowds": torch.zeros(0, 4), "crowd_labels": torch.zeros(0, dtype=torch.int64)}
    return {"class_labels": labels, "boxes": torch.cat([centre, size], dim=1), **nothing}


def test_the_mean_of_the_losses_of_equal_shares_is_the_loss_of_all() -> None:
    model = _adapter(head="deformable_detr", extra_levels=1)  # the other one's batch norm sees whole batches
    targets = [_target(count) for count in (3, 0, 1, 0, 0, 0)]  # and a share without any box
    pyramid = _pyramid(model, batch=6)
    found = []
    for size in (6, 2):
        model.zero_grad()
        parts: dict[str, float] = {}
        for first in range(0, 6, size):
            torch.manual_seed(3)
            own = [level[first : first + size] for level in pyramid]
            loss, kinds = model.loss(own, targets, ignore_finds=0.5, first=first)
            (loss * size / 6).backward()
            for name, value in ({"loss": loss.detach()} | kinds).items():
                parts[name] = parts.get(name, 0.0) + float(value) * size / 6
        gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        found.append((parts, gradients))
    (whole, expected), (shares, gradients) = found
    assert shares == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-3)


def _info(model: DetectionAdapter) -> AdapterInfo:
    return AdapterInfo(
        class_names=("rbc", "wbc", "platelets"),
        timestep=1,
        short_side=96,
        frame=(64, 48),
        size_multiple=16,
        style="photo",
        prompts={"generic": "a photo"},
        base_hash="0" * 64,
        config=model.config,
        class_statistics=({"rbc": 2},),
        figures={"tune": {"generic": {"AP": 0.5}}},
    )


@pytest.mark.parametrize("settings", HEADS)
@pytest.mark.parametrize("channels", [(24, 40), (8, 8, 16)])
def test_shapes_follow_the_configuration(settings: dict[str, Any], channels: tuple[int, ...]) -> None:
    model = _adapter(channels, classes=5, **settings).eval()
    with torch.no_grad():
        logits, boxes, encoder_logits, encoder_boxes = model(*_pyramid(model, height=8, width=16))
    cells = sum((8 >> level) * (16 >> level) for level in range(model.config.levels))
    assert logits.shape == (2, 12, 5)
    assert boxes.shape == (2, 12, 4)
    assert encoder_logits.shape == (2, cells, 5)
    assert encoder_boxes.shape == (2, cells, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= 1


@pytest.mark.parametrize("settings", HEADS)
def test_a_batch_equals_its_images_one_by_one(settings: dict[str, Any]) -> None:
    model = _adapter(**settings).eval()
    pyramid = _pyramid(model, batch=3)
    with torch.no_grad():
        together = model(*pyramid)
        for image in range(3):
            alone = model(*(level[image : image + 1] for level in pyramid))
            for whole, part in zip(together, alone, strict=True):
                assert torch.allclose(whole[image], part[0], atol=1e-5)


@pytest.mark.parametrize("settings", HEADS)
@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (40, 1)])
def test_the_loss_takes_any_number_of_objects_and_reaches_every_weight(
    settings: dict[str, Any], counts: tuple[int, int]
) -> None:
    model = _adapter(**settings).train()
    loss, parts = model.loss(_pyramid(model), [_target(count) for count in counts])
    torch.autograd.backward(loss)
    assert math.isfinite(float(loss.detach()))
    assert {"vfl", "bbox", "giou"} <= set(parts)
    assert float(loss.detach()) == pytest.approx(sum(float(value) for value in parts.values()), rel=1e-4)
    assert ("denoising" in parts) == (max(counts) > 0)
    if min(counts) > 0:
        assert not [name for name, weight in model.named_parameters() if weight.grad is None]


@pytest.mark.parametrize("settings", HEADS)
def test_nothing_is_taught_to_be_background_in_a_crowd(settings: dict[str, Any]) -> None:
    model = _adapter(**settings).train()
    scores = [(name, weight) for name, weight in model.named_parameters() if "score" in name or "class_embed" in name]
    scores = [(name, weight) for name, weight in scores if "denoising" not in name]
    assert scores
    everywhere = {"crowds": torch.tensor([[0.5, 0.5, 4.0, 4.0]]).repeat(3, 1), "crowd_labels": torch.arange(3)}
    for crowds, silent in ((everywhere, True), ({}, False)):
        model.zero_grad()
        loss, _ = model.loss(_pyramid(model), [_target(0) | crowds] * 2)
        torch.autograd.backward(loss)
        assert math.isfinite(float(loss.detach()))
        taught = [name for name, weight in scores if weight.grad is not None and weight.grad.any()]
        assert (not taught) == silent


def test_the_loss_is_a_function_of_torchs_seed() -> None:
    model = _adapter().train()
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(float(model.loss(_pyramid(model), [_target(3), _target(2)])[0].detach()))
    assert values[0] == values[1] != values[2]


@pytest.mark.slow
def test_a_few_steps_on_one_batch_lower_the_loss_and_find_the_boxes() -> None:
    model = _adapter(denoising=0).train()
    pyramid, targets = _pyramid(model), [_target(2), _target(1)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, _ = model.loss(pyramid, targets)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]


def test_it_runs_in_bfloat16_autocast_with_losses_in_float32() -> None:
    model = _adapter().train()
    plain, _ = model.loss(_pyramid(model), [_target(3), _target(0)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        loss, _ = model.loss(_pyramid(model), [_target(3), _target(0)])
    torch.autograd.backward(loss)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=0.3)


def test_calibration_makes_loud_and_quiet_channels_equal() -> None:
    model = _adapter()
    scales = torch.logspace(-2, 2, 24).view(1, -1, 1, 1)
    loud = _pyramid(model)
    loud[0] = loud[0] * scales + 5 * scales
    neck: Any = model.neck
    convolution = neck[0][0]
    expected = convolution(_pyramid(model)[0])
    model.calibrate([loud])
    found = convolution(loud[0])
    centred = [features - features.mean(dim=(0, 2, 3), keepdim=True) for features in (expected, found)]
    assert torch.allclose(centred[0], centred[1], atol=0.3)
    assert found.mean(dim=(0, 2, 3)).abs().max() < 0.3, "the mean is gone but for the bias"


def test_anchors_keep_their_size_in_pixels_when_the_frame_grows() -> None:
    device = torch.device("cpu")
    for height, width in ((16, 16), (16, 32), (64, 48)):
        anchors = anchor_logits([(height, width)], 4.0, device).sigmoid()[0]
        assert torch.allclose(anchors[:, 2] * width, torch.tensor(4.0), atol=1e-3)
        assert torch.allclose(anchors[:, 3] * height, torch.tensor(4.0), atol=1e-3)
        corner = torch.tensor([0.5 / width, 0.5 / height]).clamp(min=0.01)
        assert torch.allclose(anchors[0, :2], corner, atol=1e-4)


def test_deformable_attention_reads_the_cell_it_points_at() -> None:
    attention = DeformableAttention(width=4, heads=1, levels=2, points=1)
    with torch.no_grad():
        attention.sampling_offsets.bias.zero_()
        for projection in (attention.value_proj, attention.output_proj):
            projection.weight.copy_(torch.eye(4))
    levels = [torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 2, 2)]
    levels[0][0, :, 1, 2] = 6.0
    cells, shapes = flatten_levels(levels)
    places = torch.tensor([[[2.5 / 4, 1.5 / 4, 0.5, 0.5]], [[0.5 / 4, 0.5 / 4, 0.5, 0.5]]]).transpose(0, 1)
    with torch.no_grad():
        found, _ = attention(
            torch.zeros(1, 2, 4), encoder_hidden_states=cells, reference_points=places.unsqueeze(2),
            spatial_shapes_list=shapes,
        )  # fmt: skip
    # Two levels share the weight, and only the first holds something.
    assert torch.allclose(found[0, 0], torch.full((4,), 3.0), atol=1e-5)
    assert torch.allclose(found[0, 1], torch.zeros(4), atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(split_levels(cells, shapes), levels, strict=True))


def test_a_frame_with_fewer_cells_than_queries_is_refused() -> None:
    model = _adapter(queries=100)
    with refused(ModelError, None, 80, 100):
        model(*_pyramid(model))


def test_a_pyramid_of_another_base_is_refused() -> None:
    model = _adapter()
    with refused(ModelError, None, 2, 1):
        model(_pyramid(model)[0])


def test_a_saved_adapter_comes_back_the_same(tmp_path: Path) -> None:
    model = _adapter(denoising=0).eval()
    save_adapter(tmp_path / "adapter", model, _info(model))
    loaded, info = load_adapter(tmp_path / "adapter")
    assert info == _info(model)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    with torch.no_grad():
        pairs = zip(model(*_pyramid(model)), loaded(*_pyramid(model)), strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_adapter_json_lists_every_mistake_at_once(tmp_path: Path) -> None:
    model = _adapter()
    save_adapter(tmp_path, model, _info(model))
    value = json.loads((tmp_path / INFO_FILE).read_text())
    value["colour"] = 1
    value["timestep"] = "1"
    del value["style"]
    value["config"]["layers"] = 3
    (tmp_path / INFO_FILE).write_text(json.dumps(value))
    with pytest.raises(ModelError) as caught:
        load_adapter(tmp_path)
    for part in ('unknown key "colour"', '"timestep" must be a whole number', 'missing key "style"', '"config.layers"'):
        assert part in str(caught.value)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = _adapter()
    save_adapter(tmp_path, _adapter(width=32), _info(model))
    with refused(ModelError, None, WEIGHTS_FILE, INFO_FILE):
        load_adapter(tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"not safetensors")
    with refused(ModelError, None, WEIGHTS_FILE):
        load_adapter(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with refused(ModelError, None, WEIGHTS_FILE):
        load_adapter(tmp_path)


def test_impossible_settings_are_refused_all_at_once() -> None:
    with refused(ModelError, None, '"queries"', '"width"'):
        AdapterConfig((8,), 3, width=30, queries=0)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (333, 100), (50, 50)])
def test_boxes_on_a_prepared_frame_come_back_to_the_original_pixels(width: int, height: int) -> None:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    box = np.array([0.25 * width, 0.5 * height, 0.75 * width, 0.9 * height])
    x0, y0, x1, y1 = box.round().astype(int)
    image[y0:y1, x0:x1] = 255
    pixels, scale, (padded_width, padded_height) = prepare_frame(image, 96, 32)
    assert pixels.shape == (3, padded_height, padded_width)
    assert padded_width % 32 == padded_height % 32 == 0
    assert pixels.min() == -1
    assert pixels.max() == 1
    rows, columns = np.nonzero(pixels[0] > 0)
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float64)
    shares = seen / np.array([padded_width, padded_height] * 2)
    boxes = np.array([[*(shares[:2] + shares[2:]) / 2, *(shares[2:] - shares[:2])]])
    found = detections(np.array([[-3.0, 2.0]]), boxes, (padded_width, padded_height), scale, (width, height))
    assert np.abs(found.boxes[0] - [x0, y0, x1, y1]).max() <= 0.6 / scale + 0.5
    assert found.scores[0] == pytest.approx(1 / (1 + math.exp(-2)))
    assert found.labels.tolist() == [1]


def _detect(rows: Any, logits: Any, **options: Any) -> Instances:
    return detections(np.array(logits), np.array(rows), (100, 100), 1.0, (90, 80), **options)


def test_detections_are_sorted_clipped_and_free_of_weak_ones_and_duplicates() -> None:
    rows = [
        (0.2, 0.2, 0.2, 0.2),
        (0.5, 0.5, 0.2, 0.2),
        (0.505, 0.5, 0.2, 0.2),
        (0.9, 0.4, 0.4, 0.2),
        (0.95, 0.95, 0.08, 0.08),
    ]
    found = _detect(rows, [[-4.0, -5.0], [1.0, 0.0], [0.0, 2.0], [0.5, -1.0], [5.0, 5.0]])
    # The first is below 0.05, the second a weaker copy of the third, the last lies in the padding.
    assert found.labels.tolist() == [1, 0]
    assert np.allclose(found.boxes, [[40.5, 40.0, 60.5, 60.0], [70.0, 30.0, 90.0, 50.0]], atol=1e-3)
    assert (np.diff(found.scores) <= 0).all()
    assert len(_detect(rows, [[1.0, 0.0]] * 5, limit=1)) == 1
    assert len(_detect(rows, [[1.0, 0.0]] * 5, duplicate_iou=1.0)) == 4
    assert _detect(rows, [[-9.0, -9.0]] * 5).boxes.shape == (0, 4)


def _scored(*rows: tuple[float, float, float, float, float, int]) -> Instances:
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return Instances.of(table[:, :4], table[:, 5], table[:, 4])


def test_boxes_of_one_object_in_two_views_become_one_weighted_by_their_scores() -> None:
    first = _scored((0, 0, 10, 10, 0.8, 0), (50, 50, 60, 60, 0.4, 1))
    second = _scored((0, 0, 10, 10, 0.9, 1), (2, 0, 12, 10, 0.4, 0))  # another class; an IoU of 2/3
    found = fuse([first, second])
    assert np.allclose(found.boxes, [[0.0, 0.0, 10.0, 10.0], [2 / 3, 0.0, 32 / 3, 10.0], [50.0, 50.0, 60.0, 60.0]])
    assert np.allclose(found.scores, [0.9, 0.8, 0.4])
    assert found.labels.tolist() == [1, 0, 1]
    assert len(fuse([first, second], same_iou=0.7)) == 4
    assert len(fuse([first, second], limit=1)) == len(fuse([first, second], score_floor=0.85)) == 1


def test_a_score_is_the_mean_of_the_surer_half_of_all_views() -> None:
    seen = [_scored((0, 0, 10, 10, score, 0)) for score in (0.9, 0.3, 0.7)]
    assert np.allclose(fuse([*seen, _scored()]).scores, [0.8])
    assert np.allclose(fuse([seen[0], _scored(), _scored(), _scored()]).scores, [0.45])
    assert np.allclose(fuse(seen).scores, [0.8])


def test_what_one_view_sees_twice_stays_two_and_a_single_view_is_left_alone() -> None:
    twice = _scored((0, 0, 10, 10, 0.8, 0), (2, 0, 12, 10, 0.6, 0))
    found = fuse([twice, _scored((1, 0, 11, 10, 0.7, 0))])
    assert np.allclose(found.scores, [0.8, 0.6])  # the surer of the two took the other view's box
    assert np.allclose(found.boxes[1], [2, 0, 12, 10])
    assert fuse([twice]) is twice
    nothing = fuse([_scored(), _scored()])
    assert [part.shape for part in (nothing.boxes, nothing.scores, nothing.labels)] == [(0, 4), (0,), (0,)]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100, 1000])
def test_of_many_boxes_the_best_that_no_better_one_covers_are_kept(limit: int) -> None:
    rng = generator(5)
    rows = rng.random((450, 4)) * (0.4, 0.4, 0.3, 0.3) + (0.2, 0.2, 0.1, 0.1)
    logits = rng.normal(0, 1, size=(450, 1))
    every = _detect(rows, logits, duplicate_iou=1.0, limit=450)
    kept: list[int] = []
    for index in range(len(every)):
        if all(iou_matrix(every.boxes[[index]], every.boxes[[other]])[0, 0] <= 0.8 for other in kept):
            kept.append(index)
    assert 200 < len(kept) < len(every)
    assert _detect(rows, logits, limit=limit) == every.take(kept[:limit])
