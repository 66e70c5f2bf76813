"""How right `dengine audit` is about labels that somebody has made again: BCCD's own against clean ones.

    python benchmarks/audit_bar.py --own BCCD --clean CLEAN --work WORK

OWN and CLEAN are two annotations of the same photographs, matched by file name and held against each other pixel by
pixel. WORK/own, WORK/txl and WORK/audit/completed are left there as COCO datasets of the same pictures. What a label
added by `audit` is worth is judged by CLEAN alone, which `audit` never sees. Where a confidence is chosen, it is on the
dev split, and the rest of the images, which nothing was chosen on, is measured beside it.

An addition is right where it overlaps a clean box of its class by IoU 0.5, which no label of OWN has found and no
other addition took; recall is of those boxes.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.records import here, measured_on, parser, say, table, write_report
from engines.audit.audit import audit
from engines.audit.settings import AuditSettings
from engines.common.files import read_json
from engines.datasets.dataset import Dataset, Record, open_dataset
from engines.datasets.writers import AnnotatedImage, write_coco
from engines.errors import DatasetError, RunError
from engines.labels.boxes import Floats, Instances, iou_matrix
from engines.labels.findings import Finding, FindingKind
from engines.labels.thresholds import MATCH_IOU, matched
from engines.training.ahead import FINDS, folder_of
from engines.training.dev_split import split_by_names  # its figures are of trainings by that rule
from engines.training.folds import deal

DEV = 0.3  # share of the images, by their names, on which a confidence may be chosen
CONFIDENCES = (0.3, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9)
PRECISION, RECALL = 0.85, 0.70  # the bars
FOLDS, LOOKS = 2, 8
NETWORK = {"width": 128, "ffn_width": 256, "decoder_layers": 2, "queries": 60, "denoising": 25}
TRAINING = {"steps": 1500, "lr": 6e-4, "short_side": 208, "turns": True, "cache_views": 8, "network": NETWORK}


def pair(own: Dataset, clean: Dataset, work: Path) -> None:
    """Write WORK/own and WORK/txl: the pictures of `clean` with either's labels, classes in `clean`'s order."""
    theirs = {Path(record.name).stem: record for record in own.records}
    order = np.array([clean.class_names.index(name) for name in own.class_names], dtype=np.int64)
    rows: dict[str, list[AnnotatedImage]] = {"own": [], "txl": []}
    for record in clean.records:
        other = theirs.get(Path(record.name).stem)
        if other is None or not np.array_equal(other.pixels(), record.pixels()):
            raise DatasetError(f"{record.name} is not the same picture in {own.root}.")
        labels = replace(other.instances, labels=order[other.instances.labels])
        for name, found in (("own", labels), ("txl", record.instances)):
            target = work / name / "images" / record.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(record.file.read_bytes())
            rows[name].append(AnnotatedImage(record.name, record.width, record.height, found, scored=False))
    for name, images in rows.items():
        write_coco(work / name / "annotations.json", images, clean.class_names, {"description": f"{name} labels"})


def boxes_of(labels: Instances, label: int) -> Floats:
    """A class's boxes, without crowds."""
    boxes: Floats = labels.boxes[(labels.labels == label) & ~labels.crowd]
    return boxes.astype(np.float64)


def pairs(mine: Floats, theirs: Floats) -> list[tuple[int, int, float]]:
    """(place, place, IoU) of boxes that overlap by MATCH_IOU, the closest first, each box once."""
    overlaps, found = iou_matrix(mine, theirs), []
    while overlaps.size and overlaps.max() >= MATCH_IOU:
        row, column = (int(one) for one in np.unravel_index(overlaps.argmax(), overlaps.shape))
        found.append((row, column, float(overlaps[row, column])))
        overlaps[row], overlaps[:, column] = 0.0, 0.0
    return found


def left_out(own: Instances, clean: Instances, label: int) -> Instances:
    """The clean boxes of a class that no label of that class finds; a label finds one box."""
    mine = clean.take((clean.labels == label) & ~clean.crowd)
    kept = np.ones(len(mine), dtype=np.bool_)
    kept[[place for _, place, _ in pairs(boxes_of(own, label), boxes_of(mine, label))]] = False
    return mine.take(kept)


def agreement(one: Sequence[Instances], other: Sequence[Instances], label: int) -> str:
    """How far two annotations of the same pictures agree on a class: F1 of their boxes, and the mean IoU of pairs."""
    every = [[boxes_of(some, label) for some in both] for both in zip(one, other, strict=True)]
    found = [overlap for mine, theirs in every for _, _, overlap in pairs(mine, theirs)]
    return f"{2 * len(found) / max(1, sum(map(len, itertools.chain(*every)))):.2f} ({np.mean(found or [0.0]):.2f})"


def adapters(out: Path, records: Sequence[Record], folds: int, confidence: float) -> list[Instances]:
    """What adapters that did not learn from a picture find on it."""
    fold, found = deal(records, folds), dict[int, Instances]()
    for number in range(folds):
        own = [place for place, one in enumerate(fold) if one == number]
        rows = read_json(folder_of(out, number, folds) / FINDS, RunError)["finds"]
        found |= dict(zip(own, (Instances.from_rows(one) for one in rows), strict=True))
    return [found[place].take(found[place].scores >= confidence) for place in range(len(records))]


def judged(
    findings: Sequence[Finding], own: Sequence[Record], clean: Sequence[Record], images: set[int], label: int | None
) -> list[tuple[float, bool]]:
    """(confidence, whether it is right) of every missing label on these images, of one class or all."""
    rows: list[tuple[float, bool]] = []
    for image in sorted(images):
        mine = [one for one in findings if one.image == image and one.kind is FindingKind.MISSING]
        for kind in {one.label for one in mine if one.label is not None and label in (None, one.label)}:
            some = [one for one in mine if one.label == kind and one.box is not None]
            found = Instances.of([one.box for one in some if one.box], [kind] * len(some), [o.confidence for o in some])
            truth = left_out(own[image].instances, clean[image].instances, kind)
            rows += zip(*(column.tolist() for column in matched(truth, found, kind)), strict=True)
    return rows


def figures(rows: Sequence[tuple[float, bool]], wanted: int, confidence: float) -> tuple[float, float, int]:
    """(precision, recall, additions) at a confidence."""
    above = [right for sure, right in rows if sure >= confidence]
    return (sum(above) / len(above) if above else 0.0, sum(above) / wanted if wanted else 0.0, len(above))


def measured(
    findings: Sequence[Finding], own: Sequence[Record], clean: Dataset, confidence: float
) -> list[tuple[str, str, str, int, int, float, float]]:
    """Rows of the table: the dev split, the rest and all images, all classes at every confidence, each at the one."""
    dev = {record.name for record in split_by_names(own, DEV)[1]}
    every = range(len(own))
    parts = {"dev": {i for i in every if own[i].name in dev}, "rest": {i for i in every if own[i].name not in dev}}
    classes: dict[str, int | None] = {"all": None} | {name: i for i, name in enumerate(clean.class_names)}
    rows = []
    for (part, images), (name, label) in itertools.product({**parts, "all": set(every)}.items(), classes.items()):
        kinds = range(len(clean.class_names)) if label is None else [label]
        wanted = sum(len(left_out(own[i].instances, clean.records[i].instances, one)) for i in images for one in kinds)
        outcomes = judged(findings, own, clean.records, images, label)
        for least in sorted({*CONFIDENCES, confidence}):
            if label is None or least == confidence:
                precision, recall, added = figures(outcomes, wanted, least)
                rows.append((part, name, f"{least:g}", wanted, added, round(precision, 3), round(recall, 3)))
    return rows


def main() -> None:
    """Pair, audit, and hold the additions against the clean labels."""
    options = parser(__doc__, "work", "out", required=("work",))
    options.add_argument("--own", type=Path, required=True, help="dataset with the labels that are audited")
    options.add_argument("--clean", type=Path, required=True, help="the same pictures with better labels")
    options.add_argument("--confidence", type=float, default=0.5, help="from which a missing label is added")
    given = options.parse_args()
    clean = open_dataset(given.clean)
    pair(open_dataset(given.own), clean, given.work)
    summary = audit(
        AuditSettings(
            data=given.work / "own", out=given.work / "audit", folds=FOLDS, training=TRAINING,
            rounds=1, tta=LOOKS, complete="labels", refine=True, confidence=given.confidence,
        ),
        report=lambda event: say(str(event)),
    )  # fmt: skip
    own = open_dataset(given.work / "own").records
    rows = measured(summary.judgement.findings, own, clean, given.confidence)
    found = adapters(given.work / "audit", own, FOLDS, given.confidence)
    every = {"BCCD's": [one.instances for one in own], "TXL-PBC's": [one.instances for one in clean.records],
             f"the adapters' from {given.confidence:g} on": found,
             "completed": [one.instances for one in open_dataset(given.work / "audit/completed").records]}  # fmt: skip
    agreed = [(one, other, *(agreement(every[one], every[other], label) for label in range(len(clean.class_names))))
              for one, other in itertools.combinations(every, 2)]  # fmt: skip
    shares = zip(clean.class_names, summary.judgement.completeness, strict=True)
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares if share is not None)
    value = {**here(), "training": TRAINING, "folds": FOLDS, "looks": LOOKS, "rows": rows, "agreement": agreed}
    report = [
        "# `dengine audit` on BCCD's own labels", measured_on(value),
        f"{len(own)} photographs with {summary.labels} labels, out-of-fold ({FOLDS} folds, one round, {LOOKS} looks). "
        f"The bars: precision {PRECISION:g}, recall {RECALL:g}. `audit` believes that so many of the objects are "
        f"labelled: {told}.",
        table(("images", "class", "confidence", "left out", "added", "precision", "recall"), rows),
        "How far two annotations agree: F1 of the boxes that match by an IoU of 0.5, and in brackets their mean IoU.",
        table(("labels", "labels", *clean.class_names), agreed),
    ]  # fmt: skip
    write_report(report, value, given.out)


if __name__ == "__main__":
    main()
