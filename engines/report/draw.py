"""Charts as SVG and pictures as data, for a page that needs nothing else.

Knows: bars, a pair of curves, a field of cells, and an image with its boxes as a JPEG in base 64. Knows nothing about
what they stand for.
"""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from engines.datasets.images import read_image
from engines.labels.boxes import Instances
from engines.runs.preview import class_colour

_SIDE = 300  # pixels of a picture's long side


def hex_colour(label: int) -> str:
    """A class's colour."""
    return "#{:02x}{:02x}{:02x}".format(*class_colour(label))


def bars(counts: npt.NDArray[np.int64], colour: str, said: str) -> str:
    """A histogram of counts over 0 to 1; heights are roots, so that few show beside many."""
    most = max(1, int(counts.max(initial=0)))
    wide = 240 / len(counts)
    drawn = "".join(
        f'<rect x="{i * wide:.1f}" y="{60 - 60 * (n / most) ** 0.5:.1f}" width="{wide - 0.6:.1f}" '
        f'height="{60 * (n / most) ** 0.5:.1f}"/>'
        for i, n in enumerate(counts.tolist())
        if n
    )
    axis = '<path d="M0 60.5H240" stroke="currentColor" opacity=".4"/>'
    ticks = "".join(
        f'<text x="{x * 240}" y="74" text-anchor="{a}">{x}</text>'
        for x, a in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    head = f'<svg viewBox="0 0 240 78" role="img" aria-label="{escape(said)}">'
    return f'{head}<g fill="{colour}">{drawn}</g>{axis}{ticks}</svg>'


def curves(pairs: Sequence[tuple[str, npt.NDArray[np.int64]]], low: str, high: str, said: str) -> str:
    """Shares of counts as lines over the same bins: the first drawn full, the second dashed."""
    lines = []
    for place, (_, counts) in enumerate(pairs):
        share = counts / max(1, counts.sum())
        most = max(float((other / max(1, other.sum())).max(initial=0)) for _, other in pairs) or 1.0
        points = " ".join(
            f"{240 * (i + 0.5) / len(share):.1f},{80 - 76 * s / most:.1f}" for i, s in enumerate(share.tolist())
        )
        style = 'class="first"' if not place else 'class="second" stroke-dasharray="5 4"'
        lines.append(f'<polyline points="{points}" fill="none" stroke-width="2" {style}/>')
    axis = '<path d="M0 80.5H240" stroke="currentColor" opacity=".4"/>'
    ends = f'<text x="0" y="94">{escape(low)}</text><text x="240" y="94" text-anchor="end">{escape(high)}</text>'
    return f'<svg viewBox="0 0 240 98" role="img" aria-label="{escape(said)}">{"".join(lines)}{axis}{ends}</svg>'


def traces(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], said: str, most: float | None = None) -> str:
    """Values over steps as lines, from 0 up to `most` or the largest; the first drawn full, the second dashed."""
    points = [point for _, line in series for point in line]
    wide = max([x for x, _ in points], default=1.0) or 1.0
    high = most or max([y for _, y in points], default=1.0) or 1.0
    lines = []
    for place, (_, line) in enumerate(series):
        drawn = " ".join(f"{240 * x / wide:.1f},{80 - 76 * min(1.0, y / high):.1f}" for x, y in _thinned(line))
        style = 'class="first"' if not place else 'class="second" stroke-dasharray="5 4"'
        lines.append(f'<polyline points="{drawn}" fill="none" stroke-width="1.5" {style}/>')
    axis = '<path d="M0 80.5H240M0 4.5H240" stroke="currentColor" opacity=".3"/>'
    ends = f'<text x="0" y="94">0</text><text x="240" y="94" text-anchor="end">step {wide:,.0f}</text>'
    ends += f'<text x="240" y="1" text-anchor="end">{high:.3g}</text>'
    return f'<svg viewBox="0 -8 240 106" role="img" aria-label="{escape(said)}">{axis}{"".join(lines)}{ends}</svg>'


def _thinned(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 240 points, each the mean of as many neighbours."""
    step = -(-len(line) // 240) or 1
    parts = [line[first : first + step] for first in range(0, len(line), step)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def spread(
    values: Sequence[float], others: Sequence[float]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], float, float]:
    """Two samples counted into the same 24 bins, and where these begin and end."""
    every = [*values, *others]
    low, high = (min(every), max(every)) if every else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, 25)
    return np.histogram(values, edges)[0], np.histogram(others, edges)[0], low, high


def cells(counts: npt.NDArray[np.int64], said: str) -> str:
    """A field of counts, dark where there are many."""
    most = max(1, int(counts.max(initial=0)))
    drawn = "".join(
        f'<rect x="{x * 10}" y="{y * 10}" width="10" height="10" opacity="{0.04 + 0.9 * n / most:.2f}"/>'
        for y, row in enumerate(counts.tolist())
        for x, n in enumerate(row)
    )
    side = 10 * len(counts)
    return f'<svg class="cells" viewBox="0 0 {side} {side}" role="img" aria-label="{escape(said)}">{drawn}</svg>'


def embedded(file: Path, alt: str, side: int = 1600) -> str:
    """A picture in the page itself, at most `side` pixels wide and high."""
    with Image.open(file) as image:
        return f'<img class="wide" alt="{escape(alt)}" src="{_jpeg(image, side)}">'


def _jpeg(image: Image.Image, side: int) -> str:
    """An image as data in a URL."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture(file: Path, instances: Instances | None, alt: str, size: tuple[int, int] = (1, 1)) -> str:
    """An image, small and upright, in the page itself, with its boxes, which are in pixels of an image of that size.

    Raises OSError for a file that cannot be read.
    """
    with Image.open(file) as image:
        image.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # a large JPEG is decoded at a fraction of its size
        deep = image.mode[0] in "IF"
        data = _jpeg(Image.fromarray(read_image(file)) if deep else ImageOps.exif_transpose(image), _SIDE)
    boxes = ""
    if instances is not None:
        boxes = "".join(
            f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" '
            f'stroke="{hex_colour(int(label))}"/>'
            for x0, y0, x1, y1, _, label in instances.to_rows()
        )
    marks = f'<svg viewBox="0 0 {size[0]} {size[1]}" preserveAspectRatio="none" aria-hidden="true">{boxes}</svg>'
    return f'<figure class="shot"><img alt="{escape(alt)}" src="{data}">{marks}</figure>'
