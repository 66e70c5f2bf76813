"""Values that no run can have: refused by name, in a short line, wherever they come from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import assert_fails, dengine
from made_runs import coco, make_run, run_settings
from painting import Generate, make_paint
from PIL import Image
from refusals import refused

from engines.common.plurals import counted, plural
from engines.common.quote import quote, shorten
from engines.datasets import images
from engines.errors import DatasetError, RunError, UsageError
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import IMAGES, JOURNAL
from engines.runs.run_folder import RUN
from engines.worth.detectors.config import DetectorOptions, fewest_cells


@pytest.fixture
def paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    return make_paint(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "change",
    [
        {"index": 0}, {"index": 1.5}, {"index": -1}, {"file": "00000009.jpg"}, {"sha256": "0"}, {"prompt": "\ud800"},
        {"prompt": 7}, {"reference": 7}, {"strength": 2.0}, {"strength": "much"}, {"boxes": None},
        {"boxes": [[0, 0, 5, 5, 0.9]]},
        {"boxes": [[0, 0, float("nan"), 5, 0.9, 0]]}, {"boxes": [[0, 0, 1e308, 5, 0.9, 0]]},
        {"boxes": [[0, 0, 33, 5, 0.9, 0]]}, {"boxes": [[5, 0, 5, 5, 0.9, 0]]}, {"boxes": [[0, 0, 5, 5, 1.5, 0]]},
        {"boxes": [[0, 0, 5, 5, 0.9, 2]]}, {"boxes": [[0, 0, 5, 5, 0.9, 0.5]]}, {"boxes": [[0, 0, 5, 5, True, 0]]},
    ],
)  # fmt: skip
def test_a_value_that_a_journal_cannot_have_is_refused_with_its_line(tmp_path: Path, change: dict[str, Any]) -> None:
    run = make_run(tmp_path / "run", keep_empty=True)
    lines = (run / JOURNAL).read_text("utf-8").splitlines(keepends=True)
    lines[3] = json.dumps(json.loads(lines[3]) | change) + "\n"
    (run / JOURNAL).write_text("".join(lines), "utf-8")
    with refused(RunError, None, f"{run / JOURNAL}, line 4: "):
        finalize(FinalizeSettings(run))
    assert not (run / "annotations.json").exists()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"class_names": ["a"], "score": 0.3}, None), ({"class_names": ["a", "b\n"]}, "class_names"),
        ({"class_names": ["a", "\ud800"]}, "class_names"), ({"frame": [0, 4]}, "size"), ({"frame": None}, "size"),
        ({"score": None}, "score"), ({"frame": [48, 32]}, None),
        ({"steps": 10**400}, "steps"), ({"rows": 0}, "rows"), ({"count": None}, "count"), ({"shard": [1, 2]}, "shard"),
        ({"score": 7}, "score"), ({"short_side": 0}, "short_side"), ({"frequencies": {"a": -1.0}}, "frequencies"),
        ({"backend": "\ud800"}, "backend"), ({"format": "9" * 5000}, None),
    ],
)  # fmt: skip
def test_a_value_that_run_json_cannot_have_is_refused(
    tmp_path: Path, change: dict[str, Any], field: str | None
) -> None:
    run = make_run(tmp_path / "run", keep_empty=True, reference=None, strength=None)
    value = json.loads((run / RUN).read_text("utf-8")) | change
    (run / RUN).write_text(json.dumps(value), "utf-8")
    with refused(RunError, field) as _:
        finalize(FinalizeSettings(run))


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    Image.new("RGB", (24, 32)).save(run / IMAGES / "00000000.jpg")
    with refused(RunError, None, "24x32", "32x24"):
        finalize(FinalizeSettings(run))


def test_a_resume_paints_again_from_a_line_that_cannot_be(paint: Generate, tmp_path: Path) -> None:
    paint(tmp_path / "run", jobs=12, keep_empty=True)
    before = coco(tmp_path / "run")
    lines = (tmp_path / "run" / JOURNAL).read_text("utf-8").splitlines(keepends=True)
    lines[8] = json.dumps(json.loads(lines[8]) | {"boxes": [[0, 0, 1e9, 5, 0.9, 0]]}) + "\n"
    (tmp_path / "run" / JOURNAL).write_text("".join(lines), "utf-8")
    assert paint(tmp_path / "run", jobs=12, keep_empty=True).painted == 6
    assert coco(tmp_path / "run") == before


def test_rows_and_guidance_that_cannot_be_leave_no_folder(paint: Generate, tmp_path: Path) -> None:
    for options, field in (({"rows": 1}, "rows"), ({"guidance": 1e99}, "guidance")):
        with refused(UsageError, field):
            paint(tmp_path / "run", jobs=2, **options)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--size", "9" * 5000 + "x9"), ("--shard", "1/" + "9" * 5000), ("--threads", str(10**30)),
        ("--rows", "9" * 5000),
        ("--guidance", "1e99"), ("--seed", "9" * 5000), ("--score", "x" * 5000), ("--format", "x" * 5000),
    ],
)  # fmt: skip
def test_numbers_without_end_are_refused_in_a_short_line(tmp_path: Path, words: tuple[str, str]) -> None:
    result = dengine("generate", "--jobs", 2, "--out", tmp_path / "run", *words)
    assert_fails(result, 2, words[0])
    assert len(result.stderr) < 500
    assert not (tmp_path / "run").exists()


def test_quotes_are_short_whatever_is_quoted() -> None:
    for value in (10**5000, [10**5000], {"x": -(10**5000)}, "x" * 10**6, [[["x"] * 99] * 99] * 99):
        assert len(quote(value)) <= 62
        assert len(shorten(value)) <= 60


def test_words_go_with_their_numbers() -> None:
    assert [counted(number, "box") for number in (0, 1, 2)] == ["0 boxes", "1 box", "2 boxes"]
    assert counted(2, "more region") == "2 more regions"
    assert [plural(number, "is") for number in (1, 2)] == ["is", "are"]


def test_a_frame_of_few_cells_is_told_before_a_training() -> None:
    assert fewest_cells(64) == 84 < DetectorOptions().network.queries <= fewest_cells(96)


def test_deep_images_have_a_limit_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_DEEP_LIMIT", 10**4)
    for depth, name in ((np.uint16, "deep.png"), (np.uint8, "plain.png")):
        Image.fromarray(np.zeros((101, 100), dtype=depth)).save(tmp_path / name)
    assert images.checked_header(tmp_path / "plain.png").size == (100, 101)
    with refused(DatasetError, None, tmp_path / "deep.png", "more than 8 bits"):
        images.checked_header(tmp_path / "deep.png")


def test_what_a_run_says_of_itself_is_read_again() -> None:
    assert run_settings().options.count == 8
