"""One `generate`: open everything, paint chunk by chunk until the target is reached, write the dataset.

Knows: when a run goes on, stops and ends, and the order in which images, journal lines and dataset files come into
being. Knows nothing about networks (`painter`), how choices are made (`prepare`), bytes of the journal (`journal`) or
dataset formats (`finalize`).
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.common.events import Event, EventKind, ImageNews, Report, note, silent
from engines.common.files import sync_folder
from engines.common.malloc import keep_few_heaps
from engines.common.verbs import verb
from engines.datasets.dataset import Dataset
from engines.diffusion.base_notes import bad_base, other_shapes
from engines.diffusion.capture import Record, capture
from engines.errors import RunError
from engines.painting.finisher import Outcome
from engines.painting.jobs import Job, JobSource, make_job
from engines.painting.needs import generate_needs
from engines.painting.networks import cores_for_graphs
from engines.painting.painter import Painter
from engines.painting.references import job_source, open_references, settled_labels
from engines.painting.resolve import FormerEngine, resolve, wants_compiled
from engines.painting.run_settings import RunSettings
from engines.painting.settings import GenerateSettings
from engines.painting.unpainted import Unpainted, open_painter
from engines.runs.chunks import OpenChunks
from engines.runs.dataset_files import remove_dataset_files, write_dataset
from engines.runs.dataset_rules import DatasetRules, kept_rules, read_rules
from engines.runs.journal import (
    IMAGES,
    JOURNAL,
    PARTIAL,
    Journal,
    Progress,
    image_name,
    read_progress,
    remove_images_from,
)
from engines.runs.likeness import hold_against
from engines.runs.near_duplicates import REPEATS
from engines.runs.outcomes import entry_of
from engines.runs.pace import STAGE, Pace, Teller
from engines.runs.planned import planned
from engines.runs.run_folder import (
    bring_up_to_date,
    check_folder,
    check_format,
    check_same,
    locked,
    read_run,
    run_errors,
    start_run,
)
from engines.runs.state import RunState, chunks_of, state_of
from engines.runs.summaries import DatasetSummary, GenerateSummary
from engines.runs.writer import ImageWriter, Written, writer_threads

if TYPE_CHECKING:
    from engines.backends.base import Backend
    from engines.bundle.bundle import Bundle


@verb
def generate(
    settings: GenerateSettings, *, report: Report | None = None, stop: Callable[[], bool] = lambda: False
) -> GenerateSummary:
    """Paint a labelled dataset into `settings.out`, or go on with the run that is there.

    `report` is told of everything that happens. Once `stop` returns True no new image is begun: those in work are
    finished, the dataset is written from what is complete, and the summary says `interrupted`.
    Raises UsageError, DatasetError, BundleError, BackendError, RunError, NumericalError; whatever ends it, the same
    settings go on from the last whole chunk.

    >>> summary = generate(GenerateSettings(out="run", jobs=2, steps=2, keep_empty=True), report=print)
    opening the bundle
    ...
    >>> summary.dataset.images
    2
    """
    return generate_on(settings, lambda backend: backend, report=report, stop=stop)


def generate_on(
    settings: GenerateSettings,
    wrap: Callable[["Backend"], "Backend"],
    *,
    report: Report | None = None,
    stop: Callable[[], bool] = lambda: False,
    record: Callable[["Backend"], Record] = lambda backend: capture,
) -> GenerateSummary:
    """`generate`, on what `wrap` makes of the backend as it was opened, and with what `record` has for it: how
    `engines.measure` times its calls."""
    from engines.backends.registry import open_backend
    from engines.bundle.bundle import default_bundle, open_bundle

    started, report = time.monotonic(), report or silent
    keep_few_heaps()
    check_folder(settings.out)
    report(note("opening the bundle"))
    bundle = open_bundle(settings.bundle or default_bundle())
    if remark := bad_base(bundle.folder) or (None if settings.reference else other_shapes(bundle.folder)):
        report(note(remark))
    references = _read_references(settings, bundle, report)
    with locked(settings.out), run_errors(settings.out):
        stored = read_run(settings.out)
        check_format(settings.out, stored)
        kept = read_rules(settings.out)
        if stored is not None:
            wanted = resolve(settings, bundle, FormerEngine.of(settings, stored), references, stored)
            check_same(settings.out, wanted, stored)
            progress = read_progress(settings.out / JOURNAL, chunks_of(wanted), wanted)
            if kept != DatasetRules():  # what can't be had is said before painting; a matched score is found after it
                kept_rules(settings.out, wanted, replace(kept, score=None if kept.score == "matched" else kept.score))
            if (state := state_of(wanted, progress)).over:
                found = _complete(settings.out, wanted, stored, kept, progress, state, report, started)
                return _compared(found, settings.out, wanted, references)
        report(note("opening the backend"))
        engine = stored.options.engine if stored and settings.engine == "auto" else settings.engine
        precision = stored.options.precision if stored and settings.precision == "auto" else settings.precision
        threads = stored.options.threads if stored and settings.threads is None else settings.threads
        backend = open_backend(
            bundle, engine, precision=precision, threads=threads, device=settings.device,
            compiled=wants_compiled(settings, stored),
            needs=generate_needs(settings, bundle, stored), told=lambda line: report(note(line)),
        )  # fmt: skip
        backend = wrap(backend)
        wanted = resolve(settings, bundle, backend, references, stored)
        source = job_source(wanted.options, bundle, references)
        found = run(
            settings.out, wanted, stored, bundle, backend, source,
            report=report, stop=stop, started=started, record=record(backend),
        )  # fmt: skip
        return _compared(found, settings.out, wanted, references)


_PROMPTS_READ = 512  # jobs looked at before painting: the largest chunk that dengine takes by itself


def run(
    folder: Path,
    wanted: RunSettings,
    stored: RunSettings | None,
    bundle: "Bundle",
    backend: "Backend",
    source: JobSource,
    *,
    report: Report,
    stop: Callable[[], bool],
    started: float,
    record: Record = capture,
) -> GenerateSummary:
    """Go on with (or begin) a run whose folder is locked, and write its dataset. See `generate`."""
    progress = read_progress(folder / JOURNAL, chunks_of(wanted), wanted)
    state = state_of(wanted, progress)
    report(planned(folder, wanted, state))
    bring_up_to_date(folder)
    start_run(folder, wanted, stored)
    remove_dataset_files(folder)
    with Journal(folder, progress.size) as journal, cores_for_graphs(backend):
        remove_images_from(folder, progress.next_index)  # after the files and lines that name them
        teller = Teller(state, report)
        painter = open_painter(
            bundle, backend, wanted.options, source, stage=lambda text: report(note(text)),
            tick=teller.tick, handed=teller.handed, record=record, floored=wanted.floored,
        )  # fmt: skip
        if source.composer is not None and source.composer.remark is not None:
            report(note(source.composer.remark))
        _say_what_is_cut(painter, source, wanted, progress.chunks)
        report(_started(backend.description, state, progress))
        teller.pace = _pace(painter, source, wanted, state, progress.chunks)
        chunks = itertools.islice(chunks_of(wanted), progress.chunks, None)
        _paint_chunks(folder, chunks, wanted, source, painter, journal, state, teller, stop)
        painting = teller.pace.seconds
        if source.composer is not None and source.composer.cut_remark is not None:
            report(note(source.composer.cut_remark))
    dataset = finish_run(folder, wanted, read_rules(folder), state, report, source)
    return GenerateSummary(
        dataset=dataset,
        painted=state.painted,
        seconds=time.monotonic() - started,
        images_per_second=state.painted / painting if state.painted else 0.0,
        first_image_seconds=None if state.first_image is None else state.first_image - started,
        ticks=state.ticks,
        done=state.done,
        target=state.target,
        interrupted=state.cut_short or state.done < state.target,
        backend=backend.description,
    )


def _read_references(settings: GenerateSettings, bundle: "Bundle", report: Report) -> Dataset | None:
    """The references, if there are to be any, and what is to be said of them."""
    if settings.reference is None:
        return None
    report(note("reading the references"))
    references = open_references(settings)
    references.tell(report)
    settled_labels(settings, bundle, references)  # what can't be had is said before a backend is opened
    return references


def _compared(found: GenerateSummary, folder: Path, run: RunSettings, references: Dataset | None) -> GenerateSummary:
    """The summary with how its images compare with photographs; of one that was stopped early, as it was."""
    if found.interrupted:
        return found
    records = references.records if references else ()
    likeness, memory = hold_against(folder, run, records)
    return replace(found, likeness=likeness, memory=memory)


def _complete(
    folder: Path,
    wanted: RunSettings,
    stored: RunSettings,
    kept: DatasetRules,
    progress: Progress,
    state: RunState,
    report: Report,
    started: float,
) -> GenerateSummary:
    """What `run` does of a run that has all it was to have: no backend is needed."""
    report(note("this run is complete: nothing is left to paint"))
    report(planned(folder, wanted, state))
    bring_up_to_date(folder)
    start_run(folder, wanted, stored)
    with Journal(folder, progress.size):
        remove_images_from(folder, progress.next_index)
    dataset = finish_run(folder, wanted, kept, state, report)
    return GenerateSummary(
        dataset=dataset,
        painted=0,
        seconds=time.monotonic() - started,
        images_per_second=0.0,
        first_image_seconds=None,
        ticks=0,
        done=state.done,
        target=state.target,
        interrupted=False,
        backend=wanted.backend,
    )


def finish_run(
    folder: Path,
    wanted: RunSettings,
    kept: DatasetRules,
    state: RunState,
    report: Report,
    source: JobSource | None = None,
) -> DatasetSummary:
    """Write the dataset by the rules of the last `finalize`. Raises RunError for a run that gave up."""
    if kept != DatasetRules():
        report(
            note(f"the dataset is made as last finalized; `finalize(FinalizeSettings({str(folder)!r}))` undoes that")
        )
    report(note("writing the dataset files"))
    dataset = write_dataset(folder, kept_rules(folder, wanted, kept), kept, source, report)
    if state.gave_up:
        raise _given_up(folder, state, dataset)
    return dataset


def _given_up(folder: Path, state: RunState, dataset: DatasetSummary) -> RunError:
    """What is said of a run that ends since nothing it paints is kept."""
    reason = max(set(dataset.dropped) - set(REPEATS), key=lambda reason: dataset.dropped[reason])
    return RunError(
        f"None of the last {state.unkept} images was kept, most often because: {reason}. {state.kept} of "
        f"{state.target} are in {folder}. In a new folder, lower `score` or `min_quality`, or keep images without "
        "boxes with `keep_empty=True`; or use a bundle whose adapter knows such images."
    )


def _paint_chunks(
    folder: Path,
    chunks: Iterator[range],
    wanted: RunSettings,
    source: JobSource,
    painter: Painter | Unpainted,
    journal: Journal,
    state: RunState,
    teller: Teller,
    stop: Callable[[], bool],
) -> None:
    """Paint chunk by chunk until the run is over, and see them on the disk. Where one ends early, images that are in
    place stay, with their lines."""
    work = OpenChunks(state)

    def begun() -> Iterator[Iterator[Job]]:
        for chunk in chunks:
            if state.over or stop():
                return
            journal.begin(chunk)
            work.begin(chunk)
            yield (make_job(source, wanted.options.seed, index) for index in chunk)

    quality = wanted.options.jpeg_quality
    threads = writer_threads(painter.on_gpu)
    try:
        with ImageWriter(
            folder / IMAGES,
            image_format=wanted.options.image_format,
            jpeg_quality=quality,
            threads=threads,
            partial=folder / PARTIAL,
        ) as writer:
            for outcome in painter.paint_chunks(begun(), stop, work.another_is_sure):
                read = painter.prompt_read(outcome.job)
                work.took(outcome.job.index, _take(outcome, read, wanted, source, writer, journal, state, teller))
                _note_written(writer.finished(), journal, state)
            _note_written(writer.drain(), journal, state)
    except BaseException:
        with contextlib.suppress(OSError):
            _settle(folder, journal)
        raise
    journal.flush()
    if work.unfinished:
        state.cut_short = True
        _settle(folder, journal)


def _settle(folder: Path, journal: Journal) -> None:
    """End a chunk of which jobs are missing: images without a line go first, then come the lines of those that stay."""
    journal.flush()
    remove_images_from(folder, journal.next_index, but=journal.waiting)
    sync_folder(folder / IMAGES)
    journal.flush(gaps=True)


def _take(
    outcome: Outcome,
    prompt: str,
    wanted: RunSettings,
    source: JobSource,
    writer: ImageWriter,
    journal: Journal,
    state: RunState,
    teller: Teller,
) -> bool:
    """Decide whether an image is kept, and say so; have it written, or its line, with what was read of its prompt."""
    job, entry = outcome.job, entry_of(outcome, prompt, wanted, source)
    dropped = entry.drop
    if dropped is None and outcome.pixels is not None:
        name = image_name(job.index, wanted.suffix)
        state.entries[name] = replace(entry, file=name)
        writer.submit(name, outcome.pixels)
    else:
        journal.add(entry)
    state.jobs += 1
    state.painted += 1
    state.kept += dropped is None
    labels = len(entry.labels(state.rules).single)
    news = ImageNews(job.index, labels, None if dropped is None else dropped.text)
    teller.image(news)
    return dropped is None


def _pace(painter: Painter | Unpainted, source: JobSource, wanted: RunSettings, state: RunState, chunk: int) -> Pace:
    """The pace of a start that begins with chunk `chunk`, whose jobs stand for those of others."""
    first = itertools.islice(next(itertools.islice(chunks_of(wanted), chunk, None), range(0)), _PROMPTS_READ)
    jobs = [make_job(source, wanted.options.seed, index) for index in first]
    ticks = painter.ticks_of(jobs) / max(1, len(jobs))
    return Pace(state, ticks_of_job=ticks, rows=wanted.options.rows, chunk=wanted.options.chunk)


def _note_written(written: Iterator[Written], journal: Journal, state: RunState) -> None:
    for image in written:
        journal.add(replace(state.entries.pop(image.name), sha256=image.sha256))
        if state.first_image is None:
            state.first_image = time.monotonic()


def _say_what_is_cut(painter: Painter | Unpainted, source: JobSource, wanted: RunSettings, chunk: int) -> None:
    """Have the prompts of the first jobs of a chunk read, so that one that is too long is said before painting."""
    for index in itertools.islice(next(itertools.islice(chunks_of(wanted), chunk, None), range(0)), _PROMPTS_READ):
        painter.prompt_read(make_job(source, wanted.options.seed, index))


def _started(backend: str, state: RunState, progress: Progress) -> Event:
    figures = {"boxes": progress.labels, "dropped": progress.jobs - progress.kept} if progress.jobs else {}
    return Event(EventKind.STARTED, STAGE, backend, state.done, state.target, figures=figures)
