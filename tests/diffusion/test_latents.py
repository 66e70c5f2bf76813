"""Pixels and latents, and the noise between them."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.image_processor import VaeImageProcessor

from engines.diffusion.latents import (
    add_noise,
    initial_noise,
    label_latents,
    step_noise,
    to_pixels,
    to_uint8,
    velocity,
)
from engines.diffusion.noise import alphas_cumprod

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SHAPE = (4, 6, 5)


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def test_pixels_equal_those_of_diffusers() -> None:
    from PIL import Image

    pixels = to_pixels(picture())
    expected = VaeImageProcessor().preprocess(Image.fromarray(picture()))[0]
    assert pixels.dtype == torch.float32
    assert torch.allclose(pixels, expected, rtol=0.0, atol=1e-6)


def test_every_byte_survives_the_round_trip() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert (to_uint8(to_pixels(image)) == image).all()


def test_uint8_equals_diffusers_on_values_out_of_range_too() -> None:
    pixels = torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    expected = VaeImageProcessor().postprocess(pixels, output_type="pil")
    assert (to_uint8(pixels) == np.stack([np.asarray(image) for image in expected])).all()
    assert (to_uint8(pixels[1]) == np.asarray(expected[1])).all()


def test_add_noise_equals_diffusers_for_one_timestep_and_for_many() -> None:
    abar, peer = alphas_cumprod(CONFIG), DDIMScheduler.from_config(CONFIG)
    clean, noise = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, *SHAPE), dtype=np.float32))
    timesteps = torch.tensor([0, 1, 999])
    expected = peer.add_noise(clean, noise, timesteps)
    assert torch.allclose(add_noise(clean, noise, abar, timesteps), expected, atol=1e-6)
    assert torch.allclose(add_noise(clean[1], noise[1], abar, 1), expected[1], atol=1e-6)
    half = add_noise(clean.half(), noise, abar, timesteps)
    assert half.dtype == torch.float16


def test_label_latents_are_a_function_of_seed_index_and_clean_latents() -> None:
    abar, clean = alphas_cumprod(CONFIG), torch.zeros(SHAPE)
    noised = label_latents(clean, 5, 7, abar)
    assert torch.equal(noised, label_latents(clean, 5, 7, abar))
    assert noised.std() == pytest.approx(float((1 - abar[1]).sqrt()), rel=0.3)
    assert not torch.equal(noised, label_latents(clean, 5, 8, abar))
    assert not torch.equal(noised, label_latents(clean, 6, 7, abar))
    assert label_latents(clean, 5, 7, abar, timestep=50).std() > noised.std()


def test_no_two_uses_of_noise_share_a_stream() -> None:
    abar, clean = alphas_cumprod(CONFIG), torch.zeros(SHAPE)
    label = label_latents(clean, 5, 7, abar)
    drawn = [
        initial_noise(SHAPE, 5, 7),
        label / label.std(),
        *(step_noise(SHAPE, 5, 7, step) for step in range(30)),
    ]
    unit = torch.stack([noise.flatten() / noise.norm() for noise in drawn])
    overlap = (unit @ unit.T - torch.eye(len(drawn))).abs().max()
    assert overlap < 0.6


def test_a_velocity_leads_from_noise_to_the_picture() -> None:
    """With x = a latents + b noise and v = a noise - b latents: latents = a x - b v."""
    clean, noise = torch.from_numpy(np.random.default_rng(2).standard_normal((2, 3, *SHAPE), dtype=np.float32))
    alphas, timesteps = torch.linspace(0.99, 0.01, 100), torch.tensor([3, 50, 99])
    signal = alphas[timesteps].sqrt().reshape(-1, *(1,) * len(SHAPE))
    share = (1 - alphas[timesteps]).sqrt().reshape(-1, *(1,) * len(SHAPE))
    noisy, v = add_noise(clean, noise, alphas, timesteps), velocity(clean, noise, alphas, timesteps)
    assert torch.allclose(signal * noisy - share * v, clean, atol=1e-5)
