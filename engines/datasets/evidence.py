"""What a whole annotation file shows of how its boxes are meant, looked at once, before any box is believed.

Knows: which form the numbers fit (sides, corners, centres; pixels or fractions), and whose pixels they are where the
stated size of an image is not the image's own: the image was scaled after it was annotated, or its EXIF turn was not
applied. What the boxes decide is taken, with a remark; what they leave open is refused, and either way the line says
what was seen and which setting says what is meant. Knows nothing about formats.

N boxes.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engines.datasets.images import Header
from engines.datasets.readings import BOXES, Boxes, Form, Reading, alternatives, turned_upright
from engines.datasets.records import Draft, Findings, Size
from engines.errors import DatasetError, UsageError

_ENOUGH = 0.9  # share of the boxes that lie in their images from which a file is as its format says
_NEARLY_ALL = 0.95  # share of them from which it is otherwise
_FEWEST = 3  # boxes that another form is believed from
_MANY = 20  # boxes that keep to a part of their images from which that is no chance
_PERCENT = 100
_ASTRAY = 0.25  # share of the boxes mostly outside from which they are of other images
_SLACK_PIXELS, _SLACK_SHARE = 2.0, 0.01  # by how much a box may leave its image
_OVER = 0.05  # by how much a fraction may be above 1
_CLOSE = 0.005  # share of a side by which sizes that mean the same may differ


@dataclass(frozen=True)
class Picture:
    """A draft beside what its image's header says."""

    draft: Draft
    header: Header

    @property
    def frame(self) -> Size:
        """The size that the numbers are of: the stated one, where there is one."""
        return self.draft.stated or self.header.size

    @property
    def rows(self) -> Boxes:
        """The boxes whose form is the file's, [N, 4]: what certain ones are, each says itself."""
        rows = [row for row, known in zip(self.draft.rows, self.draft.readings, strict=True) if known is None]
        return np.array(rows, dtype=np.float64).reshape(-1, 4)

    def corners(self, reading: Reading, frame: Size | None = None) -> Boxes:
        """All boxes as corners in pixels of the frame: [N, 4]."""
        frame = frame or self.frame
        parts = [
            (known or reading).corners((known or reading).ordered(np.array([row]))[0], frame)
            for row, known in zip(self.draft.rows, self.draft.readings, strict=True)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 4))


def check_boxes(boxes: str) -> None:
    """Raise UsageError for a `boxes` that is no reading."""
    if boxes not in BOXES:
        raise UsageError(f"`boxes` is {boxes:.60}; one of {', '.join(BOXES)} was expected.", field="boxes")


def choose_reading(pictures: Sequence[Picture], own: Reading, boxes: str, findings: Findings) -> Reading:
    """What the file's boxes are: as the format has them (`own`), unless they fit something else alone.

    Raises DatasetError where they fit several other forms, and none as the format has it.
    """
    if boxes == "written":
        return own
    if boxes in list(Form):
        return own if own.form == boxes else replace(own, form=Form(boxes), first=0)
    frames = np.array([picture.frame for picture in pictures for _ in picture.rows]).reshape(-1, 2)
    rows = np.concatenate([np.zeros((0, 4)), *(picture.rows for picture in pictures)])
    if not len(rows):
        return own
    unit = _unit(rows, frames, own, boxes)
    chosen = unit
    if _fits(unit, rows, frames) < _ENOUGH and len(rows) >= _FEWEST:
        others = [one for one in alternatives(unit) if _fits(one, rows, frames) >= _NEARLY_ALL]
        if len(others) > 1:
            raise DatasetError(
                f"{pictures[0].draft.where}: of {len(rows)} boxes, {_misfits(unit, rows, frames)} don't fit their "
                f"images as {unit}; they do as {others[0]} and as {others[1]}. Say which they are with "
                f"`boxes={others[0].form}` or `boxes={others[1].form}`, or `boxes=written` to take them as they stand.",
                field="boxes",
            )
        chosen = others[0] if others else unit
    if boxes == "auto" and _are_percents(chosen.corners(rows, (1, 1)), frames):
        raise DatasetError(
            f"{pictures[0].draft.where}: none of {len(rows)} boxes leaves the first {_PERCENT} pixels of images of "
            f"{frames.min()} and more, so they are percents of their images. Write them in pixels, or say that they "
            "are: `boxes=written`.",
            field="boxes",
        )
    if chosen.fractions != own.fractions and boxes != "fractions":
        findings.remark(
            f"The {len(rows)} boxes are read as {chosen}, since {_are_small(rows).sum()} of them lie in the first "
            f"pixel as {own} (`boxes=written` takes them so)."
        )
    elif chosen.form != own.form:
        findings.remark(
            f"The {len(rows)} boxes are read as {chosen}: {_misfits(own, rows, frames)} of them don't fit their images "
            f"as {own}, which the format has (`boxes=written` takes them so)."
        )
    return chosen


def _are_percents(corners: Boxes, frames: npt.NDArray[np.int64]) -> bool:
    """Whether boxes [N, 4] fill a square of PERCENT pixels in images at least twice as large."""
    far = corners[:, 2:].max(axis=0)
    return (
        len(corners) >= _MANY
        and int(frames.min()) >= 2 * _PERCENT
        and bool((far <= _PERCENT + 1e-3).all() and (far >= 0.8 * _PERCENT).all())
        and bool((corners % 1.0 != 0.0).any())
    )


def _unit(rows: Boxes, frames: npt.NDArray[np.int64], own: Reading, boxes: str) -> Reading:
    """The format's reading, in the unit that the numbers show: most boxes in the first pixel are fractions."""
    if own.fractions:
        return own
    small = _are_small(rows)
    some = (rows[small] % 1.0 != 0.0).any() and frames.min() > 4
    shown = bool(some) and small.sum() > 0.5 * (rows != 0.0).any(axis=1).sum()
    return replace(own, fractions=True, first=0) if shown or boxes == "fractions" else own


def _are_small(rows: Boxes) -> npt.NDArray[np.bool_]:
    """Which rows [N] are numbers up to 1, but for what a box may leave its image by; no rows of zeros."""
    return np.asarray((np.abs(rows) <= 1.0 + _OVER).all(axis=1) & (rows != 0.0).any(axis=1))


def _fits(reading: Reading, rows: Boxes, frames: npt.NDArray[np.int64]) -> float:
    return 1.0 - _misfits(reading, rows, frames) / len(rows)


def _misfits(reading: Reading, rows: Boxes, frames: npt.NDArray[np.int64]) -> int:
    """How many boxes have no area, or leave their frames."""
    one = reading.corners(rows, (1, 1))
    limits = np.concatenate([frames, frames], axis=1).astype(np.float64)
    corners = one * limits if reading.fractions else one
    return int((~(_inside(corners, limits) & (corners[:, 2:] > corners[:, :2]).all(axis=1))).sum())


def _inside(corners: Boxes, limits: Boxes) -> npt.NDArray[np.bool_]:
    slack = _SLACK_PIXELS + _SLACK_SHARE * limits
    return np.asarray(((corners >= -slack) & (corners <= limits + slack)).all(axis=1))


def place(pictures: Sequence[Picture], reading: Reading, boxes: str, findings: Findings) -> dict[Draft, Boxes]:
    """Corners [N, 4] of each draft in pixels of its upright image; drafts that are refused are left out."""
    placed: dict[Draft, Boxes] = {}
    doubtful: dict[str, list[Picture]] = defaultdict(list)
    turned = 0
    for picture in pictures:
        draft, header, kind = picture.draft, picture.header, _mismatch(picture)
        silent = draft.stated is None or (_close(draft.stated, header.size) and _close(draft.stated, header.stored))
        turned += header.orientation != 1 and silent and bool(draft.rows)
        if boxes == "stored":
            stored = picture.corners(reading, header.stored)
            placed[draft] = turned_upright(stored, header.stored, header.orientation)
        elif kind is None or boxes == "written" or not draft.rows:
            placed[draft] = picture.corners(reading, header.size)
        else:
            doubtful[kind].append(picture)
    if turned and boxes == "auto":
        findings.remark(
            f"{turned} images have an EXIF turn; boxes are taken as of the upright image, as viewers show it "
            "(`boxes=stored` takes them as of the stored one)."
        )
    for kind, group in doubtful.items():
        placed |= _settled(kind, group, reading, boxes, findings)
    return placed


def _mismatch(picture: Picture) -> str | None:
    """How the stated size differs from the image's; None where it doesn't, but for rounding."""
    stated, header = picture.draft.stated, picture.header
    if stated is None or _close(stated, header.size):
        return None
    if _close(stated, header.stored):
        return "turned"
    (width, height), (real_width, real_height) = stated, header.size
    if abs(width * real_height - height * real_width) <= max(width, height, real_width, real_height):
        return "scaled"
    return "other"


def _close(one: Size, other: Size) -> bool:
    return all(abs(a - b) <= max(_SLACK_PIXELS, _CLOSE * b) for a, b in zip(one, other, strict=True)) and (
        min(one) > 50 or one == other
    )


def _settled(
    kind: str, group: Sequence[Picture], reading: Reading, boxes: str, findings: Findings
) -> dict[Draft, Boxes]:
    """The boxes of images whose stated size is not theirs: as the boxes show, or as `boxes` says, or refused."""
    verdict = "stated" if boxes == "stated" else _verdict(kind, group, reading)
    what = {
        "turned": "of the stored image, before its EXIF turn",
        "scaled": "of the image before it was scaled",
        "other": "of an image of the stated shape",
    }[kind]
    found: dict[Draft, Boxes] = {}
    for picture in group:
        draft, header, stated = picture.draft, picture.header, picture.frame
        sizes = f"{draft.where}: {_by(stated)} is stated and the image is {_by(header.size)}"
        with findings.item():
            if verdict is None:
                raise DatasetError(
                    f"{sizes}, and its boxes may be of either. `boxes=stated` takes them as {what}, `boxes=written` as "
                    "of the image as it is.",
                    field="boxes",
                )
            if verdict == "written":
                found[draft] = picture.corners(reading, header.size)
                done = "images have another size than is stated, and their boxes fit the image alone"
            else:
                corners = picture.corners(reading)
                scale = np.array([*header.size] * 2) / np.array([*stated] * 2)
                turned = kind == "turned"
                found[draft] = turned_upright(corners, stated, header.orientation) if turned else corners * scale
                done = f"images are not as stated: their boxes are {what}, and are brought along (`boxes=written`: not)"
            if boxes == "auto":
                findings.count(done, sizes)
    return found


def _verdict(kind: str, group: Iterable[Picture], reading: Reading) -> str | None:
    """Whose pixels the boxes of a group are: "stated", "written" (the image's own), or None where nothing shows it."""
    if reading.fractions:
        return "stated" if kind == "scaled" else None  # the same of either, but for a turn
    beyond_image = beyond_stated = count = 0
    smaller = True  # whether the stated frames are clearly smaller than the images
    for picture in group:
        corners, stated, real = picture.corners(reading), picture.frame, picture.header.size
        beyond_image += int((~_inside(corners, np.array([[*real, *real]], dtype=np.float64))).sum())
        beyond_stated += int((~_inside(corners, np.array([[*stated, *stated]], dtype=np.float64))).sum())
        count += len(corners)
        smaller = smaller and stated[0] <= 0.8 * real[0] and stated[1] <= 0.8 * real[1]
    if beyond_stated and not beyond_image:
        return "written"
    if kind == "other" or beyond_stated:
        return None
    return "stated" if beyond_image or (smaller and count >= _MANY) else None


def check_astray(corners: Mapping[Draft, Boxes], sizes: Mapping[Draft, Size], boxes: str, findings: Findings) -> None:
    """Raise DatasetError where so many boxes lie mostly outside their images that they are of others.

    Where many only leave their images, that is remarked.
    """
    inside = outside = leaving = 0
    for draft, found in corners.items():
        limits = np.array([*sizes[draft]] * 2, dtype=np.float64)
        cut = np.clip(found, 0.0, limits)
        whole, left = (np.prod(np.maximum(one[:, 2:] - one[:, :2], 0.0), axis=1) for one in (found, cut))
        outside += int((left < 0.5 * whole).sum())
        inside += int((left >= 0.5 * whole).sum())
        leaving += int((~_inside(found, limits[None]) & (whole > 0.0)).sum())
    if boxes == "auto" and outside > _FEWEST and outside > _ASTRAY * (inside + outside):
        first = next(iter(corners))
        raise DatasetError(
            f"{first.where.partition(',')[0]}: {outside} of {inside + outside} boxes lie mostly outside their images, "
            "so they are of other images, or of another size; say how they are meant with `boxes` "
            "(`boxes=written` takes them as they stand).",
            field="boxes",
        )
    if boxes == "auto" and leaving >= _FEWEST and leaving > (1.0 - _ENOUGH) * (inside + outside):
        findings.remark(
            f"{leaving} of {inside + outside} boxes leave their images and are cut at the edges: see whether they are "
            "meant otherwise (`boxes`)."
        )


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
