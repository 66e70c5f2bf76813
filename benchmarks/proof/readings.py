"""What reads the validation images: the adapter as a detector, and the detectors of every arm.

Knows: the commands and figures of the proof's last trainings, as `actions` knows those of the stages before.
Knows nothing about what was chosen, or why.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.proof.actions import Figures, bundle_of, labelled, list_of
from benchmarks.proof.draws import draws
from benchmarks.proof.plan import FULL
from benchmarks.proof.workplace import ProofError, Workplace
from engines.common.files import read_json
from engines.datasets.dataset import open_dataset
from engines.worth.evaluate import COMPARISON, RESULT, TRAININGS, detections_of

VAL = "val-kept"


def read_adapter(place: Workplace, name: str) -> Figures:
    """The adapter itself as the detector: its one reading of the validation images."""
    out = place.folder(f"adapter-val-{name}")
    shutil.rmtree(out, ignore_errors=True)
    place.dengine("label", place.data, "--split", VAL, "--bundle", bundle_of(place, name), "--out", out)
    val = open_dataset(place.data, split=VAL)
    found = labelled(out / "annotations.json", val.records, val.class_names)
    return {
        "results": {
            "adapter": {
                "figures": read_json(out / "figures.json", ProofError)["figures"],
                "draws": draws(val.records, found, val.class_names, place.plan.resamples),
            }
        }
    }


def compare(place: Workplace, stage: str, kind: str, name: str, settings: Mapping[str, Any]) -> Figures:
    """`dengine evaluate`: the same detector on the real images, and on real and other ones; measured on val.

    settings: `lr`, `seed`, `steps`; for other images than real ones `synthetic` (folder), `mix`, `amounts` or none, and
    `known`: the stage of the real images alone, whose training is taken from there.
    """
    plan, out = place.plan, place.folder(stage)
    _take_over(place.folder(settings["known"]) / TRAININGS if settings.get("known") else None, out / TRAININGS)
    words: list[object] = ["evaluate", "--real", place.data, "--split", "train"]
    if name != FULL:
        words += ["--images", place.lists / f"{list_of(name)}.txt"]
    if settings.get("synthetic"):
        words += ["--synthetic", place.folder(settings["synthetic"]), "--mix", settings["mix"]]
    words += ["--val", place.data, "--val-split", "val"]
    words += ["--detector", kind, "--preset", "small", "--seeds", 1, "--seed", settings["seed"]]
    words += ["--short-side", plan.short_side, "--steps", settings["steps"]]
    words += ["--batch", plan.batch, "--lr", settings["lr"], "--turns", "--device", place.device]
    if settings.get("amounts"):
        words += ["--amounts", settings["amounts"]]
    place.dengine(*words, "--resume", "--out", out, torchvision=kind != "rt_detr")
    data = read_json(out / COMPARISON, ProofError)["data"]
    results = {}
    for folder in sorted((out / TRAININGS).iterdir()):
        generated = folder.name.removesuffix(f"-seed{settings['seed']}")
        arm = "real" if generated == "real" else settings["arm"]
        if settings.get("amounts") and arm != "real":
            arm = generated
        results[arm] = _read_training(place, folder / RESULT)
    shown = {key: value for key, value in settings.items() if key != "known"}
    return {"results": results, "settings": shown, "left_out_of_val": data["left_out_of_val"]}


def _take_over(source: Path | None, target: Path) -> None:
    """Copy finished trainings that are not there yet: the same command would make the same."""
    for folder in source.iterdir() if source is not None and source.is_dir() else ():
        if (folder / RESULT).exists() and not (target / folder.name / RESULT).exists():
            shutil.rmtree(target / folder.name, ignore_errors=True)
            shutil.copytree(folder, target / folder.name)


def _read_training(place: Workplace, path: Path) -> Figures:
    """Figures, cost and draws of one training."""
    value = read_json(path, ProofError)
    val = open_dataset(place.data, split="val")
    by_name = {record.name: record for record in val.records}
    records = [by_name[name] for name in value["images"]]
    return {
        "figures": value["figures"],
        "seconds": value["seconds"],
        "draws": draws(records, detections_of(value), val.class_names, place.plan.resamples),
    }
