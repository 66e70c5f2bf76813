"""DiffusionEngine's way with diffusers, and the same with torch.compile: what dengine is put beside on a GPU.

Knows: diffusers' pipeline on random weights, and how the adapter reads its features. Knows nothing about clocks, nor of
dengine's backends and sampler.

B batch, Z/h/w latents.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from engines.adapter.inference import detections
from engines.adapter.model import load_adapter
from engines.adapter.pyramid import PyramidUNet, tap_levels
from engines.bundle.bundle import Bundle
from engines.common.streams import fetch
from engines.diffusion.libraries import silence_libraries

GUIDANCE = 7.5  # the reference's
MODE = "reduce-overhead"  # of torch.compile; it has CUDA graphs of its own


class Diffusers:
    """The reference's way: diffusers' pipeline, and the adapter on features of its last UNet call.

    Half precision on a GPU, DDIM with leading steps and an offset of 1, so that the last call is at t = 1. The features
    are the block outputs of the conditional half. With `mode`, torch.compile is given the UNet and the VAE decoder, in
    that mode and channels_last. These hooks would be compiled in at every step: there the label takes one more
    conditional call of the plain UNet, which is cheaper.
    """

    def __init__(self, bundle: Bundle, steps: int, device: torch.device, mode: str | None = None) -> None:
        from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
        from transformers import CLIPTextModel

        silence_libraries()
        half = torch.float16 if device.type == "cuda" else torch.float32
        folder = bundle.folder
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=half)
        self.device, self.steps = device, steps
        self.precision = "f16" if half == torch.float16 else "f32"
        self._bundle = bundle
        self._pipe: Any = StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=half),
            text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=half),
            tokenizer=bundle.tokenizer(),
            unet=unet,
            scheduler=DDIMScheduler.from_config(bundle.scheduler_config, timestep_spacing="leading", steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).to(device)
        self._pipe.set_progress_bar_config(disable=True)
        self._adapter = load_adapter(folder / "adapter", device=device)[0]
        self._network = PyramidUNet(unet)
        self._taps: dict[int, torch.Tensor] = {}
        self._compiled = mode is not None
        if mode is not None:
            vae = self._pipe.vae
            for network in (unet, vae):
                network.to(memory_format=torch.channels_last)
            self._pipe.unet = torch.compile(unet, mode=mode, fullgraph=True, dynamic=False)
            vae.decode = torch.compile(vae.decode, mode=mode, fullgraph=True, dynamic=False)
        else:
            for place, block in enumerate((*unet.down_blocks, unet.mid_block, *unet.up_blocks)):
                block.register_forward_hook(self._keeper(place))

    def _keeper(self, place: int) -> Callable[..., None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            self._taps[place] = output[0] if isinstance(output, tuple) else output

        return keep

    def paint_all(self, count: int, batch: int) -> int:
        """Paint `count` images, `batch` in each call; returns how many boxes they have."""
        return sum(self._paint(batch, first) for first in range(0, count, batch))

    @torch.no_grad()
    def _paint(self, batch: int, seed: int) -> int:
        prompts = [f"a {self._bundle.style}"] * batch
        width, height = self._bundle.frame
        states, uncond = self._pipe.encode_prompt(prompts, self.device, 1, True)
        latents = self._pipe(
            prompt_embeds=states,
            negative_prompt_embeds=uncond,
            width=width,
            height=height,
            num_inference_steps=self.steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
        decoded = self._pipe.vae.decode(latents / self._pipe.vae.config.scaling_factor).sample
        self._pipe.image_processor.postprocess(decoded, output_type="pil")
        logits, boxes = (value.numpy() for value in fetch(*self._label(latents, states)))
        frame = (width, height)
        return sum(len(detections(logits[i], boxes[i], frame, 1.0, frame)) for i in range(batch))

    def _label(self, latents: torch.Tensor, states: torch.Tensor) -> Sequence[torch.Tensor]:
        """Logits and boxes."""
        if self._compiled:
            timesteps = torch.ones(len(latents), dtype=torch.int64, device=self.device)
            pyramid = self._network(latents, timesteps, states)[1:]
        else:
            pyramid = self._last_pyramid()
        result: tuple[torch.Tensor, ...] = self._adapter(*(level.float() for level in pyramid))
        return result[:2]

    def _last_pyramid(self) -> tuple[torch.Tensor, ...]:
        """The pyramid of the conditional half of the last call's batch, which is the second half."""
        levels = len(self._adapter.config.channels)
        grouped: list[list[torch.Tensor]] = [[] for _ in range(levels)]
        for level, (_, tap) in zip(tap_levels(levels), sorted(self._taps.items()), strict=True):
            grouped[level].append(tap.chunk(2)[1])
        return tuple(torch.cat(group, dim=1) for group in grouped)

    def unet_call(self, rows: int) -> Callable[[], None]:
        """The pipeline's UNet call alone, as it makes it."""
        spec = self._bundle.specs["unet"]
        width, height = (side // self._bundle.vae_stride for side in self._bundle.frame)
        shapes = spec.input_shapes({"B": rows, "h": height, "w": width})
        half: torch.dtype = self._pipe.unet.dtype
        sample, states = (
            torch.randn(shapes[name], device=self.device).to(half) for name in ("sample", "encoder_hidden_states")
        )
        timestep = torch.tensor(1, device=self.device)

        def run() -> None:
            with torch.no_grad():
                self._pipe.unet(sample, timestep, encoder_hidden_states=states, timestep_cond=None,
                                cross_attention_kwargs=None, added_cond_kwargs=None, return_dict=False)  # fmt: skip

        return run
