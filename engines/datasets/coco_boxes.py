"""The box of a COCO annotation: its `bbox`, or what goes round its `segmentation`.

Knows: the dresses that both come in, and CVAT's rotation. Knows nothing about images or classes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engines.datasets.fields import number
from engines.datasets.readings import CORNERS, Reading, Row, hull, turned_hull
from engines.datasets.records import Findings
from engines.errors import DatasetError

_LONGEST_RUN = 60  # bits of a run length


def read_bbox(annotation: Mapping[str, Any], findings: Findings, where: str) -> tuple[Row | None, Reading | None]:
    """Four numbers and what they mean (None: what the file's boxes mean); no row for a box noted as degenerate."""
    value = annotation.get("bbox")
    if isinstance(value, str):
        value = _listed(value)
    row = _round(annotation.get("segmentation")) if value is None or _is_blank(value) else None
    if row is not None:
        findings.count("boxes are missing, and are those round the polygons and masks", f"{where}.bbox")
        return row, CORNERS
    if value is None:
        raise DatasetError(f"{where}.bbox is missing, and there is no polygon or mask to go round.")
    try:
        if not isinstance(value, Sequence) or len(value) != 4:
            raise DatasetError("not four")
        x, y, width, height = (number(side, "") for side in value)
    except DatasetError:
        findings.degenerate(f"{where}.bbox", annotation["bbox"])
        return None, None
    degrees = _rotation(annotation)
    if degrees:
        findings.count("boxes are turned by a rotation, and become the upright boxes round them", where)
        return turned_hull((x, y, x + width, y + height), degrees), CORNERS
    return (x, y, width, height), None


def _is_blank(value: Any) -> bool:
    """Whether a box is a list of nothing, or of zeros: what exporters of polygons leave in its place."""
    return isinstance(value, list) and all(side in (0, "0") for side in value)


def _listed(text: str) -> Any:
    """`[1, 2, 3, 4]` or `1 2 3 4` as a list."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.replace(",", " ").strip("[]() ").split()


def _rotation(annotation: Mapping[str, Any]) -> float:
    """Degrees clockwise; 0 for none, and for whole turns."""
    attributes = annotation.get("attributes")
    try:
        return number(attributes.get("rotation"), "") % 360.0 if isinstance(attributes, Mapping) else 0.0
    except DatasetError:
        return 0.0


def _round(segmentation: Any) -> Row | None:
    """Corners round all polygons, or round a run-length mask; None where there is neither."""
    try:
        if isinstance(segmentation, Mapping):
            return _round_counts(segmentation)
        parts = segmentation if isinstance(segmentation, list) else []
        polygons = [parts] if parts and not isinstance(parts[0], list) else parts
        points = [number(value, "") for polygon in polygons for value in polygon[: len(polygon) // 2 * 2]]
        return hull(points) if points else None
    except (DatasetError, TypeError):
        return None


def _round_counts(mask: Mapping[str, Any]) -> Row | None:
    """Corners round a run-length mask: runs of 0 and 1 in turn, down the columns."""
    counts, size = mask.get("counts"), mask.get("size")
    if isinstance(counts, str):
        counts = _runs(counts)
    if not isinstance(counts, list) or not isinstance(size, list) or len(size) != 2:
        return None
    height = int(number(size[0], ""))
    place, ones, found = 0, False, []
    for run in counts:
        length = int(number(run, ""))
        if ones and length > 0 and height > 0:
            first, last = place, place + length - 1
            rows = (0, height) if first // height != last // height else (first % height, last % height + 1)
            found += [first // height, rows[0], last // height + 1, rows[1]]
        place, ones = place + length, not ones
    return hull([float(value) for value in found]) if found else None


def _runs(text: str) -> list[int]:
    """The run lengths in pycocotools' text: five bits a letter, low ones first; from the fourth, less the last but one.

    >>> _runs("52203")
    [5, 2, 2, 2, 5]
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text.encode("latin-1", "replace"):
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32 and shift < _LONGEST_RUN:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs
