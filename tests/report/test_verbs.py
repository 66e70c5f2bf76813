"""Reports of what is no run: labels, trainings, comparisons, audits; and that verbs draw them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from browsing import page_of, violations
from made_reports import adapter, base, comparison, labelled

from dengine_cli.reporting import draw_report
from engines.report.report import ReportSettings, report


def text_of(folder: Path) -> str:
    return report(ReportSettings(folder)).file.read_text("utf-8")


def test_labels_are_counted_and_measured(tmp_path: Path) -> None:
    summary = report(ReportSettings(labelled(tmp_path / "labels", tmp_path / "images", score=0.25)))
    text = summary.file.read_text("utf-8")
    assert (summary.file, summary.images) == (tmp_path / "labels" / "report.html", 3)
    assert "<th scope=row>rbc</th><td class=n>1</td><td class=n>0.33</td><td class=n>0.625</td>" in text
    assert "A label from 0.25 on." in text
    assert text.count('alt="1.png"') == 1, "no box: there is nothing to be unsure of"
    assert text.count('alt="2.png"') == 2
    assert "w&lt;b&gt;c" in text
    assert "<b>" not in text


def test_labels_of_images_that_are_gone_are_reported_without_them(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "labels", tmp_path / "images")
    shutil.rmtree(tmp_path / "images")
    assert "no longer" in text_of(folder)


def test_an_adapter_shows_its_curves_and_thresholds(tmp_path: Path) -> None:
    text = text_of(adapter(tmp_path / "adapter"))
    assert text.count("<polyline") == 3
    assert "best at step 20" in text
    row = "<th scope=row>rbc</th>" + "".join(
        f"<td class=n>{one}</td>" for one in ("0.63", "0.970", "0.889", "36", "40")
    )
    assert row in text


def test_a_base_model_shows_its_samples_and_verdict(tmp_path: Path) -> None:
    text = text_of(base(tmp_path / "base"))
    assert "Not good enough" in text
    assert (text.count("<polyline"), text.count("data:image/jpeg")) == (2, 1)


def test_a_comparison_shows_each_sets_arms_with_intervals(tmp_path: Path) -> None:
    text = text_of(comparison(tmp_path / "worth"))
    assert text.count("+0.021 [-0.010, +0.050]") == 2 * 2 * 4
    assert "No gain that can be measured with 20 generated images: +2.1 AP, 95% interval -1.0 to +5.0." in text
    assert "other &lt;val&gt;" in text
    assert text.count("data:image/jpeg") == 1


def test_an_audit_keeps_the_page_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "audit.html").write_text("<!doctype html>the page", "utf-8")
    assert report(ReportSettings(tmp_path)).file == tmp_path / "audit.html"
    report(ReportSettings(tmp_path, out=tmp_path / "sent.html"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.html", "sent.html"]
    assert (tmp_path / "sent.html").read_bytes() == (tmp_path / "audit.html").read_bytes()


def test_a_verb_does_not_fail_where_its_report_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = comparison(tmp_path / "worth")
    draw_report(folder, no_report=True)
    assert not (folder / "report.html").exists()
    draw_report(folder, no_report=False)
    assert str(folder / "report.html") in capsys.readouterr().out
    (folder / "comparison.json").write_text('{"data": 1}', "utf-8")
    draw_report(folder, no_report=False)
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1280, "light")])
def test_every_report_opens_from_disk_without_a_network(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    found = {}
    for make in (adapter, base, comparison):
        found[make.__name__] = report(ReportSettings(make(tmp_path / make.__name__))).file
    found["labels"] = report(ReportSettings(labelled(tmp_path / "labels", tmp_path / "images"))).file
    for name, file in found.items():
        with page_of(browser, file.as_uri(), width=width, scheme=scheme, offline=True) as page:
            assert page.evaluate("() => document.documentElement.scrollWidth") == width, name
            assert page.evaluate("() => [...document.images].every(one => one.naturalWidth > 0)"), name
            assert violations(page) == [], name
