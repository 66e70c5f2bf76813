"""What detectors' losses have in common: the parts as a training reports them, and crowds, which count neither way.

Knows: how transformers names a loss's parts, which answers lie in crowds, and which answers may be objects that the
labels left out. Computes no loss. The libraries' losses have no regions that count neither way: what lies in a crowd
would be taught to be background. So the gradient that lowers such answers' scores of the crowd's class is cut.

N boxes, M single objects, C crowds, Q queries, K classes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FOUND_IOU = 0.4  # an answer that shares so much with a labelled object is about that one
_HALF = 0.5  # a box lies in a crowd by this share of its area, and is about a single object from this IoU on


def sums_by_kind(parts: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
    """Losses of all layers added up by kind (vfl, bbox, giou); those of denoising queries as one."""
    sums: dict[str, float | Tensor] = {}
    for name, value in parts.items():
        kind = "denoising" if "_dn_" in name else name.removeprefix("loss_").split("_aux")[0]
        sums[kind] = sums.get(kind, 0.0) + value.detach()
    return sums


def ignored(boxes: Tensor, singles: Tensor, crowds: Tensor) -> Tensor:
    """Which boxes lie in which crowd and are about no single object, bool [N, C].

    Boxes [N, 4], singles [M, 4] and crowds [C, 4] are corners in one unit. A box lies in a crowd that covers half of
    its area.
    """
    areas = _areas(boxes)[:, None]
    inside = (_shared(boxes, crowds) >= _HALF * areas) & (areas > 0)
    about = (_ious(boxes, singles) >= _HALF).any(dim=1, keepdim=True)
    return inside & ~about


def ignored_classes(boxes: Tensor, singles: Tensor, crowds: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Of which class each box is `ignored`, bool [N, K]; `labels` [C] are the crowds'."""
    if not len(crowds):
        return torch.zeros(len(boxes), classes, dtype=torch.bool, device=boxes.device)
    of_class = torch.nn.functional.one_hot(labels, classes).bool()  # [C, K]
    return (ignored(boxes, singles, crowds)[:, :, None] & of_class[None]).any(dim=1)


def ignore_crowds(logits: Tensor, boxes: Tensor, targets: Sequence[Mapping[str, Tensor]], first: int = 0) -> Tensor:
    """The class logits [B, ..., Q, K] of `boxes` [B, ..., Q, 4]; no gradient will lower `ignored_classes`.

    Boxes, and the `boxes` and `crowds` of each image's target, are centre x, centre y, width, height; `crowd_labels`
    are the crowds' classes. Queries before number `first` stay as they are: denoising queries, which know their
    objects.
    """
    if not any(len(target["crowds"]) for target in targets):
        return logits
    found = []
    for own, target in zip(boxes.detach(), targets, strict=True):
        singles, crowds = cxcywh_to_xyxy(target["boxes"]), cxcywh_to_xyxy(target["crowds"])
        at, classes = cxcywh_to_xyxy(own).reshape(-1, 4), logits.shape[-1]
        mask = ignored_classes(at, singles, crowds, target["crowd_labels"], classes)
        found.append(mask.view(*own.shape[:-1], classes))
    silent = torch.stack(found)
    silent[..., :first, :] = False
    return never_lower(logits, silent)


def with_finds(
    targets: Sequence[Mapping[str, Tensor]], logits: Tensor, boxes: Tensor, score: float
) -> list[dict[str, Tensor]]:
    """The targets with each confident find that has no label as one more crowd, of the class that it was found as.

    `logits` [B, Q, K] and `boxes` [B, Q, 4] are the detector's own answers; one that scores at least `score` and shares
    FOUND_IOU with no single object of its image may be an object that the labels left out. Where labels are
    incomplete, this keeps them from teaching the detector to look away. Source: Co-mining (arXiv 2012.01950), with its
    finds as regions that count neither way in place of labels.
    """
    scores, classes = logits.detach().sigmoid().max(dim=-1)
    found = []
    for own_scores, own_classes, own_boxes, target in zip(scores, classes, boxes.detach(), targets, strict=True):
        own = own_scores >= score
        overlaps = _ious(cxcywh_to_xyxy(own_boxes), cxcywh_to_xyxy(target["boxes"]))
        own &= (overlaps < FOUND_IOU).all(dim=1)
        more = {"crowds": own_boxes[own].to(target["crowds"].dtype), "crowd_labels": own_classes[own]}
        found.append({**target, **{name: torch.cat([target[name], value]) for name, value in more.items()}})
    return found


def never_lower(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits that no gradient lowers where `mask`, of the same shape, is True; it still raises them.

    So an answer that a detector holds for a single object, however badly it fits it yet, learns that it is one.
    """
    if not logits.requires_grad:
        return logits
    kept = logits.clone()
    kept.register_hook(lambda gradient: torch.where(mask, gradient.clamp(max=0), gradient))
    return kept


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] as corners, of boxes as centre and size."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] as centre and size, of boxes as corners."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def _ious(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of corners [N, 4] and [M, 4]: [N, M]."""
    shared = _shared(boxes, others)
    return shared / (_areas(boxes)[:, None] + _areas(others)[None] - shared).clamp(min=1e-12)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def _shared(some: Tensor, others: Tensor) -> Tensor:
    """Areas that each of [N, 4] shares with each of [M, 4]: [N, M]."""
    low = torch.maximum(some[:, None, :2], others[None, :, :2])
    high = torch.minimum(some[:, None, 2:], others[None, :, 2:])
    return (high - low).clamp(min=0).prod(dim=-1)
