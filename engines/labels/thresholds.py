"""The score from which a detector's boxes are good enough to be labels, class by class.

Knows: how detections are matched with annotations, and which threshold reaches a wanted precision. Knows nothing
about models, files or images.

N boxes, M annotated boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.labels.boxes import SCORE_FLOOR, Floats, Instances, iou_matrix

MATCH_IOU = 0.5  # a detection that overlaps an annotated box of its class so much has found it
LEAST_BOXES = 10  # annotated boxes, and detections above a threshold, that a precision is believed from
GRID = np.round(np.arange(SCORE_FLOOR, 1.0, 0.01), 2)  # thresholds that are tried


@dataclass(frozen=True)
class Choice:
    """What was chosen for one class."""

    boxes: int  # annotated boxes of the class; crowds aside
    score: float | None  # the threshold; None where too few boxes speak for one
    precision: float = 0.0  # share of the boxes scoring at least that which are right
    recall: float = 0.0  # share of the annotated boxes that these find


def choose_thresholds(
    annotations: Sequence[Instances], detections: Sequence[Instances], class_names: Sequence[str], goal: float
) -> dict[str, Choice]:
    """The threshold of each class that gives `detections[i]` on `annotations[i]` a precision of `goal`, and finds most.

    Thresholds are whole hundredths. One is believed where at least LEAST_BOXES detections score so much; where none
    of these reaches the goal, the most precise is taken. A higher one, no less precise, whose recall lies within one
    standard error of that one's is better: what these images can't tell apart, others can (Breiman et al.,
    Classification and Regression Trees, 1984, has the rule for the size of a tree). Of thresholds that find the same
    boxes, the middle one is taken, furthest from the boxes on both sides. A class with fewer than LEAST_BOXES annotated
    boxes gets no threshold.
    """
    chosen = {}
    for label, name in enumerate(class_names):
        boxes = _objects(annotations, label)
        pairs = zip(annotations, detections, strict=True)
        outcomes = [matched(truth, found, label) for truth, found in pairs]
        scores = np.concatenate([score for score, _ in outcomes] or [np.zeros(0)])
        right = np.concatenate([hit for _, hit in outcomes] or [np.zeros(0, dtype=bool)])
        chosen[name] = _choose(scores, right, boxes, goal)
    return chosen


def precision_and_recall(
    annotations: Sequence[Instances], labels: Sequence[Instances], class_names: Sequence[str]
) -> dict[str, float]:
    """precision/<class> and recall/<class>, 0 to 1, of `labels[i]` on `annotations[i]`: right by MATCH_IOU or more.

    No precision of a class without labels, no recall of one without annotated boxes; crowds count neither way.
    """
    figures: dict[str, float] = {}
    for label, name in enumerate(class_names):
        right = [matched(truth, found, label)[1] for truth, found in zip(annotations, labels, strict=True)]
        counted = sum(len(hits) for hits in right)
        hits = sum(int(one.sum()) for one in right)
        boxes = _objects(annotations, label)
        figures |= {f"precision/{name}": hits / counted} if counted else {}
        figures |= {f"recall/{name}": hits / boxes} if boxes else {}
    return figures


def matched(truth: Instances, found: Instances, label: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Scores [N] of one image's detections of a class, best first, and whether each is right [N].

    A detection takes the annotated box of its class that it overlaps most, if that is by MATCH_IOU or more and no
    better detection took it. Detections inside a crowd are neither right nor wrong, and left out.
    """
    own = found.labels == label
    order = np.argsort(-found.scores[own], kind="stable")
    boxes, scores = found.boxes[own][order], found.scores[own][order].astype(np.float64).round(4)  # as in a journal
    single = (truth.labels == label) & ~truth.crowd
    overlaps = iou_matrix(boxes, truth.boxes[single])
    right = np.zeros(len(boxes), dtype=bool)
    for row in range(len(boxes)):
        if overlaps.shape[1] and overlaps[row].max() >= MATCH_IOU:
            right[row] = True
            overlaps[:, overlaps[row].argmax()] = 0.0  # taken
    counts = right | ~in_crowds(boxes, truth.boxes[(truth.labels == label) & truth.crowd])
    return scores[counts], right[counts]


def in_crowds(boxes: Floats, crowds: Floats) -> npt.NDArray[np.bool_]:
    """Whether at least MATCH_IOU of a box's own area lies in one of the crowds, [N]."""
    top_left = np.maximum(boxes[:, None, :2], crowds[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    inside = np.clip(bottom_right - top_left, 0.0, None).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    return np.asarray((inside >= MATCH_IOU * areas[:, None]).any(axis=1))


def _objects(annotations: Sequence[Instances], label: int) -> int:
    """Annotated boxes of a class; crowds aside."""
    return sum(int(((truth.labels == label) & ~truth.crowd).sum()) for truth in annotations)


def _choose(scores: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], boxes: int, goal: float) -> Choice:
    if boxes < LEAST_BOXES:
        return Choice(boxes, None)
    tried: list[Choice] = []
    for threshold in GRID.tolist():
        above = scores >= threshold
        if above.sum() < LEAST_BOXES:
            break
        hits = int(right[above].sum())
        tried.append(Choice(boxes, threshold, hits / int(above.sum()), hits / boxes))
    if not tried:
        return Choice(boxes, None)
    lowest = next((choice for choice in tried if choice.precision >= goal), None)
    lowest = lowest or max(tried, key=lambda choice: choice.precision)
    least = lowest.recall - _standard_error(lowest.recall, boxes)
    highest = [choice for choice in tried if choice.recall >= least and choice.precision >= lowest.precision][-1]
    same = [choice for choice in tried if choice.recall == highest.recall and choice.precision >= lowest.precision]
    return same[(len(same) - 1) // 2]


def _standard_error(share: float, count: int) -> float:
    """Of a share of `count` boxes, as Agresti and Coull have it (The American Statistician 52, 1998): never 0."""
    moved = (share * count + 2) / (count + 4)
    return float(np.sqrt(moved * (1 - moved) / (count + 4)))
