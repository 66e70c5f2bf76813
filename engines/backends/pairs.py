"""Pairs of rows: what the two rows of a guided image share is computed once, in PyTorch's modules.

Knows: which parts of a UNet2DConditionModel come before the first cross-attention. Does not know graphs of other
runtimes (`engines.backends.openvino.pairs`, which says where the idea is from).
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from engines.common.exchange import exchanged


def share_pairs(unet: nn.Module) -> nn.Module:
    """The same UNet for rows of which 2k and 2k + 1 hold the same latents and timestep; weights are shared with
    `unet`, which stays as it is."""
    return exchanged(unet, {name: _Once(unet.get_submodule(name)) for name in before_text(unet)})


def before_text(unet: Any) -> Iterator[str]:
    """Names of the parts that are done before a prompt is read, as far as they cost anything."""
    yield "conv_in"
    blocks = [(f"down_blocks.{place}", block) for place, block in enumerate(unet.down_blocks)]
    for name, block in [*blocks, *([] if unet.mid_block is None else [("mid_block", unet.mid_block)])]:
        if not getattr(block, "has_cross_attention", False):
            yield name
            continue
        yield f"{name}.resnets.0"
        transformer = f"{name}.attentions.0"
        yield f"{transformer}.proj_in"
        if not block.attentions[0].transformer_blocks[0].only_cross_attention:
            yield f"{transformer}.transformer_blocks.0.attn1"
        return


class _Once(nn.Module):
    """A part that computes the first row of every pair, and gives it for both."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: Any, **named: Any) -> Any:
        inputs, named = tree_map_only(Tensor, lambda x: x[::2], (inputs, named))
        return tree_map_only(Tensor, lambda x: x.repeat_interleave(2, dim=0), self.part(*inputs, **named))
