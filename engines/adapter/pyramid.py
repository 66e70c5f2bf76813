"""The pyramid: what a frozen UNet knows about an image, resolution by resolution.

Knows: which block outputs of a UNet2DConditionModel belong to which resolution, and how to collect them in the
one call that also gives the model output. Knows nothing about timesteps, prompts or boxes.

Shapes: B batch, Z latent channels, L text tokens, D text width, h/w latent size, C channels.

Source of the taps: bytedance/DiffusionEngine (arXiv 2309.03893, section 3.2): all down, mid and up block outputs,
concatenated by resolution.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engines.common.exchange import exchanged


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

    The UNet is held, not copied; it can be used on its own at the same time, and nothing is hooked on it. What taps its
    blocks is made once, so that torch.compile and a recording take a whole call. One call at a time: who calls from
    several threads gives each a `twin`.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        # The module lists of a UNet2DConditionModel are not typed.
        model: Any = unet
        self._levels = tap_levels(len(model.down_blocks), model.mid_block is not None)
        self._tap()

    def _tap(self) -> None:
        model: Any = self.unet
        blocks = {f"down_blocks.{i}": block for i, block in enumerate(model.down_blocks)}
        blocks |= {} if model.mid_block is None else {"mid_block": model.mid_block}
        blocks |= {f"up_blocks.{i}": block for i, block in enumerate(model.up_blocks)}
        self._taps: list[Tensor] = []
        # In a tuple, where PyTorch does not look for modules: every weight has one name.
        self._tapped = (exchanged(model, {name: _Tap(block, self._taps) for name, block in blocks.items()}),)

    def twin(self) -> "PyramidUNet":
        """The same network, with taps of its own."""
        twin = copy.copy(self)
        twin._tap()
        return twin

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
        self._taps.clear()  # of a call that failed
        (model_output,) = self._tapped[0](sample, timesteps, encoder_hidden_states, return_dict=False)
        grouped: list[list[Tensor]] = [[] for _ in range(self.levels)]
        for level, tap in zip(self._levels, self._taps, strict=True):
            grouped[level].append(tap)
        self._taps.clear()
        return (model_output, *(torch.cat(group, dim=1) for group in grouped))


class _Tap(nn.Module):
    """A block of a UNet that keeps its output in `taps`; with what the UNet reads of its blocks."""

    def __init__(self, block: nn.Module, taps: list[Tensor]) -> None:
        super().__init__()
        self.block = block
        self.taps = taps
        self.has_cross_attention = bool(getattr(block, "has_cross_attention", False))
        self.resnets = block.resnets

    def forward(self, *inputs: Any, **named: Any) -> Any:
        output = self.block(*inputs, **named)
        self.taps.append(output[0] if isinstance(output, tuple) else output)
        return output


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
