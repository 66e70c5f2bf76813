"""Finds on images by adapters that did not learn from them: K trainings, each on all folds but one.

Knows: how images are dealt to folds, what lies in a fold's folder, when a fold is done, and how those are trained that
`train_adapter` measures by. Knows nothing about what is made of the finds, or how an adapter is trained
(`engines.training.adapter`).

    OUT/folds/1-of-3/adapter.json, adapter.safetensors    learned from all images but the first fold's
    OUT/folds/1-of-3/begun.json                           what it was trained on, and how
    OUT/folds/1-of-3/finds.json                           what that adapter finds on the first fold's

Source: out-of-sample predictions for finding label errors are confident learning's (Northcutt et al., arXiv
1911.00068).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.adapter.info import INFO_FILE
from engines.adapter.model import load_adapter
from engines.common.devices import device_name, resolve_precision
from engines.common.events import Event, EventKind, Report, note
from engines.common.files import read_json, write_atomic
from engines.common.forecast import Forecast
from engines.datasets.dataset import Dataset, Record, instances_of
from engines.datasets.duplicates import fingerprints, near_groups
from engines.diffusion.base_model import base_hash
from engines.errors import RunError, UsageError
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.labels.finds import finds_of
from engines.training.adapter import Prepared, fit_adapter, training_identity
from engines.training.adapter_options import AdapterTrainOptions
from engines.training.ahead import BEGUN, FINDS, VIEWS, begin, folder_of, stage_of
from engines.training.augment import FrameOptions
from engines.training.opened import OpenedBase, open_base
from engines.training.pyramids import FrozenPyramid, SourceOptions
from engines.training.stopping import FOLDS, check_same
from engines.training.whole_images import DevSplit


def deal(records: Sequence[Record], folds: int) -> list[int]:
    """The fold of each image, from 0: by its name alone, but that pictures which nearly repeat each other share one.

    Folds are as equal in size as that allows. Raises UsageError where one would stay empty, DatasetError for an image
    that cannot be read.
    """
    groups = near_groups(fingerprints(records).thumbnails)
    sizes, fold = [0] * folds, [0] * len(records)
    for images in sorted(groups, key=lambda images: _place(records[images[0]])):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += len(images)
        for index in images:
            fold[index] = smallest
    if not all(sizes):
        raise UsageError(
            f"`folds` is {folds}, and there are {len(groups)} different pictures: take fewer folds.", field="folds"
        )
    return fold


def out_of_fold(
    dataset: Dataset,
    base: OpenedBase | Path,
    out: Path,
    fold: Sequence[int],
    options: AdapterTrainOptions,
    report: Report,
    pseudo: Sequence[Record] = (),
    looks: int = 1,
) -> list[Instances]:
    """What is found on each image, in so many looks, by the adapter that did not learn from its `fold` (see `deal`).

    A fold that is done is read from `out`/folds, one that was begun goes on. All learn from `pseudo`, too. Raises
    RunError for folds of other settings, and what `fit_adapter` raises.
    """
    folds, found = max(fold) + 1, dict[int, Instances]()
    options = replace(options, device=device_name(options.device))
    hashed = base.hashed if isinstance(base, OpenedBase) else base_hash(base)
    for number in range(folds):
        folder = folder_of(out, number, folds)
        own = [index for index, one in enumerate(fold) if one == number]
        others = [record for record, one in zip(dataset.records, fold, strict=True) if one != number]
        left = report.left() if isinstance(report, Forecast) else None
        text = f"{len(own)} images judged by {len(others)} others"
        report(Event(EventKind.STEP, FOLDS, text, number, folds, seconds_left=left))
        learned = replace(dataset, records=others)
        identity = training_identity(learned, pseudo, options, hashed) | {"fold": number, "folds": folds}
        judged = [dataset.records[index] for index in own]
        finds = read_finds(folder, identity, judged, len(dataset.class_names), looks)
        if finds is None:
            base = base if isinstance(base, OpenedBase) else open_base(base, options.device, (), report)
            if (folder / INFO_FILE).exists():
                _check_trained(folder, identity)
            else:
                begin(folder, identity)
                resume = (folder / "training").exists()
                told = _as_stage(report, stage_of(number, folds))
                fit_adapter(learned, base, folder, options, pseudo=pseudo, resume=resume, report=told)
            finds = detect(folder, base, judged, options, report, looks)
            rows = [one.to_rows() for one in finds]
            text = json.dumps({"identity": identity, "looks": looks, "finds": rows}, allow_nan=False)
            write_atomic(folder / FINDS, (text + "\n").encode())
        found |= dict(zip(own, finds, strict=True))
    return [found[index] for index in range(len(dataset.records))]


def found_ahead(prepared: Prepared) -> list[Instances]:
    """What the adapters that are trained ahead of a prepared one find on each image, where they did not learn from it.

    They learn as it will, but as short as `Ahead` says and, unless that is settled, from few views of each image. A
    start that was stopped goes on.
    """
    if prepared.ahead is None:
        return []
    options, work = prepared.options, prepared.work
    short = replace(options, steps=prepared.ahead.length(options.steps), cache_views=options.cache_views or VIEWS)
    dataset, fold, report, folds = prepared.dataset, prepared.ahead.fold, prepared.report, prepared.ahead.folds
    first = f"{folds} adapters of {short.steps} steps come first, each to be measured on images that it did not see"
    report(note(f"{first}; then the one that is kept learns from all {len(fold)} in {options.steps} steps"))
    begin(work, prepared.identity)
    found = out_of_fold(dataset, prepared.base, work, fold, short, report, prepared.pseudo)
    measured = mean_average_precision(instances_of(dataset.records), found, dataset.class_names)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in measured.items() if name in ("AP", "AP50"))
    report(note(f"on {len(fold)} images, each by an adapter that did not see it: {figures or 'nothing is labelled'}"))
    return found


def detect(
    folder: Path,
    base: OpenedBase,
    records: Sequence[Record],
    options: AdapterTrainOptions,
    report: Report,
    looks: int = 1,
) -> list[Instances]:
    """What the adapter in `folder` finds on whole images, with the generic prompt, in their own pixels."""
    model, info = load_adapter(folder, device=options.device)
    precision = resolve_precision(options.precision, options.device)
    frozen = FrozenPyramid(base.model, info.timestep, precision, options.device)
    frame = FrameOptions(width=info.frame[0], height=info.frame[1], short_side=info.short_side)
    source = SourceOptions(frame, info.style, {}, batch=1, seed=options.seed, cache_gb=0.0)
    return DevSplit(records, info.class_names, frozen, source, info.size_multiple, report).detect(model, looks=looks)


def _place(record: Record) -> str:
    return hashlib.sha256(record.name.encode()).hexdigest()


def read_finds(
    folder: Path, identity: Mapping[str, Any], records: Sequence[Record], classes: int, looks: int = 1
) -> list[Instances] | None:
    """The finds of a fold on its `records` of so many classes, in so many looks; None for one that is not done.

    Raises RunError for a fold of another identity, and for finds that are none.
    """
    path = folder / FINDS
    if not path.exists():
        return None
    stored = read_json(path, RunError)
    check_same(folder, stored.get("identity"), identity, RunError)
    if stored.get("looks", 1) != looks:  # its adapter judges again
        return None
    try:
        return finds_of(stored.get("finds"), [(one.width, one.height) for one in records], classes)
    except ValueError as cause:
        raise RunError(f"{path}: {cause}. Remove it, and the fold is judged again.") from None


def _check_trained(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise RunError for a fold's adapter that was trained otherwise; one of an earlier dengine doesn't say."""
    if (folder / BEGUN).exists():
        check_same(folder, read_json(folder / BEGUN, RunError).get("identity"), identity, RunError)


def _as_stage(report: Report, stage: str) -> Forecast:
    """A report of a fold's training, whose own time left is said only where nothing is known of the whole."""

    def told(event: Event) -> None:
        if event.kind is not EventKind.PLANNED:  # that is a fold's, and not all that is done
            report(replace(event, stage=stage) if event.kind is EventKind.PROGRESS else event)

    return Forecast(told, quiet=isinstance(report, Forecast))
