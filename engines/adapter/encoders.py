"""The detection head's encoders: feature levels that look at each other, before boxes are read off them.

Knows: RT-DETRv2's hybrid encoder (arXiv 2407.17140) and Deformable DETR's (arXiv 2010.04159), as transformers has them
(Apache-2.0), without a backbone before them, and how such networks begin to learn from nothing. Knows nothing about
boxes or losses.

Shapes: B batch, W width, h/w cells of a level.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deformable_detr import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoder
from transformers.models.rt_detr_v2 import RTDetrV2Config
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import RTDetrV2HybridEncoder

from engines.adapter.attention import DeformableAttention
from engines.adapter.geometry import cell_boxes, flatten_levels, sine_positions, split_levels

_BATCH_NORM_MOMENTUM = 0.01  # slow, as the averaged weights are that meet these statistics


class SinePositions(nn.Module):
    """Stands in for RTDetrV2SinePositionEmbedding: the same values in float32, without a cache."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, width: int, height: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Positions of a level's cells, [1, h * w, channels]."""
        return sine_positions(height, width, self.channels, device).to(dtype)


class HybridEncoder(nn.Module):
    """RT-DETRv2's: self-attention on the coarsest level, then convolutions across levels, up and down again."""

    def __init__(self, config: RTDetrV2Config) -> None:
        super().__init__()
        width = config.encoder_hidden_dim
        self.encoder = RTDetrV2HybridEncoder(config)
        for layer in self.encoder.aifi:
            layer.position_embedding = SinePositions(width)
        reset_parameters(self)
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width, momentum=_BATCH_NORM_MOMENTUM))
            for _ in config.decoder_in_channels
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels [B, W, h_l, w_l], each half the one before, to levels of the same shapes."""
        fused = self.encoder(list(levels)).last_hidden_state
        return [project(level) for project, level in zip(self.input_proj, fused, strict=True)]


class DeformableEncoder(nn.Module):
    """Deformable DETR's: every cell attends to a few points on all levels."""

    def __init__(self, config: RTDetrV2Config) -> None:
        super().__init__()
        width, levels = config.d_model, config.num_feature_levels
        settings = DeformableDetrConfig(
            d_model=width,
            encoder_layers=config.encoder_layers,
            encoder_ffn_dim=config.encoder_ffn_dim,
            encoder_attention_heads=config.encoder_attention_heads,
            encoder_n_points=config.decoder_n_points,
            num_feature_levels=levels,
            dropout=0.0,
        )
        encoder = DeformableDetrEncoder(settings)
        reset_parameters(encoder)
        self.layers = encoder.layers
        for layer in self.layers:
            layer.self_attn = DeformableAttention(
                width, config.encoder_attention_heads, levels, config.decoder_n_points
            )
        self.reach = 2.0 * config.decoder_n_points
        self.level_embed = nn.Parameter(torch.randn(levels, width))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels [B, W, h_l, w_l] to levels of the same shapes."""
        hidden, shapes = flatten_levels(levels)
        positions = torch.cat(
            [
                sine_positions(height, width, hidden.shape[-1], hidden.device).to(hidden.dtype)
                + self.level_embed[level]
                for level, (height, width) in enumerate(shapes)
            ],
            dim=1,
        )
        # Offsets are counted in cells here: the reference box makes an offset of 1 one cell of the level looked at.
        reference = cell_boxes(shapes, self.reach, hidden.device).to(hidden.dtype)
        for layer in self.layers:
            hidden = layer(
                hidden,
                None,
                spatial_position_embeddings=positions,
                reference_points=reference.expand(hidden.shape[0], -1, -1, -1),
                spatial_shapes_list=shapes,
            )
        return split_levels(hidden, shapes)


def reset_parameters(module: nn.Module) -> None:
    """Start as these networks do when they are trained from scratch.

    transformers draws every matrix with a deviation of 0.01 or 0.02, and batch norm's scales from N(0, 0.01), which
    suits weights that are loaded afterwards; a head that has to learn from that point stands still for long.
    """
    part: Any
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d):
            part.reset_parameters()
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = _BATCH_NORM_MOMENTUM
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
