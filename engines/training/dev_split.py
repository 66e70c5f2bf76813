"""Which images of a dataset are held out as the dev split, and how far a figure on so few of them may be off.

Knows: the rule of today, and the one of before, by which trainings that were begun then go on. Knows nothing about
how anything is measured there.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from engines.common.rng import Stream, generator
from engines.datasets.dataset import Record
from engines.errors import TrainingError
from engines.labels.boxes import Instances
from engines.labels.matching import average_precision, figures, match

FEW = 30  # images of a dev split from which on its figures are believed without a remark
RESAMPLES = 200  # draws of the images
SEED = 0  # of the draws


def split_dev(records: Sequence[Record], fraction: float) -> tuple[list[Record], list[Record]]:
    """Training images and the dev split: an exact share of the images, and of those of every class.

    An image counts for the rarest class that it shows. Each class gives its share of images, rounded so that all
    together make round(fraction N), at least one; which, the SHA-256 of their names says, lowest first. So neither
    the order of the images nor anything random decides. Raises TrainingError when nothing is left to train on.
    """
    if fraction == 0:
        return list(records), []
    wanted = max(1, round(fraction * len(records)))
    groups: dict[int, list[Record]] = {}
    shown = [frozenset(record.instances.single.labels.tolist()) for record in records]
    images = Counter(label for labels in shown for label in labels)
    for record, labels in zip(records, shown, strict=True):
        rarest = min(labels, key=lambda label: (images[label], label), default=-1)
        groups.setdefault(rarest, []).append(record)
    shares = {label: fraction * len(members) for label, members in groups.items()}
    given = {label: int(share) for label, share in shares.items()}
    order = sorted(groups, key=lambda label: (given[label] - shares[label], label))  # the largest remainder first
    for label in (order * (wanted + 1))[: max(0, wanted - sum(given.values()))]:
        given[label] += 1
    held = {one.name for label, members in groups.items() for one in sorted(members, key=_place)[: given[label]]}
    return _parts(records, held)


def split_by_names(records: Sequence[Record], fraction: float) -> tuple[list[Record], list[Record]]:
    """The rule of before: an image is held out when the SHA-256 of its name, as a number in 0..1, lies below
    `fraction`; where none does, the lowest one alone. So the share is exact only of very many images.
    """
    if fraction == 0:
        return list(records), []
    places = {record.name: int(_place(record)[:16], 16) for record in records}
    limit = max(int(fraction * 16**16), min(places.values()) + 1)
    return _parts(records, {name for name, place in places.items() if place < limit})


def noise(
    annotations: Sequence[Instances], found: Sequence[Instances], class_names: Sequence[str]
) -> Mapping[str, tuple[float, float]]:
    """The 95% intervals of AP, AP50 and AP75 over draws of the images with replacement: (low, high) by figure;
    none where nothing is annotated."""
    if not any(len(truth.single) for truth in annotations):
        return {}
    matches, count = match(annotations, found, len(class_names)), len(annotations)
    drawn: dict[str, list[float]] = {"AP": [], "AP50": [], "AP75": []}
    for number in range(RESAMPLES):
        chosen = generator(SEED, Stream.BOOTSTRAP, number + 1).integers(count, size=count)
        values = figures(average_precision(matches, np.bincount(chosen, minlength=count)), class_names)
        for name, kept in drawn.items():
            kept.append(values.get(name, np.nan))
    ends = {name: np.nanquantile(kept, (0.025, 0.975)).tolist() for name, kept in drawn.items()}
    return {name: (round(low, 4), round(high, 4)) for name, (low, high) in ends.items()}


def _place(record: Record) -> str:
    return hashlib.sha256(record.name.encode()).hexdigest()


def _parts(records: Sequence[Record], held: set[str]) -> tuple[list[Record], list[Record]]:
    train = [record for record in records if record.name not in held]
    if not train:
        raise TrainingError(
            f"All {len(records)} images fall into the dev split; give more images, or a dev fraction of 0."
        )
    return train, [record for record in records if record.name in held]
