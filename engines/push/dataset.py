"""What of a run is pushed: its dataset, held against the journal first, and the record of how it came about.

Knows: which files these are, and when a run is not fit to be pushed. Knows nothing about where they go.

    images/, labels/, parquet/, ...      the dataset, in the formats that are there
    journal.jsonl, run.json              what each image was made from, and all settings; of paths, the last name alone
    report.html                          where there is one
    README.md, annotations.json          the card, and COCO's labels
    push.json                            size and SHA-256 of all others
"""

import filecmp
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.common.events import Event, EventKind, Report
from engines.common.files import read_json
from engines.datasets.imagefolder_writer import CARD, METADATA
from engines.datasets.shard_writers import PARQUET, WEBDATASET
from engines.datasets.yolo_writer import DATA_YAML, LABELS, TRAIN_LIST, VAL_LIST
from engines.errors import RunError
from engines.labels.rules import Rules
from engines.painting.run_settings import RunSettings
from engines.push.items import Item, item_of
from engines.report.report import REPORT
from engines.runs.choices import Choice, annotated
from engines.runs.dataset_files import ANNOTATIONS, writing_annotations
from engines.runs.dataset_rules import kept_rules, read_rules
from engines.runs.decisions import read_decisions
from engines.runs.journal import IMAGES, JOURNAL, OWN, read_entries, read_progress
from engines.runs.rules_in_force import check_obeyed
from engines.runs.run_folder import RUN
from engines.runs.state import chunks_of, state_of

MANIFEST = "push.json"
FOLDERS = (IMAGES, LABELS, PARQUET, WEBDATASET)
FILES = (RUN, JOURNAL, DATA_YAML, TRAIN_LIST, VAL_LIST, REPORT, CARD, ANNOTATIONS, MANIFEST)
_STAGE = f"{OWN}/push.tmp"
_TOLD = 200  # files between words about reading
_PATHS = ("bundle", "reference")  # of run.json


@dataclass
class Dataset:
    """The dataset of a run that is fit to be pushed."""

    run: RunSettings  # with the options that `finalize` was asked for
    rules: Rules
    folder: Path
    images: list[Item] = field(default_factory=list)
    boxes: Counter[int] = field(default_factory=Counter)  # by class
    ignored: int = 0  # regions to ignore
    reviewed: int = 0  # decisions of a person
    formats: tuple[str, ...] = ()


def read_dataset(folder: Path, run: RunSettings, say: Report) -> Dataset:
    """Look through a locked run. Raises RunError for one that is not finished, and where files disagree.

    That `annotations.json` is what the journal gives is seen by writing it again, of the images that are in `images/`.
    """
    _check_finished(folder, run)
    applied = kept_rules(folder, run, replace(read_rules(folder), training=None))  # whose images need not be here
    check_obeyed(folder, _info(folder / ANNOTATIONS), applied.rules)
    decisions = read_decisions(folder)
    found = Dataset(applied.run, applied.rules, folder, reviewed=len(decisions), formats=tuple(_formats(folder)))
    there = set(os.listdir(folder / IMAGES)) - {METADATA}
    total = len(there)
    with _stage(folder) as stage:
        with writing_annotations(stage / ANNOTATIONS, applied, decisions.digest) as add:
            for entry in read_entries(folder / JOURNAL, applied.run):
                if (name := entry.file) is None or name not in there:
                    continue
                there.remove(name)
                item = item_of(f"{IMAGES}/{name}", folder / IMAGES / name)
                if item.sha256 != entry.sha256:
                    raise RunError(
                        f"{folder / item.name} is not the image of {JOURNAL}: put the right one back.", field="run"
                    )
                instances, drop = decisions.choose(entry, applied.rules, entry.labels(applied.rules), None)
                if drop is None:
                    add(annotated(Choice(entry, instances, drop), applied.run))
                found.images.append(item)
                found.boxes.update(instances.single.labels.tolist())
                found.ignored += int(instances.crowd.sum())
                if len(found.images) % _TOLD == 0:
                    say(Event(EventKind.PROGRESS, "comparing", done=len(found.images), total=total))
        if there:
            raise RunError(f"{folder / IMAGES / min(there)} is in no line of {JOURNAL}: take it out.", field="run")
        if not filecmp.cmp(stage / ANNOTATIONS, folder / ANNOTATIONS, shallow=False):
            raise RunError(
                f"{folder / ANNOTATIONS} is not what {JOURNAL} gives for the images that are there: write the dataset "
                f"again, `dengine finalize {folder}`.",
                field="run",
            )
    return found


def more_items(found: Dataset, include_report: bool) -> Iterator[Item]:
    """All that is pushed beside images, card and manifest; `annotations.json` last."""
    folder = found.folder
    yield item_of(RUN, _without_paths(folder / RUN))
    for part in FOLDERS:
        for parent, _, names in os.walk(folder / part):
            inside = Path(parent).relative_to(folder).as_posix()
            for name in names if part != IMAGES else {METADATA}.intersection(names):
                yield item_of(f"{inside}/{name}", Path(parent) / name)
    for name in (DATA_YAML, TRAIN_LIST, VAL_LIST, *((REPORT,) if include_report else ()), JOURNAL, ANNOTATIONS):
        if (folder / name).is_file():
            yield item_of(name, folder / name)


def manifest_of(items: list[Item]) -> Item:
    """`push.json`, which says that all others are there."""
    files = {item.name: {"size": item.size, "sha256": item.sha256} for item in sorted(items, key=lambda one: one.name)}
    return item_of(MANIFEST, json.dumps({"format": 1, "files": files}, indent=0).encode() + b"\n")


def _check_finished(folder: Path, run: RunSettings) -> None:
    if run.options.shard is not None:
        number, parts = run.options.shard
        raise RunError(f"{folder} is shard {number} of {parts}: merge all of them, and push that.", field="run")
    state = state_of(run, read_progress(folder / JOURNAL, chunks_of(run), run))
    if not state.over:
        for _ in read_entries(folder / JOURNAL, run):  # a line that cannot be read is named
            pass
        raise RunError(
            f"{folder} is not finished: {state.done} of {state.target} are there. Run its `dengine generate` command "
            "again, then push it.",
            field="run",
        )
    if not (folder / ANNOTATIONS).is_file():
        raise RunError(
            f"{folder / ANNOTATIONS} is missing: write the dataset, `dengine finalize {folder}`.", field="run"
        )


def _info(path: Path) -> Any:
    """The `info` of a COCO file as dengine writes it: all of the first line but images; None of any other."""
    with path.open("rb") as file:
        try:
            head = json.loads(file.readline().rstrip(b",\n") + b"}")
        except (ValueError, RecursionError):
            return None
    return head.get("info") if isinstance(head, dict) else None


def _formats(folder: Path) -> Iterator[str]:
    yield "coco"
    for name, place in (
        ("yolo", DATA_YAML), ("imagefolder", f"{IMAGES}/{METADATA}"), (PARQUET, PARQUET), (WEBDATASET, WEBDATASET)
    ):  # fmt: skip
        if (folder / place).exists():
            yield name


def _without_paths(path: Path) -> bytes:
    """`run.json`, in which the folders of this machine are named by their last name alone."""
    value = read_json(path, RunError)
    value |= {name: Path(value[name]).name for name in _PATHS if isinstance(value.get(name), str)}
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


@contextmanager
def _stage(folder: Path) -> Iterator[Path]:
    """A folder for a while, in which nothing is but what this push writes."""
    stage = folder / _STAGE
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
