"""Joins the shards of a run into the run that they are parts of.

Knows: which folders are shards of one run, and how their journals interleave. The result is, byte for byte, what the
same run would have made without shards. Knows nothing about networks.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engines.common.events import Event, EventKind, Report, note, silent
from engines.common.files import sync_folder, write_atomic, write_json
from engines.common.schema import AnyPath, settle
from engines.common.verbs import verb
from engines.errors import RunError, UsageError, refuse
from engines.painting.jobs import chunk_ranges
from engines.painting.run_settings import RunSettings, differences
from engines.runs.dataset_files import write_dataset
from engines.runs.dataset_rules import common_rules, kept_rules, without_own
from engines.runs.decisions import REVIEW, read_decisions
from engines.runs.journal import IMAGES, JOURNAL, OWN, Entry, Journal, find_image, read_entries, read_progress
from engines.runs.rules_in_force import wanted_rules
from engines.runs.run_folder import LOCK, PREVIEW, RUN, locked, require_run, run_errors
from engines.runs.summaries import DatasetSummary

_TOLD = 500  # lines between words about joining


@dataclass(frozen=True)
class MergeSettings:
    """What `merge` is asked for. Paths may be text. Raises UsageError without a shard.

    >>> len(MergeSettings(["runs/part1", "runs/part2"], out="runs/whole").runs)
    2
    """

    runs: Sequence[AnyPath]  # the folders of all shards, in any order
    out: AnyPath  # folder for the whole dataset: new, or empty

    def __post_init__(self) -> None:
        settle(self)
        if not self.runs:
            raise UsageError("No shards given: name the folders of all shards of a run.", field="runs")


@verb
def merge(settings: MergeSettings, *, report: Report | None = None) -> DatasetSummary:
    """Join all shards of a run into a new folder, by the rules that they were last finalized with.

    Images are hard-linked where the disk allows, else copied; the shards stay as they are. The folder appears whole
    or not at all. Raises RunError for folders that are not all the shards of one run, are not finished, or were
    finalized by different rules (the formats of all are written), or for an `out` that is not new.

    >>> for part in (1, 2):
    ...     shard = GenerateSettings(out=f"part{part}", jobs=2, chunk=1, shard=(part, 2), steps=2, keep_empty=True)
    ...     _ = generate(shard)
    >>> merge(MergeSettings(["part1", "part2"], out="whole")).images
    2
    """
    report, folders, out = report or silent, settings.runs, settings.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists already; give a new folder to merge into.", field="out")
    report(note("looking at the shards"))
    shards = _in_order(folders)
    known = next((one.frequencies for one in shards.values() if one.frequencies is not None), None)
    first = next(iter(shards.values()))
    run = replace(first, options=replace(first.options, shard=None), frequencies=known)
    asked = without_own(common_rules({folder: wanted_rules(folder) for folder in shards}), run)
    part = out.parent / f".{out.name}.merge"
    with run_errors(out):
        with locked(part):
            _empty(part)
            try:
                (part / IMAGES).mkdir()
                write_json(part / RUN, run.to_json(), part / OWN)
                report(note("joining the shards"))
                _join(list(shards), run, part, report)
                _join_reviews(list(shards), part)
                summary = write_dataset(part, kept_rules(part, run, asked), asked, report=report)
                part.replace(out)
            except BaseException:
                _empty(part)
                raise
        sync_folder(out.parent)
    return replace(
        summary,
        folder=out,
        annotations=out / summary.annotations.name,
        preview=out / PREVIEW if summary.preview else None,
    )


def _in_order(folders: Sequence[Path]) -> dict[Path, RunSettings]:
    """The shards 1..n of one run, in order."""
    settings = {folder: require_run(folder) for folder in folders}
    first, found = folders[0], dict[int, Path]()
    for folder, run in settings.items():
        if run.options.shard is None:
            raise RunError(f"{folder} is a whole run, not a shard: only runs with `shard` are merged.", field="runs")
        _check_same_run(folder, run, first, settings[first])
        number, parts = run.options.shard
        if number in found:
            raise RunError(f"{folder} and {found[number]} are both shard {number}/{parts}.", field="runs")
        found[number] = folder
        progress = read_progress(folder / JOURNAL, chunk_ranges(run.options.chunk, run.options.jobs, run.options.shard))
        if progress.next_index is not None:
            raise RunError(
                f"{folder} is not finished: run its `dengine generate` command again, then merge.", field="runs"
            )
    parts = (settings[first].options.shard or (1, 1))[1]
    missing = [f"{number}/{parts}" for number in range(1, parts + 1) if number not in found]
    if missing:
        raise RunError(f"Shard {', '.join(missing)} is missing: name the folders of all {parts}.", field="runs")
    return {found[number]: settings[found[number]] for number in sorted(found)}


def _check_same_run(folder: Path, run: RunSettings, first: Path, expected: RunSettings) -> None:
    """Raise RunError unless `run` differs from `expected` in the number of its shard alone."""
    parts = [one.options.shard[1] if one.options.shard else 1 for one in (run, expected)]
    options = replace(run.options, shard=expected.options.shard, jobs=expected.options.jobs)
    wrong = differences(expected, replace(run, options=options))
    if run.options.jobs != expected.options.jobs:
        wrong.append(("jobs", f"`jobs` is {expected.options.jobs} in the run, {run.options.jobs} here"))
    if parts[0] != parts[1]:
        wrong.append(("shard", f"it has {parts[1]} parts in the run, {parts[0]} here"))
    refuse(wrong, RunError, f"{folder} is not of the same run as {first}: ")


def _join(shards: Sequence[Path], settings: RunSettings, part: Path, report: Report) -> None:
    """Deal the shards' chunks back into one journal, with their images."""
    sources: list[Iterator[Entry]] = [read_entries(folder / JOURNAL) for folder in shards]
    with Journal(part, 0) as journal:
        for number, chunk in enumerate(chunk_ranges(settings.options.chunk, settings.options.jobs)):
            journal.begin(chunk)
            folder, source = shards[number % len(shards)], sources[number % len(shards)]
            for _ in chunk:
                entry = next(source)
                if entry.file is not None:
                    _link(find_image(folder, entry), part / IMAGES)
                journal.add(entry)
            if chunk.stop % _TOLD < len(chunk):
                report(Event(EventKind.PROGRESS, "joining", done=chunk.stop, total=settings.options.jobs))
        journal.flush()


def _join_reviews(shards: Sequence[Path], part: Path) -> None:
    """Put the decisions about all shards behind each other; a shard's images are in no other."""
    lines = [line.to_line() + "\n" for folder in shards for line in read_decisions(folder).lines.values()]
    if lines:
        write_atomic(part / REVIEW, "".join(lines).encode())


def _link(source: Path, images: Path) -> None:
    """Put an image of a shard into the merged images folder."""
    try:
        os.link(source, images / source.name)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, images / source.name)


def _empty(folder: Path) -> None:
    """Remove what an interrupted merge left; the lock stays."""
    for item in (*folder.iterdir(), *(folder / OWN).iterdir()):
        if item in (folder / OWN, folder / LOCK):
            continue
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink()
