"""What a run painted is held against its references, or against what its bundle says of training images."""

from pathlib import Path

import numpy as np
from made_datasets import picture
from PIL import Image
from quality_pictures import photograph
from reviewing import make_review_run

from engines.painting.references import open_references
from engines.report.report import ReportSettings, report
from engines.runs.journal import IMAGES
from engines.runs.likeness import likeness, spread
from engines.runs.run_folder import require_run


def test_mush_is_told_from_its_references_and_the_report_says_so(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(5):
        Image.fromarray(photograph(number)).save(data / f"{number}.png")
    folder = make_review_run(tmp_path / "run", 10, reference=str(data), short_side=120)
    run = require_run(folder)
    references = open_references(run.options).records
    for number, image in enumerate(sorted((folder / IMAGES).iterdir())):
        Image.fromarray(photograph(50 + number)).save(image, quality=95)
    alike = likeness(folder, run, references)
    assert alike is not None
    assert (alike.remark, alike.photographs.images, alike.painted.images) == (None, 5, 9)
    assert alike.figures in report(ReportSettings(folder)).file.read_text("utf-8")
    for image in (folder / IMAGES).iterdir():
        picture(image, (160, 120), shade=120)
    mush = likeness(folder, run, references)
    assert mush is not None
    assert mush.remark is not None
    assert "do not look like your photographs" in report(ReportSettings(folder)).file.read_text("utf-8")


def test_without_references_and_without_its_bundle_nothing_is_claimed(tmp_path: Path) -> None:
    folder = make_review_run(tmp_path / "run", 10)
    assert likeness(folder, require_run(folder)) is None


def test_a_sample_is_spread_evenly_over_all() -> None:
    for number in (0, 1, 48, 49, 1000):
        chosen = spread(range(number), 48)
        assert len(chosen) <= 48
        assert len(set(np.diff(chosen))) <= 1
        assert len(chosen) >= min(number, 24)
