"""What the records say together: arms, differences, and whether the bars are reached.

Knows: which records belong to which arm of which setting, means and deviations over lists or seeds, and the rule that
no gain counts without a good baseline. Knows nothing about text or files. AP is in points (0..100) here.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from benchmarks.proof.draws import interval
from benchmarks.proof.plan import BARS, FULL, DetectorPlan, Plan, suffixed

Records = Mapping[str, Mapping[str, Any]]  # by stage
SCARCE_ARMS = ("real", "pseudo", "generated", "adapter")
FULL_ARMS = ("real", "generated", "adapter")
FIGURES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Runs:
    """One arm's runs: one a list or a seed, in their order."""

    arm: str
    figures: tuple[Mapping[str, float], ...]  # 0..1
    draws: tuple[Mapping[str, str], ...]

    def values(self, name: str) -> list[float]:
        """A figure of each run, in points."""
        return [100 * one[name] for one in self.figures if name in one]


@dataclass(frozen=True)
class Gain:
    """One arm's AP less another's, run by run, in points."""

    mean: float
    sd: float | None  # over runs; None for one
    low: float  # 95% interval over draws of the validation images
    high: float
    pairs: tuple[float, ...]


@dataclass(frozen=True)
class Bar:
    """Something that has to be reached."""

    what: str
    kind: str  # of detector
    least: float  # points; 0: more than that is needed
    found: Gain | float | None  # None: not run yet

    @property
    def reached(self) -> bool | None:
        """None where it was not run."""
        if self.found is None:
            return None
        value = self.found.mean if isinstance(self.found, Gain) else self.found
        return value >= self.least if self.least else value > 0.0


def scarce(
    records: Records,
    kind: str,
    names: Sequence[str],
    wanted: Sequence[str] = SCARCE_ARMS,
    own: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Runs]:
    """The arms of the label-scarce setting for one detector, over the lists that all of these arms are there for.

    own: by arm, the suffix of a list's name in its stages.
    """

    def find(arm: str) -> Callable[[str], Mapping[str, Any] | None]:
        if arm == "adapter":
            return lambda name: _result(records, f"adapter-val-{suffixed(name, own.get(arm, ''))}", arm)
        if arm == "real":  # stands in its own record, and in those of the trainings it is held against
            return lambda name: (
                _result(records, f"{kind}-{name}-real", arm) or _result(records, f"{kind}-{name}-generated", arm)
            )
        return lambda name: _result(records, f"{kind}-{suffixed(name, own.get(arm, ''))}-{arm}", arm)

    return _arms({arm: find(arm) for arm in wanted}, names)


def full(records: Records, detector: DetectorPlan, own: str = "") -> dict[str, Runs]:
    """The arms of the setting with all labels, over the seeds; the adapter was trained once.

    own: suffix of other labels, or of another way to train.
    """
    seeds = [str(seed) for seed in detector.seeds_full]

    def find(arm: str) -> Callable[[str], Mapping[str, Any] | None]:
        return lambda seed: _result(records, suffixed(f"{detector.kind}-{FULL}-{seed}", own), arm)

    found = _arms({arm: find(arm) for arm in FULL_ARMS if arm != "adapter"}, seeds)
    adapter = _result(records, f"adapter-val-{FULL}", "adapter")
    if adapter is not None:
        found["adapter"] = Runs("adapter", (adapter["figures"],), (adapter["draws"],))
    return found


def gain(arms: Mapping[str, Runs], after: str, before: str, name: str = "AP") -> Gain | None:
    """The paired difference of two arms; None where either is missing or they have not the same runs."""
    if after not in arms or before not in arms:
        return None
    pairs = [a - b for a, b in zip(arms[after].values(name), arms[before].values(name), strict=False)]
    if not pairs or len(arms[after].figures) != len(arms[before].figures):
        return None
    low, high = interval(arms[after].draws, arms[before].draws, name)
    return Gain(statistics.fmean(pairs), deviation(pairs), 100 * low, 100 * high, tuple(pairs))


def bars(records: Records, plan: Plan) -> list[Bar]:
    """Everything that has to be reached, and what was found; a gain on fewer runs than planned counts as not run."""
    found = []
    for before, least in (("real", BARS["scarce"]), ("pseudo", 0.0)):
        for detector in plan.detectors:
            arms = scarce(records, detector.kind, plan.lists, ("generated", before), plan.judged)
            change = _whole(gain(arms, "generated", before), len(plan.lists))
            found.append(Bar(f"10% of the labels: generated over {before}", detector.kind, least, change))
    for detector in plan.detectors:
        arms = full(records, detector, plan.judged.get("full", ""))
        change = _whole(gain(arms, "generated", "real"), len(detector.seeds_full))
        found.append(Bar("all labels: generated over real", detector.kind, BARS["full"], change))
    for detector in plan.detectors:
        ap50 = baseline(records, detector)
        found.append(Bar("all labels: AP50 of the real images alone", detector.kind, BARS["baseline_ap50"], ap50))
    return found


def _whole(found: Gain | None, runs: int) -> Gain | None:
    return found if found is not None and len(found.pairs) == runs else None


def baseline(records: Records, detector: DetectorPlan) -> float | None:
    """AP50 in points of a detector on all real images, the mean over its seeds: no gain of it counts below the bar."""
    arms = full(records, detector)
    return statistics.fmean(arms["real"].values("AP50")) if "real" in arms else None


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def _arms(finders: Mapping[str, Callable[[str], Mapping[str, Any] | None]], names: Sequence[str]) -> dict[str, Runs]:
    found = {arm: {name: result for name in names if (result := find(name))} for arm, find in finders.items()}
    trained = [arm for arm in found if arm != "adapter" and found[arm]]
    shared = [name for name in names if trained and all(name in found[arm] for arm in trained)]
    arms = {}
    for arm, results in found.items():
        runs = [results[name] for name in shared if name in results]
        if runs and (arm == "adapter" or len(runs) == len(shared)):
            figures, draws = tuple(run["figures"] for run in runs), tuple(run["draws"] for run in runs)
            arms[arm] = Runs(arm, figures, draws)
    return arms


def _result(records: Records, stage: str, arm: str) -> Mapping[str, Any] | None:
    if stage not in records:
        return None
    results: Mapping[str, Mapping[str, Any]] = records[stage]["figures"]["results"]
    return results.get(arm)
