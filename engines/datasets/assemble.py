"""From drafts to records: every reader's boxes, held against their images.

Knows: the order in which a file is looked at as a whole (sizes, forms, depth), when a box is degenerate, and what is
remarked. Knows nothing about formats.

Boxes: xyxy in pixels of the upright image. N boxes of an image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.datasets.evidence import Picture, check_astray, choose_reading, place
from engines.datasets.images import Header, checked_header, highest_value
from engines.datasets.readings import Boxes, Reading, Row
from engines.datasets.records import Dataset, Draft, Findings, ReadOptions, Record
from engines.datasets.tree import Tree
from engines.errors import DatasetError
from engines.labels.boxes import Instances

_ROUNDING = 1e-3  # share of a box that may lie outside its image because numbers were rounded
_FULL = 1 << 15  # a value from which on 16 bits are used to the full


def assemble(drafts: Sequence[Draft], own: Reading, boxes: str, findings: Findings) -> list[Record]:
    """The records of a file whose format has boxes as `own`; degenerate boxes are dropped and noted.

    `boxes` is one of `readings.BOXES`. Raises DatasetError for broken images, and for boxes that may be meant in
    several ways (both are items: `skip_bad` leaves them out), or are of other images altogether.
    """
    pictures: list[Picture] = []
    for draft in drafts:
        with findings.item():
            pictures.append(Picture(draft, _header(draft)))
    reading = choose_reading(pictures, own, boxes, findings)
    corners = place(pictures, reading, boxes, findings)
    check_astray(corners, {picture.draft: picture.header.size for picture in pictures}, boxes, findings)
    kept = [picture for picture in pictures if picture.draft in corners]
    white = white_level([picture.draft.file for picture in kept if picture.header.deep], findings)
    return [_record(one.draft, one.header, corners[one.draft], reading, white, findings) for one in kept]


def _header(draft: Draft) -> Header:
    try:
        draft.name.encode()
    except UnicodeEncodeError:
        raise DatasetError(f"{draft.where}: {draft.name!r} is not UTF-8; rename the file.") from None
    try:
        return checked_header(draft.file)
    except DatasetError as error:
        raise DatasetError(f"{draft.where}: {error}") from error


def _record(
    draft: Draft, header: Header, corners: Boxes, reading: Reading, white: float | None, findings: Findings
) -> Record:
    """Clip an image's boxes to it; drop and note those without area, or outside; note those that are there already."""
    size, rows = header.size, np.array(draft.rows, dtype=np.float64).reshape(-1, 4)
    limits = np.array([*size, *size], dtype=np.float64)
    kept, boxes, outside, seen = [], [], [], set()
    for index, box in enumerate(corners):
        where = draft.wheres[index]
        clipped = np.clip(box, 0.0, limits).astype(np.float32)
        known = draft.readings[index] or reading
        if not np.isfinite(box).all():
            findings.dropped.append(f"{where}: box {_shown(draft.rows[index])} is not four finite numbers.")
        elif not _has_area(box):
            findings.dropped.append(f"{where}: box {_shown(box)} has no area.")
        elif not _has_area(clipped):
            findings.dropped.append(f"{where}: box {_shown(box)} lies outside the {size[0]}x{size[1]} image.")
        else:
            its = draft.labels[index], draft.crowd[index], *clipped.tolist()
            if its in seen:
                findings.count("boxes repeat another of their image and class (`audit` lists them)", where)
            seen.add(its)
            kept.append(index)
            boxes.append(clipped)
            outside.append(1.0 - float((clipped[2:] - clipped[:2]).prod() / (box[2:] - box[:2]).prod()))
            if known.ordered(rows[index : index + 1])[1].any():
                findings.count("boxes have their corners swapped, and are read in order", where)
    return Record(
        file=draft.file,
        name=draft.name,
        width=size[0],
        height=size[1],
        instances=Instances.of(
            np.array(boxes, dtype=np.float32),
            [draft.labels[index] for index in kept],
            crowd=[draft.crowd[index] for index in kept],
        ),
        caption=draft.caption,
        outside=tuple(outside) if max(outside, default=0.0) > _ROUNDING else (),
        white=white if header.deep else None,
    )


def _has_area(box: npt.NDArray[np.floating[Any]]) -> bool:
    return bool(box[2] > box[0] and box[3] > box[1])


def _shown(box: Sequence[float] | Boxes | Row) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def white_level(files: Sequence[Path], findings: Findings) -> float | None:
    """The value that is white in a set of files of more than 8 bits: None where their mode's own is.

    12-bit data in 16-bit files would be nearly black, so the set's highest value says how many bits are used. Files
    are decoded until one shows that all are; broken ones are passed over here.
    """
    highest, floats = 0.0, False
    for file in files:
        try:
            value, is_float = highest_value(file)
        except DatasetError:
            continue
        highest, floats = max(highest, value), floats or is_float
        if not floats and _FULL <= highest < 2 * _FULL:
            return None
    if highest <= (1.0 if floats else 0.0):
        return None
    white = float((1 << max(8, int(highest).bit_length())) - 1)
    if floats and white == 255.0:
        return white
    findings.remark(
        f"{len(files)} images of more than 8 bits hold values up to {highest:g} and are read as data of "
        f"{int(white).bit_length()} bits: {white:g} is white."
    )
    return white


def finish(
    tree: Tree,
    drafts: Sequence[Draft],
    own: Reading,
    class_names: Sequence[str],
    options: ReadOptions,
    findings: Findings,
    source: str,
) -> Dataset:
    """The dataset of a reader's drafts; see `assemble`."""
    with np.errstate(over="ignore", invalid="ignore"):
        records = assemble(drafts, own, options.boxes, findings)
    return Dataset(
        root=tree.root,
        class_names=tuple(class_names),
        records=records,
        dropped=tuple(findings.dropped),
        skipped=tuple(findings.skipped),
        source=source,
        remarks=findings.remarks,
    )
