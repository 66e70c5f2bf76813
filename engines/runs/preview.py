"""The contact sheet: the first images of a dataset with their boxes, class colours, scores and a legend.

Knows: how to draw one. Knows nothing about runs. Pillow's own font: no font file of the machine is needed.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from engines.common.files import write_atomic
from engines.labels.boxes import Instances, join

PREVIEW_IMAGES = 32  # on the sheet, at most
_CELL = 400  # pixels that the long side of an image takes on the sheet, at least
_WIDEST = 1720  # pixels that a sheet with many images is wide, about
_GAP = 12
_MARGIN = 20
_LEGEND = 44  # height of the legend
_TEXT = 16
_BACKGROUND, _INK, _FAINT = (250, 250, 248), (30, 30, 34), (110, 110, 118)

# Okabe and Ito's colours for colour-blind readers, brightened to stand on photographs, then further hues.
_COLOURS = (
    (0, 158, 240), (240, 130, 0), (0, 190, 120), (220, 60, 150), (245, 220, 40), (120, 90, 230), (90, 210, 240),
    (215, 60, 40), (150, 200, 50), (160, 110, 70), (255, 150, 190), (0, 110, 110),
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One image of the sheet."""

    file: Path
    instances: Instances  # in its own pixels


def class_colour(label: int) -> tuple[int, int, int]:
    """The colour of a class: twelve that are easily told apart, then round again."""
    return _COLOURS[label % len(_COLOURS)]


def write_preview(path: Path, samples: Sequence[Sample], class_names: Sequence[str]) -> None:
    """Write the contact sheet of at least one sample as a PNG, atomically."""
    with Image.open(samples[0].file) as first:
        cell = _enlarged(first.size)
    columns = max(
        1, min(len(samples), (_WIDEST - 2 * _MARGIN + _GAP) // (cell[0] + _GAP), math.ceil(math.sqrt(len(samples))))
    )
    rows = math.ceil(len(samples) / columns)
    size = (
        max(2 * _MARGIN + columns * (cell[0] + _GAP) - _GAP, 480),
        2 * _MARGIN + _LEGEND + rows * (cell[1] + _GAP) - _GAP,
    )
    sheet = Image.new("RGB", size, _BACKGROUND)
    _draw_legend(sheet, samples, class_names)
    for place, sample in enumerate(samples):
        row, column = divmod(place, columns)
        corner = (_MARGIN + column * (cell[0] + _GAP), _MARGIN + _LEGEND + row * (cell[1] + _GAP))
        with Image.open(sample.file) as image:
            sheet.paste(_drawn(image, sample.instances, cell), corner)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=1)  # five times faster than 6, an eighth larger
    write_atomic(path, buffer.getvalue())


def drawn(image: Image.Image, instances: Instances) -> Image.Image:
    """An image with its boxes in it, enlarged until its long side is as on a sheet."""
    return _drawn(image, instances, _enlarged(image.size))


def _enlarged(size: tuple[int, int]) -> tuple[int, int]:
    factor = max(1.0, _CELL / max(size))
    return round(size[0] * factor), round(size[1] * factor)


def _drawn(image: Image.Image, instances: Instances, cell: tuple[int, int]) -> Image.Image:
    """The image at cell size with its boxes: lines thin enough to see what is inside, scores outside where they fit."""
    scale = (cell[0] / image.width, cell[1] / image.height)
    picture = image.convert("RGB").resize(cell, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_TEXT - 4)
    placed = []
    for *corners, score, label in sorted(instances.to_rows(), key=lambda row: row[4]):  # the surest on top
        x0, y0 = corners[0] * scale[0], corners[1] * scale[1]
        x1, y1 = min(corners[2] * scale[0], cell[0]) - 1, min(corners[3] * scale[1], cell[1]) - 1
        colour = class_colour(int(label))
        draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=2)
        placed.append((f"{100 * score:.0f}", (x0, y0), colour))
    for text, corner, colour in placed:
        _draw_score(draw, text, corner, cell[0], colour, font)
    return picture


def _draw_score(
    draw: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    width: int,
    colour: tuple[int, int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """A score on a patch of its class's colour, above the box's corner, or inside where the image ends."""
    wide, high = draw.textlength(text, font=font) + 4, _TEXT - 2
    x = max(0.0, min(corner[0], width - wide))
    y = corner[1] - high if corner[1] >= high else corner[1]
    draw.rectangle((x, y, x + wide, y + high), fill=colour)
    light = sum(colour) > 330
    draw.text((x + 2, y + high / 2), text, fill=_INK if light else (255, 255, 255), font=font, anchor="lm")


def _draw_legend(sheet: Image.Image, samples: Sequence[Sample], class_names: Sequence[str]) -> None:
    """Class colours with how many boxes each has on this sheet, most first, as many as fit on the line."""
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT)
    counts = join([sample.instances for sample in samples]).count(class_names)
    x, y = float(_MARGIN), _MARGIN + 12
    order = sorted(range(len(class_names)), key=lambda label: (-counts[class_names[label]], label))
    for place, label in enumerate(order):
        text = f"{class_names[label]}  {counts[class_names[label]]}"
        wide = 16 + 8 + draw.textlength(text, font=font) + 26
        if x + wide > sheet.width - _MARGIN - 60 and place < len(order):
            draw.text((x, y), f"and {len(order) - place} more", fill=_FAINT, font=font, anchor="lm")
            return
        draw.rectangle((x, y - 8, x + 16, y + 8), fill=class_colour(label))
        draw.text((x + 24, y), text, fill=_INK, font=font, anchor="lm")
        x += wide
    note = f"{len(samples)} images, scores in %"
    if x + draw.textlength(note, font=font) <= sheet.width - _MARGIN:
        draw.text((sheet.width - _MARGIN, y), note, fill=_FAINT, font=font, anchor="rm")
