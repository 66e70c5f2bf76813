"""What `speed.py` has done in processes of their own, beside the tasks of `engines.measure` and `peers`.

Knows: how a run of ours is timed, and how its labels are judged. Each function takes and returns a JSON object
(`engines.measure.alone`). Does not know in which order, or what a figure has to reach.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import Record, Tell
from engines.common.events import Event, EventKind
from engines.common.files import sha256_file
from engines.datasets.images import read_image
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.labels.rules import is_label
from engines.measure.workload import Workload
from engines.runs.generate import generate
from engines.runs.journal import JOURNAL, Entry, find_image, read_entries
from engines.runs.run_folder import require_run
from export.agreement import psnr

SHOWN = ("precision", "slots", "rows", "steps")  # of a run's options
SURE, DRAWS = 0.5, 200
WARM_JOBS = 16  # images of the run that fills the cache of compiled models


def paint_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """A run of ours into `out`: `seconds` from the end of loading to every file on the disk, and `images_per_second`.

    `options` are further fields of GenerateSettings. With `warm_up` only WARM_JOBS images are painted, which fill the
    cache of compiled models.
    """
    load = dict(arguments["workload"])
    load["jobs"] = min(load["jobs"], WARM_JOBS) if arguments.get("warm_up") else load["jobs"]
    workload = Workload.from_json(load)
    out = Path(arguments["out"])
    shutil.rmtree(out, ignore_errors=True)
    bundle, references = (
        None if arguments[name] is None else Path(arguments[name]) for name in ("bundle", "references")
    )
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments["options"].items()}
    settings = workload.generate_settings(out, bundle=bundle, references=references, **options)
    opened: list[float] = []

    def hear(event: Event) -> None:
        if event.kind is EventKind.STARTED:
            opened.append(time.perf_counter())
            tell(event.text)

    summary = generate(settings, report=hear)
    seconds = time.perf_counter() - opened[0]
    run = require_run(out)
    return {
        "images": summary.painted,
        "seconds": seconds,
        "images_per_second": summary.painted / seconds,
        "backend": run.backend,
        **{name: getattr(run.options, name) for name in SHOWN},
    }


def references_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """Paint the references from text into `out`, as PNG files at the bundle's own size, and hash their annotations."""
    from engines.painting.settings import GenerateSettings

    out, bundle = Path(arguments["out"]), arguments["bundle"]
    shutil.rmtree(out, ignore_errors=True)
    settings = GenerateSettings(
        out=out, bundle=None if bundle is None else Path(bundle), jobs=arguments["jobs"], seed=arguments["seed"],
        image_format="png", keep_empty=True, min_quality=0.0,
    )  # fmt: skip
    return {"images": generate(settings).painted, "sha256": sha256_file(out / "annotations.json")}


def read_labels(folder: Path) -> tuple[list[Entry], list[Instances]]:
    """The entries of a run's images, and those of their boxes that are labels by the run's own rules."""
    rules = require_run(folder).rules
    entries = [entry for entry in read_entries(folder / JOURNAL) if entry.file]
    return entries, [entry.instances.take(is_label(entry.instances, rules)) for entry in entries]


def same_labels_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """Of `run` against `reference`, over the jobs that both did: AP50 of the boxes against the other's labels, and the
    mean PSNR of the images (dB, peak 255; both are JPEGs).
    """
    tell("comparing labels and images")
    run, reference = Path(arguments["run"]), Path(arguments["reference"])
    own = {entry.index: entry for entry in read_labels(run)[0]}
    pairs = [(own[other.index], other, label) for other, label in zip(*read_labels(reference), strict=True)
             if other.index in own]  # fmt: skip
    names = require_run(run).class_names
    figures = mean_average_precision([label for *_, label in pairs], [mine.instances for mine, *_ in pairs], names)
    ratios = [
        psnr(read_image(find_image(run, mine)), read_image(find_image(reference, other))) for mine, other, _ in pairs
    ]
    return {"images": len(pairs), "ap50": figures["AP50"], "psnr": float(np.mean(ratios))}


def judged_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """AP50 of a run's labels against what `detector` finds on its images with a score of SURE or more, and `low` and
    `high`, between which nineteen of twenty draws of as many images have it; UNet `rows` an image.
    """
    from engines.worth.detectors.model import load_detector

    tell("asking the detector")
    run, detector = Path(arguments["run"]), load_detector(Path(arguments["detector"]), "cpu")
    entries, labels = read_labels(run)
    found = detector.predict(read_image(find_image(run, entry)) for entry in entries)
    truth = [one.take(one.scores >= SURE) for one in found]
    names, rng = require_run(run).class_names, np.random.default_rng(0)

    def ap50(chosen: Sequence[int]) -> float:
        return mean_average_precision([truth[i] for i in chosen], [labels[i] for i in chosen], names)["AP50"]

    drawn = [ap50(rng.integers(0, len(entries), len(entries)).tolist()) for _ in range(DRAWS)]
    low, high = np.percentile(drawn, (2.5, 97.5)).tolist()
    count = float(np.mean([len(one) for one in labels]))
    return {"images": len(entries), "ap50": ap50(range(len(entries))), "low": low, "high": high, "labels": count}
