"""Finds by adapters that did not learn from an image."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusals import refused
from toy import make_toy_base

from engines.audit import folds
from engines.audit.folds import FINDS, FOLDS, agreed, deal, out_of_fold
from engines.common.events import Event, silent
from engines.common.rng import generator
from engines.datasets.dataset import Dataset, Record
from engines.errors import RunError, UsageError
from engines.labels.boxes import Instances
from engines.training.adapter import AdapterTrainOptions, fit_adapter

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

    def watched_detect(folder: Path, base: Path, records: Any, options: Any) -> Any:
        judged.append({record.name for record in records})
        return detect(folder, base, records, options)

    monkeypatch.setattr(folds, "fit_adapter", watched_fit)
    monkeypatch.setattr(folds, "detect", watched_detect)
    told: list[Event] = []
    found = out_of_fold(dataset, base, tmp_path / "out", 2, OPTIONS, told.append)
    every = {record.name for record in dataset.records}
    assert len(learned) == len(judged) == 2
    for seen, unseen in zip(learned, judged, strict=True):
        assert seen | unseen == every
        assert not seen & unseen
    assert len(found) == 6
    assert {event.stage for event in told if event.figures} == {"fold 1 of 2", "fold 2 of 2"}

    (tmp_path / "out" / FOLDS / "2-of-2" / FINDS).unlink()  # as if it was stopped before it judged
    again = out_of_fold(dataset, base, tmp_path / "out", 2, OPTIONS, silent)
    assert (len(learned), len(judged)) == (2, 3), "nothing is trained twice"
    assert [one.to_rows() for one in again] == [one.to_rows() for one in found]
    with refused(RunError):
        out_of_fold(dataset, base, tmp_path / "out", 2, replace(OPTIONS, steps=3), silent)


def test_rounds_agree_on_a_find_by_the_mean_of_their_scores() -> None:
    first = Instances.of([(0, 0, 10, 10), (0, 0, 9, 10), (50, 50, 60, 60)], [1, 1, 0], [0.4, 0.2, 0.9])
    last = Instances.of([(0, 0, 10, 9), (50, 50, 60, 60), (80, 80, 90, 90)], [1, 1, 0], [0.8, 0.6, 0.5])
    both = agreed([first, last])
    np.testing.assert_array_equal(both.boxes, last.boxes)
    np.testing.assert_allclose(both.scores, [0.6, 0.3, 0.25])  # the second is of another class there
    assert agreed([last]).scores.tolist() == last.scores.tolist()
    assert agreed([Instances.of([], [], []), last]).scores.tolist() == pytest.approx([0.4, 0.3, 0.25])
