"""The verbs that the kill test kills, on toy data: what each finds, its command, and what a kill may not leave.

Knows: the six verbs that write folders, and what each promises of its own. Knows nothing about killing.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

Words = Callable[[Path], list[str]]
_PAINT = ("--steps", "2", "--keep-empty", "--engine", "torch", "--precision", "f32", "--threads", "1")


@dataclass(frozen=True)
class Scene:
    """A verb at work on a folder."""

    words: Words  # the command that is killed
    again: Words  # the command that goes on, or []: nothing is left to do
    before: Callable[[Path], object]  # puts what the verb finds in the folder's place
    left_wrong: Callable[[Path], list[str]]  # what a kill left that it may not leave


def make_scenes(work: Path, bundle: Path, count: int, chunk: int) -> dict[str, Scene]:
    """Scenes by verb, all on one toy bundle; their inputs are below `work`, see `givens`."""
    paint = ["generate", "--bundle", str(bundle), *_PAINT, "--chunk", str(chunk), "--format", "coco,yolo,imagefolder"]
    run, shards = work / "given" / "run", [work / "given" / f"shard{k}" for k in (1, 2)]
    finalize = ["--score", "0.55", "--drop-empty", "--format", "coco,yolo"]
    label = ["label", str(work / "given" / "pictures"), "--bundle", str(bundle), "--score", "0.3"]
    label += ["--engine", "torch", "--precision", "f32", "--threads", "1"]
    base, adapter = bundle.parent / "base", bundle.parent / "adapter"
    train = ["train-adapter", str(work / "given" / "labelled"), "--model", str(base), "--precision", "f32"]
    train += ["--queries", "8", "--width", "32", "--decoder-layers", "2"]
    train += ["--settings", str(work / "given" / "training.json")]

    def to(*words: str) -> Words:
        return lambda folder: [*words, "--out", str(folder)]

    def unless(name: str, words: Words) -> Words:
        return lambda folder: [] if (folder / name).exists() else words(folder)

    generate, merged = to(*paint, "--count", str(count)), to("merge", *map(str, shards))
    labelled, trained = to(*label), to(*train)
    exported = to("export", "--model", str(base), "--adapter", str(adapter), "--check-on", "torch")
    return {
        "generate": Scene(generate, generate, _nothing, disagreeing),
        "finalize": Scene(
            lambda folder: ["finalize", str(folder), *finalize],
            lambda folder: ["finalize", str(folder), *finalize],
            lambda folder: shutil.copytree(run, folder),
            disagreeing,
        ),
        "merge": Scene(merged, unless("annotations.json", merged), _nothing, disagreeing_or_partial),
        "label": Scene(labelled, unless("annotations.json", labelled), _nothing, half_json),
        "export": Scene(exported, unless("manifest.json", exported), _nothing, no_bundle),
        "train-adapter": Scene(
            trained,
            unless("adapter.json", lambda folder: [*trained(folder), "--resume"]),
            _nothing,
            lambda folder: [],
        ),
    }


def givens(work: Path, bundle: Path, count: int, chunk: int) -> list[list[str]]:
    """Writes what scenes read, and returns the commands that paint the runs that they read."""
    given = work / "given"
    given.mkdir(parents=True, exist_ok=True)
    write_pictures(given / "pictures", 16, labels=False)
    write_pictures(given / "labelled", 6, labels=True)
    training = {"steps": 12, "batch": 2, "checkpoint_minutes": 1e-5, "workers": 0}
    (given / "training.json").write_text(json.dumps(training), "utf-8")
    paint = ["generate", "--bundle", str(bundle), *_PAINT, "--chunk", str(chunk), "--jobs", str(count)]
    runs = [[*paint, "--format", "coco,yolo,imagefolder", "--out", str(given / "run")]]
    runs += [[*paint, "--shard", f"{k}/2", "--out", str(given / f"shard{k}")] for k in (1, 2)]
    return [words for words in runs if not (Path(words[-1]) / "annotations.json").exists()]


def make_models(work: Path) -> Path:
    """The toy bundle, with the base and the adapter that it was made of beside it."""
    from benchmarks.toy_bundle import make_toy_bundle

    bundle = make_toy_bundle(work)
    if not (work / "base").exists():
        import toy

        toy.make_toy_adapter(work / "adapter", toy.make_toy_base(work / "base"))
    return bundle


def disagreeing(folder: Path) -> list[str]:
    """What a run's folder contradicts itself in, while annotations.json is there."""
    if not (folder / "annotations.json").exists():
        return []
    coco = json.loads((folder / "annotations.json").read_text("utf-8"))
    listed = {Path(image["file_name"]).stem for image in coco["images"]}
    others = {"images": {path.stem for path in (folder / "images").glob("0*.jpg")}}
    if (folder / "labels").exists():
        others["labels"] = {path.stem for path in (folder / "labels").glob("*.txt")}
    if (folder / "images" / "metadata.jsonl").exists():
        lines = (folder / "images" / "metadata.jsonl").read_text("utf-8").splitlines()
        others["metadata.jsonl"] = {Path(json.loads(line)["file_name"]).stem for line in lines}
    journal = (json.loads(line) for line in (folder / "journal.jsonl").read_text("utf-8").splitlines())
    kept = {Path(line["file"]).stem for line in journal if line["outcome"] == "kept"}
    wrong = [f"{name} is not what annotations.json says" for name, found in others.items() if found != listed]
    return wrong if listed <= kept else [*wrong, "annotations.json has images without a line"]


def disagreeing_or_partial(folder: Path) -> list[str]:
    """The same of a folder that appears whole, or not at all."""
    if folder.exists() and not (folder / "annotations.json").exists():
        return ["there is a part of the folder"]
    return disagreeing(folder)


def half_json(folder: Path) -> list[str]:
    """Whether annotations.json is there in part."""
    if (folder / "annotations.json").exists():
        json.loads((folder / "annotations.json").read_text("utf-8"))
    return []


def no_bundle(folder: Path) -> list[str]:
    """Whether there is a folder that is no bundle with every file as exported."""
    from engines.bundle.bundle import open_bundle

    if folder.exists():
        open_bundle(folder)
    return []


def _nothing(folder: Path) -> None:
    return None


def write_pictures(folder: Path, number: int, *, labels: bool) -> None:
    """So many small pictures of nothing, with COCO labels where wanted."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(number)
    for index in range(number):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    if labels:
        names = ("rbc", "wbc", "platelets")
        dataset = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(number)],
            "annotations": [
                {
                    "id": i,
                    "image_id": i,
                    "category_id": 1 + i % 3,
                    "bbox": [4 + i, 5, 20, 18],
                    "area": 360,
                    "iscrowd": 0,
                }
                for i in range(number)
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
        }
        (folder / "annotations.json").write_text(json.dumps(dataset), "utf-8")
