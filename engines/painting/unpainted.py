"""Jobs of strength 0: nothing is painted, and the image is the crop of its reference as it is, or as it was composed.

Knows: which networks are left to run: the label pass on encoded crops where labels are the adapter's, else none at all.
Knows nothing about folders, journals or chunks, as `painter` does not.

B batch, H/W pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from engines.composing.given import Given
from engines.diffusion.capture import Record, capture
from engines.diffusion.latents import to_pixels
from engines.errors import DatasetError
from engines.labels.boxes import Instances
from engines.painting.crops import read_job, without_folder
from engines.painting.finisher import Outcome, rounded_boxes
from engines.painting.jobs import Job, JobSource
from engines.painting.label_pass import Labeller
from engines.painting.networks import LARGEST_BATCH, TextEncoder, check_finite
from engines.painting.painter import Painter
from engines.painting.settings import PaintOptions

if TYPE_CHECKING:
    from engines.backends.base import Backend
    from engines.bundle.bundle import Bundle

_READERS = 2  # threads that read and compose
_READ = 16  # jobs handed to them together

Prepared = tuple[Job, npt.NDArray[np.uint8], Given | None]


def open_painter(
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
) -> "Painter | Unpainted":
    """What carries out the jobs of a run: see `Painter`; `Unpainted` where the strength is 0."""
    if options.strength == (0.0, 0.0):
        return Unpainted(bundle, backend, options, source, stage=stage, record=record)
    return Painter(
        bundle, backend, options, source, stage=stage, tick=tick, handed=handed, record=record, floored=floored
    )


class Unpainted:
    """Stands in for a `Painter`; a job's outcome is the same whatever batch it is in, to the last bits."""

    def __init__(
        self,
        bundle: "Bundle",
        backend: "Backend",
        options: PaintOptions,
        source: JobSource,
        *,
        stage: Callable[[str], None],
        record: Record = capture,
    ) -> None:
        """Prepare the graphs of a label pass, where one is needed."""
        self._options, self._source = options, source
        self._reads = options.labels != "reference"
        self._batch = min(options.slots, LARGEST_BATCH) if self._reads else _READ
        self.on_gpu = backend.device.type == "cuda"
        if self._reads:
            stage("preparing vae_encoder, label pass, adapter")
            w, h = (side // bundle.vae_stride for side in options.size)
            self._labeller = Labeller(bundle, backend, self._batch, h, w, options.tta, record, encodes=True)
            self._text = TextEncoder(bundle, backend, stage)

    def prompt_read(self, job: Job) -> str:
        """What of a job's prompt a network reads: all of it, where none does."""
        return self._text.read(job.prompt) if self._reads else job.prompt

    def ticks_of(self, jobs: Iterable[Job]) -> int:
        """See `Painter.ticks_of`: none."""
        return 0

    def paint(self, jobs: Iterable[Job], stop: Callable[[], bool]) -> Iterator[Outcome]:
        """See `Painter.paint`."""
        return self.paint_chunks([jobs], stop)

    def paint_chunks(
        self,
        chunks: Iterable[Iterable[Job]],
        stop: Callable[[], bool],
        another_is_sure: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome]:
        """The outcome of every job, in their order; once `stop` says so, only of those already begun.

        Raises NumericalError, DatasetError.
        """
        with ThreadPoolExecutor(_READERS, "references") as readers:
            for jobs in chunks:
                source = iter(jobs)
                while not stop() and (some := list(islice(source, self._batch))):
                    yield from self._outcomes(some, readers)
                if stop():
                    return

    def _outcomes(self, jobs: list[Job], readers: ThreadPoolExecutor) -> Iterator[Outcome]:
        """The outcomes of n <= B jobs."""
        reading = [(job, readers.submit(read_job, self._source, job)) for job in jobs]
        good: list[Prepared] = []
        for job, future in reading:
            try:
                good.append((job, *future.result()))
            except DatasetError as cause:
                if not self._options.skip_bad:
                    raise DatasetError(f"{cause} Or leave broken references out with `skip_bad=True`.") from cause
                yield Outcome(job, None, Instances.none(), without_folder(str(cause), self._source, job))
        found = self._label(good) if self._reads and good else [Instances.none()] * len(good)
        for (job, pixels, given), instances in zip(good, found, strict=True):
            yield Outcome(job, pixels, instances, given=given)

    def _label(self, good: list[Prepared]) -> list[Instances]:
        """What the adapter finds in n <= B pictures, as the journal holds it."""
        names = [f"image {job.index}" for job, _, _ in good]
        seen = torch.stack([to_pixels(pixels) for _, pixels, _ in good])
        latents = self._labeller.encode(seen)
        check_finite("vae_encoder", torch.stack(latents), [f"the reference of {name}" for name in names])
        states = [self._text(job.prompt) for job, _, _ in good]
        logits, boxes = self._labeller(latents, states, [(job.seed, job.index) for job, _, _ in good], names, seen)
        return [rounded_boxes(logits[:, i], boxes[:, i], self._options.size) for i in range(len(good))]
