"""Why an image is not in the dataset, by what is known without reading it.

Knows: the order in which reasons count, which is that of `runs.dataset_files`. Knows nothing about how they are shown.

N images.
"""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.labels.rules import DropReason, Rules
from engines.review import filters
from engines.review.filters import KEEP, REJECT, Overlay
from engines.review.index import KEPT, View
from engines.review.sources import RunSource, Source
from engines.runs.dataset_files import ANNOTATIONS

REASONS = ("", *DropReason)  # 0: it is in the dataset


def reasons(view: View, overlay: Overlay, source: Source, rules: Rules) -> npt.NDArray[np.uint8]:
    """The reason of each image [N], a place in REASONS: by these rules, then by what was decided.

    An image that the rules keep and that the dataset on the disk lacks nearly repeats another: the one reason that
    only a comparison of pictures finds.
    """
    found = np.where(view.outcomes == KEPT, 0, view.outcomes).astype(np.uint8)
    painted = view.outcomes == KEPT
    thresholds = list(rules.thresholds.values())
    if not rules.keep_empty:
        labelled = view.any_box(filters.labels_mask(view, thresholds))
        for row, own in overlay.edited.items():
            labelled[row] = bool((own.scores >= np.array(thresholds)[own.labels]).any())
        found[painted & ~labelled] = _place(DropReason.NO_BOX)
    if rules.min_quality:
        found[painted & (found == 0) & (filters.quality(view) < rules.min_quality)] = _place(DropReason.DOUBTFUL)
    if isinstance(source, RunSource):
        count = source.run.options.count
        if len(repeats := _put_away(source.folder, _stamp(source.folder))):
            away = np.isin(view.numbers, repeats) & (found == 0)
            if source.run.options.near_duplicates:
                found[away] = _place(DropReason.REPEAT)
        if count is not None:
            inside = np.cumsum(found == 0)
            found[(found == 0) & (inside > count)] = _place(DropReason.BEYOND)
    found[overlay.verdicts == REJECT] = _place(DropReason.REJECTED)
    found[(overlay.verdicts == KEEP) & painted] = 0
    return found


def _place(reason: DropReason) -> int:
    return REASONS.index(reason)


def _stamp(folder: Path) -> int:
    """Changes when the dataset is written again."""
    try:
        return (folder / ANNOTATIONS).stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=2)
def _put_away(folder: Path, stamp: int) -> npt.NDArray[np.int64]:
    """The numbers of images that were painted and are not in the dataset on the disk."""
    if not stamp:
        return np.zeros(0, dtype=np.int64)
    found: list[int] = []
    for part in ("spare", ".dengine/spare"):
        if (folder / part).is_dir():
            with os.scandir(folder / part) as items:
                names = (item.name.partition(".")[0] for item in items)
                found += [int(name) for name in names if name.isdecimal()]
    return np.array(sorted(found), dtype=np.int64)
