"""One chunk of a run, painted in memory.

Knows: how the outcomes of a chunk become its lines and image files, as `generate` writes them. Knows nothing about
where they go (`commits`).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

from engines.cluster.commits import PaintedChunk
from engines.errors import RunError
from engines.painting.finisher import Outcome
from engines.painting.jobs import Job, JobSource, make_job
from engines.painting.run_settings import RunSettings
from engines.runs.journal import Entry, image_name
from engines.runs.outcomes import entry_of
from engines.runs.writer import Pixels, encode_image, writer_threads


class Paints(Protocol):
    """What of a painter is needed: `engines.painting.painter.Painter` has it."""

    @property
    def on_gpu(self) -> bool: ...
    def prompt_read(self, job: Job) -> str: ...
    def paint(self, jobs: Iterable[Job], stop: Callable[[], bool]) -> Iterator[Outcome]: ...


def chunk_range(run: RunSettings, number: int) -> range:
    """The indices of chunk `number`."""
    first = number * run.options.chunk
    last = first + run.options.chunk
    return range(first, last if run.options.jobs is None else min(last, run.options.jobs))


def paint_chunk(painter: Paints, source: JobSource, run: RunSettings, number: int) -> PaintedChunk:
    """Paint a chunk whole: the lines and files that one machine would write of it, byte for byte.

    Raises NumericalError, and DatasetError for a reference that cannot be read.
    """
    chunk = chunk_range(run, number)
    entries: dict[int, Entry] = {}
    files: dict[int, Future[bytes]] = {}

    def encoded(pixels: Pixels) -> bytes:
        return encode_image(pixels, run.options.image_format, run.options.jpeg_quality)

    with ThreadPoolExecutor(writer_threads(painter.on_gpu)) as pool:
        jobs = (make_job(source, run.options.seed, index) for index in chunk)
        for outcome in painter.paint(jobs, lambda: False):
            entry = entry_of(outcome, painter.prompt_read(outcome.job), run, source)
            entries[entry.index] = entry
            if entry.drop is None and outcome.pixels is not None:
                files[entry.index] = pool.submit(encoded, outcome.pixels)
        images = [(image_name(index, run.suffix), files[index].result()) for index in sorted(files)]
    if sorted(entries) != list(chunk):
        raise RunError(f"Chunk {number} came to {len(entries)} of {len(chunk)} images.")
    for index, (name, data) in zip(sorted(files), images, strict=True):
        entries[index] = replace(entries[index], file=name, sha256=hashlib.sha256(data).hexdigest())
    return PaintedChunk(
        number=number,
        jobs=len(chunk),
        kept=len(images),
        unkept=chunk.stop - 1 - max(files) if files else len(chunk),
        segment=b"".join(entries[index].to_line().encode() + b"\n" for index in chunk),
        images=images,
    )
