"""What the trainings say together: means, spreads, and the paired difference with its interval.

Knows: how figures of several arms and seeds are put side by side, and the bootstrap over validation images. Knows
nothing about how anything was trained, or about files.

The interval: the validation images are drawn anew with replacement, the same draw for every arm and seed; the
difference of the arms' means over seeds is taken on each draw; the interval holds 95% of these. So it says how far
the choice of validation images moves the result. How far the luck of a training does is the deviation over seeds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engines.common.rng import Stream, generator
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.labels.matching import average_precision, figures, match

_LOW, _HIGH = 0.025, 0.975


@dataclass(frozen=True, eq=False)
class Result:
    """One finished training: what it found on the validation images."""

    generated: int  # images in the arm beside the real ones
    seed: int
    detections: Sequence[Instances]  # one for each validation image


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds."""

    mean: float
    sd: float | None  # sample standard deviation; None for a single seed
    values: tuple[float, ...]  # by seed, in the order of the seeds


@dataclass(frozen=True)
class Difference(Spread):
    """A figure of one arm less that of the real images alone, seed by seed."""

    low: float  # ends of the 95% interval, over draws of the validation images
    high: float


@dataclass(frozen=True)
class Arm:
    """What was trained on the same images, over all seeds."""

    generated: int
    figures: Mapping[str, Spread]  # AP, AP50, AP75, AP/<class>, AP50/<class>
    differences: Mapping[str, Difference]  # to the arm without generated images; empty for that arm itself


def compare(
    results: Sequence[Result],
    annotations: Sequence[Instances],
    class_names: Sequence[str],
    *,
    resamples: int,
    seed: int = 0,
) -> list[Arm]:
    """Arms by their number of generated images; the one with 0 is what the others are held against.

    Every arm has the same seeds. `seed` decides the draws of the bootstrap.
    """
    by_arm: dict[int, list[Result]] = {}
    for result in sorted(results, key=lambda result: (result.generated, result.seed)):
        by_arm.setdefault(result.generated, []).append(result)
    measured = {
        arm: [mean_average_precision(annotations, result.detections, class_names) for result in members]
        for arm, members in by_arm.items()
    }
    compared = len(by_arm) > 1 and 0 in by_arm
    drawn = _resampled(by_arm, annotations, class_names, resamples, seed) if compared else {}
    arms = []
    for arm, values in measured.items():
        names = [name for name in values[0] if all(name in one for one in values)]
        spreads = {name: _spread([one[name] for one in values]) for name in names}
        differences = {}
        if compared and arm != 0:
            for name in names:
                pairs = [after[name] - before[name] for before, after in zip(measured[0], values, strict=True)]
                differences[name] = _difference(pairs, drawn[arm].get(name, []), drawn[0].get(name, []))
        arms.append(Arm(arm, spreads, differences))
    return arms


def arm_name(arm: int, real: int) -> str:
    """`real`, or `real + 820 generated (4x)`: multiples of the `real` training images where they are round."""
    if arm == 0:
        return "real"
    share = arm / real if real else 0.0
    return f"real + {arm} generated" + (f" ({share:g}x)" if share and abs(share * 4 - round(share * 4)) < 1e-9 else "")


def gains(arms: Sequence[Arm], real: int) -> list[str]:
    """What each arm's AP says of its generated images, a sentence an arm; in points of AP.

    A gain or a loss is measurable where its 95% interval leaves out 0.
    """
    return [f"{arm_name(arm.generated, real)}: {_gain(arm.differences['AP'])}" for arm in arms if arm.differences]


def _gain(found: Difference) -> str:
    text = f"{100 * found.mean:+.1f} AP, 95% interval {100 * found.low:+.1f} to {100 * found.high:+.1f}"
    if found.low > 0:
        return text
    return f"a loss: {text}" if found.high < 0 else f"no gain measurable: {text}"


def table(arms: Sequence[Arm], real: int) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of text: a row a figure, a column an arm, and one for each arm's difference to the first."""
    header, rows = ["figure"], [[name] for name in arms[0].figures]
    for arm in arms:
        header.append(arm_name(arm.generated, real))
        for row in rows:
            row.append(_shown(arm.figures.get(row[0])))
        if not arm.differences:
            continue
        header.append("difference")
        for row in rows:
            change = arm.differences.get(row[0])
            row.append(f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]" if change else "-")
    return header, rows


def _shown(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:.3f}" if spread.sd is None else f"{spread.mean:.3f} ± {spread.sd:.3f}"


def _resampled(
    by_arm: Mapping[int, Sequence[Result]],
    annotations: Sequence[Instances],
    class_names: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[int, dict[str, list[float]]]:
    """Means over seeds by arm and figure, one value for each draw of the images; NaN where a class was not drawn."""
    images = len(annotations)
    matches = {
        arm: [match(annotations, result.detections, len(class_names)) for result in members]
        for arm, members in by_arm.items()
    }
    names = list(figures(average_precision(next(iter(matches.values()))[0], np.ones(images, np.int64)), class_names))
    drawn: dict[int, dict[str, list[float]]] = {arm: {name: [] for name in names} for arm in matches}
    for number in range(resamples):
        chosen = generator(seed, Stream.BOOTSTRAP, number + 1).integers(images, size=images)
        weights = np.bincount(chosen, minlength=images)
        for arm, members in matches.items():
            values = [figures(average_precision(classes, weights), class_names) for classes in members]
            for name in names:
                drawn[arm][name].append(statistics.fmean(one.get(name, math.nan) for one in values))
    return drawn


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), _deviation(values), tuple(values))


def _difference(pairs: Sequence[float], after: Sequence[float], before: Sequence[float]) -> Difference:
    mean = statistics.fmean(pairs)
    moved = np.array(after) - np.array(before)
    moved = moved[~np.isnan(moved)]
    low, high = np.quantile(moved, (_LOW, _HIGH)).tolist() if len(moved) else (mean, mean)
    return Difference(mean, _deviation(pairs), tuple(pairs), low, high)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
