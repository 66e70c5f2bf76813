"""What the rules of a dataset do to the annotations of a painted run: thresholds, uncertain regions, what is dropped.

    python benchmarks/ablation_rules.py RUN --detector DETECTOR --score RBC=0.45 --balanced RUN2 --work WORK

The rules are those of `dengine finalize`. Nothing is painted: for every rule the boxes of RUN's journal are chosen
anew, and held against what an independent detector (a folder that `dengine evaluate` trained on real pixels) finds on
the same pictures. The detector errs too, so figures tell rules apart, and are no accuracy by themselves. `--balanced`
names a run that was painted with the same settings and --balance. WORK gets rules.jsonl and rules.md.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.ablation import Truth, found_by, read_journal
from dengine_cli.parse import parse_score
from engines.common.files import write_atomic
from engines.labels.boxes import Instances, iou_matrix
from engines.labels.choose import choose
from engines.labels.rules import Rules, drop_reason, quality
from engines.labels.scores import FALLBACK, full_score
from engines.labels.thresholds import MATCH_IOU, in_crowds, matched
from engines.painting.settings import RunSettings
from engines.runs.journal import Entry, find_image
from engines.runs.near_duplicates import REPEATS_IMAGE, REPEATS_REFERENCE, Candidate, find_repeats, reference_plan
from engines.runs.run_folder import require_run
from engines.worth.detectors.model import Detector, load_detector

RESULTS, TABLE = "rules.jsonl", "rules.md"
SCORES = (FALLBACK, 0.5, 0.7)  # one threshold for all classes
UNCERTAIN = (0.15, 0.05)  # with the thresholds by class
SHARES = (0.1, 0.25, 0.5)  # of the images, the most doubtful of which are dropped
OVERLAPS = (0.8, 0.5)  # IoU from which the surer of two boxes of a class stays alone
NEAR = (0.99, 0.97, 0.95, 0.9)  # correlations from which an image repeats another
COLUMNS = (
    ("images", "images", ".0f"), ("labels an image", "labels", ".2f"), ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"), ("F1", "f1", ".3f"), ("missed objects in uncertain regions", "excused", ".0%"),
)  # fmt: skip


@dataclass(frozen=True)
class Painted:
    """A run, and what the detector sees on its images."""

    run: RunSettings
    folder: Path
    entries: Sequence[Entry]
    boxes: Sequence[Instances]  # of the journal, all of them
    truth: Sequence[Truth]


def look_at(folder: Path, detector: Detector, least: float) -> Painted:
    """A run with the boxes that the detector finds on its images with a score of at least `least`."""
    run, (entries, boxes) = require_run(folder), read_journal(folder)
    files = [find_image(folder, entry) for entry in entries]
    return Painted(run, folder, entries, boxes, found_by(detector, files, run.class_names, least))


def measure(name: str, painted: Painted, rules: Rules, dropped: Mapping[int, str] | None = None) -> dict[str, Any]:
    """The figures of a rule, over the images that it keeps; `dropped`: job index -> why, of others that go.

    `excused` is the share of the objects without a label that lie, by half of their area, in an uncertain region.
    """
    kept = [
        row
        for row, entry in enumerate(painted.entries)
        if entry.index not in (dropped or {}) and drop_reason(entry.boxes, rules) is None
    ]
    given: Counter[int] = Counter()
    right = wanted = missed = excused = 0
    for row in kept:
        found, there = painted.boxes[row], painted.truth[row]
        chosen, uncertain = choose(found, rules)
        labels = Instances(found.boxes[chosen], found.scores[chosen], found.labels[chosen])
        given.update(labels.labels.tolist())
        wanted += len(there.labels)
        right += sum(int(matched(there, labels, label)[1].sum()) for label in range(len(rules.class_names)))
        lost = there.boxes[~_labelled(there, labels)]
        missed += len(lost)
        excused += int(in_crowds(lost, found.boxes[uncertain]).sum()) if uncertain.any() else 0
    total = sum(given.values())
    return {
        "setting": name,
        "images": len(kept),
        "labels": total / max(len(kept), 1),
        "precision": right / max(total, 1),
        "recall": right / max(wanted, 1),
        "f1": 2 * right / max(total + wanted, 1),
        "excused": excused / max(missed, 1) if rules.uncertain else None,
        "by_class": {name: given[label] for label, name in enumerate(rules.class_names)},
        "repeats": dict(Counter((dropped or {}).values())),
    }


def rows(painted: Painted, score: dict[str, float], balanced: Painted | None) -> Iterator[dict[str, Any]]:
    """Every rule's figures. `score`: the threshold of each class that was chosen for it."""
    names = painted.run.class_names
    own = Rules(full_score(score, {}, names), names, keep_empty=True)
    for number in SCORES:
        yield measure(f"score {number:g} for every class", painted, replace(own, score=number))
    yield measure("a score for each class", painted, own)
    for low in UNCERTAIN:
        yield measure(f"the same, uncertain from {low:g}", painted, replace(own, uncertain=low))
    for most in OVERLAPS:
        yield measure(f"the same, overlaps up to {most:g}", painted, replace(own, max_overlap=most))
    order = sorted(quality(entry.boxes) for entry in painted.entries)
    for share in SHARES:
        least = round(order[int(share * len(order))], 2)
        yield measure(f"the same, quality at least {least:g}", painted, replace(own, min_quality=least))
    plan = reference_plan(painted.run)
    candidates = [Candidate(entry.index, find_image(painted.folder, entry)) for entry in painted.entries]
    for threshold in NEAR:
        run = replace(painted.run, near_duplicates=threshold, count=None)
        yield measure(
            f"the same, near duplicates from {threshold:g} dropped", painted, own, find_repeats(candidates, run, plan)
        )
    if balanced is not None:
        yield measure("the same, painted with --balance", balanced, own)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as a markdown table, the share of every class among the labels and what was dropped in words."""
    header = ["rule", *(name for name, _, _ in COLUMNS), "labels by class", "dropped"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for result in results:
        cells = ["-" if result[key] is None else format(result[key], form) for _, key, form in COLUMNS]
        total = max(sum(result["by_class"].values()), 1)
        cells.append(", ".join(f"{name} {number / total:.1%}" for name, number in result["by_class"].items()))
        dropped = [
            f"{result['repeats'][why]} {why.replace('nearly repeats', 'near')}"
            for why in (REPEATS_REFERENCE, REPEATS_IMAGE)
            if why in result["repeats"]
        ]
        lines.append(f"| {' | '.join([result['setting'], *cells, ', '.join(dropped) or '-'])} |")
    return "\n".join(lines) + "\n"


def _labelled(truth: Truth, labels: Instances) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Which of the objects overlap a label of their class by MATCH_IOU, [N]."""
    same = truth.labels[:, None] == labels.labels[None, :]
    return np.asarray(((iou_matrix(truth.boxes, labels.boxes) >= MATCH_IOU) & same).any(axis=1))


def main() -> None:
    """Look at the pictures once, and write the rows and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `dengine generate`")
    parser.add_argument("--detector", type=Path, required=True, help="detector trained on real images")
    parser.add_argument("--score", required=True, help="the threshold of each class, as for generate")
    parser.add_argument("--balanced", type=Path, default=None, help="a run with --balance")
    parser.add_argument("--work", type=Path, required=True, help="folder for the results")
    parser.add_argument("--detector-score", type=float, default=0.5, help="a box of the detector counts from here on")
    given = parser.parse_args()
    score = parse_score(given.score)
    if not isinstance(score, dict):
        parser.error("--score must name classes, as RBC=0.45")
    detector = load_detector(given.detector)
    painted = look_at(given.run, detector, given.detector_score)
    balanced = look_at(given.balanced, detector, given.detector_score) if given.balanced else None
    results = list(rows(painted, score, balanced))
    given.work.mkdir(parents=True, exist_ok=True)
    write_atomic(given.work / RESULTS, "".join(json.dumps(result) + "\n" for result in results).encode())
    write_atomic(given.work / TABLE, table(results).encode())
    print(table(results))


if __name__ == "__main__":
    main()
