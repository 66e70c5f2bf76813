"""What a run painted is held against its references, or against what its bundle says of training images."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_datasets import picture
from PIL import Image
from quality_pictures import photograph
from reviewing import make_review_run

from dengine_cli.generate import show_run
from engines.common.files import write_json
from engines.datasets import images
from engines.datasets.dataset import open_images
from engines.datasets.learned import LEARNED, write_learned
from engines.painting.references import open_references
from engines.report import figures
from engines.report.figures import gather
from engines.report.report import ReportSettings, report
from engines.runs import likeness
from engines.runs.journal import IMAGES
from engines.runs.likeness import Memory, hold_against, spread
from engines.runs.run_folder import require_run
from engines.runs.summaries import DatasetSummary, GenerateSummary


def run_with_references(root: Path) -> Path:
    """A run of 10 images whose references are the five photographs in `root`/data."""
    data = root / "data"
    data.mkdir()
    for number in range(5):
        Image.fromarray(photograph(number)).save(data / f"{number}.png")
    return make_review_run(root / "run", 10, reference=str(data), short_side=120)


def test_mush_is_told_from_its_references_and_the_report_says_so(tmp_path: Path) -> None:
    folder = run_with_references(tmp_path)
    run = require_run(folder)
    references = open_references(run.options).records
    for number, image in enumerate(sorted((folder / IMAGES).iterdir())):
        Image.fromarray(photograph(50 + number)).save(image, quality=95)
    alike = hold_against(folder, run, references)[0]
    assert alike is not None
    assert (alike.remark, alike.photographs.images, alike.painted.images) == (None, 5, 9)
    assert alike.figures in report(ReportSettings(folder)).file.read_text("utf-8")
    for image in (folder / IMAGES).iterdir():
        picture(image, (160, 120), shade=120)
    mush = hold_against(folder, run, references)[0]
    assert mush is not None
    assert mush.remark is not None
    assert "do not look like your photographs" in report(ReportSettings(folder)).file.read_text("utf-8")


def test_a_broken_reference_that_was_not_painted_costs_no_run(tmp_path: Path) -> None:
    folder = run_with_references(tmp_path)
    run = require_run(folder)
    references = open_references(run.options).records
    (tmp_path / "data" / "3.png").write_bytes(b"no image any more")
    alike = hold_against(folder, run, references)[0]
    assert alike is not None
    assert alike.photographs.images == 4


def test_without_references_and_without_its_bundle_nothing_is_claimed(tmp_path: Path) -> None:
    folder = make_review_run(tmp_path / "run", 10)
    assert hold_against(folder, require_run(folder)) == (None, None)


def _painted_from_text(folder: Path, part: str, learned: list[np.ndarray]) -> Path:
    """A run from text of nine photographs, by a bundle that is a manifest and what one of its models learned from."""
    photographs, bundle = folder / "photographs", folder / "bundle"
    for one in (photographs, bundle / part):
        one.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(learned):
        Image.fromarray(pixels).save(photographs / f"{number}.png")
    write_json(bundle / "manifest.json", {})
    write_learned(bundle / part / LEARNED, list(open_images(photographs).records))
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    run = make_review_run(folder / "run", 10, bundle=str(bundle), bundle_hash=digest)
    for number, image in enumerate(sorted((run / IMAGES).iterdir())):
        Image.fromarray(photograph(50 + number)).save(image, quality=95)
    return run


@pytest.mark.parametrize("part", [".", "adapter"])
def test_images_painted_by_heart_are_counted_and_the_report_says_so(tmp_path: Path, part: str) -> None:
    same = [photograph(51), np.ascontiguousarray(photograph(53)[:, ::-1]), photograph(3)]
    folder = _painted_from_text(tmp_path, part, same)
    found = hold_against(folder, require_run(folder))[1]
    assert found is not None
    assert (found.images, found.repeats) == (9, 2)
    assert found.nearest > 0.99
    assert found.remark is not None
    assert "2 of 9 painted images looked at nearly repeat" in report(ReportSettings(folder)).file.read_text("utf-8")


def test_each_image_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _painted_from_text(tmp_path, ".", [photograph(number) for number in range(3)])
    run, seen, read = require_run(folder), Counter[str](), images.read_image
    for module in (likeness, figures):
        monkeypatch.setattr(module, "read_image", lambda file: (seen.update([file.name]), read(file))[1])
    hold_against(folder, run)
    assert list(seen.values()) == [1] * 9
    gather(folder, run, run.rules)
    assert list(seen.values()) == [2] * 9


def test_images_that_repeat_nothing_are_told_by_the_nearest(tmp_path: Path) -> None:
    folder = _painted_from_text(tmp_path, ".", [photograph(number) for number in range(3)])
    found = hold_against(folder, require_run(folder))[1]
    assert found is not None
    assert (found.repeats, found.remark) == (0, None)
    assert found.nearest < 0.95
    assert found.words in report(ReportSettings(folder)).file.read_text("utf-8")


def test_generate_prints_how_near_it_came_and_notes_what_it_knows_by_heart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = DatasetSummary(tmp_path, tmp_path / "annotations.json", None, 9, 20, {"cell": 20}, jobs=9)
    for found, noted in ((Memory(9, 0.62, 0), False), (Memory(9, 0.98, 2), True)):
        show_run(GenerateSummary(dataset, 0, 1.0, 0.0, None, 0, 9, 9, False, "cpu", memory=found))
        shown, notes = capsys.readouterr()
        assert f"nearest      {found.nearest:.2f} at most" in shown
        assert ("by heart" in " ".join(notes.split())) is noted


def test_broken_fingerprints_cost_no_run(tmp_path: Path) -> None:
    folder = _painted_from_text(tmp_path, ".", [photograph(1)])
    (tmp_path / "bundle" / LEARNED).write_bytes(b"no fingerprints")
    assert hold_against(folder, require_run(folder))[1] is None


def test_a_sample_is_spread_evenly_over_all() -> None:
    for number in (0, 1, 48, 49, 1000):
        chosen = spread(range(number), 48)
        assert len(chosen) <= 48
        assert len(set(np.diff(chosen))) <= 1
        assert len(chosen) >= min(number, 24)
