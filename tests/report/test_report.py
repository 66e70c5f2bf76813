"""A run's report: what it says, and that it needs nothing but itself."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from browsing import expect, page_of, violations
from command_line import assert_fails, dengine
from made_datasets import picture
from review_speed import make_journal
from reviewing import CLASSES, make_review_run

from engines.report.figures import gather
from engines.report.report import ReportSettings, report
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.run_folder import require_run


def test_a_report_counts_what_the_dataset_holds(tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run")
    (run / "review.jsonl").write_text('{"id": "decision-1", "do": "reject", "images": ["00000002.jpg"]}\n', "utf-8")
    dataset = finalize(FinalizeSettings(run))
    summary = report(ReportSettings(run))
    text = summary.file.read_text("utf-8")
    assert (summary.file, summary.images, summary.bytes) == (run / "report.html", dataset.images, len(text.encode()))
    figures = [int(one.replace(",", "")) for one in re.findall(r"<dd>([\d,]+)</dd>", text)]
    assert figures == [dataset.images, dataset.boxes, 40]
    for name, number in dataset.boxes_by_class.items():
        assert re.search(rf"<th scope=row>{name}</th><td class=n>{number}</td>", text)
    assert "rejected in review" in text


@pytest.mark.parametrize("rejected", [False, True])
def test_a_report_says_why_images_are_left_out_as_the_dataset_does(tmp_path: Path, rejected: bool) -> None:
    folder = make_review_run(tmp_path / "run", count=20, jobs=None)
    if rejected:
        (folder / "review.jsonl").write_text(
            '{"id": "decision-1", "do": "reject", "images": ["00000002.jpg"]}\n', "utf-8"
        )
    dataset, run = finalize(FinalizeSettings(folder)), require_run(folder)
    found = gather(folder, run, run.rules)
    assert (found.labels.images, dict(found.dropped)) == (dataset.images, dict(dataset.dropped))
    assert found.dropped["beyond the count"] == 16
    (folder / "annotations.json").unlink()  # before it is written
    found = gather(folder, run, run.rules)
    assert (found.labels.images, dict(found.dropped)) == (dataset.images, dict(dataset.dropped))


def test_a_report_tells_images_that_repeat_others_from_those_beyond_the_count(tmp_path: Path) -> None:
    folder = make_review_run(tmp_path / "run", count=20, jobs=None)
    for index in (3, 5, 30):
        shutil.copy(folder / "images" / "00000000.jpg", found_at(folder, index))
    dataset, run = finalize(FinalizeSettings(folder, near_duplicates=0.999)), require_run(folder)
    found = gather(folder, run, run.rules)
    assert found.labels.images == dataset.images == 20
    assert found.dropped["nearly repeats another image"] == dataset.dropped["nearly repeats an earlier image"] == 2
    assert found.dropped["beyond the count"] == dataset.dropped["beyond the count"] == 14


def found_at(folder: Path, index: int) -> Path:
    """Where a run has an image, in its dataset or put away."""
    return next(folder.rglob(f"{index:08d}.jpg"))


def test_the_same_run_gives_the_same_report(tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 20)
    report(ReportSettings(run, out=tmp_path / "a" / "one.html"))
    report(ReportSettings(run, out=tmp_path / "two.html"))
    assert (tmp_path / "a" / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_names_of_a_run_are_text_and_never_markup(tmp_path: Path) -> None:
    classes = ("<b>cell", "a&b", '"rod"')
    run = make_review_run(tmp_path / "<i>run", 10, class_names=classes, frequencies=dict.fromkeys(classes, 1.0))
    text = report(ReportSettings(run)).file.read_text("utf-8")
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;b&gt;cell" in text


def test_references_are_compared_where_they_are_and_named_where_they_are_not(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for place in range(3):
        picture(data / f"{place}.png", (200, 150), shade=60 * place)
    run = make_review_run(tmp_path / "run", 10, reference=str(data))
    text = report(ReportSettings(run)).file.read_text("utf-8")
    assert "An image of the references" in text
    assert "3 references" in text
    gone = make_review_run(tmp_path / "gone", 10, reference=str(tmp_path / "nowhere"))
    assert "no longer there" in report(ReportSettings(gone)).file.read_text("utf-8")


@pytest.mark.slow
def test_a_report_of_many_images_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.report.figures._SAMPLE", 40)
    run = make_journal(tmp_path / "run", 1000)
    assert report(ReportSettings(run)).bytes < 5_000_000


def test_the_command_says_where_it_is(tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 10)
    result = dengine("report", run, "--out", tmp_path / "out.html")
    assert result.exit_code == 0
    assert str(tmp_path / "out.html") in result.stdout
    assert_fails(dengine("report", tmp_path / "nowhere"), 1, "nowhere")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (800, "dark"), (1280, "light")])
def test_a_report_opens_from_disk_without_a_network(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    run = make_review_run(tmp_path / "run", 20)
    file = report(ReportSettings(run)).file
    with page_of(browser, file.as_uri(), width=width, scheme=scheme, offline=True) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth") == width
        assert page.evaluate("() => [...document.images].every(one => one.naturalWidth > 0)")
        expect(page.locator("h2")).to_have_count(8)
        assert violations(page) == []
        assert all(name in page.locator("main").inner_text() for name in CLASSES)
