"""What the painting settings of a bundle do to the accuracy of its annotations, and what they cost.

    python benchmarks/ablation.py --detector DETECTOR --work WORK --reference DATA --split train --jobs 64

One setting at a time is changed: steps, guidance, its interval, strength. Every variant paints the same jobs. Its
labels are compared with what an independent detector (a folder that `dengine evaluate` trained on real pixels) finds
on the same pictures: AP50 of all boxes, and precision, recall and F1 of the labels that `--score` accepts. The
detector errs too, so figures tell variants apart, and are no accuracy by themselves.

Run it again after an interruption: finished variants are read from WORK/ablation.jsonl, a begun one goes on from its
last whole chunk (and has no speed then). WORK/ablation.md is the table.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent.parent))

from dengine_cli.parse import parse_score
from engines.bundle.bundle import default_bundle, open_bundle
from engines.common.files import sha256_file, write_atomic
from engines.common.names import class_words
from engines.common.rng import generator
from engines.datasets.images import read_image
from engines.errors import UsageError
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.labels.choose import choose
from engines.labels.thresholds import matched
from engines.painting.settings import GenerateSettings
from engines.runs.finalize import rules_of
from engines.runs.generate import generate
from engines.runs.journal import JOURNAL, Entry, find_image, read_entries
from engines.runs.run_folder import require_run
from engines.worth.detectors.config import INFO_FILE, WEIGHTS_FILE
from engines.worth.detectors.model import Detector, load_detector
from engines.worth.matching import average_precision, figures, match

RESULTS, TABLE = "ablation.jsonl", "ablation.md"
RESAMPLES = 1000  # draws for an interval
_DRAWS = 60  # what their random stream is for
STEPS = (10, 15, 40)
GUIDANCE = (1.0, 2.0, 5.0)
INTERVALS = ((0.0, 0.5), (0.0, 0.8), (0.2, 0.8), (0.2, 1.0))  # of t / T
STRENGTHS = (0.3, 0.45, 0.6, 0.75, 0.9)
COLUMNS = (
    ("AP50", "ap50"), ("precision", "precision"), ("recall", "recall"), ("F1", "f1"),
    ("labels an image", "labels"), ("images/s", "images_per_second"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Truth:
    """What the detector found on one image, as annotations."""

    boxes: npt.NDArray[np.float32]  # [N, 4] corners in pixels
    labels: npt.NDArray[np.int64]  # [N], index into the bundle's class names
    iscrowd: npt.NDArray[np.bool_]  # [N], all False


def variants(references: bool, only: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, changed settings of `generate`), the bundle's own settings first; of the others those `only` begins."""
    yield "as it comes", {}
    yield from (variant for variant in _changes(references) if not only or variant[0].startswith(tuple(only)))


def _changes(references: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((f"steps {steps}", {"steps": steps}) for steps in STEPS)
    yield from ((f"guidance {guidance:g}", {"guidance": guidance}) for guidance in GUIDANCE)
    for low, high in INTERVALS:
        yield f"guidance in {low:g}:{high:g}", {"guidance_interval": (low, high)}
    yield "label views 2", {"label_views": 2}
    if references:
        yield from ((f"strength {strength:g}", {"strength": (strength, strength)}) for strength in STRENGTHS)


def found_by(detector: Detector, files: Sequence[Path], class_names: Sequence[str], least: float) -> list[Truth]:
    """What the detector finds on images with a score of at least `least`; its classes are matched by name."""
    own = {class_words(name): label for label, name in enumerate(class_names)}
    mapping = np.array([own.get(class_words(name), -1) for name in detector.info.class_names], dtype=np.int64)
    if set(mapping.tolist()) != set(own.values()):
        raise UsageError(
            f"The detector knows {', '.join(detector.info.class_names)}, the bundle {', '.join(class_names)}."
        )
    truth = []
    for found in detector.predict(read_image(file) for file in files):
        sure = found.scores >= least
        truth.append(Truth(found.boxes[sure], mapping[found.labels[sure]], np.zeros(int(sure.sum()), dtype=bool)))
    return truth


def read_journal(folder: Path) -> tuple[list[Entry], list[Instances]]:
    """The entries of a run's images, and all their boxes."""
    entries = [entry for entry in read_entries(folder / JOURNAL) if entry.file]
    rows = [np.array(entry.boxes, dtype=np.float32).reshape(-1, 6) for entry in entries]
    return entries, [Instances(row[:, :4], row[:, 4], row[:, 5].astype(np.int64)) for row in rows]


def read_labels(folder: Path) -> tuple[list[Entry], list[Instances], list[Instances]]:
    """The same, and the boxes that are labels by the run's own rules."""
    rules = rules_of(require_run(folder))
    entries, boxes = read_journal(folder)
    labels = []
    for every in boxes:
        chosen, _ = choose(every, rules)
        labels.append(Instances(every.boxes[chosen], every.scores[chosen], every.labels[chosen]))
    return entries, boxes, labels


def agreement(folder: Path, detector: Detector, least: float) -> dict[str, Any]:
    """How far the labels of a run agree with the detector's boxes scoring at least `least`, classes by name.

    `ap50` is of all boxes in the journal, `label_ap50` of the labels alone, with its `interval`.
    """
    run = require_run(folder)
    entries, boxes, labels = read_labels(folder)
    truth = found_by(detector, [find_image(folder, entry) for entry in entries], run.class_names, least)
    right = sum(
        int(matched(there, here, label)[1].sum())
        for there, here in zip(truth, labels, strict=True)
        for label in range(len(run.class_names))
    )
    given, wanted = sum(len(one.scores) for one in labels), sum(len(one.labels) for one in truth)
    return {
        "images": len(entries),
        "ap50": mean_average_precision(truth, boxes, run.class_names)["AP50"],
        "label_ap50": mean_average_precision(truth, labels, run.class_names)["AP50"],
        "label_ap50_interval": interval(
            truth, labels, run.class_names, [entry.reference or entry.index for entry in entries]
        ),
        "precision": right / max(given, 1),
        "recall": right / max(wanted, 1),
        "f1": 2 * right / max(given + wanted, 1),
        "labels": given / max(len(entries), 1),
    }


def interval(
    truth: Sequence[Truth], labels: Sequence[Instances], class_names: Sequence[str], groups: Sequence[object]
) -> list[float]:
    """Where AP50 lies in nineteen of twenty draws of as many groups of images, [low, high].

    `groups` has the group of every image: those painted from one reference are alike, and are drawn together.
    """
    if not truth:
        return [0.0, 0.0]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    member_of = np.array([numbers[group] for group in groups])
    matches = match(truth, labels, len(class_names))
    draws = (generator(_DRAWS, number + 1).integers(len(numbers), size=len(numbers)) for number in range(RESAMPLES))
    counts = (np.bincount(drawn, minlength=len(numbers))[member_of] for drawn in draws)
    found = [figures(average_precision(matches, count), class_names)["AP50"] for count in counts]
    low, high = np.quantile(found, (0.025, 0.975)).tolist()
    return [low, high]


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as a markdown table; what was not measured is a dash."""
    names = [name for name, _ in COLUMNS]
    lines = [f"| setting | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for result in results:
        cells = ["-" if result[key] is None else f"{result[key]:.3f}" for _, key in COLUMNS]
        lines.append(f"| {result['setting']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Paint, compare, and write a line and the table after every variant."""
    given = _options()
    bundle = open_bundle(given.bundle or default_bundle())
    detector = load_detector(given.detector)
    base = GenerateSettings(
        out=given.work, bundle=bundle.folder, jobs=given.jobs, reference=given.reference, reference_split=given.split,
        score=parse_score(given.score), seed=given.seed, keep_empty=True, min_quality=0.0, engine=given.engine,
        threads=given.threads,
    )  # fmt: skip
    same = {
        "bundle": bundle.digest,
        "detector": [sha256_file(given.detector / name) for name in (INFO_FILE, WEIGHTS_FILE)],
        "detector_score": given.detector_score,
        "options": [given.jobs, given.seed, given.score, str(given.reference), given.split, given.engine],
    }
    given.work.mkdir(parents=True, exist_ok=True)
    path = given.work / RESULTS
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    known = {value["setting"]: value for value in map(json.loads, lines) if value["same"] == same}
    results = []
    for name, changes in variants(given.reference is not None, given.only):
        if name not in known:
            folder = given.work / name.replace(" ", "-").replace(":", "-")
            summary = generate(dataclasses.replace(base, out=folder, **changes))
            found = agreement(folder, detector, given.detector_score)
            whole = summary.painted == given.jobs
            speed = summary.images_per_second if whole else None
            run = require_run(folder)
            settings = {
                key: getattr(run, key) for key in ("steps", "guidance", "guidance_interval", "strength", "label_views")
            }
            known[name] = {"setting": name, **found, "images_per_second": speed, "settings": settings, "same": same}
        results.append(known[name])
        write_atomic(path, "".join(json.dumps(result) + "\n" for result in results).encode())
        write_atomic(given.work / TABLE, table(results).encode())
        print(json.dumps(known[name]), flush=True)
    print(table(results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", type=Path, required=True, help="detector trained on real images")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs and results")
    parser.add_argument("--bundle", type=Path, default=None, help="a bundle; the bundled model without it")
    parser.add_argument("--reference", type=Path, default=None, help="dataset to repaint; text alone without it")
    parser.add_argument("--split", default=None, help="part of that dataset")
    parser.add_argument("--jobs", type=int, default=64, help="images of every variant")
    parser.add_argument("--score", default=None, help="threshold of the labels, as for generate")
    parser.add_argument("--detector-score", type=float, default=0.5, help="a box of the detector counts from here on")
    parser.add_argument("--only", nargs="*", default=(), metavar="WORD", help="settings to change, such as strength")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error("--jobs must be at least 1")
    return given


if __name__ == "__main__":
    main()
