"""What `evaluate` may be asked for.

Knows: every option with its range, and how amounts of generated images are counted. Knows nothing about what lies in
the folders that it names.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.common.schema import AnyPath, settle
from engines.errors import refuse
from engines.worth.detectors.config import MULTIPLE


@dataclass(frozen=True)
class Times:
    """An amount of generated images as a multiple of the real dataset's images.

    >>> str(Times(2))
    '2x'
    """

    factor: float

    def __str__(self) -> str:
        return f"{self.factor:g}x"


Amount = int | Times  # of generated images


@dataclass(frozen=True)
class EvaluateSettings:
    """What `evaluate` is asked for. Paths may be text. Raises UsageError that lists every mistake at once.

    >>> EvaluateSettings("real", synthetic=["runs/first"], val="val", out="worth", amounts=[20, Times(2)]).mix
    (0.5, 0.5)
    """

    real: AnyPath  # labelled dataset to train on
    synthetic: Sequence[AnyPath]  # runs; or labelled datasets, at the real images' scale; empty: real images alone
    val: AnyPath | Sequence[AnyPath]  # labelled datasets, each of which measures every detector; one may stand alone
    out: AnyPath  # folder of the comparison
    split: str | None = None  # of the real dataset
    val_split: str | Sequence[str] | None = None  # of the validation datasets: one for all, or one for each
    images: AnyPath | None = None  # text file with the names of the real images to train on; None: all of them
    detector: str = "rt_detr"  # one of config.KINDS
    preset: str = "small"  # one of config.PRESETS
    seeds: int | None = None  # trainings of each arm; None: the preset's
    seed: int = 0  # the first of them
    mix: tuple[float, float] = (0.5, 0.5)  # probability of drawing a generated image: at the first draw, at the last
    # Of generated images, or multiples of the real dataset, the first run's first; empty: all there are.
    amounts: Sequence[Amount] = ()
    weights: AnyPath | None = None  # checkpoint folder to begin with; None: random weights
    short_side: int | None = None  # pixels at which the detector sees images; None: the runs', at most the preset's
    changes: Mapping[str, Any] = field(default_factory=dict)  # DetectorOptions fields in place of the preset's
    resamples: int = 1000  # draws of the bootstrap
    resume: bool = False  # go on with what OUT holds
    skip_bad: bool = False  # leave broken images and annotations out
    follow_links: bool = False  # follow links that lead outside the real and the validation dataset
    boxes: str = "auto"  # what the numbers of their boxes mean, see `open_dataset`

    def __post_init__(self) -> None:
        for name in ("val", "val_split"):
            if isinstance(given := getattr(self, name), str | os.PathLike):
                object.__setattr__(self, name, (given,))
        settle(self)
        checks = (
            ("val", bool(self.val_sets), "`val` is empty: name a labelled dataset to measure on"),
            ("val", len(set(self.val_sets)) == len(self.val_sets), "`val` names the same images twice"),
            (
                "val_split",
                len(self.val_split or ()) in (0, 1, len(self.val)),
                f"`val_split` names {len(self.val_split or ())} parts of {len(self.val)} datasets; one for all of "
                "them, or one for each was expected",
            ),
            (
                "amounts",
                bool(self.synthetic) or not self.amounts,
                "`amounts` counts generated images: give `synthetic`",
            ),
            (
                "mix",
                all(0 <= mix <= 1 for mix in self.mix) and any(self.mix),
                f"`mix` is {':'.join(f'{one:g}' for one in dict.fromkeys(self.mix))}; a number above 0, at most 1, was "
                "expected, or two of which one may be 0, such as 0.6:0",
            ),
            ("seeds", self.seeds is None or self.seeds > 0, f"`seeds` is {self.seeds}; 1 or more was expected"),
            ("seed", 0 <= self.seed < 2**31, f"`seed` is {self.seed}; a whole number from 0 to 2^31 - 1 was expected"),
            ("resamples", self.resamples > 0, f"`resamples` is {self.resamples}; 1 or more was expected"),
            (
                "short_side",
                self.short_side is None or self.short_side >= MULTIPLE,
                f"`short_side` is {self.short_side}; {MULTIPLE} pixels or more were expected",
            ),
            *(
                ("amounts", amount_number(amount) >= 0, f"`amounts` holds {amount}; 0 or more was expected")
                for amount in self.amounts
            ),
        )
        refuse((name, text) for name, fits, text in checks if not fits)

    @property
    def val_sets(self) -> tuple[tuple[Path, str | None], ...]:
        """(folder, its part or None) of each validation dataset."""
        splits: Sequence[str | None] = self.val_split or (None,)
        return tuple(zip(self.val, itertools.cycle(splits), strict=False))


def amount_number(amount: Amount) -> float:
    """How many images an amount is, or how many times the real dataset's."""
    return amount.factor if isinstance(amount, Times) else amount
