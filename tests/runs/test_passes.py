"""Progress over the passes of a dataset that is written."""

from pathlib import Path

import pytest
from painting import make_paint

from engines.common.events import Event, EventKind
from engines.runs import passes as passes_module
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.passes import STAGE, Passes


def test_passes_count_up_to_the_lines_of_all_of_them() -> None:
    events: list[Event] = []
    passes = Passes(events.append, 3)
    for _ in range(3):
        assert list(passes.through(iter(range(1200)))) == list(range(1200))
    assert [event.total for event in events[:2]] == [None, None], "the first pass finds out how many there are"
    done = [event.done or 0 for event in events]
    assert done == sorted(done)
    assert (events[-1].done, events[-1].total) == (3600, 3600)


def test_few_lines_are_not_worth_a_word() -> None:
    events: list[Event] = []
    assert len(list(Passes(events.append, 2).through(iter(range(30))))) == 30
    assert events == []


def test_a_dataset_that_is_written_again_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_paint(tmp_path, monkeypatch)(tmp_path / "run", jobs=6, keep_empty=True)
    monkeypatch.setattr(passes_module, "_EVERY", 2)
    events: list[Event] = []
    finalize(FinalizeSettings(tmp_path / "run", formats=["coco", "yolo"]), report=events.append)
    told = [event for event in events if event.kind is EventKind.PROGRESS]
    assert {event.stage for event in told} == {STAGE}
    assert (told[-1].done, told[-1].total) == (6, 6), "6 lines, which one pass counts, shows and writes in both formats"
