"""Finds on images by adapters that did not learn from them: K trainings, each on all folds but one.

Knows: how images are dealt to folds, what lies in a fold's folder, and when a fold is done. Knows nothing about what is
made of the finds, or how an adapter is trained (`engines.training.adapter`).

    OUT/folds/1-of-3/adapter.json, adapter.safetensors    learned from all images but the first fold's
    OUT/folds/1-of-3/finds.json                           what that adapter finds on the first fold's

Source: out-of-sample predictions for finding label errors are confident learning's (Northcutt et al., arXiv
1911.00068).
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.adapter.info import INFO_FILE
from engines.adapter.model import load_adapter
from engines.common.devices import device_name, resolve_precision
from engines.common.events import Event, EventKind, Report
from engines.common.files import read_json, write_atomic
from engines.datasets.dataset import Dataset, Record
from engines.datasets.duplicates import fingerprints, near_pairs
from engines.diffusion.base_model import base_hash, load_base
from engines.errors import RunError, UsageError
from engines.labels.boxes import Instances, iou_matrix
from engines.labels.finds import finds_of
from engines.labels.thresholds import MATCH_IOU
from engines.training.adapter import AdapterTrainOptions, fit_adapter, training_identity
from engines.training.augment import FrameOptions
from engines.training.pyramids import DevSplit, FrozenPyramid, SourceOptions
from engines.training.stopping import check_same

FOLDS, FINDS = "folds", "finds.json"


def deal(records: Sequence[Record], folds: int) -> list[int]:
    """The fold of each image, from 0: by its name alone, but that pictures which nearly repeat each other share one.

    Folds are as equal in size as that allows. Raises UsageError where one would stay empty, DatasetError for an image
    that cannot be read.
    """
    group = list(range(len(records)))
    for pair in near_pairs(fingerprints(records).thumbnails):
        group = [group[pair.first] if one == group[pair.second] else one for one in group]
    members = defaultdict(list)
    for index, one in enumerate(group):
        members[one].append(index)
    sizes, fold = [0] * folds, [0] * len(records)
    for images in sorted(members.values(), key=lambda images: _place(records[images[0]])):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(images)
        for index in images:
            fold[index] = smallest
    if not all(sizes):
        raise UsageError(
            f"`folds` is {folds}, and there are {len(members)} different pictures: take fewer folds.", field="folds"
        )
    return fold


def out_of_fold(
    dataset: Dataset, base: Path, out: Path, folds: int, options: AdapterTrainOptions, report: Report
) -> list[Instances]:
    """What is found on each image by the adapter that did not learn from its fold.

    A fold that is done is read from `out`/folds, one that was begun goes on. Raises RunError for folds of other
    settings, and what `fit_adapter` raises.
    """
    fold, hashed = deal(dataset.records, folds), base_hash(base)
    options = replace(options, device=device_name(options.device))
    found: dict[int, Instances] = {}
    for number in range(folds):
        folder = out / FOLDS / f"{number + 1}-of-{folds}"
        own = [index for index, one in enumerate(fold) if one == number]
        others = [record for record, one in zip(dataset.records, fold, strict=True) if one != number]
        report(Event(EventKind.STEP, "folds", f"{len(own)} images judged by {len(others)} others", number, folds))
        learned = replace(dataset, records=others)
        identity = training_identity(learned, (), options, hashed) | {"fold": number, "folds": folds}
        judged = [dataset.records[index] for index in own]
        finds = read_finds(folder, identity, judged, len(dataset.class_names))
        if finds is None:
            if not (folder / INFO_FILE).exists():
                told = _as_stage(report, f"fold {number + 1} of {folds}")
                fit_adapter(learned, base, folder, options, resume=(folder / "training").exists(), report=told)
            finds = detect(folder, base, judged, options)
            rows = [one.to_rows() for one in finds]
            text = json.dumps({"identity": identity, "finds": rows}, allow_nan=False)
            write_atomic(folder / FINDS, (text + "\n").encode())
        found |= dict(zip(own, finds, strict=True))
    return [found[index] for index in range(len(dataset.records))]


def detect(folder: Path, base: Path, records: Sequence[Record], options: AdapterTrainOptions) -> list[Instances]:
    """What the adapter in `folder` finds on whole images, with the generic prompt, in their own pixels."""
    model, info = load_adapter(folder, device=options.device)
    precision = resolve_precision(options.precision, options.device)
    frozen = FrozenPyramid(load_base(base, device=options.device), info.timestep, precision, options.device)
    frame = FrameOptions(width=info.frame[0], height=info.frame[1], short_side=info.short_side)
    source = SourceOptions(frame, info.style, {}, batch=1, seed=options.seed, cache_gb=0.0)
    return DevSplit(records, info.class_names, frozen, source, info.size_multiple).detect(model)


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


def _place(record: Record) -> str:
    return hashlib.sha256(record.name.encode()).hexdigest()


def read_finds(
    folder: Path, identity: Mapping[str, Any], records: Sequence[Record], classes: int
) -> list[Instances] | None:
    """The finds of a fold on its `records` of so many classes; None for one that is not done.

    Raises RunError for a fold of another identity, and for finds that are none.
    """
    path = folder / FINDS
    if not path.exists():
        return None
    stored = read_json(path, RunError)
    check_same(folder, stored.get("identity"), identity, RunError)
    try:
        return finds_of(stored.get("finds"), [(one.width, one.height) for one in records], classes)
    except ValueError as cause:
        raise RunError(f"{path}: {cause}. Remove it, and the fold is judged again.") from None


def _as_stage(report: Report, stage: str) -> Report:
    def told(event: Event) -> None:
        if event.kind is not EventKind.PLANNED:  # that is a fold's, and not all that is done
            report(replace(event, stage=stage) if event.kind is EventKind.PROGRESS else event)

    return told
