"""What a journal's line says of labels by construction.

Knows: its two keys, both ways. Knows nothing about the rest of a line (`journal`, `lines`).

    "given": [[x0, y0, x1, y1, label], ...]                  with a 1 behind it for a crowd
    "pasted": [[name, annotation, x0, y0, x1, y1], ...]      where the last of them were cut: image, which of its boxes
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from engines.common.quote import quote
from engines.composing.given import Given, Origin
from engines.labels.boxes import Instances
from engines.painting.settings import LIMIT
from engines.runs.lines import is_number, is_text

_MOST = 10_000  # of an image


def given_to_json(given: Given) -> dict[str, Any]:
    """The keys of a line."""
    found = given.instances
    rows = zip(found.boxes.tolist(), found.labels.tolist(), found.crowd.tolist(), strict=True)
    keys: dict[str, Any] = {
        "given": [[*corners, label, 1] if crowd else [*corners, label] for corners, label, crowd in rows]
    }
    if given.pasted:
        keys["pasted"] = [[one.reference, one.annotation, *one.box] for one in given.pasted]
    return keys


def given_of(value: Mapping[str, Any]) -> Given | None:
    """What `given_to_json` was given, of a line's object; None of one without. ValueError for anything else."""
    if "given" not in value:
        if "pasted" in value:
            raise ValueError('"pasted" is there without "given"')
        return None
    rows, origins = value["given"], value.get("pasted", [])
    if not isinstance(rows, list) or len(rows) > _MOST or not all(map(_is_row, rows)):
        raise ValueError(f'"given" is {quote(rows)}; rows of x0, y0, x1, y1, label were expected')
    if not isinstance(origins, list) or len(origins) > len(rows) or not all(map(_is_origin, origins)):
        raise ValueError(f'"pasted" is {quote(origins)}; rows of a name, a number and a box were expected')
    found = Instances.from_rows([*row[:4], 1.0, row[4]] for row in rows)
    found = replace(found, crowd=np.array([len(row) == 6 for row in rows], dtype=np.bool_))
    return Given(found, tuple(Origin(name, number, (x0, y0, x1, y1)) for name, number, x0, y0, x1, y1 in origins))


def _is_row(row: object) -> bool:
    if not isinstance(row, list) or len(row) not in (5, 6) or not all(map(_is_bounded, row)):
        return False
    label = row[4]
    return 0 <= label <= LIMIT and label == int(label) and row[5:] in ([], [1])


def _is_origin(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 6 or not is_text(row[0]) or type(row[1]) is not int:
        return False
    return 0 <= row[1] <= LIMIT and all(map(_is_bounded, row[2:]))


def _is_bounded(value: Any) -> bool:
    return is_number(value) and -LIMIT <= value <= LIMIT
