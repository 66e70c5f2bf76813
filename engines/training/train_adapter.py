"""`train_adapter`: a Detection-Adapter of a labelled dataset.

Knows: what may be asked for, and how the dataset, the images that an adapter labelled, and the base are opened. How an
adapter is fitted is `adapter`'s matter.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.adapter.info import INFO_FILE, AdapterInfo
from engines.common.events import Report, note, silent
from engines.common.forecast import Forecast
from engines.common.schema import AnyPath, part_of
from engines.common.verbs import verb
from engines.datasets.dataset import Record, open_dataset, readable, remark_on_splits
from engines.diffusion.base_model import local_folder
from engines.diffusion.base_notes import bad_base
from engines.errors import Mistake, wrong_values
from engines.training.adapter import check_start, fit_prepared, prepare_adapter
from engines.training.adapter_options import AdapterTrainOptions
from engines.training.ahead import Ahead
from engines.training.folds import deal, found_ahead
from engines.training.pseudo import open_pseudo
from engines.training.stopping import FOLDS, told_what_is_kept
from engines.training.together import MOST, beside, first_alone


@dataclass(frozen=True, kw_only=True)
class TrainAdapterSettings(AdapterTrainOptions):
    """What `train_adapter` is asked for. Paths may be text. Raises UsageError that lists every mistake at once.

    >>> TrainAdapterSettings(data="my-dataset", base="bases/mine", out="adapters/mine", steps=500).batch
    4
    """

    data: AnyPath  # a labelled dataset, in any format that dengine reads
    base: str | AnyPath  # a diffusers folder, a .safetensors file, or a name on the hub
    out: AnyPath  # folder for the adapter
    split: str | None = None  # part of the dataset, such as train
    loras: Sequence[tuple[AnyPath, float]] = ()  # LoRA files and their scales, added to the base's weights first
    prediction_type: str | None = None  # of a single-file SD 2.x checkpoint: epsilon or v_prediction
    vae: AnyPath | None = None  # VAE of a checkpoint that has none: a diffusers folder, or a .safetensors file
    folds: int = 0  # adapters that are trained first, each to be measured on images that it did not see; 0: none
    fold_steps: int | None = None  # optimiser steps of each of them; None: as many as `steps`
    pseudo: AnyPath | None = None  # a folder of `label` with a score: more images, and none of them is held out
    resume: bool = False  # go on from the last checkpoint in `out`
    skip_bad: bool = False  # leave bad images and boxes out, instead of stopping
    follow_links: bool = False  # follow links that lead outside the dataset
    boxes: str = "auto"  # what the numbers of its boxes mean, see `open_dataset`
    devices: int = 1  # GPUs from `device` on, or processes of the CPU, that share every batch

    def more_mistakes(self) -> Sequence[Mistake]:
        """What is wrong with these fields."""
        checks = (
            ("folds", "0, or 2 and more", self.folds == 0 or self.folds >= 2),
            ("fold_steps", "positive", self.fold_steps is None or self.fold_steps > 0),
            ("devices", f"from 1 to {MOST}", 1 <= self.devices <= MOST),
        )
        found = list(wrong_values(self, checks))
        if self.fold_steps is not None and not self.folds:
            found.append(("fold_steps", "`fold_steps` is how long folds learn: give `folds`, too"))
        if self.folds and self.dev_fraction not in (0.0, AdapterTrainOptions().dev_fraction):
            found.append(
                ("folds", "`folds` measure on all images, and `dev_fraction` holds some out: give one of them")
            )
        if self.folds and self.devices > 1:
            found.append(("devices", "`devices` share the batches of one training, and `folds` are several: give one"))
        return found


@dataclass(frozen=True)
class TrainAdapterSummary:
    """What `train_adapter` made.

    >>> asked = dengine.TrainAdapterSettings(data="my-dataset", base="bases/mine", out="adapters/mine")
    >>> dengine.train_adapter(asked).info.figures["tune"]["generic"]["AP50"]  # doctest: +SKIP
    0.81
    """

    folder: Path  # the adapter
    info: AdapterInfo  # the content of its adapter.json: thresholds, figures, how it was made
    images: int  # labelled ones
    pseudo_images: int  # that an adapter labelled
    repeats: int  # of those, left out because they nearly repeat a labelled one
    dropped: tuple[str, ...]  # degenerate boxes of the datasets
    skipped: tuple[str, ...]  # bad items that were left out
    seconds: float


@verb
def train_adapter(settings: TrainAdapterSettings, *, report: Report | None = None) -> TrainAdapterSummary:
    """Train the adapter, which reads boxes off a frozen base model, on a labelled dataset.

    A part of the images, chosen by their names, is held out to pick the best checkpoint; with `folds` none is, and
    adapters that are trained first measure on all of them. Raises DatasetError, ModelError, TrainingError, UsageError.

    >>> asked = TrainAdapterSettings(data="my-dataset", base="bases/mine", out="adapters/mine")
    >>> train_adapter(asked, report=print).info.thresholds  # doctest: +SKIP
    {'rbc': 0.41, 'wbc': 0.55}
    """
    report, started = Forecast(report or silent), time.monotonic()
    finished = (INFO_FILE, f"training/{FOLDS}/*/{INFO_FILE}")
    with told_what_is_kept(settings.out, *finished), beside(_train, settings, (settings.batch,)) as own:
        return _train(own, report, started)


def _train(settings: TrainAdapterSettings, report: Report, started: float) -> TrainAdapterSummary:
    options = part_of(AdapterTrainOptions, settings)
    check_start(settings.out, options)
    dataset = open_dataset(
        settings.data, split=settings.split, skip_bad=settings.skip_bad,
        follow_links=settings.follow_links, boxes=settings.boxes,
    )  # fmt: skip
    dataset = readable(dataset) if settings.skip_bad else dataset
    dataset.tell(report)
    if remark := remark_on_splits(dataset, settings.split):
        report(note(remark))
    names = ", ".join(dataset.class_names)
    report(note(f"{len(dataset.records)} images from {settings.data}, classes {names}"))
    more: list[Record] = []
    repeats, found = 0, None
    if settings.pseudo is not None:
        found, repeats = open_pseudo(settings.pseudo, dataset, skip_bad=settings.skip_bad)
        more = list(found.records)
        found.tell(report)
        without = f", without {repeats} that nearly repeat those" if repeats else ""
        report(note(f"{len(more)} images that an adapter labelled, from {settings.pseudo}{without}"))
    with first_alone():  # it may be converted, or fetched
        base = local_folder(settings.base, settings.prediction_type, lambda text: report(note(text)), vae=settings.vae)
    if remark := bad_base(base):
        report(note(remark))
    ahead = Ahead(tuple(deal(dataset.records, settings.folds)), settings.fold_steps) if settings.folds else None
    prepared = prepare_adapter(
        dataset, base, settings.out, options,
        pseudo=more, loras=settings.loras, ahead=ahead, resume=settings.resume, report=report,
    )  # fmt: skip
    info = fit_prepared(prepared, found_ahead(prepared))
    return TrainAdapterSummary(
        folder=settings.out,
        info=info,
        images=len(dataset.records),
        pseudo_images=len(more),
        repeats=repeats,
        dropped=(*dataset.dropped, *(found.dropped if found else ())),
        skipped=(*dataset.skipped, *(found.skipped if found else ())),
        seconds=time.monotonic() - started,
    )
