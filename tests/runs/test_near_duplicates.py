"""Near duplicates: what repeats what, in index order, and references that are found again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from made_runs import run_settings
from PIL import Image
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError, RunError
from engines.painting.crops import read_crop
from engines.painting.jobs import make_job
from engines.painting.resolve import dataset_hash
from engines.painting.run_settings import RunSettings
from engines.runs import near_duplicates as repeats_module
from engines.runs.near_duplicates import (
    REPEATS_IMAGE,
    REPEATS_REFERENCE,
    REPEATS_TRAINING,
    Candidate,
    find_repeats,
    reference_source,
)


def picture(number: int, size: tuple[int, int] = (48, 48)) -> npt.NDArray[np.uint8]:
    rough = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC))


def candidates(folder: Path, numbers: list[int]) -> list[Candidate]:
    """Images that show picture `numbers[i]`, each a little darker than the last."""
    folder.mkdir(exist_ok=True)
    made = []
    for index, number in enumerate(numbers):
        pixels = picture(abs(number)) * (1 - 0.02 * index)
        Image.fromarray((pixels[:, ::-1] if number < 0 else pixels).astype(np.uint8)).save(folder / f"{index}.png")
        made.append(Candidate(10 * index, folder / f"{index}.png"))
    return made


def settings(**changes: Any) -> RunSettings:
    asked = {"count": None, "jobs": 8} if "count" not in changes else {}
    return run_settings(**{"reference": None, "near_duplicates": 0.95} | asked | changes)


@pytest.mark.parametrize(("block", "part"), [(1, 1), (1, 2), (2, 4), (256, 4096)])
def test_later_repeats_go_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, part: int
) -> None:
    monkeypatch.setattr(repeats_module, "_BLOCK", block)
    monkeypatch.setattr(repeats_module, "_PART", part)
    found = find_repeats(candidates(tmp_path / "run", [1, 2, 1, 3, -2, 1]), settings(), None)
    assert found == {20: REPEATS_IMAGE, 40: REPEATS_IMAGE, 50: REPEATS_IMAGE}


def test_what_repeats_a_training_image_goes(tmp_path: Path) -> None:
    learned = [one.file for one in candidates(tmp_path / "learned", [7, 2])]
    found = find_repeats(candidates(tmp_path / "run", [1, 2, 3, 1, -7]), settings(), None, learned)
    assert found == {10: REPEATS_TRAINING, 30: REPEATS_IMAGE, 40: REPEATS_TRAINING}


def test_training_images_are_compared_with_where_the_run_keeps_other_repeats(tmp_path: Path) -> None:
    learned = [one.file for one in candidates(tmp_path / "learned", [2])]
    found = find_repeats(candidates(tmp_path / "run", [1, 2, 1]), settings(near_duplicates=0.0), None, learned)
    assert found == {10: REPEATS_TRAINING}


def test_no_more_images_are_read_than_the_count_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats_module, "_BLOCK", 2)
    made = candidates(tmp_path / "run", [1, 1, 2, 3, 4, 5])
    given = []

    def source() -> Iterator[Candidate]:
        for one in made:
            given.append(one.index)
            yield one

    assert find_repeats(source(), settings(count=3), None) == {10: REPEATS_IMAGE}
    assert given == [0, 10, 20, 30]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dataset of three images without labels."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(picture(number, (96, 64))).save(folder / f"{number}.png")
    return folder


def painted_from(data: Path, **changes: Any) -> RunSettings:
    dataset = open_dataset(data, require_boxes=False)
    return settings(
        reference=str(data), reference_hash=dataset_hash(dataset), frame=(48, 48), short_side=48, seed=3, **changes
    )


def changed(run: RunSettings, **options: Any) -> RunSettings:
    return replace(run, options=replace(run.options, **options))


def test_an_image_that_repeats_the_crop_it_was_painted_from_goes(tmp_path: Path, data: Path) -> None:
    run = painted_from(data)
    source = reference_source(run)
    assert source is not None
    made = candidates(tmp_path / "run", [7, 8, 9, 10])
    for one in made[:2]:
        Image.fromarray(read_crop(source, make_job(source, run.options.seed, one.index))).save(one.file)
    Image.fromarray(read_crop(source, make_job(source, run.options.seed, 999))).save(
        made[2].file
    )  # somebody else's crop
    assert find_repeats(made, run, source) == {0: REPEATS_REFERENCE, 10: REPEATS_REFERENCE}


def test_an_image_that_repeats_any_whole_reference_goes(tmp_path: Path, data: Path) -> None:
    run = painted_from(data)
    made = candidates(tmp_path / "run", [7, 8])
    Image.fromarray(np.ascontiguousarray(picture(2, (96, 64))[:, ::-1])).resize((48, 48)).save(made[1].file)
    assert find_repeats(made, run, reference_source(run)) == {10: REPEATS_REFERENCE}


def test_references_that_are_gone_changed_or_unknown_are_named(tmp_path: Path, data: Path) -> None:
    run = painted_from(data)
    assert reference_source(changed(run, reference=None)) is None
    with refused(RunError, "near_duplicates", tmp_path / "nowhere", "`near_duplicates=0`"):
        reference_source(changed(run, reference=tmp_path / "nowhere"))
    with refused(RunError, "near_duplicates", "`dengine generate`"):
        reference_source(replace(run, short_side=None))
    (data / "2.png").unlink()
    with refused(RunError, "near_duplicates", data):
        reference_source(run)


def test_a_broken_reference_stops_or_is_like_nothing(tmp_path: Path, data: Path) -> None:
    run = painted_from(data)
    source = reference_source(run)
    whole = (data / "1.png").read_bytes()
    (data / "1.png").write_bytes(whole[: len(whole) // 2])
    made = candidates(tmp_path / "run", [7, 8, 9])
    with refused(DatasetError, None, "1.png"):
        find_repeats(made, run, source)
    assert find_repeats(made, changed(run, skip_bad=True), source) == {}
