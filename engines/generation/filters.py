"""Filters that look at one image: whether it is worth keeping, as a pure function of what the journal holds of it.

Knows: the reasons for which an image is dropped. Knows nothing about pixels or files. Because the journal holds all
that a filter reads, `finalize` decides again with another threshold exactly as the run itself would have.
"""

from collections.abc import Iterable

from engines.generation.journal import Box, boxes_above


def drop_reason(boxes: Iterable[Box], score: float, keep_empty: bool) -> str | None:
    """Why an image with these boxes is dropped; None for one that is kept."""
    if keep_empty or boxes_above(boxes, score):
        return None
    return f"no box scores {score:g}"
