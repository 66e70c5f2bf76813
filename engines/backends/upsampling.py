"""Upsampling that is folded: a 3x3 convolution of an image that was doubled, computed on the image itself.

Knows: the arithmetic, and how PyTorch's modules take it. Stable Diffusion's UNet and VAE decoder double the resolution
so. Does not know graphs of other runtimes (`engines.backends.openvino.upsampling`).

Where every pixel is repeated in both directions, four of the nine numbers that a 3x3 kernel reads are enough: each of
the four pixels that come of one is a 2x2 convolution of the small image, with sums of the kernel's rows and columns
(Shi et al. 2016, arXiv 1609.07009). That is 4/9 of the work, and the same numbers but for rounding.

B batch, I channels in, O channels out, H/W of the small image.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Kernel = npt.NDArray[np.float32]
PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))  # row and column of each of the four pixels that come of one


def part_of(kernel: Kernel, row: int, column: int) -> Kernel:
    """The kernel [O, I, 2, 2] that gives the pixels at `row` and `column` (0 or 1) of each four, from one [O, I, 3, 3].

    The first row of four reads the row before (once) and its own (twice), the second its own and the next.
    """
    for axis, place in ((2, row), (3, column)):
        first, middle, last = np.split(kernel, 3, axis=axis)
        kernel = np.concatenate([first, middle + last] if place == 0 else [first + middle, last], axis=axis)
    return kernel


class FoldedUpsampling(nn.Module):
    """[B, I, H, W] to [B, O, 2 H, 2 W], as `convolution` of the doubled image would give it: one convolution gives all
    four pixels."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        kernel = weight.float().cpu().numpy()
        parts = np.concatenate([part_of(kernel, *place) for place in PLACES])
        self.conv = nn.Conv2d(weight.shape[1], len(parts), 2, padding=1, bias=bias is not None, device="meta")
        self.conv.weight = nn.Parameter(torch.from_numpy(parts).to(weight), requires_grad=False)
        if bias is not None:
            self.conv.bias = nn.Parameter(bias.detach().repeat(len(PLACES)), requires_grad=False)

    def forward(self, hidden_states: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """`output_size` is what diffusers' own module may be told; no other than the double is taken."""
        h, w = hidden_states.shape[2:]
        assert output_size is None or tuple(output_size) == (2 * h, 2 * w), output_size
        found = self.conv(hidden_states).unflatten(1, (2, 2, -1))  # each part of h + 1 rows and w + 1 columns
        rows = [
            torch.stack([found[:, row, column, :, row : row + h, column : column + w] for column in (0, 1)], dim=-1)
            for row in (0, 1)
        ]
        whole: Tensor = torch.stack(rows, dim=-3).reshape(len(hidden_states), -1, 2 * h, 2 * w)
        return whole


def fold_modules(network: nn.Module) -> int:
    """Exchange every upsampling with a 3x3 convolution in diffusers' modules, in place; returns how many."""
    from diffusers.models.upsampling import Upsample2D

    folded = 0
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Upsample2D) and _is_plain(child):
                setattr(parent, name, FoldedUpsampling(child.conv))
                folded += 1
    return folded


def _is_plain(part: Any) -> bool:
    """Whether it doubles, and then convolves 3x3, one pixel at a time with a border of one; and nothing else."""
    convolution = getattr(part, "conv", None)
    return (
        isinstance(convolution, nn.Conv2d)
        and bool(part.interpolate)
        and part.norm is None
        and (convolution.kernel_size, convolution.stride, convolution.padding) == ((3, 3), (1, 1), (1, 1))
        and (convolution.dilation, convolution.groups) == ((1, 1), 1)
    )
