"""The committed workload: what every row of a comparison paints.

Knows: the settings that all rows share, and how they become the jobs that `generate` and the diffusers baseline both
do: the same references, crops, prompts and strengths. Knows nothing about time.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.datasets.dataset import open_dataset
from engines.diffusion.schedule import Schedules
from engines.errors import UsageError
from engines.painting.jobs import Job, JobSource, make_job
from engines.painting.options import painting_options
from engines.painting.settings import GenerateSettings

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle


@dataclass(frozen=True)
class Workload:
    """What is painted: DDIM, guided at every step; img2img where there are references, else text to image."""

    frame: tuple[int, int] = (256, 192)  # (width, height) of the images in pixels
    steps: int = 15  # network evaluations of an image; from noise to none without references
    eta: float = 0.0  # noise that DDIM adds on the way
    guidance: float = 4.0  # of the prompt; 1 is off
    strength: tuple[float, float] = (0.4, 0.8)  # range of a job's noise level t/T, where there are references
    jobs: int = 256  # images
    seed: int = 0  # decides every job
    flip: bool = True  # mirror half of the references

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Workload":
        """Read what `to_json` wrote."""
        pairs = {name: tuple(value[name]) for name in ("frame", "strength")}
        return cls(**(value | pairs))

    def generate_settings(
        self, out: Path, *, bundle: Path | None = None, references: Path | None = None, **ours: Any
    ) -> GenerateSettings:
        """This workload as `generate` is asked for it: `jobs` images, all of them kept.

        `ours` are further fields of GenerateSettings (engine, precision, slots ...); they go before the workload's
        own. Raises UsageError that lists every mistake.
        """
        own: dict[str, Any] = {
            "bundle": bundle,
            "reference": references,
            "jobs": self.jobs,
            "seed": self.seed,
            "size": self.frame,
            "steps": self.steps,
            "sampler": "ddim",
            "eta": self.eta,
            "guidance": self.guidance,
            "guidance_interval": (0.0, 1.0) if self.guidance > 1.0 else None,
            "strength": None if references is None else self.strength,
            "flip": self.flip,
            "min_quality": 0.0,
            "keep_empty": True,
        }
        return GenerateSettings(out=out, **(own | ours))


WORKLOAD = Workload()


@dataclass(frozen=True)
class WorkloadJobs:
    """A workload on one bundle and one folder of references."""

    source: JobSource  # what the jobs have in common
    jobs: tuple[Job, ...]  # in order, exactly those of `generate`
    options: dict[str, Any]  # as `resolve_options` gives them: guidance, negative prompt, score ...
    schedules: Schedules

    def steps(self, job: Job) -> int:
        """How many evaluations a job takes."""
        return self.schedules.steps(job.strength)


def jobs_of(workload: Workload, bundle: "Bundle", references: Path | None) -> WorkloadJobs:
    """The jobs that `generate` does with `Workload.generate_settings`.

    Raises UsageError for a frame that the networks cannot divide and for settings out of range, DatasetError for
    references that cannot be read, BundleError for a bundle whose defaults are out of range.
    """
    multiple = bundle.size_multiple
    if any(side % multiple for side in workload.frame):
        raise UsageError(
            f"`size={workload.frame}`: both must be multiples of {multiple} for this bundle.", field="size"
        )
    asked = workload.generate_settings(Path(), references=references)
    options, schedules = painting_options(asked, bundle)
    dataset = None if references is None else open_dataset(references, require_boxes=False)
    source = JobSource(
        frame=workload.frame,
        short_side=bundle.short_side,
        style=bundle.style,
        references=dataset.records if dataset else (),
        class_names=dataset.class_names if dataset else (),
        strength=options["strength"] or (1.0, 1.0),
        flip=workload.flip,
        template=options["prompt_template"],
        class_statistics=bundle.adapter_info.class_statistics,
    )
    jobs = tuple(make_job(source, workload.seed, index) for index in range(workload.jobs))
    return WorkloadJobs(source, jobs, options, schedules)
