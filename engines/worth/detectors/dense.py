"""RetinaNet (arXiv 1708.02002) and Faster R-CNN (arXiv 1506.01497), as torchvision has them.

Knows: their settings at any size, on the same ResNet as every other detector here, with anchors that follow the
frame's pixels, and their boxes. torchvision is an extra and imported when such a detector is built.
Knows nothing about data or training loops.

B batch, H/W pixels, N boxes, K classes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.rt_detr.modeling_rt_detr_resnet import RTDetrResNetBackbone

from engines.adapter.losses import ignored, ignored_classes, never_lower, sums_by_kind
from engines.errors import BackendError
from engines.worth.detectors.config import MAX_DETECTIONS, NetworkConfig
from engines.worth.detectors.parts import Autocast, Found, Target, resnet_config, start_fresh

_SCORE_FLOOR = 0.01  # detections below this are never kept
_GROUPS = 32  # of group norm
_NEITHER = -1  # torchvision's label of anchors that are neither objects nor background
_BOX_WIDTH = 4  # width of the second stage's layers, in multiples of the network's width
_PIXELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


def torchvision_detection() -> Any:
    """The module torchvision.models.detection; BackendError with the way to mend it where it does not import."""
    try:
        from torchvision.models import detection
    except (ImportError, RuntimeError, AttributeError) as cause:  # a build for another torch raises any of these
        raise BackendError(
            f"retinanet and faster_rcnn need torchvision, which does not import here ({cause}): install it with "
            "`pip install torchvision` of the release and the source of your torch, or take `detector=rt_detr`.",
            field="detector",
        ) from cause
    return detection


class Dense(nn.Module):
    """Either detector behind `DetectionNetwork`."""

    def __init__(self, network: Any, in_bf16: Sequence[str], first_label: int) -> None:
        super().__init__()
        self.network = network
        self._first_label = first_label  # 1 where label 0 is the background
        self._autocast = Autocast(network, in_bf16)

    def loss(self, pixels: Tensor, targets: Sequence[Target]) -> tuple[Tensor, dict[str, float | Tensor]]:
        """The detector's own losses, added up."""
        moved = [{**target, "labels": target["labels"] + self._first_label} for target in targets]
        parts = self._autocast.run(self._call, pixels, moved)
        return sum(parts.values(), start=torch.zeros((), device=pixels.device)), sums_by_kind(parts)

    def detect(self, pixels: Tensor) -> list[Found]:
        """What is left after the detector's own non-maximum suppression."""
        outputs = self._autocast.run(self._call, pixels, None)
        return [Found(found["boxes"], found["scores"], found["labels"] - self._first_label) for found in outputs]

    def _call(self, pixels: Tensor, targets: list[dict[str, Tensor]] | None) -> Any:
        return self.network(list(pixels), targets)


def build(network: NetworkConfig, num_classes: int) -> Dense:
    """Random weights, drawn from torch's global generator. Raises BackendError without torchvision."""
    detection = torchvision_detection()
    make = _retinanet if network.kind == "retinanet" else _faster_rcnn
    return make(detection, network, num_classes)


class _Pyramid(nn.Module):
    """A ResNet and torchvision's feature pyramid behind it: what its detectors call a backbone."""

    def __init__(self, network: NetworkConfig, stages: Sequence[int], extra: nn.Module) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.body = RTDetrResNetBackbone(resnet_config(network, stages))
        start_fresh(self.body)
        self.fpn = FeaturePyramidNetwork(
            self.body.channels, network.width, extra_blocks=extra, norm_layer=partial(nn.GroupNorm, _GROUPS)
        )
        self.out_channels = network.width

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Frames [B, 3, H, W] to feature maps by name, the finest first."""
        maps = self.body(pixels).feature_maps
        levels: dict[str, Tensor] = self.fpn(OrderedDict((str(place), level) for place, level in enumerate(maps)))
        return levels


def _retinanet(detection: Any, network: NetworkConfig, num_classes: int) -> Dense:
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.retinanet import RetinaNetHead
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    backbone = _Pyramid(network, (2, 3, 4), LastLevelP6P7(network.width, network.width))
    sides = [network.anchor_cells * stride for stride in (8, 16, 32, 64, 128)]
    sizes = tuple(tuple(round(side * 2 ** (part / 3)) for part in range(3)) for side in sides)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = RetinaNetHead(
        network.width,
        anchors.num_anchors_per_location()[0],
        num_classes,
        norm_layer=partial(nn.GroupNorm, _GROUPS),
    )
    model = detection.RetinaNet(
        backbone,
        num_classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=_SCORE_FLOOR,
        detections_per_img=MAX_DETECTIONS,
        **_PIXELS,
    )
    model.compute_loss = partial(_retinanet_loss, model.compute_loss)
    return Dense(_as_they_are(model), ("backbone", "head"), first_label=0)


def _faster_rcnn(detection: Any, network: NetworkConfig, num_classes: int) -> Dense:
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    backbone = _Pyramid(network, (1, 2, 3, 4), LastLevelMaxPool())
    sizes = tuple((round(2 * network.anchor_cells * stride),) for stride in (4, 8, 16, 32, 64))
    pool = MultiScaleRoIAlign(featmap_names=["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    inner = _BOX_WIDTH * network.width
    model = detection.FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_pre_nms_top_n_train=1000,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_train=500,
        rpn_post_nms_top_n_test=300,
        rpn_batch_size_per_image=128,
        box_roi_pool=pool,
        box_head=TwoMLPHead(network.width * 7 * 7, inner),
        box_predictor=FastRCNNPredictor(inner, num_classes + 1),  # and the background
        box_score_thresh=_SCORE_FLOOR,
        box_detections_per_img=MAX_DETECTIONS,
        box_batch_size_per_image=128,
        **_PIXELS,
    )
    model.rpn.assign_targets_to_anchors = partial(_anchors_outside, model.rpn.assign_targets_to_anchors)
    model.roi_heads.select_training_samples = partial(_proposals_outside, model.roi_heads.select_training_samples)
    in_bf16 = ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor")
    return Dense(_as_they_are(model), in_bf16, first_label=1)


# What follows keeps each detector from teaching what lies in crowds to be background.


def _retinanet_loss(library: Any, targets: Sequence[Target], outputs: dict[str, Any], anchors: Sequence[Tensor]) -> Any:
    logits = outputs["cls_logits"]
    mask = [
        ignored_classes(own, target["boxes"], target["crowds"], target["crowd_labels"], logits.shape[-1])
        for own, target in zip(anchors, targets, strict=True)
    ]
    return library(targets, outputs | {"cls_logits": never_lower(logits, torch.stack(mask))}, anchors)


def _anchors_outside(library: Any, anchors: Sequence[Tensor], targets: Sequence[Target]) -> Any:
    labels, boxes = library(anchors, targets)
    fewer = [
        torch.where((label == 0) & _in_crowds(own, target), _NEITHER, label)
        for own, target, label in zip(anchors, targets, labels, strict=True)
    ]
    left = any((label != _NEITHER).any() for label in fewer)
    return (fewer if left else labels), boxes  # the library's loss of nothing would be no number


def _proposals_outside(library: Any, proposals: Sequence[Tensor], targets: Sequence[Target]) -> Any:
    fewer = [own[~_in_crowds(own, target)] for own, target in zip(proposals, targets, strict=True)]
    left = any(len(own) + len(target["boxes"]) for own, target in zip(fewer, targets, strict=True))
    return library(fewer if left else proposals, targets)


def _in_crowds(boxes: Tensor, target: Target) -> Tensor:
    """Of any class: a first stage knows none, and a second stage's classes are one choice."""
    return ignored(boxes, target["boxes"], target["crowds"]).any(dim=1)


def _as_they_are(model: Any) -> Any:
    """Keep torchvision from resizing frames: ours have their scale, and their sides divide by 32."""
    model.transform.resize = lambda image, target=None: (image, target)
    return model
