"""Cells, anchors and positions on a stack of feature levels, for the detection head.

Knows: where the cells of each level lie in the frame. All in float32 and free of caches, so that a traced graph
holds no float64 and no fixed size.

Shapes: B batch, C channels, S cells of all levels, finest level first, rows before columns, h/w cells of a level.
"""

import torch
from torch import Tensor

_EDGE = 0.01  # anchors keep this far from 0 and 1, where the logit has no end

Shapes = list[tuple[int, int]]


def flatten_levels(levels: list[Tensor]) -> tuple[Tensor, Shapes]:
    """Feature maps [B, C, h_l, w_l] to one sequence [B, S, C], and the (h_l, w_l) of each level."""
    shapes = [(level.shape[2], level.shape[3]) for level in levels]
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1), shapes


def split_levels(cells: Tensor, shapes: Shapes) -> list[Tensor]:
    """The reverse of `flatten_levels`."""
    batch, _, channels = cells.shape
    levels: list[Tensor] = []
    first = 0
    # Slices, because torch.split becomes a sequence in ONNX, which some runtimes don't have.
    for height, width in shapes:
        part = cells[:, first : first + height * width]
        levels.append(part.transpose(1, 2).reshape(batch, channels, height, width))
        first += height * width
    return levels


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Centres (x, y) of a level's cells as shares of the frame, float32 [h * w, 2]."""
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    return torch.stack([x[None, :].expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1)


def cell_boxes(shapes: Shapes, cells: float, device: torch.device) -> Tensor:
    """For every cell, on every level, the box round its centre that is `cells` cells of that level wide and high.

    Float32 [1, S, levels, 4], (centre x, centre y, width, height) as shares of the frame.
    """
    centres = torch.cat([cell_centres(height, width, device) for height, width in shapes])
    ones = torch.ones_like(centres[:, :1])
    boxes = [torch.cat([centres, ones * (cells / width), ones * (cells / height)], dim=-1) for height, width in shapes]
    return torch.stack(boxes, dim=1).unsqueeze(0)


def anchor_logits(shapes: Shapes, anchor_cells: float, device: torch.device) -> Tensor:
    """The boxes that refinement starts from, as logits of (centre x, centre y, width, height): float32 [1, S, 4].

    Every cell has one, a square `anchor_cells` of its own cells wide. RT-DETR's anchors are shares of the frame
    (0.05 at the first level); counted in cells, they keep their size in pixels when the frame's size changes.
    """
    anchors = []
    for height, width in shapes:
        centres = cell_centres(height, width, device)
        ones = torch.ones_like(centres[:, :1])
        anchors.append(torch.cat([centres, ones * (anchor_cells / width), ones * (anchor_cells / height)], dim=-1))
    shares = torch.cat(anchors, dim=0).clamp(_EDGE, 1 - _EDGE)
    return torch.log(shares / (1 - shares)).unsqueeze(0)


def sine_positions(
    height: int, width: int, channels: int, device: torch.device, temperature: float = 10000.0
) -> Tensor:
    """Sines and cosines of a level's rows and columns, float32 [1, h * w, channels], channels a multiple of 4.

    Laid out as RT-DETR's: sine of y, cosine of y, sine of x, cosine of x.
    """
    quarter = channels // 4
    rates = temperature ** -(torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    y = torch.arange(height, dtype=torch.float32, device=device)[:, None] * rates
    x = torch.arange(width, dtype=torch.float32, device=device)[:, None] * rates
    y, x = y[:, None, :].expand(-1, width, -1), x[None, :, :].expand(height, -1, -1)
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=-1).flatten(0, 1).unsqueeze(0)
