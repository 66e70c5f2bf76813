"""Training a Detection-Adapter, from a dataset on disk to an adapter folder."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from safetensors.torch import load_file

from engines.adapter.info import INFO_FILE, WEIGHTS_FILE, AdapterInfo, read_info
from engines.adapter.model import load_adapter
from engines.common.events import Event
from engines.common.rng import generator
from engines.common.training_log import LOG, read_log
from engines.datasets.dataset import Dataset, Record, instances_of
from engines.datasets.learned import LEARNED
from engines.diffusion.base_model import base_hash, load_base
from engines.errors import ModelError, TrainingError, UsageError
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.labels.thresholds import Choice
from engines.training import pyramids
from engines.training.adapter import fit_adapter
from engines.training.adapter_options import AdapterTrainOptions
from engines.training.augment import FrameOptions
from engines.training.dev_split import noise, split_by_names, split_dev
from engines.training.pyramids import BatchSource, FrozenPyramid

NAMES = ("square", "bar")
NETWORK: dict[str, Any] = {"width": 16, "heads": 2, "ffn_width": 16, "decoder_layers": 1, "queries": 8, "denoising": 4}
OPTIONS = AdapterTrainOptions(
    short_side=48, steps=6, batch=2, warmup=2, eval_every=3, dev_fraction=0.25, network=NETWORK, precision="f32"
)


def _record(folder: Path, number: int) -> Record:
    """An image with a few bright shapes on dark ground; every fourth is empty."""
    rng = generator(7, number)
    pixels = rng.integers(0, 40, size=(48, 64, 3)).astype(np.uint8)
    boxes, labels = [], []
    for _ in range(0 if number % 4 == 3 else int(rng.integers(1, 3))):
        label = int(rng.integers(2))
        width, height = ((16, 16), (28, 8))[label]
        left, top = int(rng.integers(64 - width)), int(rng.integers(48 - height))
        pixels[top : top + height, left : left + width] = ((250, 60, 60), (60, 60, 250))[label]
        boxes.append([left, top, left + width, top + height])
        labels.append(label)
    name = f"{number:03}.png"
    Image.fromarray(pixels).save(folder / name)
    return Record(
        file=folder / name,
        name=name,
        width=64,
        height=48,
        instances=Instances.of(boxes, labels),
        caption=None,
    )


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve small images."""
    folder = tmp_path_factory.mktemp("shapes")
    return Dataset(folder, NAMES, [_record(folder, number) for number in range(12)], (), ())


def _train(
    shapes: Dataset, base: Path, out: Path, options: AdapterTrainOptions = OPTIONS, *, resume: bool = False
) -> list[Event]:
    seen: list[Event] = []
    fit_adapter(shapes, base, out, options, resume=resume, report=seen.append)
    return seen


def _frozen(base: Path) -> FrozenPyramid:
    return FrozenPyramid(load_base(base), 1, "f32", "cpu")


def _source(shapes: Dataset, frozen: FrozenPyramid, **changes: Any) -> BatchSource:
    drawn = FrameOptions(64, 48, short_side=48)
    options = pyramids.SourceOptions(drawn, "photo", {"generic": 0.5, "listing": 0.5}, batch=3, seed=1)
    return BatchSource(shapes.records, NAMES, frozen, replace(options, **changes))


@pytest.mark.slow
def test_a_training_ends_in_an_adapter_folder_and_leaves_the_base_alone(
    shapes: Dataset, toy_bases: dict[str, Path], tmp_path: Path
) -> None:
    before = base_hash(toy_bases["sd1"])
    seen = _train(shapes, toy_bases["sd1"], tmp_path / "adapter")
    model, info = load_adapter(tmp_path / "adapter")
    assert base_hash(toy_bases["sd1"]) == before == info.base_hash
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        INFO_FILE, WEIGHTS_FILE, LEARNED, LOG,
    ]  # fmt: skip
    assert info.class_names == NAMES
    assert (info.timestep, info.short_side, info.frame, info.size_multiple) == (1, 48, (64, 48), 16)
    assert model.config.channels == (96, 160)
    assert info.figures["train_images"] + info.figures["tune_images"] == 12
    assert set(info.figures["tune"]) == {"generic", "listing", "empty"}
    assert all(sum(counts.values()) > 0 and set(counts) <= set(NAMES) for counts in info.class_statistics)
    assert info.labelled_images == 12
    assert info.objects == shapes.objects()
    assert info.thresholds == {}, "three images of the dev split hold too few boxes"
    assert info.figures["thresholds"]["goal"] == 0.9
    assert sum(info.figures["thresholds"][name]["tune_boxes"] for name in NAMES) > 0
    assert [event.done for event in seen if event.stage == "adapter"][-1] == 6
    assert "AP50" in [event for event in seen if event.stage == "adapter"][-1].figures
    rows = read_log(tmp_path / "adapter")["adapter"]
    assert [row["step"] for row in rows] == [3, 6]
    assert all({"loss", "lr", "AP", "AP50"} < row.keys() for row in rows)
    measured = [event for event in seen if event.stage == "measuring"]
    assert {event.total for event in measured} == {3}
    assert all(event.seconds_left is not None for event in seen if event.total), "all parts have one time left"
    with pytest.raises(TrainingError, match="already holds a finished adapter"):
        _train(shapes, toy_bases["sd1"], tmp_path / "adapter")


@pytest.mark.slow
def test_minutes_become_steps_which_a_resume_keeps(
    shapes: Dataset, toy_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def longest(seconds: float, parts: Any, most: int) -> int:
        asked.append(seconds)
        return 4 if parts(4)[0].units == 4 else 0

    monkeypatch.setattr("engines.training.adapter.longest", longest)
    wanted = replace(OPTIONS, minutes=5.0, checkpoint_minutes=0.0)

    def stop(event: Event) -> None:
        if event.stage == "measuring":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_adapter(shapes, toy_bases["sd1"], tmp_path / "adapter", wanted, resume=False, report=stop)
    monkeypatch.setattr("engines.training.adapter.longest", lambda *_: 1000)
    seen = _train(shapes, toy_bases["sd1"], tmp_path / "adapter", wanted, resume=True)
    assert 0 < asked[0] < 300, "preparation counts"
    assert {event.total for event in seen if event.stage == "adapter"} == {4}
    assert load_adapter(tmp_path / "adapter")[1].figures["steps"] == 4


def test_prompts_that_are_too_long_are_remarked_on_before_the_training(
    shapes: Dataset, toy_bases: dict[str, Path], tmp_path: Path
) -> None:
    class EnoughError(Exception):
        """Ends a training at its first event."""

    def report(event: Event) -> None:
        raise EnoughError(str(event))

    long = replace(OPTIONS, style="photo " * 40)
    with pytest.raises(EnoughError, match=r"a prompt has \d+ tokens, and 32 are read: .* changes nothing"):
        fit_adapter(shapes, toy_bases["sd1"], tmp_path / "adapter", long, resume=False, report=report)


@pytest.mark.slow
def test_thresholds_are_chosen_on_the_dev_split_for_the_goal(
    shapes: Dataset, toy_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[Instances], float]] = []

    def choose(dev: Any, found: Any, names: Any, goal: float) -> dict[str, Choice]:
        asked.append((dev, goal))
        assert len(found) == len(dev)
        return {"square": Choice(25, 0.42, 0.96, 0.8), "bar": Choice(3, None)}

    monkeypatch.setattr("engines.training.adapter.choose_thresholds", choose)
    _train(shapes, toy_bases["sd1"], tmp_path / "adapter", replace(OPTIONS, steps=1, precision_goal=0.95))
    _, info = load_adapter(tmp_path / "adapter")
    dev = instances_of(split_dev(shapes.records, 0.25)[1])
    assert asked == [(dev, 0.95)]
    assert sum(map(len, dev)) > 1
    assert info.thresholds == {"square": 0.42}
    assert info.figures["thresholds"] == {
        "goal": 0.95,
        "square": {"tune_boxes": 25, "precision": 0.96, "recall": 0.8},
        "bar": {"tune_boxes": 3},
    }


def test_adapter_files_of_before_thresholds_read_and_impossible_ones_do_not(
    toy_adapters: dict[str, Path],
) -> None:
    value = read_info(toy_adapters["sd1"]).to_json()
    del value["thresholds"]
    assert AdapterInfo.from_json(value).thresholds == {}
    for wrong in ({"nucleus": 0.5}, {"rbc": 1.5}, {"rbc": "high"}):
        with pytest.raises(ModelError, match="thresholds"):
            AdapterInfo.from_json(value | {"thresholds": wrong})


@pytest.mark.slow
def test_a_stopped_and_resumed_training_gives_the_same_weights(
    shapes: Dataset, toy_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, checkpoint_minutes=0.0, cache_views=1, rotate=True)
    _train(shapes, toy_bases["sd2"], tmp_path / "whole", options)
    at = BatchSource.at

    def stopped(self: BatchSource, step: int) -> pyramids.Batch:
        if step == 3:
            raise KeyboardInterrupt
        return at(self, step)

    monkeypatch.setattr(BatchSource, "at", stopped)
    with pytest.raises(KeyboardInterrupt):
        _train(shapes, toy_bases["sd2"], tmp_path / "parts", options)
    monkeypatch.setattr(BatchSource, "at", at)
    assert not (tmp_path / "parts" / INFO_FILE).exists()
    _train(shapes, toy_bases["sd2"], tmp_path / "parts", options, resume=True)
    whole, parts = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_the_base_takes_no_gradient(shapes: Dataset, toy_bases: dict[str, Path]) -> None:
    frozen = _frozen(toy_bases["sd1"])
    batch = _source(shapes, frozen).at(0)
    assert not any(level.requires_grad for level in batch.pyramid)
    networks = (frozen.base.unet, frozen.base.vae, frozen.base.text_encoder)
    assert not any(weight.requires_grad for network in networks for weight in network.parameters())


def test_one_conditional_row_an_image_reaches_the_unet(
    shapes: Dataset, toy_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = _frozen(toy_bases["sd1"])
    rows: list[tuple[int, list[int]]] = []

    def note(module: torch.nn.Module, inputs: Any) -> None:
        rows.append((inputs[0].shape[0], inputs[1].tolist()))

    frozen.base.unet.register_forward_pre_hook(note)
    _source(shapes, frozen).at(0)
    assert rows == [(3, [1, 1, 1])]


def test_batches_are_functions_of_the_step_and_kept_ones_equal_new_ones(
    shapes: Dataset, toy_bases: dict[str, Path]
) -> None:
    frozen = _frozen(toy_bases["sd1"])
    kept = _source(shapes, frozen, cache_views=2)
    first = [kept.at(step) for step in range(8)]  # two views of four groups
    again = [kept.at(step) for step in range(8, 16)]
    assert {id(batch) for batch in again} == {id(batch) for batch in first}
    fresh = _source(shapes, frozen, cache_views=2, cache_gb=0.0, workers=2)
    for step, batch in enumerate(again, start=8):
        other = fresh.at(step)
        assert all(torch.equal(a, b) for a, b in zip(batch.pyramid, other.pyramid, strict=True))
        for target, theirs in zip(batch.targets, other.targets, strict=True):
            assert torch.equal(target["boxes"], theirs["boxes"])
    assert not torch.equal(first[0].pyramid[0], _source(shapes, frozen, cache_views=2, seed=2).at(0).pyramid[0])


def test_how_many_pyramids_are_made_anew_is_known_where_not_all_can_be_kept(
    shapes: Dataset, toy_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, calls = _frozen(toy_bases["sd1"]), list[Any]()
    size = _source(shapes, frozen, cache_views=2).at(0).nbytes()
    ask = type(frozen).__call__

    def counted(self: Any, *given: Any) -> Any:
        calls.append(given)
        return ask(self, *given)

    monkeypatch.setattr(type(frozen), "__call__", counted)
    source = _source(shapes, frozen, cache_views=2, cache_gb=4.5 * size / 2**30)  # four of eight groups
    source.at(0)
    assert (source.fresh(24), source.fresh_of(24, 12, 2), source.fresh_of(24, 12, 1)) == (16, 16, 4)
    for step in range(24):
        source.at(step)
    assert len(calls) == 16
    every = _source(shapes, frozen)
    every.at(0)
    assert (every.fresh(24), every.fresh_of(24, 12, 2)) == (24, 8), "with 4 GiB for them"


def test_every_image_is_seen_once_an_epoch(shapes: Dataset, toy_bases: dict[str, Path]) -> None:
    source = _source(shapes, _frozen(toy_bases["sd1"]))
    for epoch in range(3):
        members = [source._members(source._key(step)) for step in range(4 * epoch, 4 * epoch + 4)]
        assert sorted(image for group in members for image in group) == list(range(12))


def test_targets_are_shares_of_the_frame(shapes: Dataset, toy_bases: dict[str, Path]) -> None:
    plain = FrameOptions(128, 96, short_side=48, scale=(1.0, 1.0), flips=False, colour=0.0)
    source = _source(shapes, _frozen(toy_bases["sd1"]), frame=plain)
    members = source._members(source._key(0))
    for image, target in zip(members, source.at(0).targets, strict=True):
        found = shapes.records[image].instances
        centred = np.concatenate(
            [(found.boxes[:, :2] + found.boxes[:, 2:]) / 2, found.boxes[:, 2:] - found.boxes[:, :2]], axis=1
        )
        assert np.allclose(target["boxes"].numpy(), centred / [128, 96, 128, 96], atol=1e-5)
        assert target["class_labels"].tolist() == found.labels.tolist()


@pytest.mark.slow
def test_the_loss_falls(shapes: Dataset, toy_bases: dict[str, Path], tmp_path: Path) -> None:
    options = replace(
        OPTIONS, steps=60, batch=4, lr=3e-3, warmup=5, dev_fraction=0.0, scale=(1.0, 1.0), cache_views=1, grad_clip=1.0
    )
    seen = _train(shapes, toy_bases["sd1"], tmp_path / "adapter", options)
    losses = [event.figures["loss"] for event in seen if "loss" in event.figures]
    assert losses[-1] < 0.7 * losses[0]
    _, info = load_adapter(tmp_path / "adapter")
    assert "tune" not in info.figures


def test_the_dev_split_follows_from_names_alone(shapes: Dataset) -> None:
    train, dev = split_dev(shapes.records, 0.25)
    assert {record.name for record in train} | {record.name for record in dev} == {r.name for r in shapes.records}
    assert (len(train), len(dev)) == (9, 3)
    backwards = split_dev(list(reversed(shapes.records)), 0.25)[1]
    assert {record.name for record in backwards} == {record.name for record in dev}
    assert split_dev(shapes.records, 0.0) == (list(shapes.records), [])
    assert len(split_dev(shapes.records[:6], 1e-9)[1]) == 1, "never empty where one was asked for"
    with pytest.raises(TrainingError, match="All 1 images fall into the dev split"):
        split_dev(shapes.records[:1], 0.1)


def test_every_class_gives_its_share_to_the_dev_split(shapes: Dataset) -> None:
    box = [[2.0, 2.0, 20.0, 20.0]]
    records = [
        replace(shapes.records[0], name=f"{i}.png", instances=Instances.of(box, [int(i % 10 == 0)])) for i in range(200)
    ]
    train, dev = split_dev(records, 0.1)
    assert (len(train), len(dev)) == (180, 20)
    assert sum(int(one.instances.labels[0]) for one in dev) == 2
    assert {one.name for one in split_by_names(records, 0.1)[1]} != {one.name for one in dev}


def test_few_images_make_a_wide_interval() -> None:
    truth = [Instances.of([[0.0, 0.0, 20.0, 20.0]], [0]) for _ in range(40)]
    found = [Instances.of([[0.0, 0.0, 20.0 + 20 * (i % 3), 20.0]], [0], [0.9 - 0.01 * i]) for i in range(40)]
    widths = []
    for number in (6, 40):
        low, high = noise(truth[:number], found[:number], ("square",))["AP"]
        assert low <= mean_average_precision(truth[:number], found[:number], ("square",))["AP"] <= high
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1]


def test_options_go_to_json_and_back() -> None:
    options = replace(OPTIONS, frame=(64, 48), scale=(0.5, 2.0))
    assert AdapterTrainOptions.from_json(options.to_json()) == options
    assert AdapterTrainOptions.from_json({}) == AdapterTrainOptions()
    with pytest.raises(UsageError) as caught:
        AdapterTrainOptions.from_json({"stepz": 3, "lr": "fast", "frame": [1, 2, 3]})
    for part in ('unknown key "stepz"', '"lr" must be a number', '"frame" must be'):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"steps": 0, "scale": (2.0, 1.0)}, "scale"),
        ({"prompt_probabilities": {"generic": 0.5}}, "prompt_probabilities"),
        ({"network": {"layers": 3}}, "network"),
        ({"score": "mAP"}, "score"),
        ({"precision_goal": 1.1}, "precision_goal"),
        ({"pseudo_share": 1.0}, "pseudo_share"),
    ],
)
def test_impossible_options_are_usage_errors(changes: Mapping[str, Any], field: str) -> None:
    with refused(UsageError, field, *changes):
        replace(OPTIONS, **changes)


def test_a_frame_that_the_networks_cannot_divide_is_refused(
    shapes: Dataset, toy_bases: dict[str, Path], tmp_path: Path
) -> None:
    with refused(UsageError, "frame", (70, 48), 16, (64, 48)):
        _train(shapes, toy_bases["sd1"], tmp_path / "adapter", replace(OPTIONS, frame=(70, 48)))


def test_a_dataset_without_boxes_is_refused(shapes: Dataset, toy_bases: dict[str, Path], tmp_path: Path) -> None:
    empty = replace(shapes, records=[record for record in shapes.records if not len(record.instances)])
    with pytest.raises(TrainingError, match="has no boxes to learn from"):
        _train(empty, toy_bases["sd1"], tmp_path / "adapter")


def test_an_unknown_device_is_named_before_anything_is_loaded(shapes: Dataset, tmp_path: Path) -> None:
    with refused(UsageError, "device", '"gpu"'):
        _train(shapes, tmp_path / "nowhere", tmp_path / "adapter", replace(OPTIONS, device="gpu"))


def test_a_missing_base_is_named(shapes: Dataset, tmp_path: Path) -> None:
    with refused(ModelError, None, "nowhere"):
        _train(shapes, tmp_path / "nowhere", tmp_path / "adapter")
