"""The pyramid: what a frozen UNet knows about an image, resolution by resolution.

Knows: which block outputs of a UNet2DConditionModel belong to which resolution, and how to collect them in the
one call that also gives the model output. Knows nothing about timesteps, prompts or boxes.

Shapes: B batch, Z latent channels, L text tokens, D text width, h/w latent size, C channels.

Source of the taps: bytedance/DiffusionEngine (arXiv 2309.03893, section 3.2): all down, mid and up block outputs,
concatenated by resolution.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def tap_levels(blocks: int, mid: bool = True) -> tuple[int, ...]:
    """The pyramid level of each tap of a UNet with `blocks` down blocks, in the order down, mid, up; small
    distillations have no `mid` block.

    Level k has 1 / 2**k of the latent resolution. A block's output is taken after its own resampling, so down block
    i lands on level i + 1 and up block j on level blocks - 2 - j; the ends of both rows do not resample.
    The levels follow from the block's place and not from its tensor's size, so that tracing stays free of sizes.
    """
    last = blocks - 1
    down = [min(i + 1, last) for i in range(blocks)]
    up = [max(last - 1 - j, 0) for j in range(blocks)]
    return (*down, *([last] if mid else []), *up)


def pyramid_channels(unet_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels of div1, div2, div4, ... for a UNet with this configuration: (960, 1600, 1920, 3840) for SD 2."""
    widths = [int(width) for width in unet_config["block_out_channels"]]
    mid = unet_config.get("mid_block_type", "") is not None
    channels = [0] * len(widths)
    taps = [*widths, *widths[-1:] * mid, *reversed(widths)]
    for level, width in zip(tap_levels(len(widths), mid), taps, strict=True):
        channels[level] += width
    return tuple(channels)


class PyramidUNet(nn.Module):
    """A UNet2DConditionModel that returns its block outputs beside its model output.

    The UNet is held, not copied; it can be used on its own at the same time, and nothing stays hooked on it.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        # The module lists of a UNet2DConditionModel are not typed.
        model: Any = unet
        self._levels = tap_levels(len(model.down_blocks), model.mid_block is not None)

    @property
    def levels(self) -> int:
        """Number of pyramid levels."""
        return max(self._levels) + 1

    def forward(self, sample: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        """One UNet evaluation.

        Args:
            sample: noisy latents, [B, Z, h, w]; h and w must divide by 2 ** (levels - 1).
            timesteps: int64 [B].
            encoder_hidden_states: [B, L, D].

        Returns:
            (model_output [B, Z, h, w], div1 [B, C_0, h, w], div2 [B, C_1, h/2, w/2], ...).
        """
        unet: Any = self.unet
        taps: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            taps.append(output[0] if isinstance(output, tuple) else output)

        blocks = [*unet.down_blocks, *([] if unet.mid_block is None else [unet.mid_block]), *unet.up_blocks]
        hooks = [block.register_forward_hook(keep) for block in blocks]
        try:
            (model_output,) = unet(sample, timesteps, encoder_hidden_states, return_dict=False)
        finally:
            for hook in hooks:
                hook.remove()
        grouped: list[list[Tensor]] = [[] for _ in range(self.levels)]
        for level, tap in zip(self._levels, taps, strict=True):
            grouped[level].append(tap)
        return (model_output, *(torch.cat(group, dim=1) for group in grouped))


def label_pass(network: PyramidUNet, noisy: Tensor, encoder_hidden_states: Tensor, timestep: int) -> tuple[Tensor, ...]:
    """The pyramid of latents to which the noise of `timestep` was added: one conditional UNet call; no gradient.

    Args:
        network: the UNet.
        noisy: [B, Z, h, w], as `diffusion.latents.add_noise` makes them.
        encoder_hidden_states: of the prompts, [B, L, D].
        timestep: t, the same for all.

    Returns:
        (div1, div2, ...).
    """
    with torch.no_grad():
        timesteps = torch.full((len(noisy),), timestep, dtype=torch.int64, device=noisy.device)
        outputs: tuple[Tensor, ...] = network(noisy, timesteps, encoder_hidden_states)
    return outputs[1:]
