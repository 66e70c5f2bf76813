"""Boxes of two engines, compared as sets.

Knows: when two boxes count as the same, by the precision that made them. The adapter chooses its queries with a top-k,
where a rounding can swap two equal candidates: behind it, outputs can only be compared as the boxes that they are.
Does not know: engines, graphs, or what is done about boxes that differ.

B batch, Q queries, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engines.labels.boxes import cxcywh_to_xyxy, iou_matrix

SCORE = 0.05  # boxes below this are never used, and not compared

Array = npt.NDArray[Any]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Matching:
    """When two engines' boxes count as the same."""

    margin: float  # their scores differ by this at most
    iou: float  # they overlap by this at least
    missing: float  # share of the boxes that may have no counterpart


# In half precision a box leaves the graph in steps of 2**-11 of the frame, which is several per cent of a small one; a
# score moves by a few 0.01 where logits are wrong by 5e-3 of their norm; and two candidates at the threshold of the
# top-k can swap, which takes a box from one side. None of these is a fault of the graph.
MATCHINGS = {"float32": Matching(0.01, 0.95, 0.0), "float16": Matching(0.05, 0.85, 0.05)}


def match_boxes(found: Tensors, expected: Tensors, matching: Matching = MATCHINGS["float32"]) -> tuple[int, int]:
    """Compare `logits` [B, Q, K] and `boxes` [B, Q, 4] of two engines as sets of boxes, a query's best class each.

    Returns (boxes of either side that score clearly above SCORE, those of them without one on the other side that has
    the same class, and an IoU and a score as `matching` has them).
    """
    total = missing = 0
    for row in range(len(expected["logits"])):
        sides = [_candidates(side["logits"][row], side["boxes"][row]) for side in (found, expected)]
        for (boxes, scores, labels), (other_boxes, other_scores, other_labels) in (sides, sides[::-1]):
            same = labels[:, None] == other_labels[None, :]
            close = np.abs(scores[:, None] - other_scores[None, :]) <= matching.margin
            matched = (same & close & (iou_matrix(boxes, other_boxes) >= matching.iou)).any(axis=1)
            clear = scores >= SCORE + matching.margin
            total += int(clear.sum())
            missing += int((clear & ~matched).sum())
    return total, missing


def _candidates(logits: torch.Tensor, boxes: torch.Tensor) -> tuple[Array, Array, Array]:
    """Corner boxes [Q, 4], scores [Q] and classes [Q] of one image."""
    scores, labels = logits.double().sigmoid().max(dim=1)
    return cxcywh_to_xyxy(boxes.double().numpy()), scores.numpy(), labels.numpy()
