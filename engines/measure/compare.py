"""Two reports of `bench`, one beside the other.

Knows: which numbers of a report are figures, how each changed, and what else changed that explains it (machine,
versions, settings). Knows nothing about how they were measured.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.common.files import read_json
from engines.common.schema import walked
from engines.errors import UsageError
from engines.measure.settings import FORMAT

_PARTS = ("machine", "versions", "settings")  # of a report, each an object


@dataclass(frozen=True)
class Change:
    """One figure in both reports."""

    name: str  # such as "openvino / graphs / unet / seconds / median"
    before: float
    after: float

    @property
    def percent(self) -> float | None:
        """Change in percent of what it was; None where it was 0."""
        return None if self.before == 0 else 100.0 * (self.after - self.before) / abs(self.before)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    changes: tuple[Change, ...]  # figures of both, in the new report's order
    remarks: tuple[str, ...]  # what else differs, a line each; empty where only figures do


def read_report(path: Path) -> dict[str, Any]:
    """A report that `dengine bench` wrote. Raises UsageError for any other file."""
    report = read_json(path, UsageError)
    parts = all(isinstance(report.get(part, {}), Mapping) for part in _PARTS)
    if report.get("format") != FORMAT or not isinstance(report.get("engines"), list) or not parts:
        raise UsageError(f"{path} is no report of this version's `dengine bench`.")
    with walked(UsageError, f"{path} is not as `dengine bench` wrote it: measure again."):
        compare(report, report)
    return report


def compare(after: Mapping[str, Any], before: Mapping[str, Any]) -> Comparison:
    """How `after` differs from `before`."""
    new, old = figures_of(after), figures_of(before)
    changes = tuple(Change(name, old[name], value) for name, value in new.items() if name in old)
    remarks = [line for part in _PARTS for line in _differences(part, after, before)]
    backends = [{row["engine"]: row.get("backend") for row in report["engines"]} for report in (after, before)]
    remarks += [
        f"{engine} was {backends[1][engine]}, and is {found}"
        for engine, found in backends[0].items()
        if engine in backends[1] and found != backends[1][engine]
    ]
    for names, where in ((old.keys() - new.keys(), "the earlier run"), (new.keys() - old.keys(), "this run")):
        tops = sorted({name.split(" / ")[0] for name in names})
        if tops:
            remarks.append(f"only in {where}: {len(names)} figures of {', '.join(tops)}")
    return Comparison(changes, tuple(remarks))


def figures_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Every number that was measured, by its path in the report."""
    found: dict[str, float] = {}
    for row in report["engines"]:
        found |= dict(_numbers(row, (row["engine"],)))
    for row in report["baseline"]:
        found |= dict(_numbers(row, (f"baseline {row['role']}",)))
    for device, roofline in report["roofline"].items():
        for precision, best in roofline["best"].items():
            found[f"matmul {device} / {precision} / flops_per_second"] = float(best["flops_per_second"])
    return found


def _numbers(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """(path, number) of all numbers in a JSON value, but for those of settings and counts."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _NO_FIGURES:
                yield from _numbers(item, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield " / ".join(path), float(value)


_NO_FIGURES = ("threads", "slots", "rows", "batch", "calls", "images", "flops", "tried")


def _differences(part: str, after: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
    """What differs between the same object of two reports, a line a key."""
    new, old = after.get(part, {}), before.get(part, {})
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            yield f"{part} differ: {key} was {_shown(old.get(key))}, and is {_shown(new.get(key))}"


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)
