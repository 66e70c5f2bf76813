"""What a run composes with: its references as objects to cut, and the jobs' draws.

Knows: which data can be composed of, and that a job's pasted objects are a function of (seed, index). The work is
done by `stock`, `plan` and `paste`.
"""

from collections.abc import Sequence

import numpy as np

from engines.common.names import class_words
from engines.common.quote import shorten
from engines.common.rng import Stream, generator
from engines.composing.given import Crop, Given, moved
from engines.composing.masks import Pixels
from engines.composing.paste import Cutter, compose
from engines.composing.plan import Paste, draw_pastes
from engines.composing.stock import take_stock
from engines.datasets.records import Record
from engines.errors import DatasetError


class Composer:
    """Objects of annotated references, and how they are put into others of them."""

    def __init__(
        self,
        records: Sequence[Record],
        class_names: Sequence[str],
        frame: tuple[int, int],
        short_side: int,
        *,
        flip: bool,
        rotate: bool,
        keep: bool = False,
    ) -> None:
        """Look at the annotations; pictures are read as objects are needed. DatasetError where nothing can be cut.

        frame: (width, height) of a painted image. short_side: pixels that a whole reference's would have. keep: see
        `paste.compose`.
        """
        self._records, self._class_names = records, tuple(class_names)
        self._frame, self._short_side = frame, short_side
        self._flip, self._rotate, self._keep = flip, rotate, keep
        self._stock = take_stock(records, len(class_names), frame, short_side)
        self._cutter = Cutter(records)
        if not len(self._stock.places):
            raise DatasetError(
                "`compose` has no object to cut: each touches the border of its image, is covered by another box or "
                f"would be too small or too large in an image of `size={frame}`. Repaint without `compose`.",
                field="compose",
            )

    @property
    def remark(self) -> str | None:
        """A line about classes of which nothing can be cut; None where there are none."""
        names = [self._class_names[label] for label in self._stock.without]
        if not names:
            return None
        return (
            f"`compose` pastes no {', '.join(names)}: each such object touches the border of its image, is covered by "
            "another box or is too small or too large"
        )

    @property
    def cut_remark(self) -> str | None:
        """A line about masks that came out empty, or filled their boxes; None where all were good."""
        cutter = self._cutter
        if not cutter.ellipses + cutter.nothing:
            return None
        gone = f", and {cutter.nothing} could not be cut" if cutter.nothing else ""
        return (
            f"of {cutter.done} objects cut, {cutter.ellipses} are not told from their background by colour, and are "
            f"ellipses{gone}"
        )

    def draw(self, seed: int, index: int, reference: int, crop: Crop, flip: bool) -> tuple[Paste, ...]:
        """What job `index` pastes into that part of a reference; a pure function."""
        labels = range(len(self._class_names))
        there = moved(self._records[reference].instances, crop, flip, self._frame, labels)
        return draw_pastes(
            self._stock, self._records, there, self._frame, self._short_side, generator(seed, index, Stream.COMPOSE),
            flip=self._flip, rotate=self._rotate,
        )  # fmt: skip

    def compose(
        self, canvas: Pixels, own: Given, pastes: Sequence[Paste], labels: Sequence[int]
    ) -> tuple[Pixels, Given]:
        """Paste objects into a picture of the frame's size; see `paste.compose`. Raises DatasetError for a picture that
        cannot be read."""
        return compose(canvas, own.instances, pastes, self._records, self._cutter, labels, keep=self._keep)


def label_map(class_names: Sequence[str], known: Sequence[str], used: Sequence[int]) -> tuple[int, ...]:
    """The place in `known` of each class of a dataset, matched as prompts spell them; -1 for one that is not `used`.

    Raises DatasetError that names the used classes that are not known.
    """
    places = {class_words(name): place for place, name in enumerate(known)}
    found = tuple(places.get(class_words(name), -1) for name in class_names)
    missing = [class_names[label] for label in sorted(set(used)) if found[label] < 0]
    if missing:
        raise DatasetError(
            f"The references have the classes {shorten(', '.join(missing))}, but the bundle knows "
            f"{shorten(', '.join(known))}: give a bundle that was trained on them, or leave their labels out with "
            "`labels=adapter`, without `compose`.",
            field="labels",
        )
    return found


def used_classes(records: Sequence[Record]) -> list[int]:
    """The classes that some record has a box of."""
    return sorted({label for record in records for label in np.unique(record.instances.labels).tolist()})
