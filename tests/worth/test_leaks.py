"""Validation photographs that what painted a run knows: all of them are named, whichever way they are known."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_runs import run_settings
from made_worth import NAMES
from PIL import Image
from quality_pictures import photograph

from engines.common.events import Event
from engines.common.files import write_json
from engines.datasets.dataset import Record, open_images
from engines.datasets.duplicates import fingerprints
from engines.datasets.learned import LEARNED, write_learned
from engines.labels.boxes import Instances
from engines.runs.journal import Entry, Journal
from engines.runs.run_folder import start_run
from engines.worth.leaks import known_images

NUMBER = 20


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return _saved(tmp_path_factory.mktemp("val"), [photograph(number) for number in range(NUMBER)])


def _saved(folder: Path, pictures: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]) -> list[Record]:
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return list(open_images(folder).records)


def _run(folder: Path, references: list[Record], bundle: Path | None = None) -> Path:
    """A run that repainted these, by a bundle that is a manifest and what its models learned from."""
    digest = "0" * 64 if bundle is None else hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    where = str(references[0].file.parent) if references else None
    chunk = max(1, len(references))
    settings = run_settings(
        class_names=NAMES, reference=where, reference_hash="1" * 64 if where else None, chunk=chunk,
        bundle=None if bundle is None else str(bundle), bundle_hash=digest, strength=(0.4, 0.8) if where else None,
    )  # fmt: skip
    start_run(folder, settings, None)
    with Journal(folder, 0) as journal:
        journal.begin(range(len(references)))
        for index, record in enumerate(references):
            journal.add(Entry(index, "", record.name, 0.5, None, f"{index:08}.jpg", "0" * 64, Instances.none()))
        journal.flush()
    return folder


def _bundle(folder: Path, part: str, learned: list[Record]) -> Path:
    (folder / part).mkdir(parents=True)
    write_json(folder / "manifest.json", {})
    write_learned(folder / part / LEARNED, learned)
    return folder


def _cut(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return pixels[20:110, 25:145].copy()


WAYS: dict[str, Callable[[Path, list[Record]], Path]] = {
    "reference": lambda to, val: _run(to / "run", val),
    "base": lambda to, val: _run(to / "run", [], _bundle(to / "bundle", ".", val)),
    "adapter": lambda to, val: _run(to / "run", [], _bundle(to / "bundle", "adapter", val)),
    "part": lambda to, val: _run(to / "run", _saved(to / "cuts", [_cut(one.pixels()) for one in val])),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_known_photograph_is_named(tmp_path: Path, val: list[Record], way: str) -> None:
    (tmp_path / "run").mkdir()
    lines = known_images(val, fingerprints(val), [WAYS[way](tmp_path, val)])
    assert sorted(line.split()[0] for line in lines) == [record.name for record in val]


def test_others_are_not_named(tmp_path: Path, val: list[Record]) -> None:
    others = _saved(tmp_path / "others", [photograph(50 + number) for number in range(6)])
    (tmp_path / "run").mkdir()
    run = _run(tmp_path / "run", others, _bundle(tmp_path / "bundle", "adapter", others))
    assert known_images(val, fingerprints(val), [run]) == ()


def test_images_that_have_nothing_in_common_with_them_are_not_compared_again(tmp_path: Path, val: list[Record]) -> None:
    (tmp_path / "run").mkdir()
    run = _run(tmp_path / "run", val, _bundle(tmp_path / "bundle", "adapter", val))
    prints = fingerprints(val)
    apart = set(prints.hashes[1:])
    assert {line.split()[0] for line in known_images(val, prints, [run], apart)} == {val[0].name}
    told: list[Event] = []
    assert known_images(val, prints, [run], set(prints.hashes), told.append) == ()
    assert [event.total for event in told if event.done == event.total] == [len(val), len(val)]
