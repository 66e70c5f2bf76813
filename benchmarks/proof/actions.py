"""What each kind of stage does: the commands it runs, and the figures it keeps.

Knows: every command of the proof. Each function takes the workplace and the stage's own words, and returns the figures
of its record. Knows nothing about the order of stages, or about what is already done.

A list's name may carry a variant of the adapter: `10-0-narrow` is list 10-0 with another head.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.proof import choices
from benchmarks.proof.lists import fraction_of, prepare
from benchmarks.proof.plan import FULL, SELF
from benchmarks.proof.tuning import RESULT as TUNED
from benchmarks.proof.workplace import ROOT, ProofError, Workplace
from engines.bundle.bundle import default_bundle
from engines.common.files import read_json, write_json
from engines.datasets.dataset import Record, open_dataset
from engines.labels.average_precision import Detections
from engines.labels.scores import FALLBACK
from engines.labels.thresholds import choose_thresholds

BASE = "base-nolabels"
RULES = "rules-full"
Figures = dict[str, Any]


def list_of(name: str) -> str:
    """`10-0` of `10-0` and of `10-0-narrow`."""
    return name if name == FULL else "-".join(name.split("-")[:2])


def seed_of(name: str) -> int:
    """The seed that belongs to a list: its number."""
    return 0 if name == FULL else int(name.split("-")[1])


def bundle_of(place: Workplace, name: str) -> Path:
    """The bundle that paints and labels for a list; for the whole train split the one that dengine brings."""
    return default_bundle() if name == FULL else place.folder(f"bundle-{name}")


def make_lists(place: Workplace) -> Figures:
    """Check the lists, and lay out the data."""
    return dict(prepare(place.dataset, place.work, place.plan, place.lists))


def train_base(place: Workplace) -> Figures:
    """The base model of the label-scarce setting: all train images, no labels, no class words."""
    out = place.folder(BASE)
    found = (out / "model_index.json").exists()
    words = ["train-base", place.folder("train-images"), "--style", place.plan.style, "--turns", "--preset", "small"]
    if place.plan.base_scale != 1.0:
        words += ["--steps-scale", str(place.plan.base_scale)]
    if place.device != "cpu":
        words += ["--device", place.device]
    command = [*words, "--resume", "--out", out]
    if found:
        place.commands.append(" ".join(["dengine", *map(place.shown, command)]))
    else:
        place.dengine(*command)
    return {"trained_before": found}


def train_adapter(place: Workplace, name: str, variant: tuple[str, ...]) -> Figures:
    """An adapter on one list's labels; its tune part chooses the thresholds, and what was learned without it is told.

    With the plan's `refit`, the one that labels is trained once more, on the whole list.
    """
    plan, out = place.plan, place.folder(f"adapter-{name}")
    judged = place.folder(f"adapter-{name}-fit") if plan.refit else out
    parts = {judged: repr(fraction_of(list_of(name), plan, place.lists))}
    if plan.refit:
        parts[out] = "0"
    settings = place.work / f"adapter-{name}.settings.json"
    write_json(settings, {"cache_views": plan.cache_views, "checkpoint_minutes": 2.0})
    for folder, fraction in parts.items():
        if not (folder / "adapter.json").exists():
            _train(place, list_of(name), folder, fraction, settings, *variant)
    return _judged(judged)


def _train(
    place: Workplace, name: str, out: Path, fraction: str, settings: Path, *more: object, steps: int | None = None
) -> None:
    plan = place.plan
    place.dengine(
        *("train-adapter", place.data, "--split", name, "--model", place.folder(BASE), "--turns"),
        *("--steps", steps or plan.adapter_steps, "--eval-every", plan.adapter_eval_every, "--lr", plan.adapter_lr),
        *("--tune-fraction", fraction, "--precision-goal", plan.precision_goal, "--device", place.device),
        *("--seed", seed_of(name), *more, "--settings", settings, "--resume", "--out", out),
    )


def _judged(adapter: Path) -> Figures:
    """What an adapter's file says about its training: thresholds, how they were chosen, figures on the tune part."""
    info = read_json(adapter / "adapter.json", ProofError)
    figures = dict(info["figures"])
    return {"thresholds": info.get("thresholds", {}), "choice": figures.pop("thresholds", {}), **figures}


def train_again(place: Workplace, name: str) -> Figures:
    """A list's adapter once more, on its labels and on what it labelled itself: the other train images.

    As before, one is judged and chooses thresholds: its teacher is the adapter that has not learned from the tune part
    either. So the plan's `refit` is needed, which leaves both.
    """
    plan, out = place.plan, place.folder(f"adapter-{name}-{SELF}")
    settings = place.work / f"{out.name}.settings.json"
    write_json(settings, {"checkpoint_minutes": 2.0})  # no kept views: they would not come round again
    judged = place.folder(f"{out.name}-fit")
    parts = {judged: (f"{name}-fit", repr(fraction_of(name, plan, place.lists))), out: (name, "0")}
    for folder, (teacher, fraction) in parts.items():
        if (folder / "adapter.json").exists():
            continue
        if teacher != name:
            export_bundle(place, teacher)
            score = score_of(place, name)
            label_copy(place, teacher, f"pseudo-{name}", f"pseudo-{teacher}", score, plan.uncertain)
        more = ("--pseudo", place.folder(f"pseudo-{teacher}"), "--pseudo-share", plan.self_share)
        _train(place, name, folder, fraction, settings, *more)
    return _judged(judged)


def train_from_labels(place: Workplace, name: str, own: str) -> Figures:
    """A list's adapter anew, on its labels and on a relabelling of the other train images; nothing is held out."""
    how, out = place.plan.again[own], place.folder(f"adapter-{name}-{own}")
    settings = place.work / f"{out.name}.settings.json"
    write_json(settings, {"cache_views": how.cache_views, "checkpoint_minutes": 2.0})
    more = ("--pseudo", place.folder(f"pseudo-{name}-{how.labels}"), "--pseudo-share", place.plan.self_share)
    _train(place, name, out, "0", settings, *more, steps=how.steps)
    return _judged(out)


def _label(place: Workplace, bundle: str, folder: Path, score: str, uncertain: float) -> Figures:
    """Label the images of a folder with a bundle."""
    words = ["label", folder / "images", "--bundle", bundle_of(place, bundle), "--score", score]
    place.dengine(*words, *(("--uncertain", uncertain) if uncertain else ()), "--out", folder)
    return labels_in(folder / "annotations.json")


def label_copy(place: Workplace, bundle: str, images: str, out: str, score: str, uncertain: float) -> Figures:
    """Label a copy of another stage's images with a bundle."""
    folder = place.folder(out)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place.folder(images) / "images", folder / "images")
    return _label(place, bundle, folder, score, uncertain)


def label_again(place: Workplace, arm: str, name: str) -> Figures:
    """The images of an arm, `pseudo` or `generated`, with labels of the adapter that learned once more."""
    own = f"{name}-{SELF}"
    return label_copy(place, own, f"{arm}-{name}", f"{arm}-{own}", score_of(place, own), place.plan.uncertain)


def export_bundle(place: Workplace, name: str) -> Figures:
    """The bundle of a list's adapter, with the settings that suit a base that has seen no class word."""
    plan, out = place.plan, place.folder(f"bundle-{name}")
    defaults = place.work / f"bundle-{name}.defaults.json"
    write_json(defaults, {"guidance": plan.guidance, "prompt_template": plan.template, "uncertain": plan.uncertain})
    shutil.rmtree(out, ignore_errors=True)
    place.dengine(
        *("export", "--model", place.folder(BASE), "--adapter", place.folder(f"adapter-{name}")),
        *("--frame", plan.frame, "--defaults", defaults, "--out", out),
    )
    return {"bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file())}


def label_rest(place: Workplace, name: str) -> Figures:
    """The adapter's labels on the train images that the list leaves out, by the rules of the generated images."""
    folder = place.folder(f"pseudo-{name}")
    (folder / "annotations.json").unlink(missing_ok=True)
    return _label(place, name, folder, score_of(place, name), place.plan.uncertain)


def labels_in(annotations: Path) -> Figures:
    """Images, labels by class, uncertain regions and the score of labels, of a COCO file."""
    content = read_json(annotations, ProofError)
    names = {one["id"]: one["name"] for one in content["categories"]}
    labels = dict.fromkeys(names.values(), 0)
    for found in content["annotations"]:
        labels[names[found["category_id"]]] += not found["iscrowd"]
    crowds = sum(found["iscrowd"] for found in content["annotations"])
    return {"images": len(content["images"]), "labels": labels, "uncertain": crowds, "score": content["info"]["score"]}


def choose_full_thresholds(place: Workplace) -> Figures:
    """Thresholds of the bundled adapter on the tune part of train, which it never learned from."""
    out = place.folder("thresholds-full")
    shutil.rmtree(out, ignore_errors=True)
    place.dengine("label", place.data, "--split", f"{FULL}-tune", "--out", out)
    dataset = open_dataset(place.data, split=f"{FULL}-tune")
    found = labelled(out / "annotations.json", dataset.records, dataset.class_names)
    chosen = choose_thresholds(dataset.records, found, dataset.class_names, place.plan.precision_goal)
    return {
        "score": choices.score_text({name: one.score for name, one in chosen.items()}, FALLBACK),
        "classes": {name: vars(one) for name, one in chosen.items()},
    }


def labelled(annotations: Path, records: list[Record] | Any, class_names: tuple[str, ...]) -> list[Detections]:
    """The boxes of a file of `dengine label` as detections on `records`, with the labels of `class_names`."""
    import numpy as np

    content = read_json(annotations, ProofError)
    labels = {one["id"]: class_names.index(one["name"]) for one in content["categories"]}
    names = {one["id"]: one["file_name"] for one in content["images"]}
    rows: dict[str, list[list[float]]] = {name: [] for name in names.values()}
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        row = [x, y, x + width, y + height, one["score"], labels[one["category_id"]]]
        rows[names[one["image_id"]]].append(row)
    arrays = [np.array(rows[record.name], dtype=np.float64).reshape(-1, 6) for record in records]
    return [
        Detections(a[:, :4].astype(np.float32), a[:, 4].astype(np.float32), a[:, 5].astype(np.int64)) for a in arrays
    ]


def ablate(place: Workplace, name: str, detector: str) -> Figures:
    """What painting settings do to the labels, held against a detector that was trained on real pixels alone."""
    out = place.folder(f"ablation-{name}")
    words: list[object] = ["--detector", place.folder(detector) / "detector", "--work", out]
    words += ["--bundle", bundle_of(place, name), "--jobs", place.plan.ablation_jobs]
    words += ["--score", score_of(place, name)]
    if name == FULL:
        words += ["--reference", place.data, "--split", f"{FULL}-tune"]
    else:
        words += ["--reference", place.folder(f"pseudo-{name}") / "images", "--only", "steps", "strength"]
    place.script(ROOT / "benchmarks" / "ablation.py", *words)
    rows = [json.loads(line) for line in (out / "ablation.jsonl").read_text("utf-8").splitlines()]
    return {
        "rows": [{key: value for key, value in row.items() if key != "same"} for row in rows],
        "strength": choices.strength(rows, place.plan.least_strength, place.plan.slack),
        "detector": detector,
    }


def score_of(place: Workplace, name: str) -> str:
    """The `--score` of labels for a list: what its adapter's tune part chose, or the bundled one's."""
    if name == FULL:
        return str(place.figures("thresholds-full")["score"])
    found = place.figures(f"adapter-{name}")
    classes = (key for key in found["choice"] if key != "goal")
    return choices.score_text({key: found["thresholds"].get(key) for key in classes}, FALLBACK)


def generate(place: Workplace, name: str) -> Figures:
    """The generated images of a list."""
    out = place.folder(f"generated-{name}")
    strength = _paint(place, name, out, "--count", place.plan.count)
    return labels_in(out / "annotations.json") | {"strength": strength}


def _paint(place: Workplace, name: str, out: Path, *how_many: object) -> list[float]:
    """Paint with the settings of a list; returns the range of strengths."""
    plan = place.plan
    low, high = place.figures(f"ablation-{FULL if name == FULL else plan.lists[0]}")["strength"]
    words: list[object] = ["generate", *how_many, "--bundle", bundle_of(place, name), *_references(place, name)]
    words += ["--uncertain", plan.uncertain] if name == FULL else []
    words += ["--score", score_of(place, name)]
    place.dengine(*words, "--strength", f"{low}:{high}", "--seed", seed_of(name), "--out", out)
    return [low, high]


def repaint(place: Workplace, name: str, own: str) -> Figures:
    """Other generated images of a list, or with all labels; nothing about them is uncertain."""
    how, out = place.plan.repaints[own], place.folder(f"generated-{name}-{own}")
    bundle = name if name == FULL else f"{name}-{how.adapter}"
    words = ["generate", "--count", place.plan.count, "--bundle", bundle_of(place, bundle), *_references(place, name)]
    low, high = how.strength
    place.dengine(*words, "--uncertain", 0, "--strength", f"{low}:{high}", "--seed", seed_of(name), "--out", out)
    place.dengine("finalize", out, "--score", how.score)
    return labels_in(out / "annotations.json") | {"strength": [low, high]}


def _references(place: Workplace, name: str) -> list[object]:
    """What is repainted; with all labels, the labelled images, whose classes prompts name."""
    if name == FULL:
        return ["--reference", place.data, "--reference-split", "train", "--guidance", place.plan.guidance_full]
    return ["--reference", place.folder("train-images")]


def try_rules(place: Workplace, detector: str) -> Figures:
    """What thresholds, uncertain regions, dropped images and --balance do to the labels of the bundled model's run."""
    out, balanced = place.folder(RULES), place.folder("balanced-full")
    _paint(place, FULL, balanced, "--count", place.plan.count // 4, "--balance")
    place.script(
        ROOT / "benchmarks" / "ablation_rules.py", place.folder(f"generated-{FULL}"),
        *("--detector", place.folder(detector) / "detector", "--score", score_of(place, FULL)),
        *("--balanced", balanced, "--work", out),
    )  # fmt: skip
    lines = (out / "rules.jsonl").read_text("utf-8").splitlines()
    return {"rows": [json.loads(line) for line in lines], "detector": detector}


def tune(
    place: Workplace,
    stage: str,
    kind: str,
    name: str,
    *,
    lr: float,
    share: float = 1.0,
    arm: str = "",
    mix: float = 0.5,
) -> Figures:
    """A training on a list without its tune part, measured there; `arm` is `pseudo`, `generated`, or none."""
    plan, out = place.plan, place.folder(stage)
    spec = {
        "data": str(place.data),
        "fit": f"{list_of(name)}-fit",
        "tune": f"{list_of(name)}-tune",
        "kind": kind,
        "steps": max(2, round(plan.detector(kind).tune_steps * share)),
        "lr": lr,
        "batch": plan.batch,
        "short_side": plan.short_side,
        "seed": seed_of(name),
        "points": plan.curve_points,
        "synthetic": str(place.folder(f"{arm}-{name}")) if arm else None,
        "mix": mix,
        "device": place.device,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "spec.json", spec)
    script = ROOT / "benchmarks" / "proof" / "tuning.py"
    place.script(script, out / "spec.json", out, torchvision=kind != "rt_detr")
    told = {key: value for key, value in spec.items() if key != "data"} | {"synthetic": arm or None}
    return read_json(out / TUNED, ProofError) | {"spec": told}
