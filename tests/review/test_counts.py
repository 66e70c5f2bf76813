"""The page's live counts are what `finalize` then writes."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from reviewing import make_review_run, served

from engines.review.server import OpenReview
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import JOURNAL


def counted(review: OpenReview, score: float) -> dict[str, Any]:
    """What the page says of a threshold for all classes, once everything is read."""
    while not review.session.index.complete:
        time.sleep(0.01)
    return review.session.counts([score] * 3)


@pytest.mark.slow
def test_regions_to_ignore_are_no_labels_in_counts(tmp_path: Path) -> None:
    """A given box that the adapter does not see is one, with `both`."""
    run = make_review_run(tmp_path / "run", 60, dataset=False, labels="both")
    lines = [json.loads(line) for line in (run / JOURNAL).read_text("utf-8").splitlines()]
    for line in lines:
        line["given"] = [[*row[:4], row[5]] for row in line["boxes"][:3]] + [[1, 1, 9, 9, 0], [20, 1, 40, 9, 1, 1]]
    (run / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    for labels in ("both", "reference"):
        summary = finalize(FinalizeSettings(run, labels=labels))
        assert summary.ignored >= 54
        with served(run) as review:
            assert counted(review, 0.3) == {"boxes": list(summary.boxes_by_class.values()), "images": summary.images}


@pytest.mark.slow
def test_counts_without_doubles_are_those_of_the_dataset(tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 60)
    plain = finalize(FinalizeSettings(run))
    finalize(FinalizeSettings(run, max_overlap=0.02))
    with served(run) as review:
        for score in (0.3, 0.45, 0.6):
            found = counted(review, score)
            summary = finalize(FinalizeSettings(run, score=score, max_overlap=0.02))
            assert found == {"boxes": list(summary.boxes_by_class.values()), "images": summary.images}
            assert score > 0.3 or sum(found["boxes"]) < plain.boxes
