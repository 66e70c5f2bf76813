"""What `finalize` was last asked for stays with a run: `generate` and `merge` write its dataset by it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fakes import tree
from made_runs import coco, make_run
from painting import Generate, check_consistent, make_paint, paint_into
from refusals import refused

from engines.common.events import Event, EventKind
from engines.errors import RunError
from engines.painting.settings import GenerateSettings
from engines.runs import preview as preview_module
from engines.runs.dataset_rules import RULES, DatasetRules, read_rules, write_rules
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.generate import generate
from engines.runs.journal import IMAGES, JOURNAL, SPARE, read_entries
from engines.runs.merge import MergeSettings, merge


@pytest.fixture
def paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    return make_paint(tmp_path, monkeypatch)


def no_backend(*_: Any, **__: Any) -> None:
    pytest.fail("a backend was opened")


def test_a_repeated_generate_keeps_what_finalize_made_and_opens_no_backend(
    paint: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = paint_into(paint, tmp_path / "run", jobs=12, keep_empty=True)
    own = tree(run)
    summary = finalize(FinalizeSettings(run, score=0.9, keep_empty=False, formats=("yolo", "imagefolder")))
    before = tree(run)
    assert summary.images < 12
    events = list[Event]()
    with monkeypatch.context() as patched:
        patched.setattr("engines.backends.registry.open_backend", no_backend)
        asked: dict[str, Any] = {"jobs": 12, "keep_empty": True, "chunk": 6, "slots": 3, "score": 0.3}
        again = generate(GenerateSettings(out=run, bundle=tmp_path / "bundle", **asked), report=events.append)
    assert tree(run) == before
    assert (again.dataset.images, again.dataset.boxes, again.painted) == (summary.images, summary.boxes, 0)
    said = [event.text for event in events if event.kind is EventKind.NOTE]
    assert any("complete" in text for text in said)
    assert any("finalize" in text for text in said)
    finalize(FinalizeSettings(run, formats=("coco",)))
    assert tree(run) == own


@pytest.mark.slow
def test_a_run_that_goes_on_after_finalize_ends_as_one_that_was_finalized_last(paint: Generate, tmp_path: Path) -> None:
    rules: dict[str, Any] = {
        "score": {"rbc": 0.8},
        "min_quality": 0.4,
        "ignore_score": 0.2,
        "formats": ("coco", "yolo"),
    }
    run = paint_into(paint, tmp_path / "run", jobs=6, keep_empty=True)
    finalize(FinalizeSettings(run, **rules))
    paint(run, jobs=18, keep_empty=True)
    whole = paint_into(paint, tmp_path / "whole", jobs=18, keep_empty=True)
    finalize(FinalizeSettings(whole, **rules))
    assert tree(run) == tree(whole)
    assert coco(run)["info"]["score"] == {"rbc": 0.8, "wbc": 0.3, "platelets": 0.3}


@pytest.mark.slow
def test_a_matched_score_is_found_anew_when_the_run_grows(paint: Generate, tmp_path: Path) -> None:
    run = paint_into(paint, tmp_path / "run", jobs=6, keep_empty=True)
    finalize(FinalizeSettings(run, score="matched"))
    assert json.loads((run / RULES).read_text("utf-8"))["score"] == "matched"
    paint(run, jobs=30, keep_empty=True)
    whole = paint_into(paint, tmp_path / "whole", jobs=30, keep_empty=True)
    finalize(FinalizeSettings(whole, score="matched"))
    assert tree(run) == tree(whole)


def test_another_score_of_generate_is_refused_and_changes_nothing(paint: Generate, tmp_path: Path) -> None:
    run = paint_into(paint, tmp_path / "run", jobs=6, keep_empty=True)
    finalize(FinalizeSettings(run, score=0.6))
    before = tree(run)
    with refused(RunError, "score", 0.3, 0.6):
        paint(run, jobs=6, keep_empty=True, score=0.6)
    assert tree(run) == before


@pytest.mark.slow
def test_shards_are_merged_by_the_rules_they_share_and_with_every_format(paint: Generate, tmp_path: Path) -> None:
    shards = [paint_into(paint, tmp_path / f"{k}", jobs=13, chunk=3, shard=(k, 2)) for k in (1, 2)]
    finalize(FinalizeSettings(shards[0], score=0.6, formats=("yolo",)))
    with refused(RunError, "score", *shards):
        merge(MergeSettings(shards, tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()
    finalize(FinalizeSettings(shards[1], score=0.6))
    merge(MergeSettings(shards, tmp_path / "merged"))
    whole = paint_into(paint, tmp_path / "whole", jobs=13, chunk=3)
    finalize(FinalizeSettings(whole, score=0.6, formats=("yolo",)))
    assert tree(tmp_path / "merged") == tree(whole)
    assert read_rules(tmp_path / "merged") == read_rules(whole)


@pytest.mark.parametrize(
    "rules",
    [
        DatasetRules(score=0.5),
        DatasetRules(score={"a": 0.5}, ignore_score=0.1, min_quality=0.25, max_overlap=0.5, near_duplicates=0.9),
        DatasetRules(score="matched", formats=("coco", "yolo"), keep_empty=False, val_fraction=0.3),
        DatasetRules(training=Path("/data/learned")),
    ],
)
def test_rules_come_back_as_they_went_in(tmp_path: Path, rules: DatasetRules) -> None:
    write_rules(tmp_path, rules)
    assert read_rules(tmp_path) == rules
    write_rules(tmp_path, DatasetRules())
    assert not (tmp_path / RULES).exists()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": 2}, None), ({"score": 7}, "score"), ({"score": {"c": 0.5}}, "score"), ({"mood": 1}, None),
        ({"val_fraction": 0.0}, "val_fraction"), ({"formats": ["voc"]}, "formats"), ({"max_overlap": 9}, "max_overlap"),
        ({"training": "/nowhere"}, None), ({"score": 0.01}, "score"), ({"keep_empty": "yes"}, None),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_are_refused_by_name(
    paint: Generate, tmp_path: Path, change: dict[str, Any], field: str | None
) -> None:
    run = paint_into(paint, tmp_path / "run", jobs=3)
    value = {"format": 1, "score": 0.5, "formats": ["coco", "yolo"]} | change
    (run / RULES).write_text(json.dumps(value), "utf-8")
    with refused(RunError, field, run / RULES):
        paint(run, jobs=3)


def test_a_run_of_an_earlier_dengine_goes_on_with_what_is_no_data_put_away(paint: Generate, tmp_path: Path) -> None:
    new = paint_into(paint, tmp_path / "new", count=9)
    for more in (9, 15):
        run = paint_into(paint, tmp_path / f"run-{more}", count=4)
        assert (run / SPARE).is_dir(), "or the test shows nothing"
        (run / SPARE).rename(run / "spare")
        (run / ".dengine" / "preview.png").rename(run / "preview.png")
        (run / ".dengine" / "lock").rename(run / ".lock")
        (run / ".dengine" / "partial").rmdir()
        (run / ".dengine").rmdir()
        paint(run, count=more)
        if more == 9:
            assert tree(run) == tree(new)
        check_consistent(run)
        left = {path.name for path in run.iterdir()}
        assert left == {"run.json", "journal.jsonl", "images", "annotations.json", "README.md", ".dengine"}


def test_a_shard_of_an_earlier_dengine_is_merged(paint: Generate, tmp_path: Path) -> None:
    shard = paint_into(paint, tmp_path / "1", jobs=6, shard=(1, 1), keep_empty=True)
    finalize(FinalizeSettings(shard, score=0.9, keep_empty=False))
    (shard / RULES).unlink()
    (shard / SPARE).rename(shard / "spare")
    merge(MergeSettings((shard,), tmp_path / "merged"))
    assert tree(tmp_path / "merged") == tree(paint_into(paint, tmp_path / "whole", jobs=6, keep_empty=True))


SCORES, KEEP, FORMATS = (None, 0.4, {"rbc": 0.9}, "matched"), (None, True, False), (None, ("coco",), ("coco", "yolo"))


def sequence(paint: Generate, root: Path, seed: int) -> None:
    """A random sequence of the three verbs on one run of two shards, and what must hold after each."""
    rng = random.Random(seed)
    shards, jobs, last = [root / "1", root / "2"], [4, 4], [DatasetRules(), DatasetRules()]
    for number in range(6):
        k = rng.randrange(2)
        verb = rng.choice(("generate", "generate", "finalize", "finalize", "merge")) if number > 1 else "generate"
        if number < 2:
            k = number
        if verb == "generate":
            jobs[k] = max(jobs[k], rng.choice((4, 8, 12)))
            paint(shards[k], jobs=jobs[k], chunk=2, slots=2, shard=(k + 1, 2), keep_empty=True)
        elif verb == "finalize":
            asked: dict[str, Any] = {
                "score": rng.choice(SCORES), "keep_empty": rng.choice(KEEP), "formats": rng.choice(FORMATS),
            }  # fmt: skip
            for one in (0, 1) if rng.random() < 0.6 else (k,):
                finalize(FinalizeSettings(shards[one], **asked))
                formats = asked["formats"] or last[one].formats
                last[one] = DatasetRules(**asked | {"formats": formats})
        elif jobs[0] == jobs[1] and (last[0].score, last[0].keep_empty) == (last[1].score, last[1].keep_empty):
            out = root / f"merged-{number}"
            merge(MergeSettings(shards, out))
            formats = (*(last[0].formats or ()), *(last[1].formats or ()))
            holds(out, DatasetRules(score=last[0].score, keep_empty=last[0].keep_empty, formats=formats or None))
        for folder, rules in zip(shards, last, strict=True):
            if folder.exists():
                holds(folder, rules)


def holds(folder: Path, rules: DatasetRules) -> None:
    """The dataset of a run is by these rules, and every image of its journal is there."""
    check_consistent(folder)
    entries = list(read_entries(folder / JOURNAL))
    files = {path.name for part in (IMAGES, SPARE) for path in (folder / part).glob("0*.jpg")}
    assert files == {entry.file for entry in entries if entry.file}
    score = coco(folder)["info"]["score"]
    least = score if isinstance(score, dict) else dict.fromkeys(("rbc", "wbc", "platelets"), score)
    if rules.score != "matched":
        assert least == {"rbc": 0.3, "wbc": 0.3, "platelets": 0.3} | (
            rules.score if isinstance(rules.score, dict) else dict.fromkeys(least, rules.score or 0.3)
        )
    labels = [
        sum(s >= list(least.values())[label] for s, label in zip(e.instances.scores, e.instances.labels, strict=True))
        for e in entries
    ]
    assert len(coco(folder)["annotations"]) == sum(labels)
    kept = [entry for entry, number in zip(entries, labels, strict=True) if number or rules.keep_empty is not False]
    assert [image["file_name"] for image in coco(folder)["images"]] == [entry.file for entry in kept]
    assert (folder / "labels").exists() == ("yolo" in (rules.formats or ()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_the_last_rules_hold_whatever_the_order_of_the_verbs(paint: Generate, tmp_path: Path, seed: int) -> None:
    sequence(paint, tmp_path, seed)


def test_a_dataset_without_rules_of_its_own_has_no_file_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview_module, "_CELL", 16)
    run = make_run(tmp_path / "run")
    for score in (None, 0.3, {"a": 0.3}):
        finalize(FinalizeSettings(run, score=score, keep_empty=False, formats=("coco",)))  # what the run says itself
        assert not (run / RULES).exists()
