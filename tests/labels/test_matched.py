"""`--score matched`: labels as frequent as annotations were."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import CLASS_NAMES, FakeBackend, as_backend, make_bundle
from made_data import make_data
from made_runs import coco, make_run
from refusals import refused

from dengine_cli.generate import show_dataset
from engines.adapter.info import AdapterConfig, AdapterInfo
from engines.errors import RunError, UsageError
from engines.labelling import label_images
from engines.labels.boxes import Instances
from engines.labels.matched import matched_score
from engines.labels.rules import Rules, label_rules
from engines.labels.scores import Thresholds
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import JOURNAL

LEAST = {"a": 0.3, "b": 0.3}


def found(
    images: int, scores: Mapping[int, Sequence[float]], frequencies: Mapping[str, float], **rules: Any
) -> Thresholds:
    """The matched thresholds of `images` images, each with boxes of these scores by label."""
    rows = [[0.0, 0.0, 4.0, 4.0, score, label] for label, each in scores.items() for score in each]
    return matched_score([Instances.from_rows(rows)] * images, replace(Rules(LEAST), **rules), frequencies)


def test_labels_come_as_near_to_the_frequency_as_scores_allow() -> None:
    scores = {0: (0.9, 0.62, 0.5, 0.4), 1: (0.8, 0.7)}
    assert found(20, scores, {"a": 2.0, "b": 2.0}) == {"a": 0.56, "b": 0.3}
    assert found(20, scores, {"a": 3.0, "b": 1.0}) == {"a": 0.45, "b": 0.75}
    assert found(20, scores, {"a": 3.4, "b": 1.6}) == {"a": 0.45, "b": 0.5}


def test_no_threshold_is_below_the_least_which_holds_where_too_little_is_known() -> None:
    scores = {0: (0.2, 0.1), 1: (0.8, 0.5)}
    assert found(20, scores, {"a": 9.0}) == LEAST
    assert found(20, scores, {"b": 1.0}, thresholds={"a": 0.4, "b": 0.3}) == {"a": 0.4, "b": 0.65}
    assert found(9, scores, {"b": 1.0}) == LEAST, "nine labels say too little"
    assert found(10, scores, {"b": 1.0}) == {"a": 0.3, "b": 0.65}
    assert found(0, scores, {"b": 1.0}) == LEAST
    with refused(UsageError, "score"):
        found(20, scores, {})


def test_a_score_on_a_hundredth_counts_from_there_on() -> None:
    hundredths = [number / 100 for number in range(30, 101)]
    for wanted, threshold in ((1, 1.0), (43, 0.58), (70, 0.31)):
        assert found(10, {0: hundredths}, {"a": float(wanted)}) == {"a": threshold, "b": 0.3}


def test_labels_that_overlap_too_much_are_not_counted() -> None:
    same = {0: (0.9, 0.8, 0.7)}
    assert found(10, same, {"a": 1.0}) == {"a": 0.85, "b": 0.3}
    assert found(10, same, {"a": 1.0}, max_overlap=0.5) == LEAST, "all three are of one object"


def info(**changes: Any) -> AdapterInfo:
    return AdapterInfo(
        class_names=CLASS_NAMES,
        timestep=1,
        short_side=32,
        frame=(64, 48),
        size_multiple=16,
        style="photo",
        prompts={},
        base_hash="0" * 64,
        config=AdapterConfig(channels=(8, 8), num_classes=3, queries=4),
        **changes,
    )


def test_frequencies_are_of_all_labelled_images_and_of_classes_with_enough_objects() -> None:
    known = info(labelled_images=20, objects={"rbc": 200, "wbc": 10, "platelets": 9})
    assert known.frequencies == {"rbc": 10.0, "wbc": 0.5}
    before = info(labelled_images=0, objects={}, class_statistics=({"rbc": 9, "wbc": 1}, {"rbc": 3}))
    assert before.frequencies == {"rbc": 6.0}, "an adapter from before they were noted"


def test_label_writes_as_many_labels_as_the_adapter_saw_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.labels.matched.LEAST_COUNTED", 2)  # the folder is small
    data, bundle = make_data(tmp_path / "data"), make_bundle(tmp_path / "bundle")
    bundle.adapter_info.thresholds["rbc"] = 0.05
    rules = label_rules({"rbc": 0.05}, 0.0, 1.0, {}, CLASS_NAMES)
    every = label_images(bundle, as_backend(FakeBackend()), data, tmp_path / "every", rules=rules)
    number = every.boxes_by_class["rbc"]
    wanted = number - 2
    assert wanted >= 2, "the fake adapter finds enough"
    bundle.adapter_info.frequencies["rbc"] = wanted / len(data.records)
    matched = label_images(bundle, as_backend(FakeBackend()), data, tmp_path / "out", rules=rules, matched=True)
    assert matched.boxes_by_class["rbc"] < number
    assert isinstance(matched.score, dict)
    assert matched.score["rbc"] > 0.05
    assert {matched.score[name] for name in CLASS_NAMES if name != "rbc"} == {0.3}
    assert matched.score == coco(tmp_path / "out")["info"]["score"]
    assert matched.figures["AP"] == every.figures["AP"]
    assert matched.figures["recall/rbc"] <= every.figures["recall/rbc"]
    labels = [a for a in coco(tmp_path / "out")["annotations"] if a["category_id"] == 1]
    assert len(labels) == matched.boxes_by_class["rbc"]
    assert min(a["score"] for a in labels) >= matched.score["rbc"]


def test_label_takes_a_region_of_doubt_up_to_scores_that_are_not_known_yet() -> None:
    rules = label_rules("matched", 0.6, 1.0, {"rbc": 0.5}, CLASS_NAMES)
    assert rules == Rules(dict.fromkeys(CLASS_NAMES, 0.3), 0.6)
    with refused(UsageError, "ignore_score", 1):
        label_rules("matched", 1.0, 1.0, {}, CLASS_NAMES)


def test_finalize_finds_the_score_that_leaves_the_wanted_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.labels.matched.LEAST_COUNTED", 2)  # the run is small
    run = make_run(tmp_path / "run", frequencies={"a": 2 / 7})
    summary = finalize(FinalizeSettings(run, score="matched"))
    assert (summary.boxes_by_class["a"], summary.boxes_by_class["b"]) == (2, 2)
    assert summary.score == coco(run)["info"]["score"]
    assert isinstance(summary.score, dict)
    assert summary.score["b"] == 0.3, "its frequency is not known: the run's own"
    assert summary.score["a"] > 0.3
    assert finalize(FinalizeSettings(run)).boxes_by_class["a"] == 3, "and back"


def test_finalize_refuses_a_box_of_a_class_that_the_run_has_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", frequencies={"a": 1.0})
    lines = (run / JOURNAL).read_text("utf-8")
    (run / JOURNAL).write_text(lines.replace("0.9,0]", "0.9,7]").replace("0.9, 0]", "0.9, 7]"), "utf-8")
    with refused(RunError, None, run / JOURNAL):
        finalize(FinalizeSettings(run, score="matched"))


def test_finalize_says_why_it_cannot(tmp_path: Path) -> None:
    with refused(UsageError, "score", "dengine label"):
        finalize(FinalizeSettings(make_run(tmp_path / "before", frequencies=None), score="matched"))
    with refused(UsageError, "score", "`balance`"):
        finalize(FinalizeSettings(make_run(tmp_path / "even", frequencies={"a": 1.0}, balance=True), score="matched"))


def test_a_run_with_far_more_labels_than_annotations_says_how_to_have_fewer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (frequency, balance, said) in enumerate(((0.3, False, True), (0.6, False, False), (0.3, True, False))):
        run = make_run(tmp_path / str(number), frequencies={"a": frequency}, balance=balance)
        show_dataset(finalize(FinalizeSettings(run)))  # three labels of a on five images
        remark = capsys.readouterr().err
        assert ("a: many more labels" in remark) == ("dengine audit" in remark) == said
        assert "matched" not in remark, "it would leave out what the annotations left out"
