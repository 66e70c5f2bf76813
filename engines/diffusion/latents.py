"""Pixels, latents and the noise between them.

Knows: how images become the numbers a VAE reads and come back, how noise is mixed into latents, and which
random stream each piece of noise comes from. Knows nothing about networks or schedules.

B batch, H/W pixels, Z/h/w latents, N timesteps of the training.
"""

import numpy as np
import numpy.typing as npt
import torch

from engines.common.pixels import scaled
from engines.common.rng import Stream, normal
from engines.common.streams import fetch, send


def to_pixels(image: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [H, W, 3] to float32 [3, H, W] in [-1, 1], as diffusers' VaeImageProcessor."""
    return torch.from_numpy(scaled(image)).permute(2, 0, 1)


def quantise(pixels: torch.Tensor) -> torch.Tensor:
    """Finite pixels [..., 3, H, W], about [-1, 1], to uint8 [..., H, W, 3] where they are; rounded as in diffusers."""
    scaled = (pixels.float() / 2.0 + 0.5).clamp(0.0, 1.0).mul(255.0).round()
    return scaled.to(torch.uint8).movedim(-3, -1).contiguous()


def to_uint8(pixels: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The same, as an array of the host: what a GPU sends is a quarter of float32."""
    image: npt.NDArray[np.uint8] = fetch(quantise(pixels))[0].numpy()
    return image


def add_noise(
    latents: torch.Tensor, noise: torch.Tensor, alphas_cumprod: torch.Tensor, timesteps: int | torch.Tensor
) -> torch.Tensor:
    """sqrt(abar_t) latents + sqrt(1 - abar_t) noise, in the latents' dtype and on their device.

    `timesteps` is one t in 0..N-1 for all, or an int64 [B] with one for each of latents [B, Z, h, w];
    `alphas_cumprod` is `noise.alphas_cumprod`, [N]. DDPM, Ho et al. 2020 (arXiv 2006.11239, equation 4).
    """
    index = torch.as_tensor(timesteps, device=alphas_cumprod.device)
    abar = alphas_cumprod[index].double()
    if abar.dim():
        abar = abar.reshape(-1, *(1,) * (latents.dim() - 1))
    signal, share = abar.sqrt().to(latents), (1.0 - abar).sqrt().to(latents)
    return signal * latents + share * noise.to(latents)


def velocity(
    latents: torch.Tensor, noise: torch.Tensor, alphas_cumprod: torch.Tensor, timesteps: int | torch.Tensor
) -> torch.Tensor:
    """sqrt(abar_t) noise - sqrt(1 - abar_t) latents: what a network that predicts v is taught; form as `add_noise`.

    Progressive distillation, Salimans and Ho 2022 (arXiv 2202.00512).
    """
    return add_noise(noise, -latents, alphas_cumprod, timesteps)


def initial_noise(shape: tuple[int, ...], seed: int, index: int) -> torch.Tensor:
    """The noise that image `index` begins from, float32 of `shape` [Z, h, w] on the CPU."""
    return torch.from_numpy(normal(shape, seed, index, Stream.INITIAL_NOISE))


def step_noise(shape: tuple[int, ...], seed: int, index: int, step: int) -> torch.Tensor:
    """The noise that a sampler with eta > 0 adds to image `index` at `step`; form as `initial_noise`."""
    return torch.from_numpy(normal(shape, seed, index, 1 + step))


def label_latents(
    latents: torch.Tensor, seed: int, index: int, alphas_cumprod: torch.Tensor, timestep: int = 1
) -> torch.Tensor:
    """What the label pass of image `index` reads: clean latents [Z, h, w] with the noise of `timestep` added.

    The noise is a function of (seed, index) alone, whatever sampler painted the image and on what device; it is drawn
    on the CPU and mixed in where the latents are.
    """
    noise = send(torch.from_numpy(normal(tuple(latents.shape), seed, index, Stream.LABEL_NOISE)), latents.device)
    return add_noise(latents, noise, alphas_cumprod, timestep)
