"""Which of an adapter's boxes on a real image are labels that a detector may learn from.

Knows: how the rules of a generated dataset (`generation.filters`) are applied to detections. Knows nothing about
images or files.

N detections of one image.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from engines.labels.average_precision import Detections
from engines.labels.rules import Rules, labels_of, uncertain_of
from engines.labels.scores import FALLBACK, Matched, Score, check_uncertain, full_score
from engines.runs.journal import Box, make_box

Chosen = npt.NDArray[np.bool_]


def label_rules(
    score: Score | Matched,
    uncertain: float,
    max_overlap: float,
    thresholds: Mapping[str, float],
    class_names: Sequence[str],
) -> Rules:
    """The rules for these settings of `label`; classes that `score` does not name take the adapter's `thresholds`.
    With "matched" the rules have the least score that may be found.

    Raises UsageError for classes that are none of `class_names`, and for numbers out of range.
    """
    full = FALLBACK if isinstance(score, str) else full_score(score, thresholds, class_names)
    check_uncertain(uncertain, 1.0 if isinstance(score, str) else full)
    return Rules(full, tuple(class_names), uncertain, max_overlap=max_overlap)


def choose(found: Detections, rules: Rules | None) -> tuple[Chosen, Chosen]:
    """Which detections are labels, and which mark their region as uncertain, [N] each; without rules all are labels."""
    if rules is None:
        return np.ones(len(found.scores), dtype=bool), np.zeros(len(found.scores), dtype=bool)
    boxes = journal_boxes(found)
    labels, crowds = set(labels_of(boxes, rules)), set(uncertain_of(boxes, rules))
    is_label, is_uncertain = ([box in chosen for box in boxes] for chosen in (labels, crowds))
    return np.array(is_label, dtype=bool), np.array(is_uncertain, dtype=bool)


def journal_boxes(found: Detections) -> list[Box]:
    """The detections as a journal holds them."""
    arrays = (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
    return [make_box(*box) for box in zip(*arrays, strict=True)]
