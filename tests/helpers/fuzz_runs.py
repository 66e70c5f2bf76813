"""A run's files, spoilt by the hundred, and what `finalize` makes of the folder each time.

Knows: which files of a run are read again, and what must hold of a dataset that was written all the same: numbers that
are finite, boxes inside their images, names that every writer can write. Knows nothing about how they are read.

`python tests/helpers/fuzz_runs.py 20000 7` tries so many mutations with that seed.
"""

import contextlib
import json
import random
import shutil
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

from fuzz import Report, judge, mutated_bytes, mutated_file, mutated_json
from made_runs import make_run

from engines.painting.jobs import chunk_ranges
from engines.runs import preview
from engines.runs.dataset_files import ANNOTATIONS
from engines.runs.dataset_rules import RULES, DatasetRules, write_rules
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.journal import IMAGES, JOURNAL, SPARE, read_progress
from engines.runs.run_folder import RUN, require_run

_FILES = (JOURNAL, JOURNAL, RUN, RULES)


def mutated_lines(data: bytes, rng: random.Random) -> bytes:
    """A copy of a journal with a value of a line or two spoilt; or lines out of order, or spoilt bytes."""
    if rng.random() < 0.15:
        return mutated_bytes(data, rng)
    lines = data.splitlines(keepends=True)
    if rng.random() < 0.1:
        rng.shuffle(lines)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        with contextlib.suppress(RecursionError):  # of a line that is nested deep by now
            lines[at] = json.dumps(mutated_json(json.loads(lines[at]), rng)).encode() + b"\n"
    return b"".join(lines)


def read(folder: Path) -> None:
    """Finalize the run, and see that what was written may be believed. Warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = require_run(folder)
        read_progress(folder / JOURNAL, chunk_ranges(7, 7), run)
        finalize(FinalizeSettings(folder))
        coco = json.loads((folder / ANNOTATIONS).read_text("utf-8"), parse_constant=_never)
        sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
        assert set(sizes.values()) <= {(32, 24)}, sizes
        for annotation in coco["annotations"]:
            x, y, width, height = annotation["bbox"]
            assert min(x, y) >= 0 < min(width, height), annotation
            assert x + width <= 32, annotation
            assert y + height <= 24, annotation
        for category in coco["categories"]:
            assert category["name"].encode() == " ".join(category["name"].split()).encode(), category


def _never(text: str) -> None:
    raise AssertionError(f"{text} was written")


def fuzz_runs(folder: Path, count: int, seed: int = 0) -> Report:
    """Spoil the files of a run in `count` ways, one at a time, and judge what finalizing it does."""
    report = Report()
    plain = make_run(folder / "whole", keep_empty=True, reference=None, strength=None, reference_hash=None)
    given = make_run(folder / "given", keep_empty=True, compose=True, labels="both")
    for whole in (plain, given):
        write_rules(whole, DatasetRules(score=0.4, min_quality=0.1, formats=("coco", "yolo", "imagefolder")))
    cell, preview._CELL = preview._CELL, 16
    try:
        for number in range(count):
            rng = random.Random(f"{seed}/{number}")
            name = _FILES[number % len(_FILES)]
            whole = given if number % len(_FILES) == 1 else plain
            before = (whole / name).read_bytes()
            work = _linked(whole, folder / "work")
            (work / name).write_bytes(mutated_lines(before, rng) if name == JOURNAL else mutated_file(before, rng))
            judge(partial(read, work), f"{name} number {number} of seed {seed}", report, work)
    finally:
        preview._CELL = cell
    return report


def _linked(whole: Path, work: Path) -> Path:
    """A copy of the run: a fresh folder, so that no mutation meets what another one left."""
    shutil.rmtree(work, ignore_errors=True)
    for part in (IMAGES, SPARE):
        (work / part).mkdir(parents=True)
    for image in (whole / IMAGES).iterdir():
        (work / IMAGES / image.name).hardlink_to(image)
    for name in dict.fromkeys(_FILES):
        shutil.copyfile(whole / name, work / name)
    return work


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(fuzz_runs(Path(place), int(sys.argv[1]), int(sys.argv[2])))  # noqa: T201
