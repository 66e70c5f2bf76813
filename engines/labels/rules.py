"""What the numbers of one image make of it: which boxes are labels, which are uncertain, and whether it is worth
keeping, as pure functions of what the journal holds.

Knows: the rules of a dataset and the reasons for which they drop an image. Knows nothing about pixels or files.
Because the journal holds all that a rule reads, `finalize` decides again with others exactly as the run itself would
have.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from engines.adapter.inference import iou_matrix, without_duplicates
from engines.labels.scores import Score, by_label, shown
from engines.runs.journal import Box

SAME_OBJECT_IOU = 0.5  # a weak box that overlaps a label so much is another try at the labelled object
_NO_BOX, _DOUBTFUL = "no box ", "doubtful labels"


@dataclass(frozen=True)
class Rules:
    """What a dataset takes from the journal."""

    score: Score  # a box from this on is a label; every class has its own, or one number holds for all
    class_names: tuple[str, ...]
    uncertain: float = 0.0  # a box from this up to `score` marks its region as uncertain; 0: none does
    min_quality: float = 0.0  # an image whose `quality` is below is dropped
    keep_empty: bool = False  # keep images without a label
    max_overlap: float = 1.0  # of two labels of a class that overlap (IoU) by more, the surer stays; 1: both do

    @property
    def scores(self) -> tuple[float, ...]:
        """The threshold of each label."""
        return by_label(self.score, self.class_names)


def labels_of(boxes: Iterable[Box], rules: Rules) -> list[Box]:
    """The boxes that are labels, in their order."""
    scores = rules.scores
    sure = [box for box in boxes if box.score >= scores[box.label]]
    return sure if rules.max_overlap >= 1.0 else _without_doubles(sure, rules.max_overlap)


def _without_doubles(boxes: Sequence[Box], most: float) -> list[Box]:
    """The boxes without those that a surer one of their class covers by more than `most`."""
    kept: list[int] = []
    for label in {box.label for box in boxes}:
        own = [index for index, box in enumerate(boxes) if box.label == label]
        own.sort(key=lambda index: -boxes[index].score)
        corners = np.array([boxes[index][:4] for index in own])
        kept += [own[place] for place in without_duplicates(corners, most, len(own)).tolist()]
    return [boxes[index] for index in sorted(kept)]


def uncertain_of(boxes: Sequence[Box], rules: Rules) -> list[Box]:
    """The boxes that score too little for a label and too much to be nothing.

    One that overlaps a label by SAME_OBJECT_IOU is left out, whatever its class: that object is labelled, and what
    lies round it is background.
    """
    if not rules.uncertain:
        return []
    scores = rules.scores
    weak = [box for box in boxes if rules.uncertain <= box.score < scores[box.label]]
    labels = labels_of(boxes, rules)
    if not weak or not labels:
        return weak
    overlaps = iou_matrix(np.array(weak)[:, :4], np.array(labels)[:, :4]).max(axis=1)
    return [box for box, overlap in zip(weak, overlaps.tolist(), strict=True) if overlap < SAME_OBJECT_IOU]


def quality(boxes: Sequence[Box]) -> float:
    """How sure the adapter is of an image as a whole, 0 to 1: the mean score of all its boxes in the journal, each
    weighted by its own score, so that many weak boxes count little and no threshold matters. 1 where there are none.

    On the bundled model's repaintings it ranks images by the F1 of their labels (Spearman 0.73) better than the share
    of the scores that is accepted (0.43).
    """
    total = sum(box.score for box in boxes)
    return sum(box.score**2 for box in boxes) / total if total else 1.0


def drop_reason(boxes: Sequence[Box], rules: Rules) -> str | None:
    """Why an image with these boxes is dropped; None for one that is kept."""
    if not rules.keep_empty and not labels_of(boxes, rules):
        return f"{_NO_BOX}scores {'what its class needs' if isinstance(rules.score, dict) else shown(rules.score)}"
    if rules.min_quality and quality(boxes) < rules.min_quality:
        return f"{_DOUBTFUL}: quality below {rules.min_quality:g}"
    return None


def is_rule(reason: str) -> bool:
    """Whether `drop_reason` gave this reason; otherwise the image could not be painted."""
    return reason.startswith((_NO_BOX, _DOUBTFUL))
