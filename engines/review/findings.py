"""What an audit found, read from `audit.json`, and the decision that accepts a finding.

Knows: that file, and which image of a dataset each finding is about. Knows nothing about how findings come to be.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from engines.common.files import read_json
from engines.common.quote import quote
from engines.common.schema import from_object
from engines.errors import DatasetError
from engines.runs.decision import Corners, Decision, Do, Was

AUDIT = "audit.json"
FORMAT = 1
KINDS = ("missing", "spurious", "class", "loose", "duplicate", "outside")
_GONE = ("spurious", "duplicate")  # accepted, the given box goes


@dataclass(frozen=True)
class Finding:
    """One of them."""

    key: str  # the same for the same finding of another audit
    image: str  # name in the dataset
    kind: str  # of KINDS
    confidence: float  # 0 to 1
    box: Corners | None  # where it should be
    label: str | None  # and what
    given_box: Corners | None  # what the dataset has
    given_label: str | None

    def accepted(self, identity: str) -> Decision:
        """The decision that does what it proposes."""
        common: dict[str, Any] = {"id": identity, "images": (self.image,), "finding": self.key}
        was = None if self.given_box is None else Was(self.given_box, str(self.given_label))
        if self.kind == "missing":
            return Decision(do=Do.DRAW, box=self.box, label=self.label, **common)
        if self.kind in _GONE or (self.box is None and self.kind == "outside"):
            return Decision(do=Do.DELETE, was=was, **common)
        box, label = self.box or self.given_box, self.label or self.given_label
        return Decision(do=Do.CHANGE, was=was, box=box, label=label, **common)


@dataclass(frozen=True)
class _Line:
    image: int
    kind: str
    confidence: float
    box: Corners | None = None
    label: int | None = None
    given: int | None = None
    given_box: Corners | None = None
    given_label: int | None = None


@dataclass(frozen=True)
class Audit:
    """The whole file."""

    dataset: str  # the folder that was audited
    findings: tuple[Finding, ...]  # worst first


def read_audit(path: Path) -> Audit:
    """Read an audit. Raises DatasetError that names what is wrong with it."""
    content = read_json(path, DatasetError)
    if content.get("format") != FORMAT:
        raise DatasetError(f"{path}: audit format {quote(content.get('format'))} was found; {FORMAT} was expected.")
    classes, images = content.get("classes"), content.get("images")
    lines = content.get("findings")
    if not isinstance(classes, list) or not isinstance(images, list) or not isinstance(lines, list):
        raise DatasetError(f"{path}: classes, images and findings must be lists.")
    names = [str(name) for name in classes]
    known = [_known(one, f"{path}, images[{place}]") for place, one in enumerate(images)]
    found = (_finding(one, names, known, f"{path}, findings[{place}]") for place, one in enumerate(lines))
    return Audit(str(content.get("dataset", "")), tuple(sorted(found, key=lambda one: -one.confidence)))


def names_in(files: list[str], names: set[str]) -> dict[str, str]:
    """What a dataset calls each image of an audit: the same path, or one that ends so and is the only one."""
    tails: dict[str, list[str]] = {}
    for name in names:
        tails.setdefault(PurePosixPath(name).name, []).append(name)
    found = {}
    for file in files:
        fitting = [file] if file in names else tails.get(PurePosixPath(file).name, [])
        if len(fitting) == 1:
            found[file] = fitting[0]
    return found


def _known(value: object, where: str) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("file"), str):
        raise DatasetError(f"{where}: an object with a file was expected.")
    return str(value["file"])


def _finding(value: object, classes: list[str], images: list[str], where: str) -> Finding:
    if not isinstance(value, dict):
        raise DatasetError(f"{where} is no object.")
    known = {item.name for item in fields(_Line)}  # whatever else an audit says of a finding is for other readers
    line = from_object(_Line, {name: one for name, one in value.items() if name in known}, DatasetError, where)
    if line.kind not in KINDS or not 0 <= line.image < len(images):
        raise DatasetError(f"{where}: kind {quote(line.kind)} of image {quote(line.image)} is none that is known.")
    labels = [None if one is None else _class(one, classes, where) for one in (line.label, line.given_label)]
    boxes = [_box(one, where) for one in (line.box, line.given_box)]
    if (line.kind == "missing" and (boxes[0] is None or labels[0] is None)) or (
        line.kind != "missing" and (boxes[1] is None or labels[1] is None)
    ):
        raise DatasetError(f"{where}: {line.kind} needs a box and a label.")
    told = f"{images[line.image]}|{line.kind}|{_rounded(boxes[0])}|{labels[0]}|{_rounded(boxes[1])}|{labels[1]}"
    key = hashlib.sha256(told.encode()).hexdigest()[:20]
    return Finding(key, images[line.image], line.kind, line.confidence, boxes[0], labels[0], boxes[1], labels[1])


def _class(label: int, classes: list[str], where: str) -> str:
    if not 0 <= label < len(classes):
        raise DatasetError(f"{where}: label {quote(label)} is not one of 0 to {len(classes) - 1}.")
    return classes[label]


def _box(box: Corners | None, where: str) -> Corners | None:
    if box is not None and not (box[0] < box[2] and box[1] < box[3]):
        raise DatasetError(f"{where}: {quote(box)} is no box x0, y0, x1, y1 with an area.")
    return box


def _rounded(box: Corners | None) -> str:
    return "" if box is None else ",".join(f"{one:.0f}" for one in box)
