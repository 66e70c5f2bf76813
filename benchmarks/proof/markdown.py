"""Tables in markdown, and the document that is little else: ablation.md.

Knows: how a table and a figure with its spread are written, and the columns of the ablation. Knows nothing about what
the figures mean for the proof.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.ablation_rules import table as rules_table
from benchmarks.proof.actions import RULES
from benchmarks.proof.plan import FULL
from benchmarks.proof.summary import Gain, deviation

NOT_RUN = "not run yet"
_HEAD = """# What painting settings do to the accuracy of the labels

`benchmarks/ablation.py` on images of BCCD's train split: the labels of generated images against what an independent
detector, trained on real pixels alone, finds on the same pictures. It errs too: figures tell settings apart, and are no
accuracy by themselves. Every setting paints the same jobs. These are 32 images, timed once and not warmed up: small
differences say nothing, of speeds least of all. Guidance intervals that end at 0.8 or above are the same thing here,
since strengths end below.
"""
_COLUMNS = {
    "AP50": "ap50",
    "AP50 of the labels": "label_ap50",
    "precision": "precision",
    "recall": "recall",
    "F1": "f1",
    "labels an image": "labels",
    "images/s": "images_per_second",
}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def shown(change: Gain | float | None) -> str:
    """A difference with its spread and interval, or a plain figure."""
    if change is None:
        return "-"
    if isinstance(change, float):
        return f"{change:.1f}"
    spread = "" if change.sd is None else f" ± {change.sd:.1f}"
    return f"{change.mean:+.1f}{spread} [{change.low:+.1f}, {change.high:+.1f}]"


def spread(values: Sequence[float]) -> str:
    """A mean with its standard deviation."""
    if not values:
        return "-"
    sd = deviation(values)
    return f"{statistics.fmean(values):.1f}" + ("" if sd is None else f" ± {sd:.1f}")


def ablations(records: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """ablation.md, part by part, of the records by stage: nothing where there are none of an ablation."""
    found = {stage.removeprefix("ablation-"): record for stage, record in records.items() if "ablation-" in stage}
    if found:
        yield _HEAD
    for name, record in found.items():
        what = "the bundled model, references from the tune part" if name == FULL else f"the bundle of list {name}"
        yield f"## {what}\n"
        yield f"Detector: `{record['figures']['detector']}`. Command: `{record['commands'][0]}`\n"
        rows = [
            (row["setting"], *("-" if row.get(key) is None else f"{row[key]:.3f}" for key in _COLUMNS.values()))
            for row in record["figures"]["rows"]
        ]
        yield table(("setting", *_COLUMNS), rows)
    if RULES in records:
        record = records[RULES]
        yield "## The rules of a dataset, on a run of the bundled model\n"
        yield (
            "What `finalize` decides, on the images painted from the whole train split: nothing but --balance paints "
            f"others. Detector: `{record['figures']['detector']}`. Commands: "
            f"{', '.join(f'`{command}`' for command in record['commands'])}\n"
        )
        yield rules_table(record["figures"]["rows"])
