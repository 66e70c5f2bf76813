"""What generated data is worth: `dengine evaluate`.

Knows: the order (check everything, train the same detector from the same start with and without generated images,
measure each on every set of validation images once, compare), and what lies in the folder of a comparison.
Knows nothing about how a detector learns, or how figures are compared.

    OUT/trainings/real-seed0/            a detector (detector.json, detector.safetensors), and measured-HASH.json for
                                         each validation set: what was found there
    OUT/trainings/generated820-seed0/    the same of an arm with 820 generated images
    OUT/comparison.json, comparison.png  what they say together

A finished training is never repeated: the same comparison with `resume` goes on behind it. More seeds, amounts or
runs add trainings to those there, and another validation set (or other annotations of one) is a measurement of those
there.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.common.devices import AUTO, device_name, resolve_precision
from engines.common.events import Event, EventKind, Report, note, silent
from engines.common.files import write_json
from engines.common.forecast import Forecast, Part
from engines.common.plurals import counted
from engines.common.schema import from_object, key_of, to_object
from engines.common.verbs import verb
from engines.datasets.dataset import instances_of
from engines.errors import RunError, UsageError
from engines.labels.boxes import Instances
from engines.labels.findings import Picture
from engines.labels.gaps import looks_incomplete
from engines.measure.memory import read_memory
from engines.runs.run_folder import holds_more, locked, run_errors
from engines.training.stopping import check_same, told_what_is_kept
from engines.worth.data import ValSet, WorthData, open_data
from engines.worth.detectors.config import INFO_FILE, DetectorOptions, fewest_cells, preset
from engines.worth.detectors.model import Detector, check_library, load_detector
from engines.worth.detectors.train import MEASURING, TrainingSet, detect, train_detector, try_detector, weights_digest
from engines.worth.figures import Arm, Result, compare
from engines.worth.measured import comparison_of, read_measured, write_measured
from engines.worth.plot import plot
from engines.worth.settings import EvaluateSettings

ALL = "all trainings"  # in events
TRAININGS, MEASURED = "trainings", "measured"
COMPARISON, PLOT = "comparison.json", "comparison.png"


@dataclass(frozen=True)
class SetFigures:
    """Figures of the detectors on one validation set, arm by arm.

    >>> dengine.evaluate(asked).sets[0].arms[-1].figures["AP"].mean  # doctest: +SKIP
    0.744
    """

    name: str  # the folder, and its part where it has one
    images: int  # that were measured on
    left_out: tuple[str, ...]  # images that nearly repeat a training image
    arms: tuple[Arm, ...]  # the real images alone first
    known: tuple[str, ...] = ()  # images that what painted the runs knew already: their figures say too much


@dataclass(frozen=True)
class EvaluateSummary:
    """What `evaluate` found: figures of the detectors on each validation set.

    >>> dengine.evaluate(dengine.EvaluateSettings("real", ["run"], "val", "worth")).seeds  # doctest: +SKIP
    (0, 1, 2)
    """

    sets: tuple[SetFigures, ...]  # in the order in which they were named
    data: WorthData
    seeds: tuple[int, ...]
    comparison: Path  # JSON with all figures
    picture: Path | None  # None where matplotlib is not installed
    seconds: float


@dataclass(frozen=True)
class _Training:
    generated: int  # images of its arm beside the real ones
    seed: int

    @property
    def name(self) -> str:
        return f"{f'generated{self.generated}' if self.generated else 'real'}-seed{self.seed}"


@verb
def evaluate(settings: EvaluateSettings, *, report: Report | None = None) -> EvaluateSummary:
    """Train every arm with every seed, compare, and write it down in `settings.out`.

    Deterministic: `settings`, the images and, where it is not named, the precision that is taken here decide every
    figure. Raises DengineError of every kind before anything is written where the data cannot be compared.

    >>> asked = EvaluateSettings("real", synthetic=["run"], val="val", out="worth", preset="quick")
    >>> evaluate(asked, report=print).sets[0].arms[-1].generated  # doctest: +SKIP
    100
    """
    started, report = time.monotonic(), Forecast(report or silent)
    with told_what_is_kept(settings.out, f"{TRAININGS}/*/{INFO_FILE}"):
        return _evaluate(settings, report, started)


def _evaluate(settings: EvaluateSettings, report: Forecast, started: float) -> EvaluateSummary:
    options, seeds = _options(settings)
    _check_out(settings)
    check_library(options.network.kind)
    data = open_data(settings, options.short_side, report)
    if (cells := fewest_cells(data.short_side)) < options.network.queries and options.network.kind == "rt_detr":
        raise UsageError(
            f"`short_side` is {data.short_side}: a frame of it may have {cells} cells, fewer than the detector's "
            f"{options.network.queries} queries. Take a larger one.",
            field="short_side",
        )
    for line in data.notes:
        report(note(line))
    chosen = tuple(range(settings.seed, settings.seed + seeds))
    # Seed by seed, so that a comparison that is stopped early has whole pairs.
    trainings = [_Training(generated, seed) for seed in chosen for generated in data.arms]
    with locked(settings.out), run_errors(settings.out):
        _plan(trainings, data, options, settings, report)
        results: list[list[Result]] = []
        for number, training in enumerate(trainings):
            reached = _totals(report, number * options.steps, len(trainings) * options.steps)
            results.append(_results(training, data, options, settings, reached))
        sets = []
        for number, val in enumerate(data.val):
            report(note(f"comparing on {len(val.records)} images of {val.name}"))
            found = [one[number] for one in results]
            _remark_on_gaps(val, found[0].detections, data.class_names, report)
            arms = compare(found, instances_of(val.records), data.class_names, resamples=settings.resamples)
            sets.append(SetFigures(val.name, len(val.records), val.left_out, tuple(arms), val.known))
        write_json(
            settings.out / COMPARISON,
            comparison_of([dataclasses.asdict(one) for one in sets], data, options, settings, chosen),
        )
        drawn = plot(settings.out / PLOT, {one.name: one.arms for one in sets}, data.split_images)
    return EvaluateSummary(
        sets=tuple(sets),
        data=data,
        seeds=chosen,
        comparison=settings.out / COMPARISON,
        picture=settings.out / PLOT if drawn else None,
        seconds=time.monotonic() - started,
    )


def _plan(
    trainings: Sequence[_Training],
    data: WorthData,
    options: DetectorOptions,
    settings: EvaluateSettings,
    report: Forecast,
) -> None:
    """Say what will be done, and try out how long a step takes, unless all trainings are there."""
    over = [training for training in trainings if (settings.out / TRAININGS / training.name / INFO_FILE).exists()]
    measured = sum(len(val.records) for val in data.val)
    if len(over) < len(trainings):
        report(note("trying out how long a step takes"))
        known = TrainingSet(data.class_names, data.real, data.generated, settings.mix)
        step, image = try_detector(known, options, data.short_side, settings.seed, settings.weights)
        steps = Part(ALL, len(trainings) * options.steps, step)
        looks = Part(MEASURING, measured * (len(trainings) - len(over)), image)
        report.plan([steps, looks], {ALL: len(over) * options.steps})
    what = f"{counted(len(trainings), 'training')} of {options.steps} steps ({len(over)} are there)"
    images = f"{len(data.real)} real images with {', '.join(map(str, data.arms))} generated ones"
    text = f"{what} on {images}, measured on {measured} others"
    settled = {"short_side": data.short_side, "device": options.device, "precision": options.precision}
    memory = {"memory": read_memory().rss_peak} if len(over) < len(trainings) else {}
    report(Event(EventKind.PLANNED, text=text, seconds_left=report.left() or None, needs=memory, settled=settled))


def _remark_on_gaps(val: ValSet, detections: Sequence[Instances], names: Sequence[str], report: Report) -> None:
    """Say where a validation set's labels look incomplete, by the first detector of the real images alone."""
    pairs = zip(val.records, detections, strict=True)
    pictures = [Picture(record.width, record.height, record.instances, found) for record, found in pairs]
    if remark := looks_incomplete(pictures, names, val.name):
        report(note(f"{remark}. Figures by such labels count every object that they leave out as a mistake"))


def _options(settings: EvaluateSettings) -> tuple[DetectorOptions, int]:
    """The preset's training with the changes that were asked for, its precision resolved, and the number of seeds."""
    options, seeds = preset(settings.preset, settings.detector)
    keys = {item.name: key_of(item) for item in dataclasses.fields(options)}
    value = (
        to_object(options) | {"device": AUTO} | {keys.get(name, name): new for name, new in settings.changes.items()}
    )
    options = from_object(DetectorOptions, value, UsageError, "options")
    options = dataclasses.replace(options, device=device_name(options.device))
    # Resolved here, so that a comparison that goes on on another machine never mixes two arithmetics.
    precision = resolve_precision(options.precision, options.device)
    return dataclasses.replace(options, precision=precision), settings.seeds or seeds


def _check_out(settings: EvaluateSettings) -> None:
    out = settings.out
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; give a folder for the comparison.", field="out")
    if (out / TRAININGS).exists():
        if not settings.resume:
            raise RunError(
                f"{out} holds a comparison already: go on with it with `resume=True`, or give another folder.",
                field="resume",
            )
    elif out.is_dir() and holds_more(out):
        raise RunError(f"{out} is not empty, and holds no comparison: give a new folder.", field="out")


def _totals(report: Report, before: int, total: int) -> Report:
    """What tells of one training, and after each of its steps how far all of them are; `before`: steps of others."""

    def both(event: Event) -> None:
        report(event)
        if event.stage != MEASURING and event.done is not None:
            report(Event(EventKind.PROGRESS, ALL, done=before + event.done, total=total))

    return both


def _results(
    training: _Training,
    data: WorthData,
    options: DetectorOptions,
    settings: EvaluateSettings,
    report: Report,
) -> list[Result]:
    """What a training found on each validation set: read, where it is there, else trained and measured, and written."""
    folder = settings.out / TRAININGS / training.name
    known = TrainingSet(data.class_names, data.real, data.generated[: training.generated], settings.mix)
    identity: dict[str, Any] = {
        "options": options.decisive(),
        "data": known.digest(),
        "pixels": data.pixels_with(training.generated),
        "short_side": data.short_side,
        "weights": weights_digest(settings.weights),
        "seed": training.seed,
    }
    detector: Detector | None = None
    results = []
    for val in data.val:
        path = folder / f"{MEASURED}-{val.digest()}.json"
        found = read_measured(path, identity, val, len(data.class_names))
        if found is None:
            detector = detector or _detector(known, options, folder, identity, settings, report)
            found = detect(detector, val.records, report)
            write_measured(path, val, identity, found, data.class_names)
        results.append(Result(training.generated, training.seed, found))
    return results


def _detector(
    known: TrainingSet,
    options: DetectorOptions,
    folder: Path,
    identity: Mapping[str, Any],
    settings: EvaluateSettings,
    report: Report,
) -> Detector:
    """The detector of a training: read, where it is there, else trained."""
    if (folder / INFO_FILE).exists():
        detector = load_detector(folder, options.device)
        trained = {key: value for key, value in identity.items() if key in detector.info.training}
        check_same(folder, detector.info.training, trained, RunError)
        return detector
    return train_detector(
        known,
        options,
        folder,
        short_side=identity["short_side"],
        seed=identity["seed"],
        resume=settings.resume,
        report=report,
        stage=folder.name,
        weights=settings.weights,
        pixels=identity["pixels"],
    )
