"""The page's live counts are what `finalize` then writes."""

import time
from pathlib import Path

import pytest
from reviewing import make_review_run, served

from engines.runs.finalize import FinalizeSettings, finalize


@pytest.mark.slow
def test_counts_without_doubles_are_those_of_the_dataset(tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 60)
    plain = finalize(FinalizeSettings(run))
    finalize(FinalizeSettings(run, max_overlap=0.02))
    with served(run) as review:
        session = review.session
        while not session.index.complete:
            time.sleep(0.01)
        for score in (0.3, 0.45, 0.6):
            found = session.counts([score] * 3)
            summary = finalize(FinalizeSettings(run, score=score, max_overlap=0.02))
            assert found == {"boxes": list(summary.boxes_by_class.values()), "images": summary.images}
            assert score > 0.3 or sum(found["boxes"]) < plain.boxes
