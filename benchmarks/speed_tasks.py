"""What `speed.py` has done in processes of their own, beside the tasks of `engines.measure`, `sd2_tick` and `peers`.

Knows: how a run of ours is timed, how its labels are judged (by an independent detector, and against the float32
reference), and the time from load to a first image. Each function takes and returns a JSON object
(`engines.measure.alone`). Does not know in which order, or what a figure has to reach.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agreement import agreement
from benchmarks.records import Record, Tell
from engines.bundle.bundle import default_bundle, open_bundle
from engines.common.events import Event, EventKind
from engines.common.files import sha256_file
from engines.datasets.images import read_image
from engines.diffusion.schedule import make_schedule, start_index, step_rows
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.labels.rules import is_label
from engines.measure.workload import Workload, jobs_of
from engines.runs.generate import generate
from engines.runs.journal import IMAGES, JOURNAL, Entry, find_image, image_name, read_entries
from engines.runs.run_folder import require_run
from engines.worth.detectors.model import load_detector
from export.agreement import psnr

SHOWN = ("precision", "slots", "rows", "steps", "sampler", "guidance_interval")  # of a run's options
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


def judge_run_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """Agreement of the labels of a `run` of ours with the `detector`, and its `unet_rows` an image."""
    tell("asking the detector")
    folder = Path(arguments["run"])
    entries, labels = read_labels(folder)
    files = [find_image(folder, entry) for entry in entries]
    groups = [entry.reference or entry.index for entry in entries]
    names = require_run(folder).class_names
    return agreement(load_detector(arguments["detector"]), files, labels, names, groups) | {
        "unet_rows": unet_rows(folder)
    }


def judge_baseline_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """The same of the baseline's images and annotations in `run`. The workload tells which have one reference."""
    tell("asking the detector")
    bundle = open_bundle(Path(arguments["bundle"]) if arguments["bundle"] else default_bundle(), verify=False)
    made = jobs_of(Workload.from_json(arguments["workload"]), bundle, Path(arguments["references"]))
    references = {image_name(job.index, "jpg"): job.reference for job in made.jobs}
    files, labels, names = read_coco_labels(Path(arguments["run"]))
    groups = [references[file.name] for file in files]
    return agreement(load_detector(arguments["detector"]), files, labels, names, groups)


def read_labels(folder: Path) -> tuple[list[Entry], list[Instances]]:
    """The entries of a run's images, and those of their boxes that are labels by the run's own rules."""
    rules = require_run(folder).rules
    entries = [entry for entry in read_entries(folder / JOURNAL) if entry.file]
    return entries, [entry.instances.take(is_label(entry.instances, rules)) for entry in entries]


def read_coco_labels(folder: Path) -> tuple[list[Path], list[Instances], tuple[str, ...]]:
    """The images of `folder`/annotations.json, their labels with their scores, and the class names."""
    value = json.loads((folder / "annotations.json").read_text("utf-8"))
    names = tuple(category["name"] for category in value["categories"])
    rows: dict[int, list[Sequence[float]]] = {image["id"]: [] for image in value["images"]}
    for found in value["annotations"]:
        x, y, width, height = found["bbox"]
        rows[found["image_id"]].append((x, y, x + width, y + height, found["score"], found["category_id"] - 1))
    files = [folder / IMAGES / image["file_name"] for image in value["images"]]
    return files, [Instances.from_rows(every) for every in rows.values()], names


def unet_rows(folder: Path) -> float:
    """UNet rows an image that the sampler of a run computed: two for a guided step, one for any other."""
    options = require_run(folder).options
    bundle = open_bundle(options.bundle or default_bundle(), verify=False)
    schedule = make_schedule(bundle.scheduler_config, options.sampler, options.steps, options.eta)
    rows = step_rows(schedule, options.guidance, options.guidance_interval or (0.0, 1.0))
    strengths = [entry.strength for entry in read_entries(folder / JOURNAL)]
    firsts = (0 if strength is None else start_index(schedule, strength) for strength in strengths)
    return float(sum(int(rows[first:].sum()) for first in firsts) / max(len(strengths), 1))


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


def first_image_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """Load and first image, as `engines.measure.run:engine_task` has it, once everything is imported."""
    import engines.backends.openvino.backend
    import engines.painting.painter  # noqa: F401  so that the load is no import of these
    from engines.measure.run import engine_task

    return engine_task({**arguments, "first_image": True}, tell)
