"""The dataset files of a run, made from its journal: COCO always, other formats on request, and a preview.

Knows: which of the painted images are in the dataset (`labels.rules`, `near_duplicates`, a count), and how the files on
disk come to say so, all at once, with the rules that they were made by. Knows nothing about networks: nothing is
painted here, and it can be done again.

An image that the dataset does not use is moved to `.dengine/spare/`, from where a later `finalize`, or a larger count,
brings it back: so no image is without its label, and no label without its image.
"""

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from engines.common.events import Report, silent
from engines.common.files import sync_folder
from engines.datasets.imagefolder_writer import CARD, METADATA, is_ours, write_card, write_imagefolder
from engines.datasets.images import image_size
from engines.datasets.shard_writers import PARQUET, WEBDATASET, write_parquet, write_webdataset
from engines.datasets.writers import AnnotatedImage, write_coco
from engines.datasets.yolo_writer import DATA_YAML, LABELS, TRAIN_LIST, VAL_LIST, write_yolo
from engines.errors import RunError
from engines.labels.boxes import Instances
from engines.labels.rules import Drop, DropReason, Rules, drop
from engines.labels.scores import stored
from engines.painting.jobs import JobSource
from engines.painting.run_settings import RunSettings
from engines.runs.dataset_rules import RULES, Applied, DatasetRules, was_painted, write_rules
from engines.runs.decisions import Decisions, read_decisions
from engines.runs.journal import (
    IMAGES,
    JOURNAL,
    OWN,
    SPARE,
    Entry,
    find_image,
    read_entries,
    read_files,
    remove_images_from,
)
from engines.runs.near_duplicates import Candidate, find_repeats, reference_source
from engines.runs.passes import Passes
from engines.runs.preview import PREVIEW_IMAGES, Sample, write_preview
from engines.runs.run_folder import PREVIEW, RUN
from engines.runs.summaries import DatasetSummary

ANNOTATIONS = "annotations.json"
_FOLDERS = (LABELS, PARQUET, WEBDATASET)  # of formats
STAGE = f"{OWN}/dataset.tmp"  # where new dataset files are made
_BEYOND = Drop(DropReason.BEYOND, "beyond the count")


def write_dataset(
    folder: Path, applied: Applied, asked: DatasetRules, source: JobSource | None = None, report: Report = silent
) -> DatasetSummary:
    """Make the dataset files of a run whose folder is locked, by rules that the run keeps.

    applied: what the rules `asked` for come to (`apply_rules`).
    source: with the references, for the search for near duplicates; None: they are opened where that needs them.
    The new files are made beside the old ones. Then `annotations.json` goes, images and files change places, and the
    new one comes: while it is there, everything agrees, whenever a kill came.
    Memory does not grow with the number of images, near duplicates aside.
    """
    _remove_leftovers(folder)
    run, rules, decisions = applied.run, applied.rules, read_decisions(folder)
    repeats = _repeats(folder, applied, source)

    passes = Passes(report, 2 + len({*run.options.formats, "coco"}))  # to count, and for the preview

    def choose() -> Iterator[_Choice]:
        return passes.through(_choices(folder / JOURNAL, run, rules, repeats, decisions))

    tally = _count(folder, choose(), run)
    remove_images_from(folder, tally.next_index)
    stage = folder / STAGE
    try:
        _write_files(stage, folder, applied, choose, decisions.digest)
        write_rules(stage, asked)
        preview = (stage / PREVIEW).exists()
        _take_over(folder, stage, bytes(tally.used))
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    return DatasetSummary(
        folder=folder,
        annotations=folder / ANNOTATIONS,
        preview=folder / PREVIEW if preview else None,
        images=tally.images,
        boxes=sum(tally.boxes.values()),
        boxes_by_class={name: tally.boxes[label] for label, name in enumerate(run.class_names)},
        jobs=tally.jobs,
        dropped=dict(tally.dropped),
        ignored=tally.ignored,
        score=stored(rules.thresholds),
        frequencies=_expected(run, rules),
    )


def _expected(run: RunSettings, rules: Rules) -> dict[str, float]:
    """How frequent labels of each class are to be expected; of none, where that can't be said."""
    changed = run.options.balance or run.options.compose or rules.labels != "adapter"
    return {} if changed or run.frequencies is None else run.frequencies


def remove_dataset_files(folder: Path) -> None:
    """Remove what `write_dataset` wrote, images aside: a run that goes on would leave it out of date."""
    (folder / ANNOTATIONS).unlink(missing_ok=True)
    _remove_other_formats(folder)
    _remove_leftovers(folder)


@dataclass(frozen=True)
class _Choice:
    """A journal line, and what the dataset makes of it."""

    entry: Entry
    instances: Instances  # its labels, and as crowds the regions to ignore
    drop: Drop | None  # why the image is not in the dataset; None when it is


@dataclass
class _Tally:
    images: int = 0
    jobs: int = 0
    next_index: int = 0  # after the last line
    boxes: Counter[int] = field(default_factory=Counter)
    ignored: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    used: bytearray = field(default_factory=bytearray)  # of each line, whether its image is in the dataset


def _choices(
    journal: Path, run: RunSettings, rules: Rules, repeats: Mapping[int, str], decisions: Decisions
) -> Iterator[_Choice]:
    """What the dataset makes of every line: images with a label, and no more of them than were asked for; last of all,
    what was decided in review, which frees no place for other images.
    """
    images = 0
    for entry in read_entries(journal, run):
        by_rule = drop(entry.instances, rules, entry.known) if was_painted(entry) else None
        dropped = by_rule or entry.drop
        if dropped is None and entry.index in repeats:
            dropped = Drop(DropReason.REPEAT, repeats[entry.index])
        if dropped is None and run.options.count is not None and images == run.options.count:
            dropped = _BEYOND
        images += dropped is None
        yield _Choice(entry, *decisions.choose(entry, rules, entry.labels(rules), dropped))


def _repeats(folder: Path, applied: Applied, source: JobSource | None) -> Mapping[int, str]:
    """The images that the dataset would have, but for what they repeat."""
    run, rules = applied.run, applied.rules
    if not run.options.near_duplicates and not applied.training:
        return {}
    uncut = replace(run, options=replace(run.options, count=None))
    everything = _choices(folder / JOURNAL, uncut, rules, {}, Decisions())
    candidates = (
        Candidate(choice.entry.index, find_image(folder, choice.entry)) for choice in everything if choice.drop is None
    )
    if run.options.near_duplicates:
        source = source or reference_source(run)
    return find_repeats(candidates, run, source if source and source.references else None, applied.training)


def _count(folder: Path, choices: Iterator[_Choice], run: RunSettings) -> _Tally:
    """See that every image of the dataset is there, the first of the run's size, and count."""
    tally = _Tally()
    for choice in choices:
        tally.jobs += 1
        tally.used.append(choice.drop is None)
        tally.next_index = choice.entry.index + 1
        if choice.drop is not None:
            tally.dropped[choice.drop.text] += 1
            continue
        file = find_image(folder, choice.entry)
        if not tally.images and (size := image_size(file)) != run.frame:
            sizes = ["x".join(map(str, sides)) for sides in (size, run.frame)]
            raise RunError(f"{file} has {sizes[0]} pixels, but {folder / RUN} says {sizes[1]}: put the right one back.")
        tally.images += 1
        tally.boxes.update(choice.instances.single.labels.tolist())
        tally.ignored += int(choice.instances.crowd.sum())
    return tally


def _write_files(
    stage: Path, folder: Path, applied: Applied, choose: Callable[[], Iterator[_Choice]], review: str | None
) -> None:
    """Make all dataset files in the new folder `stage`."""
    run = applied.run
    for part in (IMAGES, OWN):
        (stage / part).mkdir(parents=True)
    kept = islice((choice for choice in choose() if choice.drop is None), PREVIEW_IMAGES)
    samples = [Sample(find_image(folder, choice.entry), choice.instances.single) for choice in kept]
    if samples:
        write_preview(stage / PREVIEW, samples, run.class_names)
    if "yolo" in run.options.formats:
        write_yolo(stage, _annotated(choose(), run), run.class_names, run.options.val_fraction)
    if "imagefolder" in run.options.formats:
        write_imagefolder(stage, _annotated(choose(), run), run.class_names)
    else:
        write_card(stage)
    if PARQUET in run.options.formats:
        write_parquet(stage, _with_files(folder, choose(), run), run.class_names)
    if WEBDATASET in run.options.formats:
        write_webdataset(stage, _with_files(folder, choose(), run), run.class_names)
    info = {
        "description": "painted and labelled by dengine",
        "bundle_sha256": run.bundle_hash,
        "seed": run.options.seed,
        "score": stored(applied.rules.thresholds),
    } | ({} if review is None else {"review": review})
    write_coco(stage / ANNOTATIONS, _annotated(choose(), run), run.class_names, info)


def _take_over(folder: Path, stage: Path, used: bytes) -> None:
    """Put the new dataset in the place of the old one, `annotations.json` last."""
    (folder / ANNOTATIONS).unlink(missing_ok=True)
    sync_folder(folder)
    _remove_other_formats(folder)
    _move_images(folder, used)
    if (stage / RULES).exists():
        (stage / RULES).rename(folder / RULES)
    else:
        (folder / RULES).unlink(missing_ok=True)
    names = [PREVIEW, *_FOLDERS, TRAIN_LIST, VAL_LIST, DATA_YAML, f"{IMAGES}/{METADATA}"]
    for name in [*names, CARD] if is_ours(folder / CARD) else names:
        if (stage / name).exists():
            (stage / name).rename(folder / name)
    for part in (folder / IMAGES, folder / OWN, folder):
        sync_folder(part)
    (stage / ANNOTATIONS).rename(folder / ANNOTATIONS)
    sync_folder(folder)
    shutil.rmtree(stage)


def _move_images(folder: Path, used: bytes) -> None:
    """Bring the images of the dataset back, and put the others that were kept away. `used`: of each line, whether its
    image is in the dataset."""
    spare = folder / SPARE
    for name, wanted in zip(read_files(folder / JOURNAL), used, strict=False):
        if name is None:
            continue
        home, away = folder / IMAGES / name, spare / name
        if wanted and not home.exists():
            away.rename(home)
        elif not wanted and home.exists():
            spare.mkdir(parents=True, exist_ok=True)
            home.rename(away)
    if spare.is_dir():
        sync_folder(spare)
        with contextlib.suppress(OSError):  # not empty
            spare.rmdir()


def _with_files(folder: Path, choices: Iterator[_Choice], run: RunSettings) -> Iterator[tuple[AnnotatedImage, Path]]:
    """The images of the dataset with their files, which are not yet in their places."""
    for choice in choices:
        if choice.drop is None:
            (image,) = _annotated(iter((choice,)), run)
            yield image, find_image(folder, choice.entry)


def _annotated(choices: Iterator[_Choice], run: RunSettings) -> Iterator[AnnotatedImage]:
    width, height = run.frame
    for choice in choices:
        if choice.drop is None:
            yield AnnotatedImage(
                file_name=str(choice.entry.file),
                width=width,
                height=height,
                instances=choice.instances,
                prompt=choice.entry.prompt,
                group=choice.entry.reference,
            )


def _remove_other_formats(folder: Path) -> None:
    """Remove everything of a dataset but its images and `annotations.json`."""
    names = [DATA_YAML, TRAIN_LIST, VAL_LIST, PREVIEW, f"{IMAGES}/{METADATA}"]
    for name in [*names, CARD] if is_ours(folder / CARD) else names:
        (folder / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        if (folder / name).exists():
            shutil.rmtree(folder / name)


def _remove_leftovers(folder: Path) -> None:
    """Remove what an unfinished write left in the folder itself."""
    shutil.rmtree(folder / STAGE, ignore_errors=True)
    for item in folder.iterdir():  # of an earlier dengine
        if item.name.startswith(".") and item.name.endswith((".tmp", ".spool", ".old")):
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink()
