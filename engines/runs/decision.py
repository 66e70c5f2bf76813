"""One decision of a review: a line of `review.jsonl`.

Knows: what may be decided, and its line, both ways. Knows nothing about what images become by it (`decisions`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from engines.common.quote import quote

_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_LONGEST_NAME = 2048
FARTHEST = 1e7  # pixels that a corner may be off the origin

Corners = tuple[float, float, float, float]


class Do(StrEnum):
    """What a decision does."""

    KEEP = "keep"  # images: they are in the dataset, whatever the rules say
    REJECT = "reject"  # images: they are not
    CONFIRM = "confirm"  # a box is a label, whatever it scores
    DELETE = "delete"  # a box is none
    CHANGE = "change"  # a box is a label of this class, here
    DRAW = "draw"  # a label that was missing
    DISMISS = "dismiss"  # a finding of an audit is wrong
    UNDO = "undo"  # another decision does not count


_ON_BOX = (Do.CONFIRM, Do.DELETE, Do.CHANGE)
_WITH_BOX = (Do.CHANGE, Do.DRAW)


@dataclass(frozen=True)
class Was:
    """Which box a decision means: its corners in pixels, and its class."""

    box: Corners
    label: str


@dataclass(frozen=True)
class Decision:
    """One line of `review.jsonl`."""

    id: str  # given by whoever decided: the same line twice counts once
    do: Do
    images: tuple[str, ...] = ()  # names; one, but for KEEP and REJECT
    was: Was | None = None  # of _ON_BOX
    box: Corners | None = None  # of _WITH_BOX
    label: str | None = None  # class name, of _WITH_BOX
    finding: str | None = None  # the audit's finding that this answers
    of: str | None = None  # of UNDO: the id of the other decision

    def to_line(self) -> str:
        """The line, without its newline."""
        value: dict[str, Any] = {"id": self.id, "do": self.do}
        if self.images:
            value["images"] = list(self.images)
        if self.was is not None:
            value["was"] = {"box": list(self.was.box), "label": self.was.label}
        for name in ("box", "label", "finding", "of"):
            if getattr(self, name) is not None:
                value[name] = getattr(self, name)
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, value: object) -> "Decision":
        """Read the object of a line; ValueError that says what is wrong."""
        if not isinstance(value, Mapping):
            raise ValueError("not an object")
        if unknown := set(value) - {"id", "do", "images", "was", "box", "label", "finding", "of"}:
            raise ValueError(f"unknown key {quote(min(map(str, unknown)))}")
        try:
            do = Do(value.get("do", ""))
        except ValueError:
            raise ValueError(f'"do" is {quote(value.get("do"))}; one of {", ".join(Do)} was expected') from None
        was = value.get("was")
        found = cls(
            id=_text(value, "id"),
            do=do,
            images=_names(value.get("images", ())),
            was=Was(_corners(was, "was.box"), _text(was, "label")) if isinstance(was, Mapping) else None,
            box=_corners(value, "box") if "box" in value else None,
            label=_text(value, "label") if "label" in value else None,
            finding=_text(value, "finding") if "finding" in value else None,
            of=_text(value, "of") if "of" in value else None,
        )
        found.check()
        return found

    def check(self) -> None:
        """Raise ValueError where keys that belong together are not all there."""
        if not _ID.fullmatch(self.id):
            raise ValueError(f'"id" is {quote(self.id)}; 8 to 64 letters, digits, - and _ were expected')
        many = self.do in (Do.KEEP, Do.REJECT)
        if self.do is not Do.UNDO and (not self.images or (len(self.images) > 1 and not many)):
            raise ValueError(f'"images" has {len(self.images)} names; {"some" if many else "one"} were expected')
        needed = {
            "was": self.do in _ON_BOX, "box": self.do in _WITH_BOX, "label": self.do in _WITH_BOX,
            "of": self.do is Do.UNDO,
        }  # fmt: skip
        for name, needs in needed.items():
            if needs != (getattr(self, name) is not None):
                raise ValueError(f'"{name}" {"is missing" if needs else "does not belong"} in "{self.do}"')
        if self.do is Do.DISMISS and self.finding is None:
            raise ValueError('"finding" is missing in "dismiss"')


def _text(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_NAME:
        raise ValueError(f'"{name}" is {quote(text)}; a short text was expected')
    return text


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f'"images" is {quote(value)}; a list of file names was expected')
    return tuple(value)


def _corners(value: Mapping[str, Any], name: str) -> Corners:
    box = value.get(name.rpartition(".")[2])
    numbers = box if isinstance(box, list | tuple) else ()
    if len(numbers) != 4 or not all(isinstance(one, int | float) and abs(one) < FARTHEST for one in numbers):
        raise ValueError(f'"{name}" is {quote(box)}; four numbers, x0, y0, x1, y1, were expected')
    x0, y0, x1, y1 = map(float, numbers)
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f'"{name}" is {quote(box)}, which has no area')
    return x0, y0, x1, y1
