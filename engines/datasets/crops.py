"""Is one picture a cut-out of another? By thumbnails of many windows of the larger one.

Knows: how windows are laid, and from when on one shows the same as a smaller picture. Knows nothing about files.

Windows are tried whose sides are 1 to 0.35 of the largest window of the cut-out's own aspect, each 7% smaller than the
one before, a twelfth of their side apart; the best of them is then moved and scaled until it fits. Slow changes of
brightness (a plane and its squares) are taken off both pictures first, since two skies, or two backgrounds under one
lamp, would pass for one. Turned and mirrored cut-outs are
not seen, and of many cut-outs of one aspect that look alike only the likeliest. N cut-outs, D values of a thumbnail.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.datasets.duplicates import SIDE, Thumbnails

SMALLEST = 0.35  # share of the sides that a window has at least
SAME = 0.9  # correlation from which a window shows the same as a cut-out
_LIKELY = 0.65  # of the small thumbnails, from which a window is fitted
_STEP = 0.93  # of the windows' sizes
_SMALL = SIDE // 2  # pixels of the thumbnails that are tried first
_LONGEST = 320  # pixels of a picture that windows are cut from
_PLAIN = 0.02  # share of a thumbnail's length that must be left without slow changes
_MOVES, _HOPE = 2, 0.75  # moves, behind which a window that shows less is given up: cut-outs have 0.84 and more there
_FITTED, _ROWS = 2, 8  # windows of a cut-out that are fitted, of so many likely cut-outs, at most

Pixels = npt.NDArray[np.uint8]


def cut_from(whole: Pixels, cuts: Thumbnails, aspects: npt.NDArray[np.float64]) -> dict[int, float]:
    """Which cut-outs (thumbnails [N, D], their width / height [N]) show a part of `whole`, uint8 [H, W, 3]: row ->
    correlation. All of it is no part: that is for `near_pairs`.
    """
    grey = Image.fromarray(whole).convert("L")
    grey.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BOX)
    found: dict[int, float] = {}
    groups = np.round(np.log(aspects) / 0.06).astype(int)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        own = _without_slow(cuts[rows], SIDE)
        tried = _without_slow(_halved(cuts[rows]), _SMALL)
        likely: dict[int, list[tuple[float, tuple[float, ...]]]] = {}
        for boxes, windows in _windows(grey, float(np.exp(np.median(np.log(aspects[rows]))))):
            alike = windows @ tried.T
            for window, row in zip(*np.nonzero(alike >= _LIKELY), strict=True):
                likely.setdefault(int(row), []).append((float(alike[window, row]), boxes[window]))
        first = sorted(likely.items(), key=lambda item: max(item[1]), reverse=True)[:_ROWS]
        for row, candidates in first:
            best = max(_fit(grey, box, own[row]) for _, box in sorted(candidates, reverse=True)[:_FITTED])
            if best >= SAME:
                found[int(rows[row])] = best
    return found


def _windows(grey: Image.Image, aspect: float) -> list[tuple[list[tuple[float, ...]], Thumbnails]]:
    """For every size of a window: corners of all of them, and their small thumbnails without slow changes."""
    wide, high = min(grey.width, grey.height * aspect), min(grey.height, grey.width / aspect)
    found = []
    share = 1.0
    while share >= SMALLEST:
        size = round(_SMALL * grey.width / (wide * share)), round(_SMALL * grey.height / (high * share))
        size = max(size[0], _SMALL), max(size[1], _SMALL)
        small = np.asarray(grey.resize(size, Image.Resampling.BOX), dtype=np.float32)
        views = np.lib.stride_tricks.sliding_window_view(small, (_SMALL, _SMALL))
        across, down = grey.width / size[0], grey.height / size[1]
        boxes: list[tuple[float, ...]] = [
            (x * across, y * down, (x + _SMALL) * across, (y + _SMALL) * down)
            for y in range(views.shape[0])
            for x in range(views.shape[1])
        ]
        found.append((boxes, _without_slow(views.reshape(-1, _SMALL * _SMALL), _SMALL)))
        share *= _STEP
    return found


def _fit(grey: Image.Image, box: tuple[float, ...], cut: Thumbnails) -> float:
    """The highest correlation that moving and scaling a window brings, a step at a time, unless it is given up."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    wide, high = box[2] - box[0], box[3] - box[1]
    best, step, done = _alike(grey, (x, y, wide, high), cut), 0.04, 0
    while step > 0.004 and (done < _MOVES or best >= _HOPE):
        done += 1
        moves = [
            (x + a * step * wide, y + b * step * high, wide * (1 + c * step), high * (1 + d * step))
            for a, b, c, d in ((1, 0, 0, 0), (-1, 0, 0, 0), (0, 1, 0, 0), (0, -1, 0, 0), (0, 0, 1, 1), (0, 0, -1, -1))
        ] + [(x, y, wide * (1 + step / 2), high), (x, y, wide, high * (1 + step / 2))]
        scores = [_alike(grey, move, cut) for move in moves]
        if max(scores) > best:
            best = max(scores)
            x, y, wide, high = moves[scores.index(best)]
        else:
            step /= 2
    return best


def _alike(grey: Image.Image, window: tuple[float, float, float, float], cut: Thumbnails) -> float:
    x, y, wide, high = window
    box = (
        max(0.0, x - wide / 2),
        max(0.0, y - high / 2),
        min(grey.width, x + wide / 2),
        min(grey.height, y + high / 2),
    )
    if box[2] - box[0] < 2 or box[3] - box[1] < 2:
        return -1.0
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX, box=box), dtype=np.float32)
    return float(_without_slow(small.reshape(1, -1), SIDE)[0] @ cut)


def _without_slow(images: npt.NDArray[np.float32], side: int) -> Thumbnails:
    """Thumbnails [N, side^2] without slow changes, of length 1; all 0 of those with nothing else."""
    slow = _slow(side)
    values = images - images.mean(axis=1, keepdims=True)
    before = np.linalg.norm(values, axis=1, keepdims=True)
    values = values - (values @ slow) @ slow.T
    length = np.linalg.norm(values, axis=1, keepdims=True)
    told = length > _PLAIN * np.maximum(before, 1e-9)
    return np.asarray(np.where(told, values / np.maximum(length, 1e-12), 0.0), dtype=np.float32)


def _halved(images: Thumbnails) -> Thumbnails:
    blocks = images.reshape(len(images), _SMALL, 2, _SMALL, 2)
    return np.asarray(blocks.mean(axis=(2, 4)).reshape(len(images), -1), dtype=np.float32)


@cache
def _slow(side: int) -> npt.NDArray[np.float32]:
    """A constant, a plane and its squares over side x side pixels, at right angles and of length 1: [side^2, 6]."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].reshape(2, -1)
    basis = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    return np.asarray(np.linalg.qr(basis)[0], dtype=np.float32)
