"""The plain diffusers pipeline with the adapter behind it: what the baseline paints with.

Knows: diffusers' own pipelines, the adapter in PyTorch, and how a job becomes a call of theirs. Knows nothing about
files or clocks (`baseline`), nor of dengine's backends and sampler, which are what it is compared with.

What is done, and how it is kept fair:
- A bundle is a diffusers folder, so `from_pretrained(bundle)` loads it: StableDiffusionImg2ImgPipeline where there are
  references, StableDiffusionPipeline otherwise. float32 on a CPU, float16 on a GPU, the adapter in float32; DDIM as the
  bundle has it, but for the spacing.
- Jobs are `workload.jobs_of`: the very references, crops, prompts and strengths of `generate`.
- The pipeline takes one strength a call, and runs floor(steps x strength) of a schedule from pure noise. Each call gets
  the schedule of which that is as many evaluations as the workload has, in trailing spacing, so that it begins at the
  jobs' noise level, too (`pipeline_steps`). Jobs of near strengths share a call, at their mean; batches are as full as
  they can be (`batches_of`), and none is padded. It is the best a user can do.
- One generator a call, so that the pipeline encodes its references in one batch; its noise is therefore another than
  dengine's, and so are the pictures.
- Prompts are embedded once a batch, and the embeddings serve the pipeline and the label pass.
- The label pass is the baseline's own: noise of the bundle's timestep added to the final latents, one conditional UNet
  call with hooks for the pyramid, then the adapter. That noise is the one dengine takes for the same job.
- torch.compile, where asked for, compiles the pipeline's UNet in its default mode (no max-autotune, no CUDA graphs);
  the VAE stays eager, and so does the label pass. With a `mode`, such as reduce-overhead, which has CUDA graphs of its
  own, the VAE's decoder passes through it too, and both are channels last: the best a user can do on a GPU.

B batch, Q queries, K classes, N boxes, Z/h/w latents.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from engines.adapter.inference import detections
from engines.adapter.model import load_adapter
from engines.adapter.pyramid import PyramidUNet
from engines.bundle.bundle import Bundle
from engines.common.devices import find_device
from engines.common.rng import Stream, generator
from engines.diffusion.base_model import decode_latents
from engines.diffusion.latents import label_latents
from engines.diffusion.libraries import silence_libraries
from engines.diffusion.noise import alphas_cumprod
from engines.labels.boxes import Instances
from engines.labels.scores import unstored
from engines.measure.workload import WorkloadJobs
from engines.painting.crops import read_crop
from engines.painting.jobs import Job


@dataclass(frozen=True, eq=False)
class Picture:
    """What a job came to."""

    job: Job
    image: Image.Image
    instances: Instances  # best first, each scoring at least what its class needs for a label


class Baseline:
    """The pipeline and the adapter, loaded."""

    def __init__(
        self, bundle: Bundle, work: WorkloadJobs, *, device: str | None, compiled: bool, mode: str | None = None
    ) -> None:
        """Load both. `device` is cpu, cuda or cuda:N; None takes a GPU where there is one. `mode` is torch.compile's.

        Raises UsageError for a device that is none, BackendError for one that is not here.
        """
        self.device = find_device(device)
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self._bundle, self._work = bundle, work
        self.pipe = _load(bundle, self.dtype, references=bool(work.source.references)).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        self._network = PyramidUNet(self.pipe.unet)
        self._adapter = load_adapter(bundle.folder / "adapter", device=self.device)[0]
        self._abar = alphas_cumprod(bundle.scheduler_config)
        self._thresholds = np.array(list(unstored(work.options["score"], bundle.class_names).values()))
        if mode is not None:
            options: dict[str, Any] = {"mode": mode, "fullgraph": True, "dynamic": False}
            for network in (self.pipe.unet, self.pipe.vae):
                network.to(memory_format=torch.channels_last)
            self.pipe.unet = torch.compile(self.pipe.unet, **options)
            self.pipe.vae.decode = torch.compile(self.pipe.vae.decode, **options)
        elif compiled:
            self.pipe.unet = torch.compile(self.pipe.unet)

    @torch.no_grad()
    def paint(self, jobs: Sequence[Job]) -> list[Picture]:
        """Paint and label jobs that take equally many evaluations, in one call of the pipeline."""
        options = self._work.options
        guided = options["guidance"] > 1.0
        negative = [options["negative_prompt"]] * len(jobs) if guided else None
        states, uncond = self.pipe.encode_prompt(
            [job.prompt for job in jobs], self.device, 1, guided, negative_prompt=negative
        )
        latents = self.pipe(
            prompt_embeds=states,
            negative_prompt_embeds=uncond if guided else None,
            guidance_scale=options["guidance"],
            eta=options["eta"],
            generator=_torch_generator(jobs[0]),
            output_type="latent",
            **self._begin(jobs),
        ).images
        decoded = decode_latents(self.pipe.vae, latents)
        images = self.pipe.image_processor.postprocess(decoded, output_type="pil")
        logits, boxes = self._label(jobs, latents, states)
        return [
            self._picture(job, image, logits[i], boxes[i])
            for i, (job, image) in enumerate(zip(jobs, images, strict=True))
        ]

    def unet_call(self, rows: int) -> Callable[[], None]:
        """The pipeline's UNet call alone, as it makes it, on noise."""
        w, h = (side // self._bundle.vae_stride for side in self._work.source.frame)
        shapes = self._bundle.specs["unet"].input_shapes({"B": rows, "h": h, "w": w})
        place: Any = {"device": self.device, "dtype": self.dtype}
        sample, states = (torch.randn(shapes[name], **place) for name in ("sample", "encoder_hidden_states"))
        timestep = torch.tensor(1, device=self.device)
        others: Any = dict.fromkeys(("timestep_cond", "cross_attention_kwargs", "added_cond_kwargs"))

        def call() -> None:
            with torch.no_grad():
                self.pipe.unet(sample, timestep, encoder_hidden_states=states, return_dict=False, **others)

        return call

    def _begin(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """What the pipeline begins from: crops of references and a strength, or a size; and the steps to the end."""
        source, steps = self._work.source, self._work.options["steps"]
        if not source.references:
            return {"width": source.frame[0], "height": source.frame[1], "num_inference_steps": steps}
        crops = [Image.fromarray(read_crop(source, job)) for job in jobs]
        strength = sum(job.strength or 0.0 for job in jobs) / len(jobs)
        return {"image": crops, "strength": strength, "num_inference_steps": pipeline_steps(steps, strength)}

    def _label(
        self, jobs: Sequence[Job], latents: torch.Tensor, states: torch.Tensor
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits [B, Q, K] and boxes [B, Q, 4] of clean latents [B, Z, h, w]."""
        timestep = self._bundle.timestep
        clean = latents.float().cpu()
        noisy = torch.stack(
            [
                label_latents(clean[i], job.seed, job.index, self._abar, timestep).to(self.device, self.dtype)
                for i, job in enumerate(jobs)
            ]
        )
        timesteps = torch.full((len(jobs),), timestep, dtype=torch.int64, device=self.device)
        pyramid = self._network(noisy, timesteps, states)[1:]
        logits, boxes = self._adapter(*(level.float() for level in pyramid))[:2]
        return logits.cpu().numpy(), boxes.cpu().numpy()

    def _picture(
        self, job: Job, image: Image.Image, logits: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32]
    ) -> Picture:
        found = detections(logits, boxes, image.size, 1.0, image.size)
        return Picture(job, image, found.take(found.scores >= self._thresholds[found.labels]))


def batches_of(work: WorkloadJobs, batch: int) -> list[list[Job]]:
    """All jobs in batches of up to `batch`, those of the lowest strengths first, so that like ones share a batch."""
    jobs = sorted(work.jobs, key=lambda job: (job.strength or 0.0, job.index))
    return [jobs[first : first + batch] for first in range(0, len(jobs), batch)]


def pipeline_steps(evaluations: int, strength: float) -> int:
    """The steps from noise of which diffusers' img2img runs `evaluations` at this strength, the fewest."""
    steps = math.ceil(evaluations / strength)
    return steps if int(steps * strength) >= evaluations else steps + 1  # where the product was rounded down


def _load(bundle: Bundle, dtype: torch.dtype, references: bool) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    silence_libraries()
    kind: Any = StableDiffusionImg2ImgPipeline if references else StableDiffusionPipeline
    pipe = kind.from_pretrained(
        bundle.folder,
        dtype=dtype,
        use_safetensors=True,
        low_cpu_mem_usage=False,
        safety_checker=None,
        requires_safety_checker=False,
    )
    spacing = {"timestep_spacing": "trailing"} if references else {}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **spacing)
    return pipe


def _torch_generator(job: Job) -> torch.Generator:
    """The source of a call's noise, on the CPU, keyed by its first job."""
    seed = int(generator(job.seed, job.index, Stream.PIPELINE).integers(2**63))
    return torch.Generator().manual_seed(seed)
