"""What the numbers of one image make of it: which boxes are labels, which make regions to ignore, and whether it is
worth keeping, as pure functions of what the journal holds.

Knows: the rules of a dataset and the reasons for which they drop an image. Knows nothing about pixels or files.
Because the journal holds all that a rule reads, `finalize` decides again with others exactly as the run itself would
have.

N boxes of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from engines.labels.boxes import Instances, covered, iou_matrix, join, without_duplicates
from engines.labels.scores import ScoreKind, ScoreLike, ScorePolicy, Thresholds, check_ignore_score, shown, stored

SAME_OBJECT_IOU = 0.5  # a weak box that overlaps a label so much is another try at the labelled object
VETO_SCORE = 0.1  # a label given beforehand is there where a box of any class that scores so much overlaps it
LABEL_SOURCES = ("adapter", "reference", "both")

Mask = npt.NDArray[np.bool_]


class DropReason(StrEnum):
    """Why a painted image is not in the dataset."""

    NO_BOX = "no box"  # by the rules: no box is a label
    DOUBTFUL = "doubtful"  # by the rules: its boxes are unsure as a whole
    UNREADABLE = "unreadable"  # its reference could not be read, and nothing was painted
    REPEAT = "repeat"  # it nearly repeats another image
    BEYOND = "beyond"  # more images than were asked for
    REJECTED = "rejected"  # by a person, in review

    @property
    def by_rule(self) -> bool:
        """Whether other rules may keep the image."""
        return self in (DropReason.NO_BOX, DropReason.DOUBTFUL)


@dataclass(frozen=True)
class Drop:
    """One image's reason, and what a person is told."""

    reason: DropReason
    text: str


@dataclass(frozen=True)
class Rules:
    """What a dataset takes from the journal."""

    thresholds: Thresholds  # a box from its class's on is a label
    ignore_score: float = 0.0  # a box from this up to `score` makes its region one to ignore; 0: none does
    min_quality: float = 0.0  # an image whose `quality` is below is dropped
    keep_empty: bool = False  # keep images without a label
    max_overlap: float = 1.0  # of two labels of a class that overlap (IoU) by more, the surer stays; 1: both do
    labels: str = "adapter"  # of LABEL_SOURCES: the adapter's boxes, those that were given with the image, or both

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of their labels."""
        return tuple(self.thresholds)

    def least(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The threshold of each label, [N]."""
        return np.array(tuple(self.thresholds.values()), dtype=np.float64)[labels]


def label_rules(
    score: ScoreLike,
    ignore_score: float,
    max_overlap: float,
    thresholds: Mapping[str, float],
    class_names: Sequence[str],
) -> Rules:
    """The rules for labels on real images; classes that `score` does not name take the adapter's `thresholds`.

    With "matched" the rules have the least score that may be found. Raises UsageError for classes that are none of
    `class_names`, and for numbers out of range.
    """
    policy = ScorePolicy.of(score)
    found = policy.thresholds(thresholds, class_names)
    matched = policy.kind is ScoreKind.MATCHED
    check_ignore_score(ignore_score, dict.fromkeys(class_names, 1.0) if matched else found)
    return Rules(found, ignore_score, max_overlap=max_overlap)


def is_label(found: Instances, rules: Rules) -> Mask:
    """Which boxes are labels, [N]."""
    sure = found.scores >= rules.least(found.labels)
    if rules.max_overlap >= 1.0:
        return sure
    return _without_doubles(found, sure & ~found.crowd, rules.max_overlap) | (sure & found.crowd)


def is_ignored(found: Instances, rules: Rules) -> Mask:
    """Which boxes score too little for a label and too much to be nothing, [N].

    One that overlaps a label by SAME_OBJECT_IOU is not among them, whatever its class: that object is labelled, and
    what lies round it is background.
    """
    if not rules.ignore_score:
        return np.zeros(len(found), dtype=np.bool_)
    weak = (found.scores >= rules.ignore_score) & (found.scores < rules.least(found.labels))
    labels = is_label(found, rules)
    if weak.any() and labels.any():
        weak[weak] = iou_matrix(_exact(found, weak), _exact(found, labels)).max(axis=1) < SAME_OBJECT_IOU
    return weak


def candidates(found: Instances, rules: Rules, given: Instances | None) -> Instances:
    """The boxes that the other rules choose from: the adapter's, those given with the image, or both, best first.

    given: what is known to be there before the adapter looks, crowds among it, scores 1; None where nothing is.
    With "both" the adapter vetoes: a given box becomes a crowd where no box of any class that scores VETO_SCORE
    overlaps it by SAME_OBJECT_IOU. Of the adapter's own boxes those stay that show no given object.
    """
    if rules.labels == "adapter" or given is None:
        return found
    if rules.labels == "reference":
        return given
    doubted = ~is_seen(found, given) & ~given.crowd
    both = replace(given, crowd=given.crowd | doubted)
    return join([both, found.take(_elsewhere(found, both))])


def is_seen(found: Instances, given: Instances) -> Mask:
    """Which given boxes the adapter sees, whatever it takes them for, [N]."""
    sure = found.take(found.scores >= VETO_SCORE)
    if not len(sure) or not len(given):
        return np.zeros(len(given), dtype=np.bool_)
    overlaps = iou_matrix(given.boxes.astype(np.float64), sure.boxes.astype(np.float64))
    return np.asarray(overlaps.max(axis=1) >= SAME_OBJECT_IOU)


def chosen(found: Instances, rules: Rules | None, given: Instances | None = None) -> Instances:
    """The labels, then as crowds the regions to ignore: what a dataset's file holds of an image. All, without rules.

    given: as for `candidates`.
    """
    if rules is None:
        return found
    found = candidates(found, rules, given)
    labels = found.take(is_label(found, rules))
    if not rules.ignore_score:
        return replace(labels, masks=None)
    ignored = found.take(is_ignored(found, rules))
    return join([labels, replace(ignored, crowd=np.ones(len(ignored), dtype=np.bool_))])


def quality(found: Instances) -> float:
    """How sure the adapter is of an image as a whole, 0 to 1: the mean score of all its boxes in the journal, each
    weighted by its own score, so that many weak boxes count little and no threshold matters. 1 where there are none.

    On the bundled model's repaintings it ranks images by the F1 of their labels (Spearman 0.73) better than the share
    of the scores that is accepted (0.43).
    """
    scores = found.scores.tolist()
    total = sum(scores)
    return sum(score**2 for score in scores) / total if total else 1.0


def drop(found: Instances, rules: Rules, given: Instances | None = None) -> Drop | None:
    """Why an image with these boxes is dropped; None for one that is kept. `given` as for `candidates`."""
    boxes = candidates(found, rules, given)
    if not rules.keep_empty and not (is_label(boxes, rules) & ~boxes.crowd).any():
        if rules.labels == "reference":
            return Drop(DropReason.NO_BOX, "no box of its reference is in it")
        score = stored(rules.thresholds)
        needed = "what its class needs" if isinstance(score, dict) else shown(score)
        return Drop(DropReason.NO_BOX, f"no box scores {needed}")
    if rules.min_quality and quality(found) < rules.min_quality:
        return Drop(DropReason.DOUBTFUL, f"doubtful labels: quality below {rules.min_quality:g}")
    return None


def _elsewhere(found: Instances, given: Instances) -> Mask:
    """Which boxes show another object than the given labels, [N], and do not lie in a given crowd by half."""
    boxes, others = found.boxes.astype(np.float64), given.single.boxes.astype(np.float64)
    new = np.ones(len(found), dtype=np.bool_)
    if len(found) and len(others):
        new &= iou_matrix(boxes, others).max(axis=1) < SAME_OBJECT_IOU
    if len(found) and given.crowd.any():
        new &= covered(boxes, given.crowds.boxes.astype(np.float64)).max(axis=1) < SAME_OBJECT_IOU
    return new


def without_doubles(found: Instances, most: float) -> Mask:
    """Which boxes no surer one of their class overlaps (IoU) by more than `most`, [N], whatever the threshold.

    Of labels these are the same, since the surer box of two is a label wherever the other one is.
    """
    return _without_doubles(found, ~found.crowd, most) | found.crowd


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
