"""One slot against diffusers' own StableDiffusionImg2ImgPipeline: the same latents, from the same noise."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from engines.diffusion.base_model import BaseModel, load_base
from engines.diffusion.latents import initial_noise, to_pixels
from engines.diffusion.sampler import SlotSampler, Task
from engines.diffusion.schedule import make_schedule, start_index

STEPS = 12
INDEX, SEED = 5, 11


class TorchCall:
    """The base model's UNet as a backend's call."""

    capturable = False

    def __init__(self, base: BaseModel, rows: int, latent_shape: torch.Size, text_shape: torch.Size) -> None:
        self.unet = base.unet
        self.inputs = {
            "sample": torch.zeros((rows, *latent_shape)),
            "timesteps": torch.zeros((rows,), dtype=torch.int64),
            "encoder_hidden_states": torch.zeros((rows, *text_shape)),
        }
        self.outputs: dict[str, torch.Tensor] = {}

    def run(self) -> None:
        self.outputs = {"model_output": self.unet(*self.inputs.values()).sample}


@pytest.fixture(scope="module", params=toy.KINDS)
def scene(request: pytest.FixtureRequest, toy_bases: dict[Any, Path]) -> tuple[BaseModel, Any, torch.Tensor]:
    """A base model, diffusers' pipeline of it, and a reference's mode-encoded latents [1, 4, h, w]."""
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    base = load_base(toy_bases[request.param])
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(toy_bases[request.param], safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    picture = torch.randint(0, 256, (64, 96, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return base, pipeline, base.encode_images(to_pixels(picture.numpy())[None])


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_final_latents_equal_the_img2img_pipeline(
    scene: tuple[BaseModel, Any, torch.Tensor],
    guidance_scale: float,
    strength: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, pipeline, latents = scene
    prompt, negative = "a microscope photo with many rbc", "a photo"
    noise = initial_noise(tuple(latents.shape[1:]), SEED, INDEX)[None]
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **kwargs: noise)
    expected = pipeline(
        prompt=prompt,
        negative_prompt=negative,
        image=latents,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        eta=0.0,
        output_type="latent",
    ).images[0]

    cond, uncond = base.encode_prompts([prompt, negative])
    schedule = make_schedule(base.scheduler_config, "ddim", STEPS)
    call = TorchCall(base, 2, latents.shape[1:], cond.shape)
    sampler = SlotSampler(call, schedule, slots=1, rows=2, guidance_scale=guidance_scale)
    task = Task(INDEX, SEED, latents[0], start_index(schedule, strength), cond, uncond)
    ((_, found),) = sampler.run([task])

    assert (found - expected).norm() / expected.norm() < 1e-4
    assert (found - latents[0]).norm() / latents[0].norm() > 1e-2  # something was painted
    assert sampler.ticks == int(STEPS * strength)
