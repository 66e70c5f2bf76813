"""What a dataset's own labels miss or have wrong, by what a detector finds on its images.

Knows: how finds and labels of an image are paired, which pairs and leftovers are suspicious, and how sure each is.
Knows nothing about models, files or pixels. The detector must not have learned from these very labels, or it repeats
what it learned (`engines.training.folds`).

Sources: the kinds are ObjectLab's (Tkachenko et al. 2023, arXiv 2309.00832: overlooked, swapped, badly located), with
the mean score of a class's finds as the measure of sureness (confident learning, Northcutt et al., arXiv 1911.00068).
A missing label is as sure as its find scores.

N finds, M labels of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from engines.labels.boxes import Instances, areas, iou_matrix, without_duplicates
from engines.labels.thresholds import MATCH_IOU, in_crowds

LOOSE_IOU = (0.3, 0.7)  # a label that its find overlaps by so much lies loosely on its object
DOUBLE_IOU = 0.6  # two boxes of a class that overlap more are one object
COVERED = 0.45  # two boxes of a class of which one covers so much of the other are one object, or part of it
LEAST_LABELLED = 30  # labels of a class from which its completeness is told
LEAST_CONFIDENCE = 0.05  # of a finding
CONFIDENT = 0.5  # from which a finding is more likely right than not
REFINES = 0.25  # score of a find from which a label's box is moved towards it

Box = tuple[float, float, float, float]  # corners in pixels
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class FindingKind(StrEnum):
    """What may be wrong.

    >>> FindingKind("loose")
    <FindingKind.LOOSE: 'loose'>
    """

    MISSING = "missing"  # a find without a label
    SPURIOUS = "spurious"  # a label without a find
    CLASS = "class"  # a label whose find is of another class
    LOOSE = "loose"  # a label that its find overlaps by LOOSE_IOU only
    DUPLICATE = "duplicate"  # a second label of one object
    OUTSIDE = "outside"  # a label that leaves the picture


@dataclass(frozen=True)
class Finding:
    """One suspicion about one image.

    >>> Finding(0, FindingKind.MISSING, 0.9, box=(10, 10, 30, 30), label=1, score=0.7).given is None
    True
    """

    image: int  # index of the image
    kind: FindingKind
    confidence: float  # 0 to 1: how likely it is right
    box: Box | None = None  # what was found
    label: int | None = None  # its class
    score: float | None = None  # the detector's, 0 to 1
    given: int | None = None  # the label that is meant, as its place among the image's labels
    given_box: Box | None = None
    given_label: int | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as far as its labels are judged."""

    width: int  # pixels
    height: int
    truth: Instances  # its labels
    found: Instances  # what a detector found on it, with the same classes
    outside: Sequence[float] = ()  # of each label, the share of its area that lay outside the image; empty: none did


@dataclass(frozen=True)
class Judgement:
    """What is believed of a dataset's labels."""

    findings: tuple[Finding, ...]  # the surest first
    completeness: tuple[float | None, ...]  # of each class, the share of its objects that have a label; None: not known

    def confident(self, kind: FindingKind, least: float = CONFIDENT) -> list[Finding]:
        """Findings of a kind that are at least so sure."""
        return [one for one in self.findings if one.kind is kind and one.confidence >= least]


@dataclass(frozen=True, eq=False)
class _Pairs:
    """An image's finds, the surest first and each object once, and which labels they are about."""

    found: Instances  # N
    overlaps: Floats  # [N, M], IoU
    label: Ints  # [N], the label of a find's class that is its own; -1: none
    find: Ints  # [M], the same the other way round
    extra: Mask  # [N], finds that are about no label at all


def judge(pictures: Sequence[Picture], classes: int, judged: Sequence[bool] | None = None) -> Judgement:
    """Everything that is suspicious about the labels of these images.

    judged: of each class, whether the detector knows it; None: all. Labels of others are no finding.
    """
    pairs = [_pair(picture) for picture in pictures]
    typical = _typical_scores(pairs, classes)
    found_share = _found_shares(pictures, pairs, classes)
    known = np.ones(classes, dtype=np.bool_) if judged is None else np.array(judged, dtype=np.bool_)
    findings: list[Finding] = []
    for index, (picture, pair) in enumerate(zip(pictures, pairs, strict=True)):
        findings += _missing(index, pair)
        findings += _about_labels(index, picture, pair, typical, found_share, known)
        findings += _duplicates(index, picture, pair, typical)
        findings += _outside(index, picture)
    sure = [one for one in findings if one.confidence >= LEAST_CONFIDENCE]
    sure.sort(key=lambda one: -one.confidence)
    return Judgement(tuple(sure), tuple(_completeness(pictures, sure, label, known) for label in range(classes)))


def refined(picture: Picture) -> npt.NDArray[np.float32]:
    """The labels' boxes [M, 4], each in the middle between its own place and its find's; one without a find stays.

    Two boxes of one object, drawn by two that did not see each other's, err in ways of their own: their mean errs less.
    Source: the fusion of several boxes of an object, as in weighted boxes fusion (arXiv 1910.13302).
    """
    pair, boxes = _pair(picture), picture.truth.boxes.copy()
    labels = np.flatnonzero(pair.find >= 0)
    finds = pair.find[labels]
    alike = (pair.overlaps[finds, labels] >= MATCH_IOU) & (pair.found.scores[finds] >= REFINES)
    labels, finds = labels[alike], finds[alike]
    boxes[labels] = (boxes[labels] + pair.found.boxes[finds]) / 2
    return boxes


def _pair(picture: Picture) -> _Pairs:
    truth, found = picture.truth, _without_doubles(picture.found)
    overlaps = iou_matrix(found.boxes.astype(np.float64), truth.boxes.astype(np.float64))
    fits = (found.labels[:, None] == truth.labels[None, :]) & ~truth.crowd[None, :]
    label, find = np.full(len(found), -1), np.full(len(truth), -1)
    for least in (MATCH_IOU, LOOSE_IOU[0]):
        for row in np.flatnonzero(label < 0):
            free = np.where(fits[row] & (find < 0), overlaps[row], 0.0)
            if len(free) and free.max() >= least:
                label[row] = free.argmax()
                find[label[row]] = row
    shared = _covered(found.boxes, truth.boxes)
    about = (label >= 0) | (overlaps >= MATCH_IOU).any(axis=1) | (fits & (shared >= COVERED)).any(axis=1)
    about |= in_crowds(found.boxes, truth.boxes[truth.crowd])
    return _Pairs(found, overlaps, label, find, ~about)


def _without_doubles(found: Instances) -> Instances:
    """The finds, the surest first, without those that are of an object that a surer one of their class found."""
    found = found.take(np.argsort(-found.scores, kind="stable"))
    kept = np.zeros(len(found), dtype=np.bool_)
    for label in np.unique(found.labels):
        own = np.flatnonzero(found.labels == label)
        own = own[without_duplicates(found.boxes[own].astype(np.float64), DOUBLE_IOU, len(own))]
        shared = np.tril(_covered(found.boxes[own], found.boxes[own]), -1)
        kept[own[(shared < COVERED).all(axis=1)]] = True
    return found.take(kept)


def _covered(some: npt.NDArray[np.floating[npt.NBitBase]], others: npt.NDArray[np.floating[npt.NBitBase]]) -> Floats:
    """How much of the smaller of two boxes the larger covers: [N, M] of corners [N, 4] and [M, 4]."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0.0, None).prod(axis=-1, dtype=np.float64)
    return np.asarray(shared / np.maximum(np.minimum(areas(some)[:, None], areas(others)[None]), 1e-9))


def _typical_scores(pairs: Sequence[_Pairs], classes: int) -> Floats:
    """Mean score of each class's finds that have a label, [classes]; that of all where a class has none."""
    scores = np.concatenate([one.found.scores[one.label >= 0] for one in pairs] or [np.zeros(0)]).astype(np.float64)
    labels = np.concatenate([one.found.labels[one.label >= 0] for one in pairs] or [np.zeros(0, dtype=np.int64)])
    every = scores.mean() if len(scores) else 1.0
    return np.array([scores[labels == label].mean() if (labels == label).any() else every for label in range(classes)])


def _found_shares(pictures: Sequence[Picture], pairs: Sequence[_Pairs], classes: int) -> Floats:
    """Share of each class's labels that have a find, [classes]."""
    hits, number = np.zeros(classes), np.zeros(classes)
    for picture, pair in zip(pictures, pairs, strict=True):
        single = ~picture.truth.crowd
        np.add.at(number, picture.truth.labels[single], 1)
        np.add.at(hits, picture.truth.labels[single & (pair.find >= 0)], 1)
    return np.asarray(hits / np.maximum(number, 1))


def _missing(image: int, pair: _Pairs) -> Iterator[Finding]:
    """Finds about no label, as sure as they score."""
    extra = np.flatnonzero(pair.extra)  # of several classes at one place, the surest
    rows = extra[without_duplicates(pair.found.boxes[extra].astype(np.float64), DOUBLE_IOU, len(extra))]
    for row in rows.tolist():
        yield _finding(image, FindingKind.MISSING, float(pair.found.scores[row]), found=(pair.found, row))


def _about_labels(
    image: int, picture: Picture, pair: _Pairs, typical: Floats, found_share: Floats, known: Mask
) -> Iterator[Finding]:
    """Labels whose finds are of another class, lie otherwise, or are not there.

    A find is as sure as it scores beside what its class's finds score, and at most 1.
    """
    truth, found = picture.truth, pair.found
    sure = np.minimum(1.0, found.scores / typical[found.labels]) if len(found) else np.zeros(0)
    for place in np.flatnonzero(~truth.crowd & known[truth.labels]).tolist():
        own, overlaps = int(pair.find[place]), pair.overlaps[:, place]
        other = np.where((overlaps >= MATCH_IOU) & (found.labels != truth.labels[place]) & (pair.label < 0), sure, 0.0)
        own_sure = float(sure[own]) if own >= 0 else 0.0
        if len(other) and other.max() > own_sure:
            row = int(other.argmax())
            sureness = float(other[row]) * (1.0 - own_sure)
            yield _finding(image, FindingKind.CLASS, sureness, found=(found, row), given=(truth, place))
        elif own < 0:
            rival = float(np.where(overlaps >= LOOSE_IOU[0], sure, 0.0).max(initial=0.0))
            sureness = float(found_share[truth.labels[place]]) * (1.0 - rival)
            yield _finding(image, FindingKind.SPURIOUS, sureness, given=(truth, place))
        elif overlaps[own] < LOOSE_IOU[1]:
            sureness = own_sure * (LOOSE_IOU[1] - float(overlaps[own])) / (LOOSE_IOU[1] - LOOSE_IOU[0])
            yield _finding(image, FindingKind.LOOSE, sureness, found=(found, own), given=(truth, place))


def _duplicates(image: int, picture: Picture, pair: _Pairs, typical: Floats) -> Iterator[Finding]:
    """Of two labels of a class that overlap, the one with the weaker find, as sure as that find is not."""
    truth = picture.truth
    single = np.flatnonzero(~truth.crowd)
    overlaps = iou_matrix(truth.boxes[single].astype(np.float64), truth.boxes[single].astype(np.float64))
    scores = np.append(pair.found.scores, 0.0)[pair.find[single]]
    sure = np.minimum(1.0, scores / typical[truth.labels[single]]) if len(single) else scores
    for first, second in np.argwhere(np.triu(overlaps > DOUBLE_IOU, 1)).tolist():
        if truth.labels[single[first]] == truth.labels[single[second]]:
            weaker = first if sure[first] < sure[second] else second
            sureness = float(overlaps[first, second]) * (1.0 - float(sure[weaker]))
            yield _finding(image, FindingKind.DUPLICATE, sureness, given=(truth, int(single[weaker])))


def _outside(image: int, picture: Picture) -> Iterator[Finding]:
    for place, share in enumerate(picture.outside):
        yield _finding(image, FindingKind.OUTSIDE, float(share), given=(picture.truth, place))


def _completeness(pictures: Sequence[Picture], findings: Sequence[Finding], label: int, known: Mask) -> float | None:
    """The share of a class's objects that have a label: the rest is what is believed to be missing."""
    labels = sum(int(((one.truth.labels == label) & ~one.truth.crowd).sum()) for one in pictures)
    if not known[label] or labels < LEAST_LABELLED:
        return None
    missing = sum(one.confidence for one in findings if one.kind is FindingKind.MISSING and one.label == label)
    return labels / (labels + missing)


def _finding(
    image: int,
    kind: FindingKind,
    confidence: float,
    *,
    found: tuple[Instances, int] | None = None,
    given: tuple[Instances, int] | None = None,
) -> Finding:
    """A finding about a find, a label, or both: each as the boxes that it is among, and its place there."""
    box = label = score = place = given_box = given_label = None
    if found is not None:
        box, label, score = _corners(*found), int(found[0].labels[found[1]]), float(found[0].scores[found[1]])
    if given is not None:
        place, given_box, given_label = given[1], _corners(*given), int(given[0].labels[given[1]])
    return Finding(image, kind, confidence, box, label, score, place, given_box, given_label)


def _corners(boxes: Instances, row: int) -> Box:
    x0, y0, x1, y1 = (round(float(value), 2) for value in boxes.boxes[row])
    return x0, y0, x1, y1
