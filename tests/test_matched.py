"""`--score matched`: labels as frequent as annotations were."""

from pathlib import Path
from typing import Any

import pytest
from fakes import CLASS_NAMES, FakeBackend, as_backend, make_bundle
from test_finalize import coco, make_run
from test_labelling import make_data

from engines.adapter.info import AdapterConfig, AdapterInfo
from engines.errors import UsageError
from engines.generation.finalize import finalize
from engines.generation.journal import Box
from engines.generation.matched import ScoreCounts
from engines.generation.scores import MATCHED, parse_score, parse_score_or_matched
from engines.labelling import label_images
from engines.pseudo_labels import label_rules

LEAST = {"a": 0.3, "b": 0.3}


def box(score: float, label: int) -> Box:
    return Box(0.0, 0.0, 4.0, 4.0, score, label)


def counted(*images: list[Box]) -> ScoreCounts:
    counts = ScoreCounts(2)
    for boxes in images:
        counts.add(boxes)
    return counts


def test_labels_come_as_near_to_the_frequency_as_scores_allow() -> None:
    counts = counted([box(0.9, 0), box(0.62, 0), box(0.8, 1)], [box(0.5, 0), box(0.4, 0), box(0.7, 1)])
    assert counts.matched({"a": 1.0, "b": 1.0}, ("a", "b"), LEAST) == {"a": 0.56, "b": 0.3}
    assert counts.matched({"a": 1.5, "b": 0.5}, ("a", "b"), LEAST) == {"a": 0.45, "b": 0.75}
    assert counts.matched({"a": 0.0, "b": 0.0}, ("a", "b"), LEAST) == {"a": 0.95, "b": 0.9}


def test_no_threshold_is_below_the_least_and_an_unknown_frequency_takes_it() -> None:
    counts = counted([box(0.2, 0), box(0.1, 0), box(0.8, 1), box(0.5, 1)])
    assert counts.matched({"a": 9.0}, ("a", "b"), LEAST) == 0.3, "one number where all classes have it"
    assert counts.matched({"b": 1.0}, ("a", "b"), {"a": 0.4, "b": 0.3}) == {"a": 0.4, "b": 0.65}


def test_a_score_on_a_hundredth_counts_from_there_on() -> None:
    hundredths = [number / 100 for number in range(30, 101)]
    counts = counted([box(score, 0) for score in hundredths])
    for wanted, threshold in ((1.0, 1.0), (43.0, 0.58), (71.0, 0.3)):
        assert counts.matched({"a": wanted}, ("a",), LEAST) == threshold


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


def test_generate_says_which_verbs_it_is_for() -> None:
    assert parse_score_or_matched("matched") == MATCHED
    assert parse_score_or_matched("a=0.5") == {"a": 0.5}
    with pytest.raises(UsageError, match=r"matched looks at all boxes at once.*label.*finalize"):
        parse_score("matched")


def test_label_writes_as_many_labels_as_the_adapter_saw_annotations(tmp_path: Path) -> None:
    data, bundle = make_data(tmp_path / "data"), make_bundle(tmp_path / "bundle")
    rules = label_rules(0.05, 0.0, 1.0, {}, CLASS_NAMES)
    every = label_images(bundle, as_backend(FakeBackend()), data, tmp_path / "every", rules=rules)
    scores = [a["score"] for a in coco(tmp_path / "every")["annotations"] if a["category_id"] == 1]
    wanted = len([score for score in scores if score >= 0.5])
    assert 0 < wanted < len(scores)
    bundle.adapter_info.frequencies["rbc"] = wanted / len(data.records)
    found = label_images(bundle, as_backend(FakeBackend()), data, tmp_path / "out", rules=rules, matched=True)
    assert abs(found.boxes_by_class["rbc"] - wanted) <= 1
    assert isinstance(found.score, dict)
    assert {found.score[name] for name in CLASS_NAMES if name != "rbc"} == {0.05}
    assert found.score == coco(tmp_path / "out")["info"]["score"]
    assert found.figures == every.figures
    labels = [a for a in coco(tmp_path / "out")["annotations"] if a["category_id"] == 1]
    assert len(labels) == found.boxes_by_class["rbc"]
    assert min(a["score"] for a in labels) >= found.score["rbc"]


def test_label_takes_a_region_of_doubt_up_to_scores_that_are_not_known_yet() -> None:
    rules = label_rules(MATCHED, 0.6, 1.0, {"rbc": 0.5}, CLASS_NAMES)
    assert (rules.score, rules.uncertain) == (0.3, 0.6)
    with pytest.raises(UsageError, match="--uncertain is 1"):
        label_rules(MATCHED, 1.0, 1.0, {}, CLASS_NAMES)


def test_finalize_finds_the_score_that_leaves_the_wanted_labels(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", frequencies={"a": 2 / 7})
    summary = finalize(run, score=MATCHED)
    assert (summary.boxes_by_class["a"], summary.boxes_by_class["b"]) == (2, 2)
    assert summary.score == coco(run)["info"]["score"]
    assert isinstance(summary.score, dict)
    assert summary.score["b"] == 0.3, "its frequency is not known: the run's own"
    assert summary.score["a"] > 0.3
    assert finalize(run).boxes_by_class["a"] == 3, "and back"


def test_finalize_says_why_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"an earlier dengine.*dengine label"):
        finalize(make_run(tmp_path / "before", frequencies=None), score=MATCHED)
    with pytest.raises(UsageError, match="--balance"):
        finalize(make_run(tmp_path / "even", frequencies={"a": 1.0}, balance=True), score=MATCHED)
