"""A sheet of pictures in rows, with a word for each row and a few lines above.

Knows: how to draw one. Knows nothing about what the pictures are. Pillow's own font: no font file is needed.
"""

import io
import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_CELL = 224  # pixels of a picture's long side
_GAP, _MARGIN, _LINE, _TEXT = 8, 16, 20, 15
_BACKGROUND, _INK = (250, 250, 248), (30, 30, 34)


def draw_sheet(rows: Sequence[tuple[str, Sequence[npt.NDArray[np.uint8]]]], text: str) -> bytes:
    """A PNG of rows of pictures, uint8 [H, W, 3] of one size, each row under its name, and all under `text`."""
    height, width = rows[0][1][0].shape[:2]
    scale = _CELL / max(height, width)
    cell = round(width * scale), round(height * scale)
    columns = max(len(pictures) for _, pictures in rows)
    wide = 2 * _MARGIN + columns * (cell[0] + _GAP) - _GAP
    lines = textwrap.wrap(text, max(20, round((wide - 2 * _MARGIN) / (0.55 * _TEXT))))
    top = _MARGIN + _LINE * len(lines) + _GAP
    sheet = Image.new("RGB", (wide, top + len(rows) * (cell[1] + _LINE + _GAP) + _MARGIN), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, fill=_INK, font=font)
    for number, (name, pictures) in enumerate(rows):
        y = top + number * (cell[1] + _LINE + _GAP)
        draw.text((_MARGIN, y), name, fill=_INK, font=font)
        for place, pixels in enumerate(pictures):
            small = Image.fromarray(pixels).resize(cell, Image.Resampling.LANCZOS)
            sheet.paste(small, (_MARGIN + place * (cell[0] + _GAP), y + _LINE))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
