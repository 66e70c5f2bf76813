"""Two reports beside each other."""

import json
from pathlib import Path

import pytest
from made_reports import bench as report

from engines.errors import UsageError
from engines.measure.compare import Change, compare, figures_of, read_report


def test_figures_are_the_numbers_that_were_measured() -> None:
    assert figures_of(report()) == {
        "openvino / images_per_second": 2.0,
        "openvino / graphs / unet / seconds / median": 0.5,
        "baseline batch 1 / images_per_second": 0.5,
        "matmul cpu / f32 / flops_per_second": 1e11,
    }


def test_changes_are_percents_of_the_earlier_figure() -> None:
    found = compare(report(engine={"images_per_second": 3.0}), report())
    assert found.changes[0] == Change("openvino / images_per_second", 2.0, 3.0)
    assert [change.percent for change in found.changes] == [50.0, 0.0, 0.0, 0.0]
    assert found.remarks == ()


def test_a_change_from_nothing_has_no_percent() -> None:
    assert Change("x", 0.0, 1.0).percent is None
    assert Change("x", -2.0, -1.0).percent == 50.0


def test_what_else_differs_is_said() -> None:
    now = report(
        machine={"processor": "two", "cores": 2},
        versions={"torch": "2.13", "openvino": "2026.4"},
        settings={"precision": "f32"},
        engine={"backend": "openvino 2", "images_per_second": 3.0, "tick": {"seconds": {"median": 1.0}}},
        baseline=[],
    )
    remarks = compare(now, report()).remarks
    assert remarks == (
        'machine differ: processor was "one", and is "two"',
        'versions differ: openvino was absent, and is "2026.4"',
        'settings differ: precision was "auto", and is "f32"',
        "openvino was openvino 1, and is openvino 2",
        "only in the earlier run: 1 figures of baseline batch 1",
        "only in this run: 1 figures of openvino",
    )


def test_an_engine_that_failed_has_no_figures() -> None:
    failed = report(engines=[{"engine": "openvino", "error": "not installed"}])
    found = compare(failed, report())
    assert [change.name.split(" ")[0] for change in found.changes] == ["baseline", "matmul"]


def test_reports_are_read_back_and_other_files_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report()), "utf-8")
    assert read_report(path) == report()
    for text, words in (("{}", "is no report"), ("[1]", "JSON list"), ("x", "not readable as JSON")):
        path.write_text(text, "utf-8")
        with pytest.raises(UsageError, match=words):
            read_report(path)
    with pytest.raises(UsageError, match="is missing"):
        read_report(tmp_path / "none.json")
