"""The lines of YOLO's label files: boxes, polygons, keypoints and scores.

Knows: `class x_centre y_centre width height`, `class` and the points of a polygon, a box with keypoints or with a
score behind it, all in fractions of the image; and that a whole dataset's lines show which of them it has.
Knows nothing about where the files lie.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from engines.common.quote import shorten
from engines.datasets.classes import Classes
from engines.datasets.fields import number, read_text
from engines.datasets.readings import FRACTIONS, hull
from engines.datasets.records import Draft, Findings
from engines.datasets.tree import Tree
from engines.errors import DatasetError

_MAX_CLASSES = 10_000
_OVERSHOOT = 0.01  # by how much a fraction may leave 0..1 before it is no fraction
_HEAD = 4096  # bytes of a file that are looked at
_LIKELY = 0.9  # share of the lines that keypoints or pixels are believed from

Line = tuple[str, int, list[float]]  # where, class, the values behind it


def looks_like_labels(path: Path) -> bool:
    """Whether the first lines of a text file are numbers, a class and four or more values: no captions, no README."""
    try:
        with path.open("rb") as file:
            lines = file.read(_HEAD).decode("utf-8-sig", "replace").splitlines()[:20]
    except OSError:
        return False
    words = [line.split() for line in lines if line.strip()]
    return bool(words) and all(len(line) >= 5 and _are_numbers(line[:5]) for line in words[: max(1, len(words) - 1)])


def _are_numbers(words: Sequence[str]) -> bool:
    try:
        values = [float(word) for word in words]
        return all(map(math.isfinite, values)) and values[0] >= 0 and values[0].is_integer()
    except ValueError:
        return False


def parse_file(
    tree: Tree,
    drafts: Mapping[str, Draft],
    keypoints: tuple[int, int] | None,
    names: Sequence[str] | None,
    classes: Classes | None,
    findings: Findings,
) -> None:
    """Add the boxes of label files to their images' drafts; labels are the files' own where there are no classes."""
    lines: list[tuple[Draft, Line]] = []
    for file, draft in drafts.items():
        with findings.item():
            for index, text in enumerate(read_text(tree.path(file)).splitlines(), start=1):
                if text.strip():
                    with findings.item():
                        lines.append((draft, _values(text.split(), f"{file}, line {index}")))
    posed = keypoints is not None or _are_poses([values for _, (_, _, values) in lines])
    scored = bool(lines) and all(len(values) == 5 for _, (_, _, values) in lines)
    if scored and _have_scores_first([values for _, (_, _, values) in lines]):
        findings.remark("The score of each line stands before its box, as the boxes fit their images then alone.")
        lines = [(draft, (where, index, [*values[1:], values[0]])) for draft, (where, index, values) in lines]
    pixels = _are_pixels([values[:4] for _, (_, _, values) in lines if len(values) in (4, 5) or posed])
    for draft, (where, index, values) in lines:
        with findings.item():
            label = index
            if names is not None and classes is not None:
                if index >= len(names):
                    raise DatasetError(f"{where}: class {index} is not one of 0 to {len(names) - 1}.")
                label = classes.label(names[index], where)
            if pixels:
                raise DatasetError(
                    f"{where}: values must be fractions of the image, 0 to 1; these are pixels, as in most lines: "
                    "divide them by the image's width and height, or export YOLO anew."
                )
            _add(draft, where, label, values, posed, scored, findings)


def _values(words: Sequence[str], where: str) -> Line:
    values = [number(word, where) for word in words]
    if len(values) < 5:
        raise DatasetError(f"{where} has {len(values)} values; class, x, y, width, height were expected.")
    if values[0] != int(values[0]) or not 0 <= values[0] < _MAX_CLASSES:
        raise DatasetError(f"{where}: class {shorten(words[0])} is not a whole number from 0 to {_MAX_CLASSES - 1}.")
    return where, int(values[0]), values[1:]


def _are_poses(lines: Sequence[Sequence[float]]) -> bool:
    """Whether the lines are boxes with keypoints behind them: all of one length, the points in their boxes.

    Corners of turned boxes may pass for that, too, far from the edges; they are no keypoints.
    """
    long = [values for values in lines if len(values) > 5]
    if not long or len(long) < len(lines) or len(set(map(len, long))) > 1 or not all(_fits(one[:4]) for one in long):
        return False
    if len(long[0]) == 8 and 2 * sum(map(_are_corners, long)) > len(long):
        return False
    rest = len(long[0]) - 4
    if rest % 3 == 0 and all(value in (0.0, 1.0, 2.0) for values in long for value in values[6::3]):
        return all(_holds(values[:4], _visible(values[4:])) for values in long)
    return rest % 2 == 0 and len(long) > 1 and all(_holds(values[:4], values[4:]) for values in long)


def _are_corners(values: Sequence[float]) -> bool:
    """Whether eight values are the corners of a rectangle, turned or not: its diagonals have one middle."""
    x0, y0, x1, y1, x2, y2, x3, y3 = values
    return abs(x0 + x2 - x1 - x3) <= _OVERSHOOT and abs(y0 + y2 - y1 - y3) <= _OVERSHOOT


def _visible(points: Sequence[float]) -> list[float]:
    return [
        value for x, y, seen in zip(points[::3], points[1::3], points[2::3], strict=True) if seen for value in (x, y)
    ]


def _holds(box: Sequence[float], points: Sequence[float]) -> bool:
    """Whether a box of centre and sides has all points x, y, ... in it, but for a little."""
    x, y, width, height = box
    near_x, near_y = width / 2 + _OVERSHOOT, height / 2 + _OVERSHOOT
    inside = (abs(px - x) <= near_x and abs(py - y) <= near_y for px, py in zip(points[::2], points[1::2], strict=True))
    return width > 0 and height > 0 and all(inside)


def _have_scores_first(lines: Sequence[Sequence[float]]) -> bool:
    """Whether of five values the last four fit as boxes, in nearly every line, and the first four do not."""
    fitting = [sum(map(_fits, boxes)) for boxes in ([one[1:] for one in lines], [one[:4] for one in lines])]
    return len(lines) > 2 and fitting[0] >= _LIKELY * len(lines) > fitting[1]


def _fits(box: Sequence[float]) -> bool:
    """Whether a box of centre and sides lies in its image, but for a little."""
    x, y, width, height = box
    return all(
        -_OVERSHOOT <= middle - side / 2 < middle + side / 2 <= 1 + _OVERSHOOT
        for middle, side in ((x, width), (y, height))
    )


def _are_pixels(boxes: Sequence[Sequence[float]]) -> bool:
    return len(boxes) > 1 and sum(max(box) > 1 + _OVERSHOOT for box in boxes) >= _LIKELY * len(boxes)


def _add(
    draft: Draft, where: str, label: int, values: Sequence[float], posed: bool, scored: bool, findings: Findings
) -> None:
    if posed and len(values) > 4:
        findings.count("lines hold keypoints, of which the box is read", where)
        values = values[:4]
    elif scored:
        findings.count("lines have a sixth value, a score, which is not read", where)
        values = values[:4]
    elif len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise DatasetError(f"{where} has {len(values) + 1} values; class, x, y, width, height were expected.")
    if not all(-_OVERSHOOT <= value <= 1 + _OVERSHOOT for value in values):
        shown = shorten(" ".join(f"{value:g}" for value in values))
        raise DatasetError(f"{where}: values must be fractions of the image, 0 to 1; got {shown}.")
    if len(values) == 4:
        x, y, width, height = values
        draft.add(where, (x, y, width, height), label)
    else:
        draft.add(where, hull(values), label, reading=FRACTIONS)
