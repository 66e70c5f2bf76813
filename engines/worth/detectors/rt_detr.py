"""RT-DETRv2 (arXiv 2407.17140), as transformers has it: a transformer that gives boxes without anchors or NMS.

Knows: its settings at any size, how to start it from scratch or from a checkpoint folder in transformers' layout,
and its boxes in pixels. Knows nothing about data or training loops.

B batch, H/W pixels, Q queries, K classes, N boxes.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection

from engines.adapter.losses import cxcywh_to_xyxy, ignore_crowds, sums_by_kind, xyxy_to_cxcywh
from engines.common.files import read_json
from engines.common.quote import quote, shorten
from engines.errors import ModelError
from engines.worth.detectors.config import MAX_DETECTIONS, NetworkConfig, check_library_settings
from engines.worth.detectors.parts import Autocast, Found, Target, resnet_config, start_fresh

_PRIOR = 0.01  # share of queries that hold an object, before anything is learned
_LIBRARY_START = ("sampling_offsets", "attention_weights")  # layers whose first weights have a meaning
_LAST_OF_BOX_HEAD = "layers.2"
_SPARE = 1 << 24  # parameters, of class heads, that a checkpoint for fewer classes need not have
_IN_BF16 = ("model.backbone", "model.encoder")  # convolutions, most of the work


class RtDetr(nn.Module):
    """The detector behind `DetectionNetwork`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        network.loss_function = partial(_loss, network.loss_function)
        self.network = network
        self._autocast = Autocast(network, _IN_BF16)

    def loss(self, pixels: Tensor, targets: Sequence[Target]) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Varifocal, L1 and GIoU losses of every layer and of the denoising queries."""
        height, width = pixels.shape[2:]
        size = torch.tensor([width, height, width, height], dtype=torch.float32, device=pixels.device)
        labels = []
        for target in targets:
            boxes, crowds = (xyxy_to_cxcywh(target[name] / size) for name in ("boxes", "crowds"))
            moved = {"class_labels": target["labels"], "boxes": boxes, "crowds": crowds}
            labels.append(moved | {"crowd_labels": target["crowd_labels"]})
        output = self._autocast.run(self.network, pixels, labels=labels)
        return output.loss, sums_by_kind(output.loss_dict)

    def detect(self, pixels: Tensor) -> list[Found]:
        """The best pairs of query and class of every frame."""
        output = self._autocast.run(self.network, pixels)
        height, width = pixels.shape[2:]
        size = torch.tensor([width, height, width, height], dtype=torch.float32, device=pixels.device)
        found_at = cxcywh_to_xyxy(output.pred_boxes) * size
        scores = output.logits.sigmoid()
        classes = scores.shape[-1]
        found = []
        for image_scores, image_boxes in zip(scores.flatten(1), found_at, strict=True):
            best = torch.topk(image_scores, min(MAX_DETECTIONS, image_scores.numel()))
            boxes = image_boxes[torch.div(best.indices, classes, rounding_mode="floor")]
            found.append(Found(boxes, best.values, best.indices % classes))
        return found

    def settings(self) -> dict[str, Any]:
        """transformers' own settings, from which `from_settings` builds the same shape."""
        settings: dict[str, Any] = json.loads(self.network.config.to_json_string())
        return settings


def _loss(
    library: Any,
    logits: Tensor,
    labels: Sequence[Mapping[str, Tensor]],
    device: torch.device,
    pred_boxes: Tensor,
    config: RTDetrV2Config,
    outputs_class: Tensor,
    outputs_coord: Tensor,
    *,
    enc_topk_logits: Tensor,
    enc_topk_bboxes: Tensor,
    denoising_meta_values: Mapping[str, Any] | None,
    **others: Any,
) -> Any:
    """transformers' own loss, but that nothing is taught to be background inside crowds."""
    noisy = 0 if denoising_meta_values is None else denoising_meta_values["dn_num_split"][0]
    return library(
        ignore_crowds(logits, pred_boxes, labels, noisy),
        labels,
        device,
        pred_boxes,
        config,
        ignore_crowds(outputs_class, outputs_coord, labels, noisy),
        outputs_coord,
        enc_topk_logits=ignore_crowds(enc_topk_logits, enc_topk_bboxes, labels),
        enc_topk_bboxes=enc_topk_bboxes,
        denoising_meta_values=denoising_meta_values,
        **others,
    )


def from_settings(settings: Mapping[str, Any], num_classes: int) -> RtDetr:
    """A network of the shape that `RtDetr.settings` described; ModelError where transformers refuses it."""
    known = {name: value for name, value in settings.items() if name not in ("id2label", "label2id")}
    try:
        config = RTDetrV2Config(**known | {"num_labels": num_classes, "attn_implementation": "eager"})
        return RtDetr(RTDetrV2ForObjectDetection(config))
    except Exception as cause:  # transformers raises many kinds for settings that do not fit
        raise ModelError(f"The detector's settings cannot be used: {shorten(cause, 200)}.") from cause


def build(network: NetworkConfig, num_classes: int) -> RtDetr:
    """Random weights, drawn from torch's global generator."""
    model = RTDetrV2ForObjectDetection(_config(network, num_classes))
    start_fresh(model)
    for name, part in model.named_modules():
        if not isinstance(part, nn.Linear) or name.endswith(_LIBRARY_START):
            continue
        if name.endswith(_LAST_OF_BOX_HEAD):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        else:
            nn.init.xavier_uniform_(part.weight)
    return RtDetr(model)


def load_checkpoint(folder: Path, num_classes: int) -> RtDetr:
    """A checkpoint folder of transformers (config.json and safetensors), with new class heads where K differs.

    Nothing is fetched and no code is read from it. Raises ModelError for a folder that holds something else.
    """
    settings = read_json(folder / "config.json", ModelError)
    if settings.get("model_type") != "rt_detr_v2":
        found = quote(settings.get("model_type"))
        raise ModelError(f'{folder} holds a {found}; a "rt_detr_v2" was expected.')
    check_library_settings(settings, str(folder / "config.json"))
    try:
        with torch.device("meta"):
            described = RTDetrV2ForObjectDetection(RTDetrV2Config(**settings))
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        if sum(value.numel() for value in described.parameters()) > weights + _SPARE:
            raise ModelError("its settings describe a larger network than its weights are")
        model = RTDetrV2ForObjectDetection.from_pretrained(
            folder,
            num_labels=num_classes,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="eager",
        )
    except Exception as cause:  # transformers raises many kinds for a folder that does not fit
        raise ModelError(f"{folder} is no RT-DETRv2 checkpoint that can be read: {shorten(cause, 200)}.") from cause
    return RtDetr(model)


def _config(network: NetworkConfig, num_classes: int) -> RTDetrV2Config:
    width = network.width
    return RTDetrV2Config(
        backbone_config=resnet_config(network, (2, 3, 4)),
        freeze_backbone_batch_norms=False,
        num_labels=num_classes,
        initializer_bias_prior_prob=_PRIOR,
        d_model=width,
        encoder_hidden_dim=width,
        encoder_in_channels=[0, 0, 0],
        decoder_in_channels=[width] * 3,
        hidden_expansion=network.expansion,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        encoder_attention_heads=network.heads,
        decoder_attention_heads=network.heads,
        decoder_layers=network.decoder_layers,
        num_queries=network.queries,
        num_denoising=network.denoising,
        # Plain attention: its backward pass is the faster one on CPUs.
        attn_implementation="eager",
    )
