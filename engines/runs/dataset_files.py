"""The dataset files of a run, made from its journal: COCO always, other formats on request, and a preview.

Knows: which of the painted images are in the dataset (`labels.rules`, `near_duplicates`, a count), and how the files on
disk come to say so, all at once, with the rules that they were made by. Knows nothing about networks: nothing is
painted here, and it can be done again.

An image that the dataset does not use is moved to `.dengine/spare/`, from where a later `finalize`, or a larger count,
brings it back: so no image is without its label, and no label without its image.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

from engines.common.events import Report, silent
from engines.common.files import sync_folder
from engines.datasets.imagefolder_writer import CARD, METADATA, is_ours, write_card, writing_imagefolder
from engines.datasets.images import image_size
from engines.datasets.shard_writers import PARQUET, WEBDATASET, write_parquet, write_webdataset
from engines.datasets.writers import Add, AnnotatedImage, writing_coco
from engines.datasets.yolo_writer import DATA_YAML, LABELS, TRAIN_LIST, VAL_LIST, writing_yolo
from engines.errors import RunError
from engines.labels.rules import Rules
from engines.labels.scores import stored
from engines.painting.jobs import JobSource
from engines.painting.run_settings import RunSettings
from engines.runs.choices import ANNOTATIONS as ANNOTATIONS
from engines.runs.choices import Choice, Tally, annotated, choices_of
from engines.runs.dataset_rules import RULES, Applied, DatasetRules, write_rules
from engines.runs.decisions import Decisions, read_decisions
from engines.runs.journal import (
    IMAGES,
    JOURNAL,
    OWN,
    SPARE,
    find_image,
    read_files,
    remove_images_from,
)
from engines.runs.near_duplicates import Candidate, find_repeats, reference_source
from engines.runs.passes import Passes
from engines.runs.preview import PREVIEW_IMAGES, Sample, write_preview
from engines.runs.run_folder import PREVIEW, RUN
from engines.runs.summaries import DatasetSummary

_FOLDERS = (LABELS, PARQUET, WEBDATASET)  # of formats
STAGE = f"{OWN}/dataset.tmp"  # where new dataset files are made


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

    passes = Passes(report, 1 + len({PARQUET, WEBDATASET}.intersection(run.options.formats)), _lines(folder / JOURNAL))

    def choose() -> Iterator[Choice]:
        return passes.through(choices_of(folder / JOURNAL, run, rules, repeats, decisions))

    stage = folder / STAGE
    try:
        tally = _write_files(stage, folder, applied, choose, decisions.digest)
        write_rules(stage, asked)
        remove_images_from(folder, tally.next_index)
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


def _lines(path: Path) -> int:
    """How many lines a file has."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _expected(run: RunSettings, rules: Rules) -> dict[str, float]:
    """How frequent labels of each class are to be expected; of none, where that can't be said."""
    changed = run.options.balance or run.options.compose or rules.labels != "adapter"
    return {} if changed or run.frequencies is None else run.frequencies


def remove_dataset_files(folder: Path) -> None:
    """Remove what `write_dataset` wrote, images aside: a run that goes on would leave it out of date."""
    (folder / ANNOTATIONS).unlink(missing_ok=True)
    _remove_other_formats(folder)
    _remove_leftovers(folder)


def _repeats(folder: Path, applied: Applied, source: JobSource | None) -> Mapping[int, str]:
    """The images that the dataset would have, but for what they repeat."""
    run, rules = applied.run, applied.rules
    if not run.options.near_duplicates and not applied.training:
        return {}
    uncut = replace(run, options=replace(run.options, count=None))
    everything = choices_of(folder / JOURNAL, uncut, rules, {}, Decisions())
    candidates = (
        Candidate(choice.entry.index, find_image(folder, choice.entry)) for choice in everything if choice.drop is None
    )
    if run.options.near_duplicates:
        source = source or reference_source(run)
    return find_repeats(candidates, run, source if source and source.references else None, applied.training)


def _write_files(
    stage: Path, folder: Path, applied: Applied, choose: Callable[[], Iterator[Choice]], review: str | None
) -> Tally:
    """Make all dataset files in the new folder `stage`, and count: in one pass, but for the formats that hold images.

    Raises RunError unless every image of the dataset is there, the first of the run's size.
    """
    run, tally, samples = applied.run, Tally(), list[Sample]()
    for part in (IMAGES, OWN):
        (stage / part).mkdir(parents=True)
    with ExitStack() as stack:
        writers = [stack.enter_context(one) for one in _writing(stage, applied, review)]
        for choice in choose():
            tally.add(choice)
            if choice.drop is not None:
                continue
            file = find_image(folder, choice.entry)
            if tally.images == 1:
                _check_size(file, folder, run)
            if len(samples) < PREVIEW_IMAGES:
                samples.append(Sample(file, choice.instances.single))
            image = annotated(choice, run)
            for add in writers:
                add(image)
    if samples:
        write_preview(stage / PREVIEW, samples, run.class_names)
    if "imagefolder" not in run.options.formats:
        write_card(stage)
    if PARQUET in run.options.formats:
        write_parquet(stage, _with_files(folder, choose(), run), run.class_names)
    if WEBDATASET in run.options.formats:
        write_webdataset(stage, _with_files(folder, choose(), run), run.class_names)
    return tally


def _writing(stage: Path, applied: Applied, review: str | None) -> Iterator[AbstractContextManager[Add]]:
    """The writers of all files that hold labels alone."""
    run = applied.run
    yield writing_annotations(stage / ANNOTATIONS, applied, review)
    if "yolo" in run.options.formats:
        yield writing_yolo(stage, run.class_names, run.options.val_fraction)
    if "imagefolder" in run.options.formats:
        yield writing_imagefolder(stage, run.class_names)


def writing_annotations(path: Path, applied: Applied, review: str | None) -> AbstractContextManager[Add]:
    """The COCO file of a run. `review`: SHA-256 of the decisions that it obeys; None where there are none."""
    info = {
        "description": "painted and labelled by dengine",
        "bundle_sha256": applied.run.bundle_hash,
        "seed": applied.run.options.seed,
        "score": stored(applied.rules.thresholds),
    } | ({} if review is None else {"review": review})
    return writing_coco(path, applied.run.class_names, info)


def _check_size(file: Path, folder: Path, run: RunSettings) -> None:
    """Raise RunError for an image that has not the run's size."""
    if (size := image_size(file)) != run.frame:
        sizes = ["x".join(map(str, sides)) for sides in (size, run.frame)]
        raise RunError(f"{file} has {sizes[0]} pixels, but {folder / RUN} says {sizes[1]}: put the right one back.")


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


def _with_files(folder: Path, choices: Iterator[Choice], run: RunSettings) -> Iterator[tuple[AnnotatedImage, Path]]:
    """The images of the dataset with their files, which are not yet in their places."""
    for choice in choices:
        if choice.drop is None:
            yield annotated(choice, run), find_image(folder, choice.entry)


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
