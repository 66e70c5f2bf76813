"""Multi-scale deformable attention: each query looks at a few points round its reference box, on every level.

Knows: where the points lie and how they are weighed. Stands in for transformers' modules of the same job and the same
parameter names: theirs check sizes with operators that ONNX does not have, and take the levels' sizes as a tensor.
Knows nothing about the layers round it.

Shapes: B batch, Q queries, W width, A heads, P points for each head and level, S cells of all levels, h/w of a level.
Source: Deformable DETR (arXiv 2010.04159), equation 3.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.adapter.geometry import Shapes, split_levels


class DeformableAttention(nn.Module):
    """Attention from queries to points of a feature pyramid."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Every head starts looking in a direction of its own, point p at p steps from the reference."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1).view(1, 1, self.points, 1)
        offsets = directions[:, None, None, :] * steps.expand(self.heads, self.levels, -1, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        encoder_hidden_states: Tensor,
        reference_points: Tensor,
        spatial_shapes_list: Shapes,
        position_embeddings: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attend; the names are those that transformers' layers call with.

        Args:
            hidden_states: queries, [B, Q, W].
            encoder_hidden_states: cells, [B, S, W].
            reference_points: boxes (centre x, centre y, width, height) as shares of the frame, [B, Q, levels or 1, 4].
            spatial_shapes_list: (h, w) of each level.
            position_embeddings: added to the queries, [B, Q, W].

        Returns:
            ([B, Q, W], None).
        """
        if position_embeddings is not None:
            hidden_states = hidden_states + position_embeddings
        batch, queries = hidden_states.shape[:2]
        weights = self.attention_weights(hidden_states).reshape(batch, queries, self.heads, -1).softmax(dim=-1)
        weights = weights.transpose(1, 2).reshape(batch * self.heads, 1, queries, self.levels, self.points)
        places = self._places(hidden_states, reference_points)
        values = split_levels(self.value_proj(encoder_hidden_states), spatial_shapes_list)
        parts: list[Tensor] = []
        for level, cells in enumerate(values):
            if cells.dtype == torch.float16:  # which PyTorch 2.13 reads wrongly on a CPU where it has other strides
                cells = cells.contiguous()
            sampled = F.grid_sample(
                cells.reshape(batch * self.heads, -1, *cells.shape[2:]),
                places[:, :, level],
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )
            parts.append((sampled * weights[:, :, :, level]).sum(dim=-1))  # [B*A, W/A, Q]
        mixed = sum(parts[1:], start=parts[0]).reshape(batch, -1, queries).transpose(1, 2)
        output: Tensor = self.output_proj(mixed)
        return output, None

    def _places(self, hidden_states: Tensor, reference_points: Tensor) -> Tensor:
        """Where the points lie, -1..1 over the frame as `grid_sample` counts, [B*A, Q, levels, P, 2]."""
        batch, queries = hidden_states.shape[:2]
        shape = (batch, queries, self.heads, self.levels, self.points, 2)
        offsets = self.sampling_offsets(hidden_states).reshape(*shape)
        reference = reference_points[:, :, None, :, None, :]
        places: Tensor = 2 * (reference[..., :2] + offsets * (0.5 / self.points) * reference[..., 2:]) - 1
        return places.transpose(1, 2).flatten(0, 1)
