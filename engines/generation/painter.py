"""From jobs to labelled images: the networks of a bundle, in the order that `generate` needs them.

Knows: text_encoder once for each prompt, vae_encoder on crops of references, the slot sampler, then vae_decoder and
the label pass with the adapter on finished latents, each at a fixed batch. Knows nothing about folders, journals or
chunks: what it gives is a function of the jobs it was handed, in their order.

B batch, R rows, L tokens, D text width, Z/h/w latents, H/W pixels.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from engines.adapter.inference import detections
from engines.datasets.images import read_image
from engines.diffusion.base_model import alphas_cumprod, tokenize
from engines.diffusion.latents import label_latents, to_pixels, to_uint8
from engines.diffusion.sampler import SlotSampler, Task
from engines.diffusion.schedule import make_schedule, start_index
from engines.errors import DatasetError, NumericalError
from engines.generation.jobs import Job, Plan
from engines.generation.journal import Box, make_box
from engines.generation.settings import RunSettings

if TYPE_CHECKING:
    from engines.backends.base import Backend, Call
    from engines.bundle import Bundle

LARGEST_BATCH = 8  # images decoded and labelled in one call, at most
_PROMPTS_KEPT = 128  # embeddings kept; a run's prompts repeat
_BLACK = 1  # no value of a picture above this: black


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a job came to."""

    job: Job
    pixels: npt.NDArray[np.uint8] | None  # [H, W, 3]; None where its reference cannot be read
    boxes: tuple[Box, ...]  # best first
    problem: str | None = None  # why there are no pixels


class TextEncoder:
    """Prompts to embeddings, one at a time, so that an embedding depends on its prompt alone."""

    def __init__(self, bundle: "Bundle", backend: "Backend") -> None:
        self._tokenizer = bundle.tokenizer()
        self._call = prepare(bundle, backend, "text_encoder", {"B": 1})
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __call__(self, prompt: str) -> torch.Tensor:
        """encoder_hidden_states [L, D] of a prompt; the last used ones are kept."""
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        self._call.inputs["input_ids"].copy_(tokenize(self._tokenizer, [prompt]))
        self._call.run()
        states = self._call.outputs["encoder_hidden_states"][0].clone()
        check_finite("text_encoder", states[None], [f'prompt "{prompt}"'])
        self._kept[prompt] = states
        if len(self._kept) > _PROMPTS_KEPT:
            self._kept.popitem(last=False)
        return states


class Labeller:
    """The label pass and the adapter on clean latents, at one size and a fixed batch."""

    def __init__(self, bundle: "Bundle", backend: "Backend", batch: int, h: int, w: int) -> None:
        sizes = {"B": batch, "h": h, "w": w}
        pyramid = [spec.name for spec in bundle.specs["adapter"].inputs]
        self._unet = prepare(bundle, backend, "unet", sizes, pyramid)
        self._adapter = prepare(bundle, backend, "adapter", sizes, ["logits", "boxes"])
        self._pyramid = pyramid
        self._abar = alphas_cumprod(bundle.scheduler_config)
        self._timestep = bundle.timestep
        self.batch = batch

    def __call__(
        self,
        latents: Sequence[torch.Tensor],
        states: Sequence[torch.Tensor],
        keys: Sequence[tuple[int, int]],
        names: Sequence[str],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits [n, Q, K] and boxes [n, Q, 4] (centre, size; shares of the frame) of n <= batch images.

        latents: clean, scaled, [Z, h, w] each. states: embeddings [L, D]. keys: (seed, index) of the noise.
        names: what an error calls each image.
        """
        noisy = [
            label_latents(clean.to("cpu", torch.float32), seed, index, self._abar, self._timestep)
            for clean, (seed, index) in zip(latents, keys, strict=True)
        ]
        fill(self._unet.inputs["sample"], noisy)
        self._unet.inputs["timesteps"].fill_(self._timestep)
        fill(self._unet.inputs["encoder_hidden_states"], states)
        self._unet.run()
        for name in self._pyramid:
            self._adapter.inputs[name].copy_(self._unet.outputs[name])
        self._adapter.run()
        count = len(names)
        found = [self._adapter.outputs[name][:count].float().cpu() for name in ("logits", "boxes")]
        if not all(bool(tensor.isfinite().all()) for tensor in found):
            for name in self._pyramid:  # the adapter was handed it, or made it
                check_finite("unet", self._unet.outputs[name][:count], names)
            for tensor in found:
                check_finite("adapter", tensor, names)
        return found[0].numpy(), found[1].numpy()


class Painter:
    """All networks of a run, prepared at its sizes."""

    def __init__(
        self,
        bundle: "Bundle",
        backend: "Backend",
        settings: RunSettings,
        plan: Plan,
        *,
        stage: Callable[[str], None],
        tick: Callable[[], None],
    ) -> None:
        """Prepare every graph. `stage` is told what is being prepared, `tick` of every network call of the sampler."""
        self._settings, self._plan = settings, plan
        self._frame = settings.frame
        w, h = (side // bundle.vae_stride for side in settings.frame)
        self._batch = min(settings.slots, LARGEST_BATCH)
        stage("preparing text_encoder")
        self._text = TextEncoder(bundle, backend)
        self._encoder = None
        if plan.references:
            stage("preparing vae_encoder")
            self._encoder = prepare(bundle, backend, "vae_encoder", {"B": self._batch, "h": h, "w": w})
        stage("preparing unet")
        unet = prepare(bundle, backend, "unet", {"B": settings.rows, "h": h, "w": w}, ["model_output"])
        stage("preparing the label pass and adapter")
        self._labeller = Labeller(bundle, backend, self._batch, h, w)
        stage("preparing vae_decoder")
        self._decoder = prepare(bundle, backend, "vae_decoder", {"B": self._batch, "h": h, "w": w})
        self._schedule = make_schedule(bundle.scheduler_config, settings.sampler, settings.steps, settings.eta)
        self._sampler = SlotSampler(
            unet,
            self._schedule,
            slots=settings.slots,
            rows=settings.rows,
            guidance_scale=settings.guidance,
            guidance_interval=settings.guidance_interval or (0.0, 1.0),
            told=tick,
        )

    def paint(self, jobs: Iterable[Job], stop: Callable[[], bool]) -> Iterator[Outcome]:
        """The outcome of every job, in the order they finish; once `stop` says so, only of those already begun.

        Raises NumericalError, DatasetError.
        """
        negative = self._text(self._settings.negative_prompt)
        bad: list[Outcome] = []
        started: dict[int, Job] = {}
        batch: list[tuple[Job, torch.Tensor, torch.Tensor]] = []
        for task, latents in self._sampler.run(self._tasks(jobs, stop, negative, started, bad)):
            batch.append((started.pop(task.index), latents, task.cond))
            if len(batch) == self._batch:
                yield from self._finish(batch)
                batch = []
            while bad:
                yield bad.pop()
        if batch:
            yield from self._finish(batch)
        yield from bad

    def _tasks(
        self,
        jobs: Iterable[Job],
        stop: Callable[[], bool],
        negative: torch.Tensor,
        started: dict[int, Job],
        bad: list[Outcome],
    ) -> Iterator[Task]:
        """Jobs to the sampler's tasks, as it asks for them; references are encoded a batch ahead."""
        source = iter(jobs)
        ready: deque[tuple[Job, torch.Tensor | None]] = deque()
        while not stop():
            if not ready:
                ready.extend(self._encoded(source, bad))
            if not ready:
                return
            job, latents = ready.popleft()
            started[job.index] = job
            start = 0 if latents is None or job.strength is None else start_index(self._schedule, job.strength)
            yield Task(job.index, job.seed, latents, start, self._text(job.prompt), negative)

    def _encoded(self, source: Iterator[Job], bad: list[Outcome]) -> list[tuple[Job, torch.Tensor | None]]:
        """The next jobs, a batch at most, each with the latents of its reference; empty when there are no more."""
        if self._encoder is None:
            job = next(source, None)
            return [] if job is None else [(job, None)]
        jobs: list[Job] = []
        crops: list[torch.Tensor] = []
        while len(jobs) < self._batch and (job := next(source, None)) is not None:
            try:
                crops.append(to_pixels(read_crop(self._plan, job)))
                jobs.append(job)
            except DatasetError as cause:
                if not self._settings.skip_bad:
                    raise DatasetError(f"{cause} Or leave broken references out with --skip-bad.") from cause
                bad.append(Outcome(job, None, (), _without_folder(str(cause), self._plan, job)))
        if not jobs:
            return []
        fill(self._encoder.inputs["pixels"], crops)
        self._encoder.run()
        latents = self._encoder.outputs["latents"][: len(jobs)].float().clone()
        check_finite("vae_encoder", latents, [f"the reference of image {job.index}" for job in jobs])
        return list(zip(jobs, latents, strict=True))

    def _finish(self, batch: Sequence[tuple[Job, torch.Tensor, torch.Tensor]]) -> list[Outcome]:
        """Decode and label finished latents."""
        jobs = [job for job, _, _ in batch]
        latents = [clean for _, clean, _ in batch]
        names = [f"image {job.index}" for job in jobs]
        fill(self._decoder.inputs["latents"], latents)
        self._decoder.run()
        pixels = self._decoder.outputs["pixels"][: len(jobs)].float()
        check_finite("vae_decoder", pixels, names)
        pictures = to_uint8(pixels)
        for name, picture in zip(names, pictures, strict=True):
            if picture.max() <= _BLACK:
                raise NumericalError(f"graph vae_decoder: {name} came out black. {_ADVICE}")
        states = [cond for _, _, cond in batch]
        logits, boxes = self._labeller(latents, states, [(job.seed, job.index) for job in jobs], names)
        return [
            Outcome(job, picture, rounded_boxes(logits[i], boxes[i], self._frame))
            for i, (job, picture) in enumerate(zip(jobs, pictures, strict=True))
        ]


def _without_folder(message: str, plan: Plan, job: Job) -> str:
    """What is wrong with a job's reference, in words that do not depend on where the dataset lies."""
    record = plan.references[job.reference or 0]
    return f"broken reference: {message.replace(str(record.file), record.name)}"


_ADVICE = "Take a wider precision (--precision f32), or another --engine."


def read_crop(plan: Plan, job: Job) -> npt.NDArray[np.uint8]:
    """The part of its reference that a job repaints, uint8 [H, W, 3] of the frame's size."""
    if job.reference is None or job.crop is None:
        raise DatasetError(f"Job {job.index} has no reference to crop.")
    record = plan.references[job.reference]
    image = read_image(record.file)
    if image.shape[:2] != (record.height, record.width):
        found = f"{image.shape[1]}x{image.shape[0]}"
        raise DatasetError(
            f"{record.file} has {found} pixels; its header or annotation said {record.width}x{record.height}."
        )
    crop = Image.fromarray(image).resize(plan.frame, Image.Resampling.BICUBIC, box=job.crop)
    pixels = np.array(crop, dtype=np.uint8)
    return np.ascontiguousarray(pixels[:, ::-1]) if job.flip else pixels


def rounded_boxes(
    logits: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32], frame: tuple[int, int]
) -> tuple[Box, ...]:
    """Detections of one painted frame, best first, rounded as the journal holds them, so that what is decided by the
    numbers is the same before and after they were written."""
    corners, scores, labels = detections(logits, boxes, frame, 1.0, frame)
    rows = zip(np.round(corners.astype(np.float64), 2).tolist(), scores.tolist(), labels.tolist(), strict=True)
    found = (make_box(corner, round(score, 4), label) for corner, score, label in rows)
    return tuple(box for box in found if box.x1 > box.x0 and box.y1 > box.y0)


def fill(buffer: torch.Tensor, items: Sequence[torch.Tensor]) -> None:
    """Write n <= B items into a call's input [B, ...]; spare rows repeat the last one."""
    spare = buffer.shape[0] - len(items)
    buffer.copy_(torch.stack([*items, *[items[-1]] * spare]))


def check_finite(graph: str, values: torch.Tensor, names: Sequence[str]) -> None:
    """Raise NumericalError, naming the graph and the first image whose values [n, ...] are not all finite."""
    finite = values.isfinite().flatten(1).all(dim=1).tolist()
    for name, good in zip(names, finite, strict=True):
        if not good:
            raise NumericalError(f"graph {graph}: the output for {name} is NaN or infinite. {_ADVICE}")


def prepare(
    bundle: "Bundle", backend: "Backend", graph: str, sizes: Mapping[str, int], outputs: Sequence[str] | None = None
) -> "Call":
    """Ready a graph at these sizes, for the named outputs (all for None)."""
    return backend.prepare(graph, bundle.specs[graph].input_shapes(sizes), outputs)
