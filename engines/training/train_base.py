"""`train_base`: a base model of a folder of images.

Knows: what may be asked for, and how the images and the model that training goes on from are opened. How a base model
is fitted is `base_model`'s matter.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engines.common.events import Report, note, silent
from engines.common.forecast import Forecast
from engines.common.schema import AnyPath, part_of, settle
from engines.common.verbs import verb
from engines.datasets.dataset import open_dataset, readable, remark_on_splits
from engines.diffusion.base_model import local_folder
from engines.diffusion.base_notes import read_quality
from engines.errors import UsageError, refuse, wrong_values
from engines.quality.verdicts import BaseQuality
from engines.training.assess import SHEET
from engines.training.base_model import BaseTrainOptions, check_base_start, fit_base
from engines.training.presets import base_preset
from engines.training.stopping import told_what_is_kept
from engines.training.together import MOST, beside, first_alone

NO_LABELS, ALL_LABELS = "none", "all"


@dataclass(frozen=True, kw_only=True)
class TrainBaseSettings(BaseTrainOptions):
    """What `train_base` is asked for. Paths may be text. Raises UsageError that lists every mistake at once.

    >>> TrainBaseSettings(data="my-images", out="bases/mine", style="aerial photo").stages
    ('vae', 'unet')
    """

    data: AnyPath  # folder of images, or a dataset in any format that dengine reads
    out: AnyPath  # folder for the base model, in the diffusers layout
    split: str | None = None  # part of the dataset, such as train
    labels: str | AnyPath = NO_LABELS  # whose labels name classes in prompts: none, all, or a file of image names
    continue_from: str | AnyPath | None = None  # go on from this base: a folder, a .safetensors file, or a hub name
    prediction_type: str | None = None  # of a single-file SD 2.x checkpoint: epsilon or v_prediction
    vae: AnyPath | None = None  # VAE of a checkpoint that has none: a diffusers folder, or a .safetensors file
    resume: bool = False  # go on from the last checkpoint in `out`
    skip_bad: bool = False  # leave broken images out, instead of stopping
    follow_links: bool = False  # follow links that lead outside the dataset
    boxes: str = "auto"  # what the numbers of its boxes mean, see `open_dataset`
    devices: int = 1  # GPUs from `device` on, or processes of the CPU, that share every batch

    def __post_init__(self) -> None:
        settle(self)
        super().__post_init__()
        alone = [name for name in ("prediction_type", "vae") if getattr(self, name) is not None]
        text = "is about the model of `continue_from`, which was not given"
        mistakes = [(name, f"`{name}` {text}") for name in alone if self.continue_from is None]
        count = [("devices", f"from 1 to {MOST}", 1 <= self.devices <= MOST)]
        refuse([*mistakes, *wrong_values(self, count)])


@dataclass(frozen=True)
class TrainBaseSummary:
    """What `train_base` made.

    >>> from pathlib import Path
    >>> TrainBaseSummary(Path("bases/mine"), images=64, objects=0, dropped=(), skipped=(), seconds=600.0).folder.name
    'mine'
    """

    folder: Path  # the base model
    images: int  # that it learned from, or was measured on
    objects: int  # boxes that these images have, whether it was shown them or not
    dropped: tuple[str, ...]  # degenerate boxes of the dataset
    skipped: tuple[str, ...]  # bad items that were left out
    seconds: float
    quality: BaseQuality | None = None  # how good it is, with a verdict in words
    samples: Path | None = None  # a picture of it: photographs, these through the autoencoder, painted ones


@verb
def train_base(settings: TrainBaseSettings, *, report: Report | None = None) -> TrainBaseSummary:
    """Fit a base model to a folder of images; labels are not needed.

    Raises DatasetError, ModelError, TrainingError, UsageError.

    >>> train_base(TrainBaseSettings(data="my-images", out="bases/mine"), report=print).images  # doctest: +SKIP
    64
    """
    report, started = Forecast(report or silent), time.monotonic()
    batches = base_preset(settings.preset).batches
    with told_what_is_kept(settings.out, "model_index.json"), beside(_train, settings, batches) as own:
        return _train(own, report, started)


def _train(settings: TrainBaseSettings, report: Report, started: float) -> TrainBaseSummary:
    options = part_of(BaseTrainOptions, settings)
    check_base_start(settings.out, options)
    dataset = open_dataset(
        settings.data, split=settings.split, skip_bad=settings.skip_bad, require_boxes=False,
        follow_links=settings.follow_links, boxes=settings.boxes,
    )  # fmt: skip
    dataset = readable(dataset) if settings.skip_bad else dataset
    dataset.tell(report)
    if remark := remark_on_splits(dataset, settings.split):
        report(note(remark))
    labelled = _labelled(settings.labels, [record.name for record in dataset.records])
    report(note(f"{len(dataset.records)} images from {settings.data}"))
    base = None
    with first_alone():  # it may be converted, or fetched
        if settings.continue_from is not None:
            base = local_folder(
                settings.continue_from, settings.prediction_type, lambda text: report(note(text)), vae=settings.vae
            )
    fit_base(
        dataset, settings.out, options,
        labelled=labelled, continue_from=base, resume=settings.resume, report=report,
    )  # fmt: skip
    return TrainBaseSummary(
        folder=settings.out,
        images=len(dataset.records),
        objects=sum(len(record.instances.single) for record in dataset.records),
        dropped=tuple(dataset.dropped),
        skipped=tuple(dataset.skipped),
        seconds=time.monotonic() - started,
        quality=read_quality(settings.out),
        samples=settings.out / SHEET,
    )


def _labelled(labels: str | Path, names: Collection[str]) -> set[str] | None:
    """The images, of those called `names`, whose labels may be read; None for all of them.

    A file has one image name (or name without its suffix) a line. Raises UsageError for one that is none.
    """
    if labels in (NO_LABELS, ALL_LABELS):
        return None if labels == ALL_LABELS else set()
    file = Path(labels)
    try:
        wanted = {line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()}
    except FileNotFoundError:
        raise UsageError(
            f"`labels` is {str(labels)!r:.60}; none, all, or a file of image names was expected.", field="labels"
        ) from None
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(
            f"`labels`: {file} cannot be read as a list of image names: {cause}.", field="labels"
        ) from cause
    found = {name for name in names if wanted & _spellings(name)}
    unknown = sorted(wanted - {spelling for name in found for spelling in _spellings(name)})
    if unknown:
        raise UsageError(
            f"`labels`: {file} names {len(unknown)} images that the dataset does not have, {unknown[0]!r:.60} first.",
            field="labels",
        )
    return found


def _spellings(name: str) -> set[str]:
    """How a list may name an image: its path in the image folder, its file name, either without the suffix."""
    path = PurePosixPath(name)
    return {name, path.name, path.with_suffix("").as_posix(), path.stem}
