"""Average precision of many resamples of the same images, from one matching of boxes.

Knows: COCO's greedy matching of detections to annotations, and AP when each image counts a given number of times.
`average_precision.mean_average_precision` is the measure; this is the same one in a form that is cheap to repeat (a
test holds them against each other). Knows nothing about models, files or intervals.

I images, K classes, T IoU thresholds, D detections of one class on all images, N boxes of one image.
Source: pycocotools' COCOeval (evaluateImg and accumulate).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.labels.average_precision import MAX_DETECTIONS
from engines.labels.boxes import Instances

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """The detections of one class on all images, best first, and which of them are right."""

    image: npt.NDArray[np.int64]  # [D], index of the image
    hit: Bools  # [T, D], matched to a single box
    ignored: Bools  # [T, D], matched to a crowd: counts neither way
    positives: npt.NDArray[np.int64]  # [I], single boxes of each image


def match(annotations: Sequence[Instances], detections: Sequence[Instances], num_classes: int) -> list[ClassMatches]:
    """Match `detections[i]` to `annotations[i]`, class by class."""
    return [_match_class(annotations, detections, label) for label in range(num_classes)]


def average_precision(classes: Sequence[ClassMatches], weights: npt.NDArray[np.int64]) -> Floats:
    """AP by threshold and class, [T, K], where image i counts `weights[i]` times; NaN for a class without boxes."""
    return np.stack([_class_precision(matches, weights) for matches in classes], axis=1)


def figures(precision: Floats, class_names: Sequence[str]) -> dict[str, float]:
    """`AP`, `AP50`, `AP75`, `AP/<class>` and `AP50/<class>` of [T, K]; classes without boxes count nowhere."""
    present = np.flatnonzero(~np.isnan(precision[0])).tolist()
    if not present:
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    known = precision[:, present]
    found = {"AP": float(known.mean()), "AP50": float(known[0].mean()), "AP75": float(known[5].mean())}
    for label in present:
        found[f"AP/{class_names[label]}"] = float(precision[:, label].mean())
        found[f"AP50/{class_names[label]}"] = float(precision[0, label])
    return found


def _match_class(annotations: Sequence[Instances], detections: Sequence[Instances], label: int) -> ClassMatches:
    scores, images, hits, ignored = [], [], [], []
    positives = np.zeros(len(annotations), dtype=np.int64)
    for index, (truth, found) in enumerate(zip(annotations, detections, strict=True)):
        mine = np.flatnonzero(found.labels == label)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")][:MAX_DETECTIONS]
        wanted = truth.labels == label
        positives[index] = int((wanted & ~truth.crowd).sum())
        hit, crowd = _match_image(found.boxes[mine], truth.boxes[wanted], truth.crowd[wanted])
        scores.append(found.scores[mine])
        images.append(np.full(len(mine), index, dtype=np.int64))
        hits.append(hit)
        ignored.append(crowd)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return ClassMatches(
        image=np.concatenate(images)[order],
        hit=np.concatenate(hits, axis=1)[:, order],
        ignored=np.concatenate(ignored, axis=1)[:, order],
        positives=positives,
    )


def _match_image(boxes: npt.NDArray[np.float32], truth: npt.NDArray[np.float32], crowd: Bools) -> tuple[Bools, Bools]:
    """(hit, ignored), [T, N], of one image's boxes, best first; a crowd takes any number of those left over."""
    hit = np.zeros((len(THRESHOLDS), len(boxes)), dtype=np.bool_)
    ignored = hit.copy()
    overlaps = _overlaps(boxes.astype(np.float64), truth.astype(np.float64), crowd)
    single = overlaps[:, ~crowd]
    in_crowd = overlaps[:, crowd].max(axis=1, initial=0.0)
    taken = np.zeros((len(THRESHOLDS), single.shape[1]), dtype=np.bool_)
    for row in range(len(boxes)):
        free = np.where(taken, -1.0, single[row])
        best = free.max(axis=1, initial=-1.0)
        hit[:, row] = best >= THRESHOLDS
        ignored[:, row] = ~hit[:, row] & (in_crowd[row] >= THRESHOLDS)
        for place in np.flatnonzero(hit[:, row]):
            taken[place, np.flatnonzero(free[place] == best[place])[-1]] = True
    return hit, ignored


def _overlaps(boxes: Floats, truth: Floats, crowd: Bools) -> Floats:
    """IoU, or for crowds the share of the box that lies in the crowd: [N boxes, N truth]."""
    top_left = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    shared = np.clip(bottom_right - top_left, 0.0, None).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)[:, None]
    other = (truth[:, 2:] - truth[:, :2]).prod(axis=-1)[None, :]
    return np.asarray(shared / np.maximum(np.where(crowd[None, :], areas, areas + other - shared), 1e-12))


def _class_precision(matches: ClassMatches, weights: npt.NDArray[np.int64]) -> Floats:
    """AP of one class by threshold, [T]: precision at 101 recalls, made monotone, averaged."""
    positives = int((matches.positives * weights).sum())
    if positives == 0:
        return np.full(len(THRESHOLDS), np.nan)
    counted = weights[matches.image].astype(np.float64)
    right = np.cumsum(matches.hit * counted, axis=1)
    seen = np.cumsum(~matches.ignored * counted, axis=1)
    precision = right / np.maximum(seen, 1e-12)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros(len(THRESHOLDS))
    for row in range(len(THRESHOLDS)):
        places = np.searchsorted(right[row] / positives, RECALLS, side="left")
        reached = places[places < precision.shape[1]]
        result[row] = precision[row, reached].sum() / len(RECALLS)
    return result
