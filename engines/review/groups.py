"""Groups of images that nearly repeat each other, found in the background.

Knows: which of a result's images are compared, and how far that is. What "nearly" means is
`engines.datasets.duplicates`' correlation of thumbnails. Knows nothing about pages.
"""

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engines.datasets.duplicates import SIDE, near_groups, thumbnail
from engines.datasets.images import read_image
from engines.errors import DatasetError
from engines.review.session import Session

MOST = 20_000  # images compared at once: their thumbnails are 2 KB each


@dataclass(eq=False)
class Groups:
    """One search, and how far it is."""

    rows: Sequence[int]
    done: int = 0
    left_out: int = 0  # images beyond MOST
    complete: bool = False
    stopped: bool = False
    trouble: str | None = None  # what ended the search early
    groups: list[list[int]] = field(default_factory=list)  # rows, each group in the order of the rows; largest first

    def start(self, session: Session) -> None:
        """Begin in a thread of its own."""
        self.left_out = max(0, len(self.rows) - MOST)
        self.rows = list(self.rows[:MOST])
        threading.Thread(target=self.find, args=(session,), daemon=True).start()

    def find(self, session: Session) -> None:
        """Compare all with all; what goes wrong is told, since nobody waits for this thread."""
        try:
            self._find(session)
        except Exception as cause:  # the page would wait for ever, whatever it is
            self.trouble = f"The search ended: {type(cause).__name__}: {cause}"

    def _find(self, session: Session) -> None:
        thumbs = np.zeros((len(self.rows), SIDE * SIDE), dtype=np.float32)
        for place, row in enumerate(self.rows):
            if self.stopped:
                return
            file = session.look(row).item.file
            if file is not None:
                with contextlib.suppress(DatasetError):  # it is like nothing
                    thumbs[place] = thumbnail(read_image(file))
            self.done = place + 1
        members = [[self.rows[place] for place in group] for group in near_groups(thumbs)]
        self.groups = sorted((one for one in members if len(one) > 1), key=lambda one: -len(one))
        self.complete = True
