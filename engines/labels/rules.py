"""What the numbers of one image make of it: which boxes are labels, which are uncertain, and whether it is worth
keeping, as pure functions of what the journal holds.

Knows: the rules of a dataset and the reasons for which they drop an image. Knows nothing about pixels or files.
Because the journal holds all that a rule reads, `finalize` decides again with others exactly as the run itself would
have.

N boxes of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engines.labels.boxes import Instances, iou_matrix, join, without_duplicates
from engines.labels.scores import FALLBACK, Matched, Score, by_label, check_uncertain, full_score, shown

SAME_OBJECT_IOU = 0.5  # a weak box that overlaps a label so much is another try at the labelled object
_NO_BOX, _DOUBTFUL = "no box ", "doubtful labels"

Mask = npt.NDArray[np.bool_]


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


def label_rules(
    score: Score | Matched,
    uncertain: float,
    max_overlap: float,
    thresholds: Mapping[str, float],
    class_names: Sequence[str],
) -> Rules:
    """The rules for labels on real images; classes that `score` does not name take the adapter's `thresholds`.

    With "matched" the rules have the least score that may be found. Raises UsageError for classes that are none of
    `class_names`, and for numbers out of range.
    """
    full = FALLBACK if isinstance(score, str) else full_score(score, thresholds, class_names)
    check_uncertain(uncertain, 1.0 if isinstance(score, str) else full)
    return Rules(full, tuple(class_names), uncertain, max_overlap=max_overlap)


def is_label(found: Instances, rules: Rules) -> Mask:
    """Which boxes are labels, [N]."""
    sure = found.scores >= np.array(rules.scores)[found.labels]
    return sure if rules.max_overlap >= 1.0 else _without_doubles(found, sure, rules.max_overlap)


def is_uncertain(found: Instances, rules: Rules) -> Mask:
    """Which boxes score too little for a label and too much to be nothing, [N].

    One that overlaps a label by SAME_OBJECT_IOU is not among them, whatever its class: that object is labelled, and
    what lies round it is background.
    """
    if not rules.uncertain:
        return np.zeros(len(found), dtype=np.bool_)
    weak = (found.scores >= rules.uncertain) & (found.scores < np.array(rules.scores)[found.labels])
    labels = is_label(found, rules)
    if weak.any() and labels.any():
        weak[weak] = iou_matrix(_exact(found, weak), _exact(found, labels)).max(axis=1) < SAME_OBJECT_IOU
    return weak


def chosen(found: Instances, rules: Rules | None) -> Instances:
    """The labels, then as crowds the uncertain boxes: what a dataset's file holds of an image. All, without rules."""
    if rules is None:
        return found
    labels, uncertain = found.take(is_label(found, rules)), found.take(is_uncertain(found, rules))
    return join([labels, replace(uncertain, crowd=np.ones(len(uncertain), dtype=np.bool_))])


def quality(found: Instances) -> float:
    """How sure the adapter is of an image as a whole, 0 to 1: the mean score of all its boxes in the journal, each
    weighted by its own score, so that many weak boxes count little and no threshold matters. 1 where there are none.

    On the bundled model's repaintings it ranks images by the F1 of their labels (Spearman 0.73) better than the share
    of the scores that is accepted (0.43).
    """
    scores = found.scores.tolist()
    total = sum(scores)
    return sum(score**2 for score in scores) / total if total else 1.0


def drop_reason(found: Instances, rules: Rules) -> str | None:
    """Why an image with these boxes is dropped; None for one that is kept."""
    if not rules.keep_empty and not is_label(found, rules).any():
        return f"{_NO_BOX}scores {'what its class needs' if isinstance(rules.score, dict) else shown(rules.score)}"
    if rules.min_quality and quality(found) < rules.min_quality:
        return f"{_DOUBTFUL}: quality below {rules.min_quality:g}"
    return None


def is_rule(reason: str) -> bool:
    """Whether `drop_reason` gave this reason; otherwise the image could not be painted."""
    return reason.startswith((_NO_BOX, _DOUBTFUL))


def _exact(found: Instances, rows: Mask | npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Corners in float64, so that an overlap is the same for boxes from a network and from a file."""
    return found.boxes[rows].astype(np.float64)


def _without_doubles(found: Instances, sure: Mask, most: float) -> Mask:
    """The `sure` boxes without those that a surer one of their class covers by more than `most`, [N]."""
    kept = np.zeros(len(found), dtype=np.bool_)
    for label in np.unique(found.labels[sure]):
        own = np.flatnonzero(sure & (found.labels == label))
        own = own[np.argsort(-found.scores[own], kind="stable")]
        kept[own[without_duplicates(_exact(found, own), most, len(own))]] = True
    return kept
