"""Finds by adapters that did not learn from an image."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kill_scenes import write_pictures
from PIL import Image
from refusals import refused
from toy import make_toy_base

from benchmarks.large_checks import different_files, read_hashes
from engines.common.events import Event, silent
from engines.common.rng import generator
from engines.datasets.dataset import Dataset, Record, instances_of, open_dataset
from engines.errors import Interrupted, RunError, TrainingError, UsageError
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.training import folds
from engines.training.adapter import fit_adapter
from engines.training.adapter_options import AdapterTrainOptions
from engines.training.ahead import FINDS, begin, begun, check_begun
from engines.training.dev_split import noise
from engines.training.folds import deal, out_of_fold
from engines.training.opened import OpenedBase
from engines.training.stopping import FOLDS
from engines.training.train_adapter import TrainAdapterSettings, train_adapter

NETWORK: dict[str, Any] = {"width": 16, "heads": 2, "ffn_width": 16, "decoder_layers": 1, "queries": 8, "denoising": 0}
OPTIONS = AdapterTrainOptions(
    short_side=32, steps=2, batch=2, warmup=1, dev_fraction=0.0, network=NETWORK, precision="f32", ignore_finds=0.3
)


def data(folder: Path, images: int = 6) -> Dataset:
    """Pictures of nothing, each with a box."""
    records = []
    for number in range(images):
        pixels = generator(5, number).integers(0, 255, size=(8, 10, 3)).astype(np.uint8)
        file = folder / f"{number}.png"
        Image.fromarray(pixels).resize((40, 32)).save(file)
        records.append(Record(file, file.name, 40, 32, Instances.of([[4, 4, 20, 20]], [number % 2]), None))
    return Dataset(folder, ("a", "b"), records, (), ())


def test_every_image_has_one_fold_and_folds_are_of_one_size(tmp_path: Path) -> None:
    records = data(tmp_path, 7).records
    fold = deal(records, 3)
    assert sorted(fold.count(number) for number in range(3)) == [2, 2, 3]
    assert deal(list(reversed(records)), 3) == list(reversed(fold)), "the order of the images does not matter"


def test_pictures_that_nearly_repeat_each_other_share_a_fold(tmp_path: Path) -> None:
    records = list(data(tmp_path, 6).records)
    for number in (1, 4):  # two brighter copies of the first
        pixels = records[0].pixels().astype(np.float64) * 0.8 + 20
        Image.fromarray(pixels.astype(np.uint8)).save(records[number].file)
    fold = deal(records, 2)
    assert fold[0] == fold[1] == fold[4]
    assert sorted(set(fold)) == [0, 1]


def test_more_folds_than_pictures_are_refused(tmp_path: Path) -> None:
    with refused(UsageError, "folds", 3):
        deal(data(tmp_path, 2).records, 3)


@pytest.mark.slow
def test_no_adapter_learns_from_an_image_that_it_judges_and_what_is_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_toy_base(tmp_path / "base")
    (tmp_path / "data").mkdir()
    dataset = data(tmp_path / "data")
    learned: list[set[str]] = []
    judged: list[set[str]] = []
    fit, detect = fit_adapter, folds.detect

    def watched_fit(seen: Dataset, *rest: Any, **more: Any) -> Any:
        learned.append({record.name for record in seen.records})
        return fit(seen, *rest, **more)

    def watched_detect(folder: Path, base: OpenedBase, records: Any, *rest: Any) -> Any:
        judged.append({record.name for record in records})
        return detect(folder, base, records, *rest)

    monkeypatch.setattr(folds, "fit_adapter", watched_fit)
    monkeypatch.setattr(folds, "detect", watched_detect)
    told: list[Event] = []
    fold = deal(dataset.records, 2)
    found = out_of_fold(dataset, base, tmp_path / "out", fold, OPTIONS, told.append)
    every = {record.name for record in dataset.records}
    assert len(learned) == len(judged) == 2
    for seen, unseen in zip(learned, judged, strict=True):
        assert seen | unseen == every
        assert not seen & unseen
    assert len(found) == 6
    assert {event.stage for event in told if event.figures} == {"fold 1 of 2", "fold 2 of 2"}

    (tmp_path / "out" / FOLDS / "2-of-2" / FINDS).unlink()  # as if it was stopped before it judged
    again = out_of_fold(dataset, base, tmp_path / "out", fold, OPTIONS, silent)
    assert (len(learned), len(judged)) == (2, 3), "nothing is trained twice"
    assert [one.to_rows() for one in again] == [one.to_rows() for one in found]
    for judgings in (5, 5):
        out_of_fold(dataset, base, tmp_path / "out", fold, OPTIONS, silent, looks=2)
        assert (len(learned), len(judged)) == (2, judgings), "other looks are other finds, of the same adapters"
    with refused(RunError):
        out_of_fold(dataset, base, tmp_path / "out", fold, replace(OPTIONS, steps=3), silent)
    for finds in (tmp_path / "out" / FOLDS).glob(f"*/{FINDS}"):  # as if it was stopped while the first one judged
        finds.unlink()
    with refused(RunError):
        out_of_fold(dataset, base, tmp_path / "out", fold, replace(OPTIONS, steps=3), silent)


def asked(folder: Path, **changes: Any) -> TrainAdapterSettings:
    """A training that two folds come ahead of, on six pictures."""
    usual = {"data": folder / "data", "base": folder / "base", "out": folder / "out", "folds": 2, "fold_steps": 2}
    small = {"short_side": 32, "steps": 3, "batch": 2, "warmup": 1, "network": NETWORK, "precision": "f32"}
    return TrainAdapterSettings(**{**usual, **small, **changes})


@pytest.fixture
def given(tmp_path: Path) -> Path:
    make_toy_base(tmp_path / "base")
    write_pictures(tmp_path / "data", 6, labels=True)
    return tmp_path


@pytest.mark.slow
def test_an_adapter_is_measured_by_folds_and_learns_from_every_image(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[list[Instances]] = []
    found_on = folds.out_of_fold

    def remember(*arguments: Any) -> list[Instances]:
        judged.append(found_on(*arguments))
        return judged[-1]

    monkeypatch.setattr(folds, "out_of_fold", remember)
    told: list[Event] = []
    summary = train_adapter(asked(given), report=told.append)
    figures, records = summary.info.figures, open_dataset(given / "data").records
    assert (figures["train_images"], figures["tune_images"], summary.info.labelled_images) == (6, 6, 6)
    assert (figures["folds"], figures["fold_steps"], figures["steps"]) == (2, 2, 3)
    names = summary.info.class_names
    measured = mean_average_precision(instances_of(records), judged[0], names)
    assert figures["tune"] == {"generic": {name: pytest.approx(value, abs=1e-4) for name, value in measured.items()}}
    assert figures["tune_interval"] == dict(noise(instances_of(records), judged[0], names))
    assert not (given / "out" / "training").exists()
    trained = [event for event in told if event.figures]
    assert [event.stage for event in trained] == ["fold 1 of 2", "fold 2 of 2", "adapter"]
    assert all(event.seconds_left is not None for event in told if event.total and event.stage != FOLDS)


@pytest.mark.slow
def test_a_training_that_was_stopped_among_its_folds_goes_on_with_its_own_settings(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.training.adapter.longest", lambda *_: 3)
    by_minutes = {"steps": 3000, "minutes": 5.0}
    train_adapter(asked(given, out=given / "whole", **by_minutes))
    detect, calls = folds.detect, list[Path]()

    def stop_at_second(folder: Path, *rest: Any) -> Any:
        calls.append(folder)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return detect(folder, *rest)

    monkeypatch.setattr(folds, "detect", stop_at_second)
    with pytest.raises(Interrupted) as stopped:
        train_adapter(asked(given, **by_minutes))
    assert stopped.value.kept
    with refused(TrainingError, "resume"):
        train_adapter(asked(given, **by_minutes))
    monkeypatch.setattr("engines.training.adapter.longest", lambda *_: 1000)
    for other in ({"lr": 0.5}, {"folds": 3}, {"fold_steps": 1}):
        with refused(TrainingError):
            train_adapter(asked(given, resume=True, **by_minutes, **other))
    assert len(calls) == 2, "what is refused trains nothing"
    train_adapter(asked(given, resume=True, **by_minutes))
    assert len(calls) == 3, "nothing is judged twice"
    assert different_files(read_hashes(given / "whole"), read_hashes(given / "out")) == []


def test_an_adapter_that_lies_in_the_folder_is_not_said_to_be_finished_by_a_start_that_is_stopped(
    tmp_path: Path,
) -> None:
    write_pictures(tmp_path / "data", 6, labels=True)
    (tmp_path / "out" / "older").mkdir(parents=True)
    (tmp_path / "out" / "older" / "adapter.json").write_text("{}")

    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        train_adapter(asked(tmp_path), report=stop)
    assert not stopped.value.kept


def test_what_is_stopped_before_a_fold_has_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    begin(tmp_path, {"settings": {"steps": 4}})
    assert begun(tmp_path, {}) == {}
    check_begun(tmp_path, {"settings": {"steps": 5}})


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("folds", {"folds": 1}),
        ("fold_steps", {"fold_steps": 0}),
        ("fold_steps", {"folds": 0, "fold_steps": 3}),
        ("folds", {"dev_fraction": 0.3}),
        ("devices", {"devices": 2}),
        ("lr", {"lr": 0.0, "folds": 1}),
    ],
)
def test_folds_that_cannot_be_are_refused(field: str, wrong: dict[str, Any], tmp_path: Path) -> None:
    with refused(UsageError, field):
        asked(tmp_path, **wrong)
