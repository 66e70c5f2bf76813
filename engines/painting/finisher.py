"""From finished latents to labelled images: decode, label pass, adapter, and what the host makes of their numbers.

Knows: in which order that happens, and what of it goes on beside the next ticks of the sampler. Every thread works
through the batches in the order they were handed over, so that what comes out is a function of what went in:
    on a GPU one thread enqueues the networks, on a stream of its own, and waits for nothing; another waits for the
    numbers of a batch and makes boxes of them, while the GPU is at the next;
    on a CPU the networks run where they are handed over, since two on the same cores gain nothing, and a thread takes
    the rest: checks, pixels to bytes, boxes.
Decoder, and label pass with adapter, are recorded where their calls allow it.
Knows nothing about jobs to come, slots, files or chunks.

B batch, Z/h/w latents, L tokens, D text width, H/W pixels, Q queries, K classes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import torch

from engines.adapter.inference import look_detections
from engines.common.streams import Lane, Mark, begin_fetch, send
from engines.composing.given import Given
from engines.diffusion.capture import Record, Recorded, capture
from engines.diffusion.latents import quantise, to_pixels
from engines.diffusion.sampler import Task, check_latents
from engines.errors import NumericalError
from engines.labels.boxes import Instances
from engines.painting.jobs import Job
from engines.painting.label_pass import Labeller, Labels
from engines.painting.networks import ADVICE, check_flags, fill, finite_rows, prepare

if TYPE_CHECKING:
    from engines.backends.base import Backend
    from engines.bundle.bundle import Bundle

_AHEAD = 2  # batches handed over and not yet taken back, at most
_BLACK = 2 * 1.5 / 255 - 1  # no value of a picture, -1 to 1, above this: black, but for 1 of 255


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a job came to."""

    job: Job
    pixels: npt.NDArray[np.uint8] | None  # [H, W, 3]; None where its reference cannot be read
    instances: Instances  # best first, as the journal holds them
    problem: str | None = None  # why there are no pixels
    given: Given | None = None  # labels that it had before the adapter looked, where the run reads them


@dataclass(frozen=True, eq=False)
class Finished:
    """A job whose latents the sampler is done with."""

    job: Job
    task: Task
    latents: torch.Tensor  # clean, [Z, h, w], on the backend's device
    given: Given | None = None  # see `Outcome`
    reference: npt.NDArray[np.uint8] | None = None  # the picture that it repaints, [H, W, 3], where its detail is kept


@dataclass(frozen=True, eq=False)
class _Numbers:
    """What the networks give for n images, as soon as it is there. Nothing of it is written again."""

    # uint8 [n, H, W, 3], whether they came of finite pixels [n], and whether what was painted is more than black [n]
    pictures: Callable[[], tuple[torch.Tensor, ...]]
    latents: Callable[[], tuple[torch.Tensor, ...]]  # whether they are finite, bool [n]
    labels: Labels


class Finisher:
    """Decoder, label pass and adapter at one size and a fixed batch; a context manager that ends its thread.

    An error in the thread is raised where the outcomes of that batch would have come.
    """

    def __init__(
        self,
        bundle: "Bundle",
        backend: "Backend",
        batch: int,
        frame: tuple[int, int],
        looks: int = 1,
        record: Record = capture,
        *,
        over: bool = False,
    ) -> None:
        """Prepare the graphs for images of `frame`, (width, height) in pixels; boxes are read from `looks` looks.

        over: paintings come onto the canvas of their job, and boxes are read from what is seen then.
        """
        w, h = (side // bundle.vae_stride for side in frame)
        self._frame = frame
        self._labeller = Labeller(bundle, backend, batch, h, w, looks, record, encodes=over)
        self._decoder = prepare(bundle, backend, "vae_decoder", {"B": batch, "h": h, "w": w})
        self._decode = Recorded(self._decoder.run, [self._decoder], backend.device, record)
        self._over = over
        self._lane = Lane(backend.device)
        self._networks_beside = backend.device.type == "cuda"
        self._most = _AHEAD + self._networks_beside
        self._handed: deque[Future[list[Outcome]]] = deque()
        self.batch = batch

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, "finisher")
        self._enqueuing = ThreadPoolExecutor(1, "networks") if self._networks_beside else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for threads in (self._enqueuing, self._thread):
            if threads is not None:
                threads.shutdown(cancel_futures=True)
        self._handed.clear()

    def submit(self, batch: Sequence[Finished]) -> Iterator[Outcome]:
        """Hand over n <= B images; the outcomes of earlier ones, as far as that must be waited for."""
        while len(self._handed) >= self._most:
            yield from self._handed.popleft().result()
        mark = self._lane.mark()
        if self._enqueuing is not None:
            numbers = self._enqueuing.submit(self._networks, batch, mark).result
            self._handed.append(self._thread.submit(self._outcomes, batch, numbers))
        else:
            here = self._networks(batch, mark)
            self._handed.append(self._thread.submit(self._outcomes, batch, lambda: here))

    def ready(self) -> Iterator[Outcome]:
        """The outcomes that are there by now, in the order of submission; does not wait."""
        while self._handed and self._handed[0].done():
            yield from self._handed.popleft().result()

    def drain(self) -> Iterator[Outcome]:
        """Wait for all outcomes that were not given yet."""
        while self._handed:
            yield from self._handed.popleft().result()

    def _networks(self, batch: Sequence[Finished], mark: Mark) -> _Numbers:
        """Decode and label, after what `mark` holds. Raises NumericalError for latents, where they are on a CPU."""
        with self._lane.after(mark):
            latents = [one.latents for one in batch]
            finite = begin_fetch(finite_rows(torch.stack(latents)))
            if not self._networks_beside:
                check_latents([one.task for one in batch], finite()[0])
            fill(self._decoder.inputs["latents"], latents)
            self._decode()
            seen = self._decoder.outputs["pixels"][: len(batch)]
            bright = seen.amax(dim=(1, 2, 3)) > _BLACK
            seen = self._detailed(batch, seen)
            pictures = self._pictures(seen, bright)
            if self._over:
                made, *checked = pictures()
                shown = [_on_canvas(one, pixels) for one, pixels in zip(batch, made.numpy(), strict=True)]
                pictures = partial(tuple, (torch.from_numpy(np.stack(shown)), *checked))
                seen = torch.stack([to_pixels(pixels) for pixels in shown])
                latents = self._labeller.encode(seen)
            keys = [(one.job.seed, one.job.index) for one in batch]
            labels = self._labeller.begin(latents, [one.task.cond for one in batch], keys, seen)
        return _Numbers(pictures, finite, labels)

    def _detailed(self, batch: Sequence[Finished], painted: torch.Tensor) -> torch.Tensor:
        """Paintings [n, 3, H, W] with what the VAE loses of their references, where that is kept.

        It is the difference of a reference and its own latents decoded, as much of it as of the reference was left
        under the noise that the painting began with: at strength 0 a painting is its reference, to the pixel. What a
        VAE loses where an edit leaves the picture alone is Zhu et al.'s observation (arXiv 2306.04632), who show the
        reference to a decoder trained for that.
        """
        kept = [(one.reference, one.task) for one in batch if one.reference is not None]
        if not kept:
            return painted
        painted = painted.to(torch.float32, copy=True)
        fill(self._decoder.inputs["latents"], [torch.as_tensor(task.latents) for _, task in kept])
        self._decode()
        decoded = self._decoder.outputs["pixels"][: len(kept)].float()
        references = torch.stack([send(to_pixels(picture), decoded.device) for picture, _ in kept])
        left = torch.tensor([task.signal for _, task in kept])
        return painted + send(left, decoded.device)[:, None, None, None] * (references - decoded)

    def _pictures(self, pixels: torch.Tensor, bright: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
        """uint8 [n, H, W, 3] and bool [n] of pixels [n, 3, H, W], and `bright`; on a CPU, whoever asks makes them.

        The pixels may be the decoder's own memory.
        """
        if self._networks_beside:
            return begin_fetch(quantise(pixels), finite_rows(pixels), bright)
        own = pixels.clone()
        return lambda: (quantise(own), finite_rows(own), bright)

    def _outcomes(self, batch: Sequence[Finished], networks: Callable[[], _Numbers]) -> list[Outcome]:
        """Numbers to pictures and boxes. Raises NumericalError for what is not finite, and for black pixels."""
        numbers, names = networks(), [f"image {one.job.index}" for one in batch]
        check_latents([one.task for one in batch], numbers.latents()[0])
        logits, boxes = numbers.labels(names)
        made, finite, bright = numbers.pictures()
        check_flags("vae_decoder", finite, names)
        pictures = made.numpy()
        outcomes = []
        for i, one in enumerate(batch):
            if not bright[i]:
                raise NumericalError(
                    f"graph vae_decoder: image {one.job.index} came out black. {ADVICE}", field="precision"
                )
            found = rounded_boxes(logits[:, i], boxes[:, i], self._frame)
            given = None if one.given is None else replace(one.given, canvas=None)
            outcomes.append(Outcome(one.job, pictures[i], found, given=given))
        return outcomes


def _on_canvas(one: Finished, painting: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A painting [H, W, 3] as its job shows it."""
    canvas = None if one.given is None else one.given.canvas
    return painting if canvas is None else canvas.under(painting)


def rounded_boxes(logits: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32], frame: tuple[int, int]) -> Instances:
    """Detections of one painted frame, best first, of logits [V, Q, K] and boxes [V, Q, 4]; as the journal holds them:
    rounded, so that what is decided by the numbers is the same before and after they were written."""
    found = look_detections(logits, boxes, frame, 1.0, frame)
    corners = np.round(found.boxes.astype(np.float64), 2)
    scores = np.array([round(score, 4) for score in found.scores.tolist()], dtype=np.float64)
    kept = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    return Instances.of(corners, found.labels, scores).take(kept)
