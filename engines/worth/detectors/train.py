"""Training an object detector on real images, and on generated ones among them.

Knows: the order (build, train with the project's one loop, save), and what decides the result. Networks and batches
come from `detectors`, the loop from `trainer`. Knows nothing about datasets on disk, or about what is compared.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engines.common.events import Event, EventKind, Report, silent
from engines.common.files import sha256_file
from engines.common.training_log import TrainingLog
from engines.datasets.dataset import Record, instances_of
from engines.errors import TrainingError
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.training.augment import FrameOptions
from engines.training.rehearsal import step_seconds
from engines.training.stopping import save_result
from engines.training.trainer import FitOptions, LossAt, fit
from engines.worth.detectors.batches import MixedBatches, Sample, frame_size, mix_value
from engines.worth.detectors.config import INFO_FILE, DetectorOptions
from engines.worth.detectors.model import Detector, new_detector, save_detector, start_from
from engines.worth.detectors.parts import renew_statistics

_TRAINING = "training"  # folder of the checkpoints
MEASURING = "measuring"  # in events
_FORWARD = 3  # a step of a training takes so many calls of the network
_RENEWAL = 32  # batches that batch norm's last statistics are measured on


@dataclass(frozen=True)
class TrainingSet:
    """What one detector is trained on."""

    class_names: tuple[str, ...]
    real: Sequence[Sample]
    generated: Sequence[Sample] = ()
    mix: tuple[float, float] = (0.5, 0.5)  # probability of drawing a generated image, where there are any: first, last

    def digest(self) -> dict[str, Any]:
        """What it holds, in short: equal for equal images' names, sizes, scales and annotations."""
        return {
            "classes": list(self.class_names),
            "real": _digest(self.real),
            "generated": _digest(self.generated),
            "mix": mix_value(self.mix) if self.generated else 0.0,
        }


def train_detector(
    data: TrainingSet,
    options: DetectorOptions,
    folder: Path,
    *,
    short_side: int,
    seed: int,
    resume: bool,
    report: Report,
    stage: str = "detector",
    weights: Path | None = None,
    pixels: str | None = None,
) -> Detector:
    """Train a detector, save it in `folder`, and return it. Checkpoints lie in `folder`/training until it is done.

    short_side: pixels that images are resized to when the detector is asked; see `Sample.short_side` for training.
    seed: decides the first weights and every draw.
    weights: a checkpoint folder to begin with, in place of random weights.
    pixels: a hash of the images' pixels, kept beside the other things that decide the weights.

    The last averaged weights are kept: no image but the training's own has a say. Raises TrainingError, ModelError,
    BackendError where the detector's library is missing.
    """
    detector = _new(data, options, folder, short_side, seed, weights)
    loss_at = _loss(detector, _batches(data, options, short_side, seed), options)

    training = {"options": options.decisive(), "data": data.digest(), "short_side": short_side, "seed": seed}
    training |= {"weights": weights_digest(weights)} | ({"pixels": pixels} if pixels else {})
    fit(
        detector.network,
        loss_at,
        _fit_options(options, seed),
        folder / _TRAINING,
        stage=stage,
        identity=training,
        resume=resume,
        report=report,
        log=TrainingLog(folder, (stage,)),
    )
    torch.manual_seed(seed)
    renew_statistics(detector.network, loss_at, min(_RENEWAL, options.steps))
    detector.info = replace(detector.info, training=training)
    save_result(lambda: save_detector(folder, detector), (folder / _TRAINING,), report)
    return detector


def _new(
    data: TrainingSet, options: DetectorOptions, folder: Path, short_side: int, seed: int, weights: Path | None
) -> Detector:
    """The detector that a training begins with. Raises what `train_detector` does."""
    if (folder / INFO_FILE).exists():
        raise TrainingError(f"{folder} already holds a finished detector; choose another folder, or remove it.")
    if not data.real and not data.generated:
        raise TrainingError("There are no images to train a detector on.")
    if weights is None:
        return new_detector(data.class_names, options, short_side, seed)
    return start_from(weights, data.class_names, options, short_side, seed)


def _batches(data: TrainingSet, options: DetectorOptions, short_side: int, seed: int) -> MixedBatches:
    """The batches of a whole training."""
    width, height = frame_size([sample.record for sample in data.real or data.generated], short_side)
    return MixedBatches(
        data.real,
        data.generated,
        mix=data.mix if data.real else (1.0, 1.0),
        frame=_frame(options, width, height),
        batch=options.batch,
        steps=options.steps,
        seed=seed,
    )


def detect(detector: Detector, records: Sequence[Record], report: Report = silent) -> list[Instances]:
    """What a detector finds on the images of `records`."""

    def pixels() -> Iterator[npt.NDArray[np.uint8]]:
        for number, record in enumerate(records):
            report(Event(EventKind.PROGRESS, MEASURING, done=number, total=len(records)))
            yield record.pixels()

    found = detector.predict(pixels())
    report(Event(EventKind.PROGRESS, MEASURING, done=len(records), total=len(records)))
    return found


def try_detector(
    data: TrainingSet, options: DetectorOptions, short_side: int, seed: int, weights: Path | None
) -> tuple[float, float]:
    """Seconds that a step of a training takes here, and its last batches, tried out; and an image when it is asked."""
    detector = start_from(weights, data.class_names, options, short_side, seed) if weights else None
    detector = detector or new_detector(data.class_names, options, short_side, seed)
    loss_at = _loss(detector, _batches(data, options, short_side, seed), options)
    step = step_seconds(detector.network, loss_at, options.precision, options.device)
    forward = step / _FORWARD
    return step + forward * min(_RENEWAL, options.steps) / options.steps, forward / options.batch


def _loss(detector: Detector, batches: MixedBatches, options: DetectorOptions) -> LossAt:
    """The loss of a step."""

    def loss_at(step: int) -> tuple[torch.Tensor, Mapping[str, float | torch.Tensor]]:
        pixels, targets = batches.at(step)
        moved = [{name: value.to(options.device) for name, value in target.items()} for target in targets]
        return detector.detection.loss(pixels.to(options.device), moved)

    return loss_at


def measure(detector: Detector, records: Sequence[Record]) -> dict[str, float]:
    """`mean_average_precision` of a detector on annotated images."""
    return mean_average_precision(instances_of(records), detect(detector, records), detector.info.class_names)


def annotations_digest(records: Sequence[Record], short_sides: Sequence[int] = ()) -> str:
    """A short hash of images' names, sizes and annotations, and of the scales they are trained at, where given."""
    hashed = hashlib.sha256(repr(list(short_sides)).encode())
    for record in records:
        hashed.update(f"{record.name}\0{record.width}\0{record.height}\0".encode())
        found = record.instances
        hashed.update(found.boxes.tobytes() + found.labels.tobytes() + found.crowd.tobytes())
    return hashed.hexdigest()[:16]


def weights_digest(folder: Path | None) -> str | None:
    """A short hash of the weights in a checkpoint folder; None where there is none."""
    if folder is None:
        return None
    hashes = "".join(sha256_file(file) for file in sorted(folder.glob("*.safetensors")))
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def _digest(samples: Sequence[Sample]) -> str:
    return annotations_digest([sample.record for sample in samples], [sample.short_side for sample in samples])


def _frame(options: DetectorOptions, width: int, height: int) -> FrameOptions:
    return FrameOptions(
        width=width,
        height=height,
        short_side=min(width, height),
        scale=options.scale,
        flips=options.flips,
        rotate=options.rotate,
        colour=options.colour,
        min_visible=options.min_visible,
    )


def _fit_options(options: DetectorOptions, seed: int) -> FitOptions:
    return FitOptions(
        steps=options.steps,
        lr=options.lr,
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        final_lr=options.final_lr,
        grad_clip=options.grad_clip,
        ema_decay=options.ema_decay,
        seed=seed,
        precision=options.precision,
        device=options.device,
        checkpoint_minutes=options.checkpoint_minutes,
    )
