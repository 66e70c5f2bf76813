"""`train_base` as a whole: whose labels it reads, and what it is refused for."""

from pathlib import Path
from typing import Any

import pytest
from made_data import make_data
from refusals import refused

from engines.common.events import Event
from engines.datasets.dataset import Dataset
from engines.errors import DengineError, TrainingError, UsageError
from engines.training import train_adapter as adapters
from engines.training import train_base as module
from engines.training.train_adapter import TrainAdapterSettings, train_adapter
from engines.training.train_base import TrainBaseSettings, train_base


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the training itself was asked for, which does nothing."""
    seen: dict[str, Any] = {}

    def fit_base(dataset: Any, out: Path, options: Any, **more: Any) -> None:
        seen.update(more, dataset=dataset, out=out, options=options)

    monkeypatch.setattr(module, "fit_base", fit_base)
    return seen


@pytest.mark.parametrize(
    ("labels", "read"),
    [("none", set()), ("all", None), ("one\n a/3.png \n\n", {"1.png", "3.png"}), ("2.png", {"2.png"})],
)
def test_labels_are_read_of_none_of_all_or_of_listed_images(
    tmp_path: Path, asked: dict[str, Any], labels: str, read: set[str] | None
) -> None:
    make_data(tmp_path / "data")
    if labels not in ("none", "all"):
        listed = tmp_path / "list.txt"
        listed.write_text(labels.replace("one", "1").replace("a/", ""), "utf-8")
        labels = str(listed)
    events: list[Event] = []
    settings = TrainBaseSettings(data=str(tmp_path / "data"), out=str(tmp_path / "out"), labels=labels, style="blood")
    summary = train_base(settings, report=events.append)
    assert asked["labelled"] == read
    assert (asked["options"].style, asked["continue_from"], asked["resume"]) == ("blood", None, False)
    assert (summary.folder, summary.images) == (tmp_path / "out", 5)
    assert any("5 images" in str(event) for event in events)


def test_images_that_cannot_be_read_are_left_out_before_a_training_begins(
    tmp_path: Path, asked: dict[str, Any], toy_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = make_data(tmp_path / "data").records[2].file
    data = bytearray(spoilt.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"\x55" * 40
    spoilt.write_bytes(bytes(data))
    found = train_base(TrainBaseSettings(data=tmp_path / "data", out=tmp_path / "base", skip_bad=True))
    assert (len(asked["dataset"].records), len(found.skipped)) == (4, 1)
    seen: list[Dataset] = []

    def stop(dataset: Dataset, *_: Any, **__: Any) -> None:
        seen.append(dataset)
        raise TrainingError("seen enough")

    monkeypatch.setattr(adapters, "prepare_adapter", stop)
    base, out = toy_bases["sd1"], tmp_path / "adapter"
    with refused(TrainingError, None, "seen enough"):
        train_adapter(TrainAdapterSettings(data=tmp_path / "data", base=base, out=out, skip_bad=True))
    assert (len(seen[0].records), len(seen[0].skipped)) == (4, 1)


def test_a_list_that_is_none_or_names_an_unknown_image_is_refused(tmp_path: Path, asked: dict[str, Any]) -> None:
    make_data(tmp_path / "data")
    listed = tmp_path / "list.txt"
    listed.write_text("1\nfour\n", "utf-8")
    for labels, shown in ((str(listed), "'four'"), ("some", "'some'"), (str(tmp_path), tmp_path)):
        with refused(UsageError, "labels", shown):
            train_base(TrainBaseSettings(data=tmp_path / "data", out=tmp_path / "out", labels=labels))
    assert not asked


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"seed": -1, "steps_scale": 0}, "seed"),
        ({"stages": ("vae", "text")}, "stages"),
        ({"stages": ()}, "stages"),
        ({"steps_scale": "fast"}, "steps_scale"),
        ({"prediction_type": "epsilon"}, "prediction_type"),
        ({"preset": "huge"}, "preset"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(
    tmp_path: Path, wrong: dict[str, Any], field: str
) -> None:
    with refused(UsageError, field, *(f"`{name}" for name in wrong)):
        train_base(TrainBaseSettings(**{"data": tmp_path / "nowhere", "out": tmp_path / "out"} | wrong))


def test_a_finished_base_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(TrainingError):
        train_base(TrainBaseSettings(data=tmp_path / "nowhere", out=tmp_path))
    with pytest.raises(DengineError):
        train_base(TrainBaseSettings(data=tmp_path / "nowhere", out=tmp_path / "out"))
