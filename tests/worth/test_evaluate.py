"""What generated data is worth: the images that go in, and whole comparisons."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from made_worth import NAMES, TINY, make_dataset, make_run
from refusals import refused

from engines.errors import BackendError, DatasetError, DengineError, RunError, UsageError
from engines.runs.dataset_files import ANNOTATIONS
from engines.runs.journal import IMAGES
from engines.worth import evaluate as worth
from engines.worth.data import WorthData, open_data
from engines.worth.detectors import train as training
from engines.worth.evaluate import ALL, COMPARISON, MEASURED, PLOT, TRAININGS, evaluate
from engines.worth.settings import EvaluateSettings, Times


@pytest.fixture
def settings(tmp_path: Path) -> EvaluateSettings:
    """Four real images, six generated ones, three to measure on."""
    return EvaluateSettings(
        real=make_dataset(tmp_path / "real", range(4), (128, 96)),
        synthetic=(make_run(tmp_path / "run", range(10, 16)),),
        val=make_dataset(tmp_path / "val", range(20, 23)),
        out=tmp_path / "out",
        preset="quick",
        changes=TINY,
        resamples=10,
    )


def opened(settings: EvaluateSettings, most: int = 256) -> WorthData:
    return open_data(settings, most, lambda event: None)


def measured_on(settings: EvaluateSettings, training: str) -> Path:
    """The file with what a training found on the one validation set."""
    found: list[Path] = list((settings.out / TRAININGS / training).glob(f"{MEASURED}-*.json"))
    (file,) = found
    return file


def is_refused(settings: EvaluateSettings, kind: type[DengineError], field: str | None = None, *values: object) -> None:
    """`evaluate` stops with an error about this field that holds `values`, and nothing is written."""
    with refused(kind, field, *values):
        evaluate(settings)
    assert not settings.out.exists()


def test_real_and_generated_images_come_to_one_scale(settings: EvaluateSettings, tmp_path: Path) -> None:
    data = opened(settings)
    assert data.short_side == 48  # the run's
    assert {sample.short_side for sample in data.real} == {48}
    assert {sample.short_side for sample in data.generated} == {48}
    wide = make_run(tmp_path / "wide", range(30, 33), frame=(96, 64), short_side=32)
    data = opened(replace(settings, synthetic=(wide,), short_side=64))
    assert {sample.short_side for sample in data.real} == {64}
    assert {sample.short_side for sample in data.generated} == {128}  # 64 pixels of frame, painted at half the scale
    assert opened(settings, most=32).short_side == 32
    old = make_run(tmp_path / "old", range(40, 43), frame=(96, 64), short_side=None)
    data = opened(replace(settings, synthetic=(old,)))
    assert data.short_side == 64
    assert "does not say its scale" in data.notes[0]


def test_a_labelled_dataset_can_stand_for_a_run(settings: EvaluateSettings, tmp_path: Path) -> None:
    pseudo = make_dataset(tmp_path / "pseudo", range(50, 53), (128, 96))
    data = opened(replace(settings, synthetic=(pseudo,)))
    assert [sample.record.name for sample in data.generated] == ["50.png", "51.png", "52.png"]
    assert {sample.short_side for sample in data.generated} == {256}


def test_classes_are_matched_by_name(settings: EvaluateSettings, tmp_path: Path) -> None:
    turned = make_run(tmp_path / "turned", range(60, 62), ("b", "a"))
    data = opened(replace(settings, synthetic=(turned,)))
    assert data.class_names == NAMES
    assert data.generated[0].record.instances.labels.tolist() == [1, 0]


def test_a_list_chooses_real_images_but_amounts_count_in_all(settings: EvaluateSettings, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("1\n3.png\n")
    data = opened(replace(settings, images=tmp_path / "list.txt", amounts=(0, Times(1), 6)))
    assert [sample.record.name for sample in data.real] == ["1.png", "3.png"]
    assert data.arms == (0, 4, 6)
    assert data.split_images == 4
    (tmp_path / "list.txt").write_text("1\n77\n")
    is_refused(replace(settings, images=tmp_path / "list.txt"), UsageError, "images", "'77'")
    is_refused(replace(settings, images=tmp_path / "none.txt"), UsageError, "images", tmp_path / "none.txt")


def test_amounts_beyond_the_runs_are_refused(settings: EvaluateSettings) -> None:
    is_refused(replace(settings, amounts=(Times(2),)), UsageError, "amounts", "2x", 8, 6)
    is_refused(replace(settings, amounts=(0,)), UsageError, "amounts")
    assert opened(replace(settings, amounts=(Times(0.5),))).arms == (0, 2)


def test_wrong_options_are_listed_together(settings: EvaluateSettings) -> None:
    with refused(UsageError, "mix", "`mix` is 0", "`seeds` is 0", "`amounts` holds -1"):
        replace(settings, mix=(0.0, 0.0), seeds=0, amounts=(Times(-1),))
    is_refused(replace(settings, preset="huge"), UsageError, "preset", "quick, small, paper")
    is_refused(replace(settings, changes={"steps": 0}), UsageError, "steps", 0)


def test_different_class_lists_are_refused(settings: EvaluateSettings, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", range(60, 62), ("a", "c"))
    is_refused(replace(settings, synthetic=(other,)), DatasetError, "synthetic", "a, c", "a, b")
    wrong = make_dataset(tmp_path / "wrong", range(70, 72), names=("a", "z"))
    is_refused(replace(settings, val=wrong), DatasetError, None, '"z"')


def test_runs_without_anything_to_learn_from_are_refused(settings: EvaluateSettings, tmp_path: Path) -> None:
    empty = make_run(tmp_path / "empty", [])
    is_refused(replace(settings, synthetic=(empty,)), RunError, "synthetic", tmp_path / "empty")
    bare = make_dataset(make_run(tmp_path / "bare", []), range(2), boxes=0)
    is_refused(replace(settings, synthetic=(bare,)), RunError, "synthetic", bare)
    crowds = make_run(tmp_path / "crowds", range(80, 82))
    content = json.loads((crowds / ANNOTATIONS).read_text())
    for found in content["annotations"]:
        found["iscrowd"] = 1
    (crowds / ANNOTATIONS).write_text(json.dumps(content))
    is_refused(replace(settings, synthetic=(crowds,)), RunError, "synthetic", crowds)
    unfinished = make_run(tmp_path / "unfinished", range(60, 62))
    (unfinished / ANNOTATIONS).unlink()
    is_refused(replace(settings, synthetic=(unfinished,)), RunError, "synthetic", "`dengine finalize`")
    is_refused(replace(settings, synthetic=(tmp_path / "nowhere",)), RunError, "synthetic", tmp_path / "nowhere")


def test_validation_images_without_boxes_are_refused(settings: EvaluateSettings, tmp_path: Path) -> None:
    bare = make_dataset(tmp_path / "bare", range(70, 72), boxes=0)
    is_refused(replace(settings, val=bare), DatasetError, "val", bare)


def test_copies_of_training_images_are_left_out_and_where_none_is_left_it_is_refused(
    settings: EvaluateSettings, tmp_path: Path
) -> None:
    is_refused(replace(settings, val=settings.real), DatasetError, "real", 4, "0.png")
    painted = make_dataset(tmp_path / "painted", [20, 12])
    (found,) = opened(replace(settings, val=painted)).val
    assert [record.name for record in found.records] == ["20.png"]
    assert found.left_out == ("12.png is 12.png",)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("precision", "f16", UsageError),
        ("device", "gpu", UsageError),
        ("device", "mps", UsageError),
        ("device", f"cuda:{torch.cuda.device_count()}", BackendError),
    ],
)
def test_a_precision_or_device_that_is_not_there_is_refused(
    settings: EvaluateSettings, name: str, value: str, kind: type[DengineError]
) -> None:
    asked = replace(settings, changes=TINY | {name: value})
    is_refused(asked, kind, name, value.removeprefix("cuda:"))


def test_damaged_images_stop_it_or_are_left_out_and_listed(settings: EvaluateSettings) -> None:
    broken = settings.real / IMAGES / "1.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:200] + bytes(400) + content[600:])
    is_refused(settings, DatasetError, None, "1.png")
    notes: list[str] = []
    data = open_data(replace(settings, skip_bad=True), 256, lambda event: notes.append(str(event)))
    assert [sample.record.name for sample in data.real] == ["0.png", "2.png", "3.png"]
    assert any("1.png" in line for line in notes)


def test_near_copies_are_named_and_left_out(settings: EvaluateSettings, tmp_path: Path) -> None:
    val = make_dataset(tmp_path / "near", [20, 2, 21])  # image 2 at half its size
    data = opened(replace(settings, val=val))
    (found,) = data.val
    assert [record.name for record in found.records] == ["20.png", "21.png"]
    assert len(found.left_out) == 1
    assert found.left_out[0].startswith("2.png nearly repeats 2.png (0.9")
    is_refused(replace(settings, val=make_dataset(tmp_path / "all", [2])), DatasetError, "val", tmp_path / "all")


@pytest.mark.slow
def test_a_comparison_leaves_detectors_figures_and_a_picture(settings: EvaluateSettings) -> None:
    events: list[Any] = []
    short = TINY | {"steps": 1}
    summary = evaluate(replace(settings, seeds=2, amounts=(Times(1), 6), changes=short), report=events.append)
    (found,) = summary.sets
    assert [arm.generated for arm in found.arms] == [0, 4, 6]
    assert summary.seeds == (0, 1)
    assert {len(arm.figures["AP"].values) for arm in found.arms} == {2}
    names = {f"{arm}-seed{seed}" for arm in ("real", "generated4", "generated6") for seed in (0, 1)}
    assert {path.name for path in (settings.out / TRAININGS).iterdir()} == names
    steps = [event for event in events if event.stage == ALL]
    assert (steps[-1].done, steps[-1].total) == (6, 6)
    value = json.loads((settings.out / COMPARISON).read_text())
    (written,) = value["sets"]
    assert [arm["generated"] for arm in written["arms"]] == [0, 4, 6]
    assert written["arms"][1]["differences"]["AP"]["mean"] == found.arms[1].differences["AP"].mean
    assert written["images"] == 3
    assert value["mix"] == 0.5
    assert summary.picture == settings.out / PLOT
    assert (settings.out / PLOT).exists()


@pytest.mark.slow
def test_both_arms_begin_with_the_same_weights_and_take_as_many_steps(
    settings: EvaluateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[list[npt.NDArray[np.float32]]] = []
    steps: list[int] = []

    def fit(module: Any, loss_at: Any, options: Any, *_: Any, **__: Any) -> dict[str, float]:
        starts.append([weight.detach().numpy().copy() for weight in module.parameters()])
        steps.append(options.steps)
        return {}

    monkeypatch.setattr(training, "fit", fit)
    evaluate(settings)
    assert steps == [3, 3]
    assert all(np.array_equal(one, other) for one, other in zip(*starts, strict=True))


@pytest.mark.slow
def test_an_interrupted_comparison_resumes_to_the_same_figures(
    settings: EvaluateSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(replace(settings, out=tmp_path / "whole"))

    def stop(event: Any) -> None:
        if event.stage.startswith("generated"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(settings, report=stop)
    assert not (settings.out / COMPARISON).exists()
    with refused(RunError, "resume", settings.out):
        evaluate(settings)
    measured = measured_on(settings, "real-seed0")
    first = measured.read_bytes()
    trained: list[str] = []
    resumed = evaluate(
        replace(settings, resume=True),
        report=lambda event: trained.append(event.stage) if event.figures else None,
    )
    assert set(trained) <= {"generated6-seed0"}
    assert measured.read_bytes() == first
    assert resumed.sets == whole.sets
    assert (settings.out / PLOT).read_bytes() == (tmp_path / "whole" / PLOT).read_bytes()
    more: list[str] = []
    evaluate(
        replace(settings, resume=True, seeds=2),
        report=lambda event: more.append(event.stage) if event.figures else None,
    )
    assert set(more) == {"real-seed1", "generated6-seed1"}
    with refused(RunError, None, "options.steps was 3, is 4"):
        evaluate(replace(settings, resume=True, changes=(TINY | {"steps": 4})))
    assert not (settings.out / ".dengine" / "lock").is_dir()


@pytest.mark.slow
def test_the_real_images_alone_are_measured_first_and_compared_later(settings: EvaluateSettings) -> None:
    scaled = replace(settings, short_side=48, changes=(TINY | {"steps": 1}))
    alone = evaluate(replace(scaled, synthetic=()))
    assert [(arm.generated, dict(arm.differences)) for arm in alone.sets[0].arms] == [(0, {})]
    first = measured_on(settings, "real-seed0").stat().st_mtime_ns
    both = evaluate(replace(scaled, resume=True))
    assert [arm.generated for arm in both.sets[0].arms] == [0, 6]
    assert both.sets[0].arms[0] == alone.sets[0].arms[0]
    assert measured_on(settings, "real-seed0").stat().st_mtime_ns == first


@pytest.mark.slow
def test_other_annotations_and_other_sets_measure_the_same_detectors(
    settings: EvaluateSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, changes=(TINY | {"steps": 1}))
    first = evaluate(settings)
    fewer = make_dataset(tmp_path / "fewer", range(20, 23), boxes=1)  # the same photographs, annotated again
    other = make_dataset(tmp_path / "other", range(30, 34))
    monkeypatch.setattr(worth, "train_detector", None)  # nothing is trained
    summary = evaluate(replace(settings, val=(*settings.val, fewer, other), resume=True))
    assert [(one.name, one.images) for one in summary.sets] == [
        (str(settings.val[0]), 3),
        (str(fewer), 3),
        (str(other), 4),
    ]
    assert summary.sets[0] == first.sets[0]
    assert len(list((settings.out / TRAININGS / "real-seed0").glob(f"{MEASURED}-*.json"))) == 3
    assert [one["name"] for one in json.loads((settings.out / COMPARISON).read_text())["sets"]] == [
        str(settings.val[0]), str(fewer), str(other)
    ]  # fmt: skip


def test_parts_go_with_the_datasets_that_they_are_of(settings: EvaluateSettings) -> None:
    asked = replace(settings, val=("a", "b"), val_split="val")
    assert asked.val_sets == ((Path("a"), "val"), (Path("b"), "val"))
    assert replace(asked, val_split=("val", "test")).val_sets == ((Path("a"), "val"), (Path("b"), "test"))
    with refused(UsageError, "val_split", 3, 2):
        replace(asked, val_split=("a", "b", "c"))
    with refused(UsageError, "val"):
        replace(asked, val=())
    with refused(UsageError, "val"):
        replace(asked, val=("a", "a"))


@pytest.mark.slow
def test_a_detector_that_was_not_measured_yet_is_not_trained_again(
    settings: EvaluateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = training.detect

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(worth, "detect", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    monkeypatch.setattr(worth, "detect", detect)
    slower = replace(settings, resume=True, changes={**settings.changes, "lr": 1e-5})
    with refused(RunError, None, "real-seed0", "options.lr", 1e-05):
        evaluate(slower)
    seen: list[str] = []
    evaluate(
        replace(settings, resume=True),
        report=lambda event: seen.append(event.stage) if event.figures else None,
    )
    assert set(seen) == {"generated6-seed0"}


def test_a_folder_with_other_things_is_left_alone(settings: EvaluateSettings) -> None:
    settings.out.mkdir()
    (settings.out / "notes.txt").write_text("mine")
    with refused(RunError, "out", settings.out):
        evaluate(settings)
    assert [path.name for path in settings.out.iterdir()] == ["notes.txt"]
