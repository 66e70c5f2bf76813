"""What `speed.py` has done in processes of their own, beside the tasks of `engines.measure` and `sd2_tick`.

Knows: how labels are judged (by an independent detector, and against the float32 reference), the time from load to a
first image, and the peers. Each function takes and returns a JSON object (`engines.measure.alone`). Does not know in
which order, or what a figure has to reach.
"""

import importlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ablation
import numpy as np

from engines.bundle.bundle import default_bundle, open_bundle
from engines.datasets.images import read_image
from engines.diffusion.schedule import make_schedule, start_index, step_rows
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.measure.workload import Workload, WorkloadJobs, jobs_of
from engines.runs.journal import IMAGES, JOURNAL, image_name, read_entries
from engines.runs.run_folder import require_run
from engines.worth.detectors.model import load_detector
from export.agreement import psnr

Tell = Callable[[str], None]
LEAST = 0.5  # score of the detector's boxes that count, as in ablation.py
# What `generate` imports on its way to a first image.
IMPORTS = (
    "torch", "diffusers", "transformers", "onnx", "openvino", "PIL.Image", "engines.backends.openvino.backend",
    "engines.runs.finalize", "engines.runs.generate", "engines.painting.painter",
)  # fmt: skip


def judge_run_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Agreement of the labels of a `run` of ours with the `detector` (`ablation.agreement`), and its `unet_rows` an
    image.
    """
    tell("asking the detector")
    folder = Path(arguments["run"])
    found = ablation.agreement(folder, load_detector(arguments["detector"]), LEAST)
    return found | {"unet_rows": unet_rows(folder)}


def unet_rows(folder: Path) -> float:
    """UNet rows an image that the sampler of a run computed: two for a guided step, one for any other."""
    run = require_run(folder)
    bundle = open_bundle(Path(run.bundle) if run.bundle else default_bundle(), verify=False)
    schedule = make_schedule(bundle.scheduler_config, run.sampler, run.steps, run.eta)
    rows = step_rows(schedule, run.guidance, run.guidance_interval or (0.0, 1.0))
    strengths = [entry.strength for entry in read_entries(folder / JOURNAL)]
    firsts = (0 if strength is None else start_index(schedule, strength) for strength in strengths)
    return float(sum(int(rows[first:].sum()) for first in firsts) / max(len(strengths), 1))


def judge_baseline_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """The same of the baseline's images and annotations in `run`: `label_ap50`, its interval, `labels` an image and
    `images`. The workload tells which images have one reference.
    """
    tell("asking the detector")
    folder = Path(arguments["run"])
    files, labels, class_names = read_coco_labels(folder)
    truth = ablation.found_by(load_detector(arguments["detector"]), files, class_names, LEAST)
    references = {image_name(job.index, "jpg"): job.reference for job in _jobs(arguments).jobs}
    return {
        "images": len(files),
        "label_ap50": mean_average_precision(truth, labels, class_names)["AP50"],
        "label_ap50_interval": ablation.interval(truth, labels, class_names, [references[file.name] for file in files]),
        "labels": sum(len(one.scores) for one in labels) / max(len(labels), 1),
    }


def read_coco_labels(folder: Path) -> tuple[list[Path], list[Instances], tuple[str, ...]]:
    """The images of `folder`/annotations.json, their labels with their scores, and the class names."""
    value = json.loads((folder / "annotations.json").read_text("utf-8"))
    names = tuple(category["name"] for category in value["categories"])
    rows: dict[int, list[list[float]]] = {image["id"]: [] for image in value["images"]}
    for found in value["annotations"]:
        x, y, width, height = found["bbox"]
        rows[found["image_id"]].append([x, y, x + width, y + height, found["score"], found["category_id"] - 1])
    labels = []
    for every in rows.values():
        table = np.array(every, dtype=np.float32).reshape(-1, 6)
        labels.append(Instances(table[:, :4], table[:, 4], table[:, 5].astype(np.int64)))
    return [folder / IMAGES / image["file_name"] for image in value["images"]], labels, names


def same_labels_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Of `run` against `reference`, over the jobs that both did: AP50 of the boxes against the other's labels, and the
    mean PSNR of the images (dB, peak 255; both are JPEGs).
    """
    tell("comparing labels and images")
    run, reference = Path(arguments["run"]), Path(arguments["reference"])
    here, boxes, _ = ablation.read_labels(run)
    there, _, labels = ablation.read_labels(reference)
    own = {entry.index: found for entry, found in zip(here, boxes, strict=True)}
    pairs = [(label, own[entry.index]) for entry, label in zip(there, labels, strict=True) if entry.index in own]
    truth = [ablation.Truth(one.boxes, one.labels, np.zeros(len(one.labels), dtype=bool)) for one, _ in pairs]
    figures = mean_average_precision(truth, [found for _, found in pairs], require_run(run).class_names)
    files = {entry.index: run / IMAGES / str(entry.file) for entry in here}
    ratios = [
        psnr(read_image(files[entry.index]), read_image(reference / IMAGES / str(entry.file)))
        for entry in there
        if entry.index in files
    ]
    return {"images": len(pairs), "ap50": figures["AP50"], "psnr": float(np.mean(ratios))}


def first_image_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Load and first image, as `engines.measure.run:engine_task` has it, once everything is imported."""
    from engines.measure.run import engine_task

    begun = time.perf_counter()
    for name in IMPORTS:
        importlib.import_module(name)
    imported = time.perf_counter() - begun
    return engine_task({**arguments, "first_image": True}, tell) | {"import_seconds": imported}


def used_rows_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """UNet rows that the workload's jobs need, two a step where guided, and their steps."""
    made = _jobs(arguments)
    steps = sum(made.steps(job) for job in made.jobs)
    return {"steps": steps, "rows": steps * (2 if made.options["guidance"] > 1.0 else 1)}


def _jobs(arguments: Mapping[str, Any]) -> WorkloadJobs:
    bundle = open_bundle(Path(arguments["bundle"]) if arguments["bundle"] else default_bundle(), verify=False)
    return jobs_of(Workload.from_json(arguments["workload"]), bundle, Path(arguments["references"]))


def peers_task(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """`peers.measure` in `work`; with an `error` where a peer does not run, so that it is tried again next time."""
    import peers

    tell("painting with the peers")
    bundle = None if arguments["bundle"] is None else Path(arguments["bundle"])
    workload = Workload.from_json(arguments["workload"])
    found = peers.measure(Path(arguments["work"]), workload, Path(arguments["references"]), bundle)
    failed = [f"{result['title']}: {result['error']}" for result in found["peers"] if "error" in result]
    return found | ({"error": "; ".join(failed)} if failed else {})
