"""What a person decided about images and boxes, read from `review.jsonl` and applied last of all.

Knows: how lines undo each other, and what an image's boxes become by them. Knows nothing about
pages or who writes the file (`engines.review.log`); a line is `decision`'s matter.

A decision names its image by file name and a box by where it was and of which class: so it holds whatever order a
dataset has its boxes in, and a box that is no longer there is left alone. N boxes of an image.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.common.quote import quote
from engines.datasets.records import Record
from engines.errors import RunError
from engines.labels.boxes import Instances, join
from engines.labels.rules import Drop, DropReason, Rules, candidates, is_ignored, is_label
from engines.runs.decision import Decision, Do, Was
from engines.runs.journal import Entry

REVIEW = "review.jsonl"
REJECTED = Drop(DropReason.REJECTED, "rejected in review")
SAME_BOX = 0.5  # pixels that each corner of a box may be off for a decision to mean it

Mask = npt.NDArray[np.bool_]


def read_decisions(folder: Path) -> "Decisions":
    """All decisions beside the journal, or in the dataset, of `folder`; none without the file.

    A last line that a kill cut short is passed over. Raises RunError that names a line that cannot be read.
    """
    decisions, path = Decisions(), folder / REVIEW
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return decisions
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            decisions.add(Decision.from_json(json.loads(line)))
        except (ValueError, RecursionError) as cause:
            said = "not JSON" if isinstance(cause, json.JSONDecodeError | RecursionError) else str(cause)
            raise RunError(
                f"{path}, line {number}, is no decision of a review ({said}): take the line out, or mend it."
            ) from cause
    decisions.digest = hashlib.sha256(data).hexdigest()
    return decisions


@dataclass(eq=False)
class ImageDecisions:
    """What was decided about one image."""

    kept: bool | None = None  # True: it is in the dataset; False: it is not; None: the rules decide
    edits: list[Decision] = field(default_factory=list)  # of its boxes, in order
    findings: dict[str, Do] = field(default_factory=dict)  # of an audit, those that were answered


@dataclass(eq=False)
class Decisions:
    """All lines, and what stands of them."""

    lines: dict[str, Decision] = field(default_factory=dict)  # by id, in order
    undone: set[str] = field(default_factory=set)  # ids
    digest: str | None = None  # SHA-256 of the file they were read from
    _of_image: dict[str, list[str]] = field(default_factory=dict)  # ids

    def __len__(self) -> int:
        """How many decisions stand."""
        return sum(line.do is not Do.UNDO for line in self.lines.values()) - len(self.undone)

    def add(self, decision: Decision) -> bool:
        """Take a decision; False for one that is there already. ValueError for an undo of nothing."""
        if decision.id in self.lines:
            return False
        if decision.do is Do.UNDO:
            other = self.lines.get(str(decision.of))
            if other is None or other.do is Do.UNDO:
                raise ValueError(f'"of" is {quote(decision.of)}, which is no decision before it')
            self.undone.add(other.id)
        for name in decision.images:
            self._of_image.setdefault(name, []).append(decision.id)
        self.lines[decision.id] = decision
        return True

    def images(self) -> Iterable[str]:
        """The names of all images that a decision was ever about."""
        return self._of_image.keys()

    def about(self, name: str) -> ImageDecisions:
        """What stands about one image."""
        found = ImageDecisions()
        for key in self._of_image.get(name, ()):
            if key in self.undone:
                continue
            line = self.lines[key]
            if line.do in (Do.KEEP, Do.REJECT):
                found.kept = line.do is Do.KEEP
            elif line.do is not Do.DISMISS:
                found.edits.append(line)
            if line.finding is not None:
                found.findings[line.finding] = line.do
        return found

    def apply(self, record: Record, class_names: Sequence[str]) -> Record | None:
        """A dataset's record as decided; None for one that was rejected."""
        if record.name not in self._of_image:
            return record
        about = self.about(record.name)
        if about.kept is False:
            return None
        return replace(record, instances=edited(record.instances, about.edits, class_names)[0])

    def choose(
        self, entry: Entry, rules: Rules, instances: Instances, dropped: Drop | None
    ) -> tuple[Instances, Drop | None]:
        """What a run's dataset holds of an entry, and why it does not: as the rules have it, then as decided."""
        if entry.file is None or entry.file not in self._of_image:
            return instances, dropped
        about = self.about(entry.file)
        if about.edits:
            found, sure = edited(candidates(entry.instances, rules, entry.known), about.edits, rules.class_names)
            instances = labels_of(found, sure, rules)
            if dropped is None and not rules.keep_empty and not len(instances.single):
                dropped = Drop(DropReason.NO_BOX, "no box is left after review")
            elif dropped is not None and dropped.reason is DropReason.NO_BOX and len(instances.single):
                dropped = None
        if about.kept is not None:
            dropped = None if about.kept else REJECTED
        return instances, dropped


def edited(found: Instances, edits: Iterable[Decision], class_names: Sequence[str]) -> tuple[Instances, Mask]:
    """The boxes after all edits, and which of them a person vouches for [N]: those score 1.

    Boxes stay in their order; drawn ones come last. An edit of a box that is not there, or of a class that is none,
    does nothing.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    sure = np.zeros(len(found), dtype=np.bool_)
    for edit in edits:
        if edit.do is Do.DRAW:
            if edit.label in labels and edit.box is not None:
                new = Instances.of(np.array([edit.box], dtype=np.float64), [labels[edit.label]], np.ones(1))
                found, sure = join([found, new]), np.append(sure, True)
            continue
        place = _place(found, edit.was, labels)
        if place is None or (edit.do is Do.CHANGE and edit.label not in labels):
            continue
        if edit.do is Do.DELETE:
            rest = np.arange(len(found)) != place
            found, sure = found.take(rest), sure[rest]
            continue
        boxes, classes = found.boxes.astype(np.float64), found.labels.copy()
        scores, crowd = found.scores.astype(np.float64), found.crowd.copy()
        scores[place], crowd[place], sure[place] = 1.0, False, True
        if edit.do is Do.CHANGE and edit.box is not None:
            boxes[place], classes[place] = edit.box, labels[str(edit.label)]
        found = replace(found, boxes=boxes, labels=classes, scores=scores, crowd=crowd, masks=None)
    return found, sure


def labels_of(found: Instances, sure: Mask, rules: Rules) -> Instances:
    """`rules.chosen`, with the boxes that a person vouches for among the labels."""
    labels = is_label(found, rules) | sure
    weak = found.take(is_ignored(found, rules) & ~sure)
    return join([found.take(labels), replace(weak, crowd=np.ones(len(weak), dtype=np.bool_))])


def _place(found: Instances, was: Was | None, labels: Mapping[str, int]) -> int | None:
    """The box that is meant: of that class, the nearest whose corners are all within SAME_BOX."""
    if was is None or not len(found):
        return None
    off = np.abs(found.boxes.astype(np.float64) - np.array(was.box)).max(axis=1)
    off[found.labels != labels.get(was.label, -1)] = np.inf
    place = int(off.argmin())
    return place if off[place] <= SAME_BOX else None
