"""Round the adapter: a whole image in, detections in the image's own pixels out.

Knows: how an image of any size becomes a frame at the adapter's scale (`prepare_frame`), how the adapter's logits and
boxes become scored boxes on the original (`detections`), and how those of several looks become one (`fuse`). Training's
evaluation, `dengine label` and `dengine generate` share it. Knows nothing about networks: numpy only.

Shapes: H/W pixels, V looks, Q queries, K classes, N boxes.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.common.pixels import padded, scaled
from engines.labels.boxes import SCORE_FLOOR, Instances, cxcywh_to_xyxy, iou_matrix, join, without_duplicates

Float = npt.NDArray[np.float32]

LIMIT = 100  # most detections of one image, COCO's own limit
DUPLICATE_IOU = 0.8  # two boxes that overlap more are one object
SAME_IOU = 0.6  # boxes of two looks that overlap more show one object


def resized_size(width: int, height: int, short_side: int) -> tuple[int, int, float]:
    """Size (width, height) that brings an image's short side to `short_side` pixels, and the exact scale."""
    scale = short_side / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale)), scale


def prepare_frame(image: npt.NDArray[np.uint8], short_side: int, multiple: int) -> tuple[Float, float, tuple[int, int]]:
    """Resize a whole image to the adapter's scale and pad it to a size that the networks can divide.

    Args:
        image: uint8 [H, W, 3].
        short_side: pixels of the short side after resizing.
        multiple: what the frame's height and width must divide by; edge pixels are repeated right and below.

    Returns:
        (pixels float32 [3, H', W'] in [-1, 1], scale from original to frame pixels, (W', H')).
    """
    height, width = image.shape[:2]
    new_width, new_height, scale = resized_size(width, height, short_side)
    if (new_width, new_height) != (width, height):
        resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
        image = np.asarray(resized, dtype=np.uint8)
    padded_width = math.ceil(new_width / multiple) * multiple
    padded_height = math.ceil(new_height / multiple) * multiple
    pixels = scaled(padded(image, padded_width, padded_height)).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels), scale, (padded_width, padded_height)


def detections(
    logits: npt.NDArray[Any],
    boxes: npt.NDArray[Any],
    padded_size: tuple[int, int],
    scale: float,
    original_size: tuple[int, int],
    score_floor: float = SCORE_FLOOR,
    limit: int = LIMIT,
    duplicate_iou: float = DUPLICATE_IOU,
) -> Instances:
    """Scored boxes of one image, best first, from what the adapter gave for its frame.

    A query gives one detection: its best class. Of two boxes that overlap by more than `duplicate_iou` the better
    stays, whatever their classes. Boxes are clipped to the image; what lies in the padding is gone.

    Args:
        logits: [Q, K], before the sigmoid.
        boxes: [Q, 4], (centre x, centre y, width, height) as shares of the padded frame.
        padded_size: (width, height) of the frame the adapter saw, in pixels.
        scale: from original to frame pixels, as `prepare_frame` gave it; 1 for a painted frame.
        original_size: (width, height) of the image.

    Returns:
        N <= limit instances in the original's pixels, float32, every box with positive area.
    """
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(np.asarray(logits, dtype=np.float64), -60.0, 60.0)))
    labels = probabilities.argmax(axis=1)
    scores = probabilities.max(axis=1)
    width, height = original_size
    # The resized size was rounded to whole pixels, so the two axes differ a little from `scale`.
    to_x = padded_size[0] * width / max(1, round(width * scale))
    to_y = padded_size[1] * height / max(1, round(height * scale))
    corners = cxcywh_to_xyxy(np.asarray(boxes, dtype=np.float64)) * (to_x, to_y, to_x, to_y)
    corners = np.clip(corners, 0.0, (width, height, width, height)).astype(np.float32)
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    order = np.argsort(-scores, kind="stable")
    order = order[(scores[order] >= score_floor) & (area[order] > 0)]
    order = order[without_duplicates(corners[order], duplicate_iou, limit)]
    return Instances.of(corners[order], labels[order], scores[order].astype(np.float32))


def look_detections(
    logits: npt.NDArray[Any],
    boxes: npt.NDArray[Any],
    padded_size: tuple[int, int],
    scale: float,
    original_size: tuple[int, int],
) -> Instances:
    """`detections` of an image that was looked at V times, logits [V, Q, K] and boxes [V, Q, 4], as one (`fuse`)."""
    return fuse([detections(*look, padded_size, scale, original_size) for look in zip(logits, boxes, strict=True)])


def fuse(
    looks: Sequence[Instances], *, same_iou: float = SAME_IOU, score_floor: float = SCORE_FLOOR, limit: int = LIMIT
) -> Instances:
    """What several looks at one image say together: weighted boxes fusion (Solovyev et al. 2019, arXiv 1910.13302).

    The best box of all, of whatever look, takes from each other look the box of its class that overlaps it most, by
    more than `same_iou`, and so on with what is left. An object's box is the mean of its boxes, weighted by their
    scores. Its score is the mean of the surer half of all looks, 0 in one that does not see it: with the mean of all,
    as the paper has it, an object needs every look to be as sure as in one, and thresholds that were chosen on one look
    lose what the others find (figures: `docs/labels.md`). One look stays as it is.
    """
    if len(looks) == 1:
        return looks[0]
    every = join(looks)
    boxes, scores, labels = every.boxes, every.scores, every.labels
    owners = np.repeat(np.arange(len(looks)), [len(look) for look in looks])
    overlaps = np.where(labels[:, None] == labels[None, :], iou_matrix(boxes, boxes), 0.0)
    free = np.ones(len(scores), dtype=bool)
    corners, means, kinds = [], [], []
    half = -(-len(looks) // 2)
    for best in np.argsort(-scores, kind="stable"):
        if not free[best]:
            continue
        members = [best]
        for look in range(len(looks)):
            rivals = np.flatnonzero(free & (owners == look) & (overlaps[best] > same_iou))
            if look != owners[best] and len(rivals):
                members.append(rivals[overlaps[best, rivals].argmax()])
        free[members] = False
        weights = scores[members].astype(np.float64)
        corners.append((boxes[members] * weights[:, None]).sum(axis=0) / weights.sum())
        means.append(np.sort(weights)[::-1][:half].sum() / half)
        kinds.append(labels[best])
    together, kept = np.array(means, dtype=np.float32), np.array(kinds, dtype=np.int64)
    order = np.argsort(-together, kind="stable")
    order = order[together[order] >= score_floor][:limit]
    return Instances.of(np.array(corners, dtype=np.float32).reshape(-1, 4)[order], kept[order], together[order])
