"""One `generate`: open everything, paint chunk by chunk until the target is reached, write the dataset.

Knows: when a run goes on, stops and ends, and the order in which images, journal lines and dataset files come into
being. Knows nothing about networks (`painter`), how choices are made (`prepare`), bytes of the journal (`journal`) or
dataset formats (`finalize`).
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.datasets.dataset import open_dataset
from engines.errors import RunError
from engines.generation.events import Event, Opened, Painted, Report, RunSummary, Stage, Tick
from engines.generation.filters import drop_reason
from engines.generation.finalize import remove_dataset_files, write_dataset
from engines.generation.jobs import Plan, chunk_ranges, make_job
from engines.generation.journal import (
    IMAGES,
    JOURNAL,
    Entry,
    Journal,
    boxes_above,
    image_name,
    read_progress,
    remove_images_from,
)
from engines.generation.painter import Outcome, Painter
from engines.generation.prepare import make_plan, resolve
from engines.generation.run_folder import check_folder, locked, read_run, run_errors, start_run
from engines.generation.settings import GenerateSettings, RunSettings
from engines.generation.writer import ImageWriter, Written

if TYPE_CHECKING:
    from engines.backends.base import Backend
    from engines.bundle import Bundle


def generate(
    settings: GenerateSettings,
    *,
    report: Report = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> RunSummary:
    """Paint a labelled dataset into `settings.out`, or go on with the run that is there.

    `report` is told of everything that happens. Once `stop` returns True no new image is begun: those in work are
    finished, the dataset is written from what is complete, and the summary says `interrupted`.
    Raises UsageError, DatasetError, BundleError, BackendError, RunError, NumericalError; whatever ends it, the same
    command goes on from the last whole chunk.
    """
    from engines.backends import open_backend
    from engines.bundle import default_bundle, open_bundle

    started = time.monotonic()
    check_folder(settings.out)
    report(Stage("opening the bundle"))
    bundle = open_bundle(settings.bundle or default_bundle())
    references = None
    if settings.reference is not None:
        report(Stage("reading the references"))
        references = open_dataset(
            settings.reference, split=settings.reference_split, skip_bad=settings.skip_bad, require_boxes=False
        )
    with locked(settings.out), run_errors(settings.out):
        stored = read_run(settings.out)
        report(Stage("opening the backend"))
        engine = stored.engine if stored and settings.engine == "auto" else settings.engine
        precision = stored.precision if stored and settings.precision == "auto" else settings.precision
        threads = stored.threads if stored and settings.threads is None else settings.threads
        backend = open_backend(bundle, engine, precision=precision, threads=threads, device=settings.device)
        wanted = resolve(settings, bundle, backend, references, stored)
        plan = make_plan(wanted, bundle, references)
        return run(settings.out, wanted, stored, bundle, backend, plan, report=report, stop=stop, started=started)


@dataclass
class _State:
    """How far this start of the run is."""

    target: int
    counts_kept: bool
    jobs: int  # journal lines of whole chunks, and images of the chunk in work
    kept: int
    painted: int = 0  # by this start
    cut_short: bool = False  # stopped inside a chunk
    first_image: float | None = None  # monotonic seconds
    entries: dict[str, Entry] = field(default_factory=dict)  # image name -> entry, while the image is being written

    @property
    def done(self) -> int:
        return self.kept if self.counts_kept else self.jobs


def run(
    folder: Path,
    wanted: RunSettings,
    stored: RunSettings | None,
    bundle: "Bundle",
    backend: "Backend",
    plan: Plan,
    *,
    report: Report,
    stop: Callable[[], bool],
    started: float,
) -> RunSummary:
    """Go on with (or begin) a run whose folder is locked, and write its dataset. See `generate`."""
    start_run(folder, wanted, stored)
    progress = read_progress(folder / JOURNAL, _chunks(wanted))
    state = _State(_target(wanted), wanted.count is not None, progress.jobs, progress.kept)
    last_kept, painting = progress.last_kept, 0.0
    painting_on = not _is_over(state, last_kept)
    if painting_on:
        remove_dataset_files(folder)
    with Journal(folder, progress.size) as journal:
        remove_images_from(folder, progress.next_index)  # after the files and lines that name them
        if painting_on:
            painter = Painter(
                bundle, backend, wanted, plan,
                stage=lambda text: report(Stage(text)), tick=_ticker(report),
            )  # fmt: skip
            begun = time.monotonic()
            report(Opened(backend.description, state.target, state.counts_kept, state.done))
            for chunk in itertools.islice(_chunks(wanted), progress.chunks, None):
                if _is_over(state, last_kept) or state.cut_short or stop():
                    break
                last_kept = _paint_chunk(folder, chunk, wanted, plan, painter, journal, state, report, stop)
            painting = time.monotonic() - begun
        else:
            report(Stage("this run is complete: nothing is left to paint"))
            report(Opened(backend.description, state.target, state.counts_kept, state.done))
    report(Stage("writing the dataset files"))
    dataset = write_dataset(folder, wanted, wanted.score, wanted.formats, wanted.keep_empty)
    if state.counts_kept and last_kept == 0 and state.kept < state.target:
        raise RunError(
            f"None of the {wanted.chunk} images of the last chunk was kept: none has a box that scores {wanted.score}. "
            f"{state.kept} of {state.target} are in {folder}. In a new folder, lower --score, or keep images without "
            "boxes with --keep-empty; or use a bundle whose adapter knows such images."
        )
    return RunSummary(
        dataset=dataset,
        painted=state.painted,
        seconds=time.monotonic() - started,
        images_per_second=state.painted / painting if painting > 0 else 0.0,
        first_image_seconds=None if state.first_image is None else state.first_image - started,
        interrupted=state.cut_short or state.done < state.target,
        backend=backend.description,
    )


def _paint_chunk(
    folder: Path,
    chunk: range,
    wanted: RunSettings,
    plan: Plan,
    painter: Painter,
    journal: Journal,
    state: _State,
    report: Report,
    stop: Callable[[], bool],
) -> int | None:
    """Paint one chunk and see it on the disk; returns how many of its images were kept, None where it was cut short.

    Where it ends early, lines and images up to the first missing one stay, and later images are removed.
    """
    journal.begin(chunk)
    kept_before = state.kept
    jobs = (make_job(plan, wanted.seed, index) for index in chunk)
    quality = wanted.jpeg_quality
    try:
        with ImageWriter(folder / IMAGES, image_format=wanted.image_format, jpeg_quality=quality) as writer:
            for outcome in painter.paint(jobs, stop):
                _take(outcome, wanted, plan, writer, journal, state, report)
                _note_written(writer.finished(), journal, state)
            _note_written(writer.drain(), journal, state)
    except BaseException:
        with contextlib.suppress(OSError):
            journal.flush()
            remove_images_from(folder, journal.next_index)
        raise
    journal.flush()
    if journal.next_index < chunk.stop:
        state.cut_short = True
        remove_images_from(folder, journal.next_index)
        return None
    return state.kept - kept_before


def _take(
    outcome: Outcome,
    wanted: RunSettings,
    plan: Plan,
    writer: ImageWriter,
    journal: Journal,
    state: _State,
    report: Report,
) -> None:
    """Decide whether an image is kept; have it written, or its line."""
    job = outcome.job
    reason = outcome.problem or drop_reason(outcome.boxes, wanted.score, wanted.keep_empty)
    entry = Entry(
        index=job.index,
        prompt=job.prompt,
        reference=None if job.reference is None else plan.references[job.reference].name,
        strength=job.strength,
        reason=reason,
        file=None,
        sha256=None,
        boxes=outcome.boxes,
    )
    if reason is None and outcome.pixels is not None:
        name = image_name(job.index, wanted.suffix)
        state.entries[name] = replace(entry, file=name)
        writer.submit(name, outcome.pixels)
    else:
        journal.add(entry)
    state.jobs += 1
    state.painted += 1
    state.kept += reason is None
    boxes = len(boxes_above(outcome.boxes, wanted.score))
    report(Painted(job.index, state.done, state.target, boxes, reason))


def _note_written(written: Iterator[Written], journal: Journal, state: _State) -> None:
    for image in written:
        journal.add(replace(state.entries.pop(image.name), sha256=image.sha256))
        if state.first_image is None:
            state.first_image = time.monotonic()


def _chunks(settings: RunSettings) -> Iterator[range]:
    return chunk_ranges(settings.chunk, settings.jobs, settings.shard)


def _target(settings: RunSettings) -> int:
    """Kept images, or jobs, at which the run is over."""
    return settings.count if settings.count is not None else sum(map(len, _chunks(settings)))


def _is_over(state: _State, last_kept: int | None) -> bool:
    """Whether the target is reached, or, for a count, a whole chunk without a kept image says that it never will."""
    return state.done >= state.target or (state.counts_kept and last_kept == 0)


def _ticker(report: Callable[[Event], None]) -> Callable[[], None]:
    calls = itertools.count(1)
    return lambda: report(Tick(next(calls)))
