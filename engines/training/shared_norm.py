"""Batch norm over a batch that several processes share.

Knows: how the statistics of equal shares become those of the batch, in both directions. Knows nothing about networks.
nn.SyncBatchNorm does it on GPUs alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from engines.training.together import count, mean_of_all


def share_statistics(module: nn.Module) -> None:
    """Let batch norms normalise by the whole batch, of which each process has a share. Names of weights stay."""
    for part in module.modules() if count() > 1 else ():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = _SharedBatchNorm


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the equal shares of all processes.

    B batch, C channels, H/W cells.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        if not self.training or count() == 1:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        values = input.float()
        mean = _averaged(values.mean(dim=(0, 2, 3)))
        centred = values - mean[:, None, None]
        variance = _averaged(centred.square().mean(dim=(0, 2, 3)))
        with torch.no_grad():
            cells = input.numel() // input.shape[1] * count()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (cells / (cells - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def _averaged(tensor: Tensor) -> Tensor:
    """The mean over all processes, through which gradients pass."""
    mean: Tensor = _Averaged.apply(tensor)  # type: ignore[no-untyped-call]  # torch's
    return mean


class _Averaged(torch.autograd.Function):
    """The mean over all processes of a tensor, and of its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """The mean of the tensors of all processes."""
        return mean_of_all(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The mean of the gradients of all processes."""
        return mean_of_all(gradients[0])
