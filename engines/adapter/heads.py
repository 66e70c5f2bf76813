"""The detection head: feature levels in, scored boxes out, and the losses that teach it.

Knows: how to join parts of transformers' detectors without their backbones. The encoder is one of `encoders`; the
decoder is RT-DETRv2's behind both (arXiv 2407.17140): two-stage query selection, deformable attention, boxes refined
layer by layer, contrastive denoising. Deformable DETR's encoder with such a decoder is the design of DINO (arXiv
2203.03605), the head of DiffusionEngine.
The modules, denoising queries, matching and losses are transformers' (Apache-2.0); the joints are ours, because theirs
start from pixels, tie anchors to shares of the frame and leave float64 in a traced graph.
Knows nothing about UNets, datasets or training loops.

Shapes: B batch, W width, S cells of all levels, Q queries, K classes, N boxes, M crowds, h/w cells of a level.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss
from transformers.models.rt_detr_v2 import RTDetrV2Config
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import (
    RTDetrV2Decoder,
    RTDetrV2MLPPredictionHead,
    get_contrastive_denoising_training_group,
)

from engines.adapter.attention import DeformableAttention
from engines.adapter.encoders import reset_parameters
from engines.adapter.geometry import Shapes, anchor_logits, flatten_levels
from engines.adapter.losses import ignore_crowds, sums_by_kind, with_finds

PRIOR = 0.01  # share of queries that hold an object, before anything is learned


def decoder_config(
    *,
    levels: int,
    num_classes: int,
    width: int,
    encoder_layers: int,
    decoder_layers: int,
    queries: int,
    denoising: int,
    heads: int,
    ffn_width: int,
    points: int,
    expansion: float,
) -> RTDetrV2Config:
    """RT-DETRv2's settings for a head on `levels` feature levels of `width` channels, without a backbone."""
    return RTDetrV2Config(
        num_labels=num_classes,
        d_model=width,
        encoder_hidden_dim=width,
        hidden_expansion=expansion,
        encoder_in_channels=[width] * levels,
        decoder_in_channels=[width] * levels,
        feat_strides=[8 * 2**level for level in range(levels)],
        encode_proj_layers=[levels - 1],
        encoder_layers=encoder_layers,
        encoder_ffn_dim=ffn_width,
        encoder_attention_heads=heads,
        decoder_layers=decoder_layers,
        decoder_ffn_dim=ffn_width,
        decoder_attention_heads=heads,
        decoder_n_levels=levels,
        decoder_n_points=points,
        num_feature_levels=levels,
        num_queries=queries,
        num_denoising=denoising,
        # Plain attention: its backward pass is the faster one on CPUs, and it exports as plain products.
        attn_implementation="eager",
    )


class DetrHead(nn.Module):
    """Feature levels, each [B, W, h_l, w_l] and half the one before, to scored boxes.

    Boxes are (centre x, centre y, width, height) as shares of the frame.
    """

    def __init__(self, encoder: nn.Module, config: RTDetrV2Config, anchor_cells: float) -> None:
        super().__init__()
        width, classes, layers = config.d_model, config.num_labels, config.decoder_layers
        self.config = config
        self.anchor_cells = anchor_cells
        self.encoder = encoder
        projection = nn.Linear(width, width)
        nn.init.xavier_uniform_(projection.weight)
        self.enc_output = nn.Sequential(projection, nn.LayerNorm(width))
        self.enc_score_head = nn.Linear(width, classes)
        self.enc_bbox_head = RTDetrV2MLPPredictionHead(width, width, 4, num_layers=3)
        self.denoising_class_embed = nn.Embedding(classes + 1, width, padding_idx=classes)
        self.decoder = RTDetrV2Decoder(config)
        reset_parameters(self.decoder)
        for layer in self.decoder.layers:
            layer.encoder_attn = DeformableAttention(
                width, config.decoder_attention_heads, config.num_feature_levels, config.decoder_n_points
            )
        self.decoder.class_embed = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
        self.decoder.bbox_embed = nn.ModuleList(
            RTDetrV2MLPPredictionHead(width, width, 4, num_layers=3) for _ in range(layers)
        )
        for classifier in (self.enc_score_head, *self.decoder.class_embed):
            nn.init.constant_(classifier.bias, math.log(PRIOR / (1 - PRIOR)))
        for regressor in (self.enc_bbox_head, *self.decoder.bbox_embed):
            nn.init.zeros_(regressor.layers[-1].weight)
            nn.init.zeros_(regressor.layers[-1].bias)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(logits [B, Q, K], boxes [B, Q, 4], encoder_logits [B, S, K], encoder_boxes [B, S, 4]).

        The encoder's are those of every cell, before the best Q of them become queries.
        """
        memory, shapes, cells, encoder_logits, encoder_boxes = self._encode(levels)
        best = self._best(encoder_logits)
        decoded = self._decode(_take(cells, best), _take(encoder_boxes, best), memory, shapes, None)
        logits, boxes = decoded.intermediate_logits[:, -1], decoded.intermediate_reference_points[:, -1]
        return logits, boxes, encoder_logits, encoder_boxes.sigmoid()

    def loss(
        self,
        levels: list[Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        ignore_finds: float = 0.0,
        first: int = 0,
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Varifocal, L1 and GIoU losses of every decoder layer, of the encoder's choice and of the denoising queries.

        `targets`: for each image `class_labels` int64 [N], `boxes` float32 [N, 4], and `crowds` float32 [M, 4] with
        `crowd_labels` int64 [M], in which nothing is taught not to be of their class; N and M may be 0. Above 0,
        `ignore_finds` is the score from which a find without a label is such a region, too (`with_finds`). The levels
        may show a share of these images, number `first` on: the mean of equal shares' losses is the loss of all, whose
        boxes they are divided by. Draws denoising noise, of all images, from torch's global generator. Returns (sum,
        its parts by kind).
        """
        memory, shapes, cells, encoder_logits, encoder_boxes = self._encode(levels)
        best = self._best(encoder_logits)
        chosen_boxes = _take(encoder_boxes, best)
        target, reference = _take(cells, best).detach(), chosen_boxes.detach()
        noisy_target, noisy_reference, mask, meta = get_contrastive_denoising_training_group(
            targets=list(targets),
            num_classes=self.config.num_labels,
            num_queries=target.shape[1],
            class_embed=self.denoising_class_embed,
            num_denoising_queries=self.config.num_denoising,
            label_noise_ratio=self.config.label_noise_ratio,
            box_noise_scale=self.config.box_noise_scale,
        )
        own = slice(first, first + len(memory))
        weight = len(targets) / len(memory) * _divisor(targets[own]) / _divisor(targets)
        targets = targets[own]
        if meta is not None:
            target = torch.cat([noisy_target[own].to(target.dtype), target], dim=1)
            reference = torch.cat([noisy_reference[own], reference], dim=1)
            meta["dn_positive_idx"] = meta["dn_positive_idx"][own]
        decoded = self._decode(target, reference, memory, shapes, mask)
        # Losses and matching in float32: boxes need the digits.
        with torch.autocast(memory.device.type, enabled=False):
            logits = decoded.intermediate_logits.float()
            boxes = decoded.intermediate_reference_points.float()
            noisy = 0 if meta is None else meta["dn_num_split"][0]
            if ignore_finds:
                targets = with_finds(targets, logits[:, -1, noisy:], boxes[:, -1, noisy:], ignore_finds)
            logits = ignore_crowds(logits, boxes, targets, noisy)
            chosen_boxes = chosen_boxes.float().sigmoid()
            total, parts, _ = RTDetrForObjectDetectionLoss(
                logits[:, -1],
                list(targets),
                memory.device,
                boxes[:, -1],
                self.config,
                logits,
                boxes,
                enc_topk_logits=ignore_crowds(_take(encoder_logits, best).float(), chosen_boxes, targets),
                enc_topk_bboxes=chosen_boxes,
                denoising_meta_values=meta,
            )
        return total * weight, sums_by_kind({name: part * weight for name, part in parts.items()})

    def _encode(self, levels: list[Tensor]) -> tuple[Tensor, Shapes, Tensor, Tensor, Tensor]:
        """Memory [B, S, W], level shapes, cells [B, S, W], their logits [B, S, K] and boxes' logits [B, S, 4]."""
        memory, shapes = flatten_levels(self.encoder(levels))
        cells = self.enc_output(memory)
        boxes = self.enc_bbox_head(cells)
        anchors = anchor_logits(shapes, self.anchor_cells, memory.device)
        if not torch.is_autocast_enabled(memory.device.type):
            return memory, shapes, cells, self.enc_score_head(cells), boxes + anchors.to(boxes.dtype)
        # The choice of queries needs float32: in bf16 thousands of cells tie.
        with torch.autocast(memory.device.type, enabled=False):
            return memory, shapes, cells, self.enc_score_head(cells.float()), boxes.float() + anchors

    def _best(self, encoder_logits: Tensor) -> Tensor:
        """Indices [B, Q] of the cells with the highest score."""
        return torch.topk(encoder_logits.amax(dim=-1), self.config.num_queries, dim=1).indices

    def _decode(self, target: Tensor, reference: Tensor, memory: Tensor, shapes: Shapes, mask: Tensor | None) -> Any:
        return self.decoder(
            inputs_embeds=target,
            encoder_hidden_states=memory,
            encoder_attention_mask=mask,
            reference_points=reference,
            spatial_shapes_list=shapes,
        )


def _divisor(targets: Sequence[Mapping[str, Tensor]]) -> int:
    """What transformers' losses divide by: the number of boxes."""
    return max(1, sum(len(target["class_labels"]) for target in targets))


def _take(cells: Tensor, index: Tensor) -> Tensor:
    """Rows of [B, S, C] at index [B, Q]: [B, Q, C]."""
    return cells.gather(1, index.unsqueeze(-1).expand(-1, -1, cells.shape[-1]))
