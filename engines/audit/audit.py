"""`dengine audit`: what a dataset's own labels miss or have wrong.

Knows: the order (open the dataset, find objects on its images, judge, write), and what lies in the folder. What is
suspicious is `engines.labels.findings`' matter, and adapters that did not learn from an image `folds`'.

    OUT/audit.json    every finding, the surest first
    OUT/audit.html    the worst images with both sets of boxes
    OUT/completed/    where it is asked for: a COCO dataset with the missing labels added
    OUT/folds/        the adapters of the folds
    OUT/round-2/      where the folds learn in rounds: the same of the second one

The dataset itself is never changed.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.adapter.info import INFO_FILE
from engines.audit.complete import completed, write_completed
from engines.audit.page import write_page
from engines.audit.settings import AuditSettings, AuditSummary, check_known
from engines.common.events import Report, note, silent
from engines.common.files import write_json
from engines.common.names import class_words
from engines.common.verbs import verb
from engines.datasets.dataset import Dataset, Record, open_dataset, readable
from engines.diffusion.base_model import local_folder
from engines.diffusion.prompts import generic_prompt
from engines.errors import RunError
from engines.labelling import detect
from engines.labels.boxes import Instances, iou_matrix
from engines.labels.findings import Finding, FindingKind, Judgement, Picture, judge, refined
from engines.labels.gaps import looks_incomplete
from engines.labels.thresholds import MATCH_IOU
from engines.painting.needs import label_needs
from engines.painting.reader import padded_size
from engines.runs.run_folder import locked, run_errors
from engines.training.folds import deal, out_of_fold
from engines.training.stopping import told_what_is_kept

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle

FORMAT = 1
REPORT, PAGE, COMPLETED = "audit.json", "audit.html", "completed"


@verb
def audit(settings: AuditSettings, *, report: Report | None = None) -> AuditSummary:
    """Judge a dataset's labels by what an adapter finds on its images, and write it down in `settings.out`.

    Where the adapter learned from these very labels, `folds` trains others, each of which judges images that it did
    not see; a start that was interrupted goes on. Raises DengineError of every kind.

    >>> audit(AuditSettings(data="run", out="audited"), report=print).judgement.findings[0].kind  # doctest: +SKIP
    <FindingKind.MISSING: 'missing'>
    """
    started, report = time.monotonic(), report or silent
    with told_what_is_kept(settings.out, f"**/{INFO_FILE}"):
        return _audit(settings, report, started)


def _audit(settings: AuditSettings, report: Report, started: float) -> AuditSummary:
    out = settings.out
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; give a folder for what is found.", field="out")
    dataset = open_dataset(
        settings.data, split=settings.split, skip_bad=settings.skip_bad,
        follow_links=settings.follow_links, boxes=settings.boxes,
    )  # fmt: skip
    if settings.skip_bad and settings.folds:  # a bundle's adapter leaves them out as they come
        dataset = readable(dataset)
    dataset.tell(report)
    names = dataset.class_names
    with locked(out), run_errors(out):
        skipped: list[str] = []
        found, known = _finds(settings, dataset, skipped, report)
        judged = [index for index, one in enumerate(found) if one is not None]
        records = [dataset.records[index] for index in judged]
        pictures = _pictures(records, [one for one in found if one is not None])
        judgement = judge(pictures, len(names), known)
        sure = [one for one in judgement.findings if one.confidence >= settings.confidence]
        write_json(out / REPORT, _content(dataset, records, judgement))
        write_page(out / PAGE, records, pictures, judgement, names, settings.worst, settings.confidence)
        added = moved = 0
        if settings.complete is not None:
            missing = _missing(judgement, settings.confidence)
            boxes = [refined(picture) for picture in pictures] if settings.refine else None
            crowds = settings.complete == "crowds"
            moved = write_completed(out / COMPLETED, records, missing, names, crowds=crowds, moved=boxes)
            added = len(missing)
    return AuditSummary(
        images=len(records),
        labels=sum(len(record.instances.single) for record in records),
        class_names=names,
        judgement=judgement,
        counts=_counts(sure, names),
        added=added,
        moved=moved,
        remark=looks_incomplete(pictures, names, settings.data),
        report=out / REPORT,
        page=out / PAGE,
        completed=out / COMPLETED if settings.complete is not None else None,
        unknown_classes=tuple(name for name, one in zip(names, known, strict=True) if not one),
        skipped=(*dataset.skipped, *skipped),
        seconds=time.monotonic() - started,
    )


def _finds(
    settings: AuditSettings, dataset: Dataset, skipped: list[str], report: Report
) -> tuple[Sequence[Instances | None], list[bool]]:
    """What is found on each image (None: a broken one), in the dataset's classes, and which of these are known."""
    if settings.folds:
        return _fold_finds(settings, dataset, report), [True] * len(dataset.class_names)
    return _bundle_finds(settings, dataset, skipped, report)


def _fold_finds(settings: AuditSettings, dataset: Dataset, report: Report) -> list[Instances]:
    """What the folds' adapters find in the last round, each scoring what the rounds' adapters do on average.

    A round learns with the labels that those before it found missing. So an adapter of a later one knows of an image's
    own labels only what the other folds' adapters passed on.
    Source: self-training with sparse annotations, as in co-mining (arXiv 2012.01950); the mean of several detectors'
    scores is that of weighted boxes fusion (arXiv 1910.13302).
    """
    from engines.bundle.bundle import default_bundle

    name = settings.base or settings.bundle or default_bundle()
    base = local_folder(name, None, lambda text: report(note(text)))
    options, learned, fold = settings.fold_options(), dataset, deal(dataset.records, settings.folds)
    rounds: list[list[Instances]] = []
    for number in range(1, settings.rounds + 1):
        out = settings.out if number == 1 else settings.out / f"round-{number}"
        rounds.append(out_of_fold(learned, base, out, fold, options, report, looks=settings.tta))
        found = [agreed(every) for every in zip(*rounds, strict=True)]
        if number < settings.rounds:
            judgement = judge(_pictures(dataset.records, found), len(dataset.class_names))
            missing = _missing(judgement, settings.confidence)
            report(note(f"round {number}: {len(missing)} labels look forgotten; the next round learns with them"))
            learned = replace(dataset, records=completed(dataset.records, missing))
    return found


def agreed(rounds: Sequence[Instances]) -> Instances:
    """The last of several detectors' finds on one image, each scoring what all of them do on average.

    A detector that has no box of the class there, by an IoU of MATCH_IOU, scores 0.
    """
    last = rounds[-1]
    scores = [last.scores.astype(np.float64)]
    for other in rounds[:-1]:
        overlaps = iou_matrix(last.boxes.astype(np.float64), other.boxes.astype(np.float64))
        same = (overlaps >= MATCH_IOU) & (last.labels[:, None] == other.labels[None])
        scores.append(np.where(same, other.scores[None].astype(np.float64), 0.0).max(axis=1, initial=0.0))
    return replace(last, scores=np.mean(scores, axis=0).astype(np.float32))


def _pictures(records: Sequence[Record], found: Sequence[Instances]) -> list[Picture]:
    """Images with their labels and what was found there."""
    return [
        Picture(record.width, record.height, record.instances, one, record.outside)
        for record, one in zip(records, found, strict=True)
    ]


def _missing(judgement: Judgement, confidence: float) -> list[Finding]:
    """The labels that are missing, as sure as that."""
    return [one for one in judgement.findings if one.kind is FindingKind.MISSING and one.confidence >= confidence]


def _bundle_finds(
    settings: AuditSettings, dataset: Dataset, skipped: list[str], report: Report
) -> tuple[Sequence[Instances | None], list[bool]]:
    from engines.backends.registry import open_backend
    from engines.bundle.bundle import default_bundle, open_bundle

    report(note("opening the bundle"))
    bundle = open_bundle(settings.bundle or default_bundle())
    places = _places(bundle, dataset)
    known = [label in places for label in range(len(dataset.class_names))]
    unknown = tuple(name for name, one in zip(dataset.class_names, known, strict=True) if not one)
    check_known(unknown, dataset.class_names, bundle.class_names)
    sizes = {padded_size(record.width, record.height, bundle, record.name) for record in dataset.records}
    backend = open_backend(
        bundle, settings.engine, precision=settings.precision, threads=settings.threads, device=settings.device,
        needs=label_needs(bundle, sizes), told=lambda line: report(note(line)),
    )  # fmt: skip
    prompts = [generic_prompt(bundle.style)] * len(dataset.records)
    bad = skipped if settings.skip_bad else None
    found: list[Instances | None] = [None] * len(dataset.records)
    for index, boxes in detect(bundle, backend, dataset.records, prompts, settings.tta, bad, report):
        labels = places[boxes.labels]
        found[index] = replace(boxes, labels=labels).take(labels >= 0)
    return found, known


def _places(bundle: "Bundle", dataset: Dataset) -> Any:
    """Of each class of the bundle, its place among the dataset's, int64; -1 where it is none of them."""
    own = {class_words(name): label for label, name in enumerate(dataset.class_names)}
    return np.array([own.get(class_words(name), -1) for name in bundle.class_names], dtype=np.int64)


def _counts(findings: Sequence[Finding], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Findings by kind and class: of the label that is meant, else of what was found."""
    counts = Counter((one.kind, one.label if one.given_label is None else one.given_label) for one in findings)
    return {str(kind): {name: counts[kind, label] for label, name in enumerate(names)} for kind in FindingKind}


def _content(dataset: Dataset, records: Sequence[Any], judgement: Judgement) -> dict[str, Any]:
    """What audit.json says."""
    return {
        "format": FORMAT,
        "dataset": str(dataset.root),
        "classes": list(dataset.class_names),
        "images": [{"file": one.name, "width": one.width, "height": one.height} for one in records],
        "findings": [
            {
                "image": one.image,
                "kind": str(one.kind),
                "confidence": round(one.confidence, 4),
                "box": one.box,
                "label": one.label,
                "given": one.given,
                "given_box": one.given_box,
                "given_label": one.given_label,
            }
            for one in judgement.findings
        ],
    }
