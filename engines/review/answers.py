"""What the page of a review is answered: each question as a JSON object, each picture as bytes.

Knows: how a question is read and what an answer holds. Images are asked for by number and never by name, so no question
leads to a file of the asker's choice. Knows nothing about addresses (`app`), who may ask (`guard`), or how answers come
about (`session`).
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.common.schema import from_object
from engines.common.spell import command
from engines.errors import RunError, UsageError
from engines.review import pictures
from engines.review.balance import balance
from engines.review.filters import BINS, Filter
from engines.review.findings import Finding
from engines.review.groups import Groups
from engines.review.reasons import REASONS
from engines.review.session import Look, Session
from engines.review.thresholds import save_thresholds
from engines.runs.dataset_rules import read_rules
from engines.runs.decision import Decision, Do
from engines.runs.preview import class_colour
from engines.runs.saved_score import saved_score

_MOST_ITEMS = 400  # of one window


class Pages:
    """The answers of one review."""

    def __init__(self, session: Session, findings: tuple[Finding, ...] = (), notes: tuple[str, ...] = ()) -> None:
        self.session, self.findings, self.notes = session, findings, notes
        self._by_key = {one.key: one for one in findings}
        self._groups: Groups | None = None

    # Questions in, JSON out: each takes the body, or the query's words, as an object.

    def about(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What is reviewed, and how far it has been read."""
        session, source = self.session, self.session.source
        index = session.index
        classes = [
            {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*class_colour(label))}
            for label, name in enumerate(source.class_names)
        ]
        return {
            "title": source.title, "kind": source.kind, "images": len(index.view()), "complete": index.complete,
            "read": index.read / max(index.total, 1), "trouble": index.trouble, "notes": self.notes,
            "classes": classes, "thresholds": list(session.rules.thresholds.values()), "bins": BINS,
            "findings": len(self.findings), "version": session.version, "decisions": len(session.log.decisions),
            "apply": _apply(session), "folder": str(source.folder),
        }  # fmt: skip

    def histogram(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Boxes by class and score."""
        return {"counts": self.session.histogram()}

    def counts(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Labels and images that thresholds leave."""
        return self.session.counts(_numbers(asked, "thresholds"))

    def query(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Images that a filter shows."""
        wanted = from_object(Filter, _object(asked, "filter"), UsageError, "filter")
        number, total = self.session.query(wanted, _numbers(asked, "thresholds"))
        return {"query": number, "total": total}

    def window(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Some of a result's images."""
        rows = self._rows(asked)
        return {"items": [self.session.look(row).to_json() for row in rows]}

    def find(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Where a row stands in a result."""
        found = (self.session.result(_whole(asked, "query")) == _whole(asked, "row")).nonzero()[0]
        return {"place": int(found[0]) if len(found) else None}

    def image(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """One image, whether its reference is there, and the findings about it."""
        look = self.session.look(_whole(asked, "row"))
        mine = [one for one in self.findings if one.image == look.item.name]
        has_reference = self.session.source.reference(look.item) is not None
        return look.to_json() | {"has_reference": has_reference, "findings": [self._finding(one) for one in mine]}

    def crops(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The boxes of a class by score."""
        low, high = (float(asked.get(name, default)) for name, default in (("low", 0.0), ("high", 1.0)))
        rising = bool(asked.get("rising", False))
        number, total = self.session.crops(_whole(asked, "label"), low, high, rising)
        return {"query": number, "total": total}

    def crop_window(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Some of them, each with what became of it."""
        view = self.session.index.view()
        boxes = self._rows(asked)
        items = []
        for box in boxes:
            row = int(view.of_box(np.array([box]))[0])
            place = box - int(view.starts[row])
            look = self.session.look(row)
            given = look.item.instances
            x0, y0, x1, y1 = (round(one, 3) for one in given.boxes[place].tolist())
            label, score = int(given.labels[place]), float(given.scores[place])
            items.append({
                "row": row, "place": place, "name": look.item.name, "box": [x0, y0, x1, y1], "label": label,
                "score": round(score, 4), "state": _state(look, (x0, y0, x1, y1), label), "verdict": look.verdict,
            })  # fmt: skip
        return {"items": items}

    def decide(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Decisions: on the disk when this is answered."""
        lines = asked.get("decisions")
        if not isinstance(lines, list) or not 0 < len(lines) <= _MOST_ITEMS:
            raise UsageError(f'"decisions" must be a list of 1 to {_MOST_ITEMS}.', field="decisions")
        try:
            decisions = [Decision.from_json(one) for one in lines]
        except ValueError as cause:
            raise UsageError(f"no decision: {cause}.", field="decisions") from cause
        return self._changed(self.session.decide(decisions))

    def decide_all(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Keep or reject all that a result holds."""
        do = {"keep": Do.KEEP, "reject": Do.REJECT}.get(str(asked.get("do")))
        if do is None:
            raise UsageError('"do" must be keep or reject.', field="do")
        return self._changed(self.session.decide_all(str(asked.get("id")), do, _whole(asked, "query")))

    def accept(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a finding proposes, or say that it is wrong."""
        one = self._by_key.get(str(asked.get("key")))
        if one is None:
            raise UsageError('"key" is no finding of this audit.', field="key")
        identity = str(asked.get("id"))
        dismissed = Decision(identity, Do.DISMISS, (one.image,), finding=one.key)
        taken = one.accepted(identity) if asked.get("accept") is True else dismissed
        return self.decide({"decisions": [json.loads(taken.to_line())]})

    def undo(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Take the last decision back."""
        return self._changed(self.session.undo(str(asked.get("id"))))

    def changes(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What another window decided."""
        return self._changed(self.session.since(_whole(asked, "since")))

    def thresholds(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Keep thresholds for `finalize`."""
        session = self.session
        if session.source.kind != "run":
            raise UsageError("a dataset's labels have no scores.", field="thresholds")
        numbers = session.checked(_numbers(asked, "thresholds"))
        session.rules = save_thresholds(session.source.folder, session.rules, numbers)
        return {"saved": numbers}

    def reasons(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """How many images are not in the dataset, and why."""
        found = self.session.reasons(_numbers(asked, "thresholds"))
        numbers = {name: int((found == place).sum()) for place, name in enumerate(REASONS)}
        return {"inside": numbers.pop(""), "reasons": numbers}

    def balance(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Classes beside their frequencies in training."""
        found = self.session.counts(_numbers(asked, "thresholds"))
        return balance(self.session.source, found["boxes"], found["images"])

    def near(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Groups of near duplicates: begins a search where there is none, or a result to search in is named."""
        if asked.get("query") is not None:
            if self._groups is not None:
                self._groups.stopped = True
            self._groups = Groups(self.session.result(_whole(asked, "query")).tolist())
            self._groups.start(self.session)
        found = self._groups
        if found is None:
            return {"searching": False, "complete": False, "groups": [], "done": 0, "total": 0, "left_out": 0}
        if found.trouble is not None:
            raise RunError(found.trouble)
        return {
            "searching": not found.complete, "complete": found.complete, "groups": found.groups[:500],
            "all_groups": len(found.groups), "done": found.done, "total": len(found.rows), "left_out": found.left_out,
        }  # fmt: skip

    def items(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Images by row."""
        rows = _numbers(asked, "rows")[:_MOST_ITEMS]
        return {"items": [self.session.look(int(row)).to_json() for row in rows]}

    def audit(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Findings, worst first."""
        kind, start = asked.get("kind"), _whole(asked, "start")
        mine = [one for one in self.findings if not kind or one.kind == kind]
        kinds: dict[str, int] = {}
        for one in self.findings:
            kinds[one.kind] = kinds.get(one.kind, 0) + 1
        return {"total": len(mine), "kinds": kinds, "items": [self._finding(one) for one in mine[start : start + 60]]}

    # Pictures

    def thumb(self, row: int) -> tuple[bytes, str]:
        """A thumbnail."""
        return pictures.thumbnail(self.session.source.folder, self._file(row))

    def whole(self, row: int) -> tuple[bytes, str]:
        """The image itself."""
        return pictures.whole(self._file(row))

    def reference(self, row: int) -> tuple[bytes, str]:
        """What it was painted from."""
        found = self.session.source.reference(self.session.look(row).item)
        if found is None:
            raise UsageError("no reference.")
        return pictures.whole(found)

    def cut(self, row: int, corners: str) -> tuple[bytes, str]:
        """The surroundings of a box, whose corners are written x0,y0,x1,y1."""
        x0, y0, x1, y1 = (float(one) for one in corners.split(","))
        if not (x0 < x1 and y0 < y1 and max(map(abs, (x0, y0, x1, y1))) < 1e6):
            raise UsageError("no box.")
        return pictures.crop(self._file(row), (x0, y0, x1, y1))[0], "image/jpeg"

    def _file(self, row: int) -> Path:
        file = self.session.look(row).item.file
        if file is None:
            raise UsageError("this image was never written.")
        return file

    def _rows(self, asked: Mapping[str, Any]) -> list[int]:
        start, count = _whole(asked, "start"), min(_whole(asked, "count"), _MOST_ITEMS)
        found: list[int] = self.session.result(_whole(asked, "query"))[max(start, 0) : max(start, 0) + count].tolist()
        return found

    def _changed(self, rows: list[int]) -> dict[str, Any]:
        looks = [self.session.look(row).to_json() for row in rows[:200]]
        decisions = len(self.session.log.decisions)
        return {"version": self.session.version, "items": looks, "changed": len(rows), "decisions": decisions}

    def _finding(self, one: Finding) -> dict[str, Any]:
        row = self.session.row_of(one.image)
        state = None if row is None else self.session.look(row).answered.get(one.key)
        answer = None if state is None else "dismissed" if state is Do.DISMISS else "accepted"
        return {
            "key": one.key, "row": row, "name": one.image, "kind": one.kind, "confidence": one.confidence,
            "box": one.box, "label": one.label, "given_box": one.given_box, "given_label": one.given_label,
            "answer": answer,
        }  # fmt: skip


def _apply(session: Session) -> str:
    """The command that makes the dataset as decided."""
    if session.source.kind == "run":
        folder = session.source.folder
        kept = replace(read_rules(folder), formats=None, val_fraction=None)
        if saved_score(folder) is not None:
            kept = replace(kept, score=None)
        return command(
            f"finalize {shlex.quote(str(folder))}", {item.name: getattr(kept, item.name) for item in fields(kept)}
        )
    return command(f"review {shlex.quote(str(session.source.folder))}", {"format": "coco", "out": "corrected.json"})


def _state(look: Look, box: tuple[float, ...], label: int) -> str:
    """What became of a given box: "given", "confirmed", "changed" or "deleted"."""
    close = np.abs(look.instances.boxes - np.array(box)).max(axis=1) < 0.01 if len(look.instances) else np.zeros(0)
    same = [place for place in np.flatnonzero(close).tolist() if look.instances.labels[place] == label]
    if same:
        return "confirmed" if look.sure[same[0]] else "given"
    return "changed" if len(look.instances) >= len(look.item.instances) else "deleted"


def _whole(asked: Mapping[str, Any], name: str) -> int:
    try:
        return int(asked[name])
    except (KeyError, TypeError, ValueError) as cause:
        raise UsageError(f'"{name}" must be a whole number.', field=name) from cause


def _numbers(asked: Mapping[str, Any], name: str) -> list[float]:
    found = asked.get(name)
    if not isinstance(found, list) or not all(isinstance(one, int | float) for one in found):
        raise UsageError(f'"{name}" must be a list of numbers.', field=name)
    return found


def _object(asked: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = asked.get(name, {})
    if not isinstance(found, Mapping):
        raise UsageError(f'"{name}" must be an object.', field=name)
    return found
