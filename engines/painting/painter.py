"""From jobs to labelled images: the networks of a bundle, in the order that `generate` needs them.

Knows: text_encoder once for each prompt, vae_encoder on crops of references, and the slot sampler; finished latents go
to the `finisher`. On a GPU references are read by a thread and prompts encoded a batch ahead. Knows nothing about
folders, journals or chunks: what it gives is a function of the jobs it was handed, in their order.

B batch, R rows, Z/h/w latents, H/W pixels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from engines.common.streams import Lane, fetch
from engines.composing.given import Given
from engines.diffusion.capture import Record, capture
from engines.diffusion.latents import to_pixels
from engines.diffusion.sampler import SlotSampler, Task, always_guided
from engines.diffusion.schedule import Schedules, step_rows
from engines.diffusion.tick import count_ticks
from engines.errors import DatasetError
from engines.labels.boxes import Instances
from engines.painting.crops import read_job, without_folder
from engines.painting.finisher import Finished, Finisher, Outcome
from engines.painting.jobs import Job, JobSource
from engines.painting.networks import LARGEST_BATCH, Preparing, TextEncoder, check_finite, fill, prepare
from engines.painting.settings import PaintOptions

if TYPE_CHECKING:
    from engines.backends.base import Backend, Call
    from engines.bundle.bundle import Bundle

_SORTED = 512  # jobs put in order together: the largest chunk that dengine takes by itself

Item = TypeVar("Item")
Picture = npt.NDArray[np.uint8]  # [H, W, 3]
Reading = tuple[Job, Future[tuple[Picture, torch.Tensor, Given | None]]]


@dataclass(frozen=True, eq=False)
class _Begun:
    """A job that the sampler is at, or comes to next."""

    job: Job
    latents: torch.Tensor | None = None  # of its reference, [Z, h, w]
    given: Given | None = None  # its labels
    reference: Picture | None = None  # where its detail is kept


class Painter:
    """All networks of a run, prepared at its sizes."""

    def __init__(
        self,
        bundle: "Bundle",
        backend: "Backend",
        options: PaintOptions,
        source: JobSource,
        *,
        stage: Callable[[str], None],
        tick: Callable[[], None],
        handed: Callable[[int], None] = lambda images: None,
        record: Record = capture,
        floored: bool = False,
    ) -> None:
        """Prepare every graph for `options`, as `resolve` gave them.

        `stage` hears what is prepared, and of long prompts; `tick` of every network call of the sampler, `handed` of
        images given to the finisher. `record` makes recordings on a GPU; `floored`: see `Schedules`.
        """
        self._options, self._source, self._told_handed = options, source, handed
        w, h = (side // bundle.vae_stride for side in options.size)
        batch = self._batch = min(options.slots, LARGEST_BATCH)

        def encoder() -> "Call | None":
            sizes = {"B": batch, "h": h, "w": w}
            return prepare(bundle, backend, "vae_encoder", sizes) if source.references else None

        def unet() -> "Call":
            paired = options.rows % 2 == 0 and always_guided(options.guidance, options.guidance_interval)
            varies = "encoder_hidden_states" if paired else None
            return prepare(
                bundle, backend, "unet", {"B": options.rows, "h": h, "w": w}, ["model_output"], varies, "sampler"
            )

        with Preparing(backend, stage) as preparing:  # what takes longest first
            looks, over = options.tta, options.repaint == "pasted"
            finish = partial(Finisher, bundle, backend, batch, options.size, looks, record, over=over)
            finisher = preparing("label pass, adapter, vae_decoder", finish)
            sampler_call = preparing("unet", unet)
            encoder_call = preparing("vae_encoder", encoder)
            text = preparing("text_encoder", lambda: TextEncoder(bundle, backend, stage))
            self._finisher, self._encoder, self._text = finisher(), encoder_call(), text()
        self._ahead = Lane(backend.device)
        # On a GPU a batch more than was asked for is being read, and its prompts encoded, meanwhile: it would wait for
        # the host. On a CPU the cores are at work anyway, and it gains nothing (`benchmarks/results/tried.md`).
        self._advance = batch if self.on_gpu else 0
        config = bundle.scheduler_config
        self._schedules = Schedules(config, options.sampler, options.steps, options.eta, floored=floored)
        self._sampler = SlotSampler(
            sampler_call(),
            self._schedules.whole,
            slots=options.slots,
            rows=options.rows,
            guidance_scale=options.guidance,
            guidance_interval=options.guidance_interval or (0.0, 1.0),
            told=tick,
            record=record,
        )
        self._text.read(options.negative_prompt, "negative prompt")
        self._negative = self._text(options.negative_prompt)

    @property
    def on_gpu(self) -> bool:
        """Whether the networks leave this machine's cores to others."""
        return self._ahead.device.type == "cuda"

    def prompt_read(self, job: Job) -> str:
        """What of a job's prompt the network reads."""
        return self._text.read(job.prompt)

    def ticks_of(self, jobs: Iterable[Job]) -> int:
        """Network calls of the sampler that a chunk of jobs takes."""
        interval = self._options.guidance_interval or (0.0, 1.0)

        def rows(job: Job) -> list[int]:
            schedule, first = self._schedules.of(job.strength)
            return [int(number) for number in step_rows(schedule, self._options.guidance, interval)[first:]]

        ordered = longest_first(jobs, self._steps)
        return count_ticks(map(rows, ordered), self._options.slots, self._options.rows)

    def paint(self, jobs: Iterable[Job], stop: Callable[[], bool]) -> Iterator[Outcome]:
        """The outcome of every job, as they finish; once `stop` says so, only of those already begun.

        Raises NumericalError, DatasetError.
        """
        return self.paint_chunks([jobs], stop)

    def paint_chunks(
        self,
        chunks: Iterable[Iterable[Job]],
        stop: Callable[[], bool],
        another_is_sure: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome]:
        """The same of chunks of jobs, chunk by chunk. Each begins in empty slots: nothing depends on the one before.

        The next one is taken when the last job of a chunk is painted: its ticks go on while the last images of the one
        before are decoded and labelled where `another_is_sure`, else behind the last of their outcomes.
        """
        with self._finisher, ExitStack() as stack:
            reader = ThreadPoolExecutor(1, "references")
            stack.callback(reader.shutdown, cancel_futures=True)
            for jobs in chunks:
                yield from self._chunk(jobs, stop, reader)
                stopped = stop()
                if stopped or not another_is_sure():
                    yield from self._finisher.drain()
                if stopped:
                    return
            yield from self._finisher.drain()

    def _chunk(self, jobs: Iterable[Job], stop: Callable[[], bool], reader: ThreadPoolExecutor) -> Iterator[Outcome]:
        """Paint a chunk and hand all of it over; the outcomes that are there by then, of chunks before it too.

        Jobs with the most steps are begun first: the last ones are then short, and the slots empty nearly together.
        In runs of format 2, whose steps follow the strength, 99.6% of the rows are used so (chunks of 32 jobs in 4
        slots, strengths 0.4 to 0.8), and 95.1% in the order of their numbers.
        """
        bad: list[Outcome] = []
        started: dict[int, _Begun] = {}
        batch: list[Finished] = []
        tasks = self._tasks(longest_first(jobs, self._steps), stop, started, bad, reader)
        for task, latents in self._sampler.run(tasks):
            begun = started.pop(task.index)
            batch.append(Finished(begun.job, task, latents, begun.given, begun.reference))
            if len(batch) == self._finisher.batch:
                yield from self._finisher.submit(batch)
                self._told_handed(len(batch))
                batch = []
            yield from self._finisher.ready()
            while bad:
                yield bad.pop()
        if batch:
            yield from self._finisher.submit(batch)
            self._told_handed(len(batch))
        yield from bad

    def _steps(self, job: Job) -> int:
        """How many evaluations of the network a job takes."""
        return self._schedules.steps(job.strength)

    def _tasks(
        self,
        jobs: Iterator[Job],
        stop: Callable[[], bool],
        started: dict[int, _Begun],
        bad: list[Outcome],
        reader: ThreadPoolExecutor,
    ) -> Iterator[Task]:
        """Jobs to the sampler's tasks, as it asks for them; references are encoded a batch ahead."""
        source = map(_Begun, jobs) if self._encoder is None else self._encoded(jobs, bad, reader)
        prompted = in_advance(((one, self._text.begin(one.job.prompt)) for one in source), self._advance)
        while not stop() and (one := next(prompted, None)) is not None:
            begun, text = one
            started[begun.job.index] = begun
            schedule, first = self._schedules.of(begun.job.strength)
            yield Task(begun.job.index, begun.job.seed, begun.latents, first, text(), self._negative, schedule)

    def _encoded(self, jobs: Iterator[Job], bad: list[Outcome], reader: ThreadPoolExecutor) -> Iterator[_Begun]:
        """Every job with the latents of its reference, encoded a batch at a time; those that cannot be read go to
        `bad`."""
        source = self._reading(jobs, reader)
        while True:
            good: list[Job] = []
            crops: list[torch.Tensor] = []
            labels: list[Given | None] = []
            pictures: list[Picture | None] = []
            while len(good) < self._batch and (one := next(source, None)) is not None:
                job, crop = one
                try:
                    picture, pixels, given = crop.result()
                    crops.append(pixels)
                    pictures.append(picture if self._options.keep_detail else None)
                    labels.append(given)
                    good.append(job)
                except DatasetError as cause:
                    if not self._options.skip_bad:
                        raise DatasetError(f"{cause} Or leave broken references out with `skip_bad=True`.") from cause
                    bad.append(Outcome(job, None, Instances.none(), without_folder(str(cause), self._source, job)))
            if not good:
                return
            for begun in zip(good, self._encode(good, crops), labels, pictures, strict=True):
                yield _Begun(*begun)

    def _encode(self, jobs: list[Job], crops: list[torch.Tensor]) -> list[torch.Tensor]:
        """Latents [Z, h, w] of n <= B crops, on the CPU. They are not kept: every job has a crop of its own."""
        assert self._encoder is not None
        with self._ahead.after():
            fill(self._encoder.inputs["pixels"], crops)
            self._encoder.run()
            (latents,) = fetch(self._encoder.outputs["latents"][: len(jobs)].float().clone())
        check_finite("vae_encoder", latents, [f"the reference of image {job.index}" for job in jobs])
        return list(latents)

    def _reading(self, jobs: Iterator[Job], reader: ThreadPoolExecutor) -> Iterator[Reading]:
        """Every job with its crop, uint8 [H, W, 3] and as the encoder reads it [3, H, W], to come."""
        return in_advance(((job, reader.submit(self._read, job)) for job in jobs), self._advance)

    def _read(self, job: Job) -> tuple[Picture, torch.Tensor, Given | None]:
        picture, given = read_job(self._source, job)
        return picture, to_pixels(picture), given


def in_advance(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The items, each when `count` more have been asked for."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def longest_first(jobs: Iterable[Job], steps: Callable[[Job], int]) -> Iterator[Job]:
    """The jobs with those of the most steps in front, equal ones in their own order; 512 at a time, so that memory does
    not grow with the size of a chunk."""
    source = iter(jobs)
    while some := list(islice(source, _SORTED)):
        yield from sorted(some, key=lambda job: -steps(job))
