"""What a person decided: the file's lines, and what they make of a run's dataset."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import coco, make_run
from refusals import refused
from reviewing import CLASSES, make_review_run

from engines.errors import DengineError, RunError
from engines.labels.boxes import Instances
from engines.labels.rules import Rules
from engines.runs.decision import Decision, Do
from engines.runs.decisions import Decisions, edited, labels_of, read_decisions
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import JOURNAL, read_entries
from engines.runs.merge import MergeSettings, merge
from engines.runs.rules_in_force import check_obeyed, rules_in_force
from engines.runs.run_folder import require_run
from engines.runs.saved_score import save_score

NAMES = ("a", "b")


def line(number: int, do: str, image: str | None = "00000000.jpg", **more: Any) -> dict[str, Any]:
    return {"id": f"decision-{number}", "do": do} | ({"images": [image]} if image else {}) | more


def write(folder: Path, *lines: dict[str, Any]) -> None:
    (folder / "review.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines), "utf-8")


def test_a_rejected_image_leaves_and_no_other_takes_its_place(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", count=3)
    before = finalize(FinalizeSettings(run))
    assert (before.images, before.dropped["beyond the count"]) == (3, 2)
    write(run, line(1, "reject"))
    after = finalize(FinalizeSettings(run))
    assert (after.images, after.dropped["rejected in review"]) == (2, 1)
    assert [image["file_name"] for image in coco(run)["images"]] == ["00000001.jpg", "00000003.jpg"]
    assert (run / ".dengine" / "spare" / "00000000.jpg").exists()


def test_a_kept_image_is_in_whatever_the_rules_say(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write(run, line(1, "keep", "00000004.jpg"))
    finalize(FinalizeSettings(run, score=0.85))
    assert [image["file_name"] for image in coco(run)["images"]] == ["00000000.jpg", "00000004.jpg"]


def test_an_undone_decision_does_not_count_and_the_dataset_is_as_before(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(FinalizeSettings(run))
    before = coco(run)
    write(run, line(1, "reject"), line(2, "undo", None, of="decision-1"))
    finalize(FinalizeSettings(run))
    after = coco(run)
    assert after["info"].pop("review")
    assert after == before


def test_without_a_review_the_file_does_not_mention_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(FinalizeSettings(run))
    assert "review" not in coco(run)["info"]


def test_boxes_are_deleted_confirmed_changed_and_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = {"box": [1.5, 2.0, 30.25, 20.0], "label": "a"}
    weak = {"box": [0.0, 0.0, 4.0, 4.0], "label": "a"}
    write(
        run,
        line(1, "delete", was=first),
        line(2, "confirm", was=weak),
        line(3, "draw", box=[5, 6, 15, 16], label="b"),
        line(4, "change", "00000001.jpg", was=first | {"label": "b"}, box=[2, 2, 20, 20], label="a"),
    )
    finalize(FinalizeSettings(run))
    found = {image["id"]: image["file_name"] for image in coco(run)["images"]}
    boxes = [
        (found[one["image_id"]], one["category_id"], one["bbox"], one["score"]) for one in coco(run)["annotations"]
    ]
    assert boxes[:3] == [
        ("00000000.jpg", 1, [0.0, 0.0, 4.0, 4.0], 1.0),
        ("00000000.jpg", 2, [5.0, 6.0, 10.0, 10.0], 1.0),
        ("00000001.jpg", 1, [2.0, 2.0, 18.0, 18.0], 1.0),
    ]


def test_an_image_whose_last_label_is_deleted_goes_unless_it_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    gone = line(1, "delete", was={"box": [1.5, 2.0, 30.25, 20.0], "label": "a"})
    write(run, gone)
    assert finalize(FinalizeSettings(run)).dropped["no box is left after review"] == 1
    write(run, gone, line(2, "keep"))
    finalize(FinalizeSettings(run))
    assert "00000000.jpg" in [image["file_name"] for image in coco(run)["images"]]


def test_a_drawn_box_brings_an_image_back_that_had_no_label(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write(run, line(1, "draw", "00000004.jpg", box=[2, 2, 9, 9], label="b"))
    finalize(FinalizeSettings(run, score=0.85))
    assert [image["file_name"] for image in coco(run)["images"]] == ["00000000.jpg", "00000004.jpg"]


def test_a_decision_about_a_box_that_is_gone_changes_nothing() -> None:
    found = Instances.from_rows([[0, 0, 10, 10, 0.9, 0]])
    for was in ({"box": [0, 0, 10, 12], "label": "a"}, {"box": [0, 0, 10, 10], "label": "b"}):
        one = Decision.from_json(line(1, "delete", was=was))
        assert edited(found, [one], NAMES)[0] == found


def test_a_box_that_was_drawn_can_be_moved_and_deleted() -> None:
    drawn = Decision.from_json(line(1, "draw", box=[0, 0, 10, 10], label="b"))
    moved = Decision.from_json(
        line(2, "change", was={"box": [0, 0, 10, 10], "label": "b"}, box=[5, 5, 15, 15], label="a")
    )
    gone = Decision.from_json(line(3, "delete", was={"box": [5, 5, 15, 15], "label": "a"}))
    found, sure = edited(Instances.none(), [drawn, moved], NAMES)
    assert found.to_rows() == [[5, 5, 15, 15, 1, 0]]
    assert sure.tolist() == [True]
    assert len(edited(Instances.none(), [drawn, moved, gone], NAMES)[0]) == 0


def test_a_confirmed_box_is_a_label_where_overlaps_are_dropped_too() -> None:
    found = Instances.from_rows([[0, 0, 10, 10, 0.9, 0], [0, 0, 10, 11, 0.2, 0]])
    rules = Rules({"a": 0.3, "b": 0.3}, max_overlap=0.5)
    both = [
        Decision.from_json(line(n, "confirm", was={"box": [0, 0, 10, y], "label": "a"})) for n, y in ((1, 10), (2, 11))
    ]
    assert len(labels_of(found, np.zeros(2, dtype=np.bool_), rules)) == 1
    assert len(labels_of(*edited(found, both, NAMES), rules)) == 2


@pytest.mark.parametrize(
    "bad",
    [
        [], "x", {}, {"id": "decision-1"}, line(1, "burn"), line(1, "keep", None), {"id": "short", "do": "keep"},
        line(1, "keep", ""), line(1, "draw"), line(1, "draw", box=[0, 0, 1], label="a"),
        line(1, "draw", box=[0, 0, float("nan"), 1], label="a"), line(1, "draw", box=[5, 5, 5, 9], label="a"),
        line(1, "draw", box=[0, 0, 9, 9], label="x" * 9000), line(1, "keep", was={"box": [0, 0, 1, 1], "label": "a"}),
        line(1, "delete", was={"box": [0, 0, 1, 1]}), line(1, "undo", None, of="nothing-there"), line(1, "dismiss"),
        line(1, "keep", more=1), {**line(1, "delete"), "images": ["a", "b"]},
    ],
)  # fmt: skip
def test_a_line_that_is_no_decision_stops_with_its_number(tmp_path: Path, bad: Any) -> None:
    run = make_run(tmp_path / "run")
    write(run, line(7, "reject"), bad)
    with pytest.raises(RunError, match=r"review\.jsonl, line 2,") as caught:
        finalize(FinalizeSettings(run))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("bad", [b"{", b"[" * 100_000, b"\xff\xfe", b"null"])
def test_bytes_that_are_no_line_stop_with_one_clear_line(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "review.jsonl").write_bytes(bad + b"\n")
    with pytest.raises(DengineError, match="line 1"):
        read_decisions(tmp_path)


def test_a_last_line_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, line(1, "reject"))
    with (tmp_path / "review.jsonl").open("ab") as file:
        file.write(b'{"id": "decision-2", "do": "ke')
    assert list(read_decisions(tmp_path).lines) == ["decision-1"]


def test_the_same_line_twice_counts_once() -> None:
    decisions, one = Decisions(), Decision("decision-1", Do.REJECT, ("x.jpg",))
    assert decisions.add(one)
    assert not decisions.add(one)
    assert len(decisions) == 1


def test_lines_are_read_as_they_were_written() -> None:
    lines = [
        line(1, "keep"), line(2, "draw", box=[0.5, 1.0, 9.0, 9.0], label="b", finding="k"),
        line(3, "undo", None, of="x"),
        line(4, "change", was={"box": [0.0, 1.0, 2.0, 3.0], "label": "é"}, box=[0.0, 0.0, 3.0, 3.0], label="a"),
    ]  # fmt: skip
    for one in lines:
        assert json.loads(Decision.from_json(one).to_line()) == one


def test_merge_joins_the_decisions_about_its_shards(tmp_path: Path) -> None:
    shards = []
    for number in (1, 2):
        whole = make_review_run(tmp_path / f"whole{number}", 20, dataset=False, chunk=5)
        lines = (whole / JOURNAL).read_text("utf-8").splitlines(keepends=True)
        part = tmp_path / f"part{number}"
        whole.rename(part)
        run = json.loads((part / "run.json").read_text("utf-8"))
        (part / "run.json").write_text(json.dumps(run | {"shard": [number, 2]}), "utf-8")
        mine = [text for place, text in enumerate(lines) if (place // 5) % 2 == number - 1]
        (part / JOURNAL).write_text("".join(mine), "utf-8")
        names = [entry.file for entry in read_entries(part / JOURNAL) if entry.file]
        write(part, {**line(number, "reject"), "images": [names[1]]})
        shards.append(part)
    summary = merge(MergeSettings(shards, out=tmp_path / "out"))
    assert summary.dropped["rejected in review"] == 2
    assert len(read_decisions(tmp_path / "out")) == 2
    assert set(CLASSES) == set(summary.boxes_by_class)


def test_a_dataset_that_is_older_than_its_review_is_not_evaluated(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    finalize(FinalizeSettings(run))
    settings = require_run(run)

    def check() -> None:
        check_obeyed(run, coco(run)["info"], rules_in_force(run, settings))

    check()
    write(run, line(1, "reject"))
    with refused(RunError, None, "finalize"):
        check()
    finalize(FinalizeSettings(run))
    check()
    save_score(run, {"a": 0.6, "b": 0.5})
    with refused(RunError, None, "finalize"):
        check()
    assert finalize(FinalizeSettings(run)).score == {"a": 0.6, "b": 0.5}
    check()
    finalize(FinalizeSettings(run, score=0.4))
    assert finalize(FinalizeSettings(run)).score == 0.3
    check()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 1}', '{"format": 2, "score": 0.5}', '{"format": 1, "score": 7}']
)
def test_thresholds_that_cannot_be_read_stop_with_the_file(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path / "run")
    (run / ".dengine").mkdir(exist_ok=True)
    (run / ".dengine" / "thresholds.json").write_text(text, "utf-8")
    with refused(RunError, None, "thresholds.json"):
        finalize(FinalizeSettings(run))
