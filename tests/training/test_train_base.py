"""`train_base` as a whole: whose labels it reads, and what it is refused for."""

from pathlib import Path
from typing import Any

import pytest
from made_data import make_data
from refusals import refused

from engines.common.events import Event
from engines.errors import DengineError, TrainingError, UsageError
from engines.training import train_base as module
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
