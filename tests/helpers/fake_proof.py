"""A proof whose commands are stand-ins: they leave what the real ones leave, boxes that are right, or not."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.proof import pictures, truth
from benchmarks.proof import run as program
from benchmarks.proof.lists import draw
from benchmarks.proof.order import build
from benchmarks.proof.plan import TOY
from benchmarks.proof.stages import Stage
from benchmarks.proof.workplace import ProofError, Workplace
from dengine_cli.parse import parse_score_or_matched
from engines.common.rng import generator
from engines.datasets.dataset import open_dataset
from engines.labels.average_precision import Detections, mean_average_precision
from engines.labels.choose import label_rules

NAMES = ("a", "b", "c")
PLAN = replace(TOY, shares={"10": 0.2}, tune_images={"10": 2}, resamples=5, lists=("10-0", "10-1"))


def write_voc(root: Path, images: dict[str, Sequence[str]]) -> Path:
    """Images of noise with a box of each class, by split; a name that begins with `copy` shows what `train_00` does."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, names in images.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            key = "train_00" if name.startswith("copy") else name
            rng = generator(3, int.from_bytes(key.encode(), "big"))
            pixels = rng.integers(0, 256, size=(6, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(root / f"JPEGImages/{name}.jpg")
            boxes = "".join(
                f"<object><name>{label}</name><bndbox><xmin>{1 + 10 * i}</xmin><ymin>{1 + 5 * i}</ymin>"
                f"<xmax>{20 + 10 * i}</xmax><ymax>{20 + 5 * i}</ymax></bndbox></object>"
                for i, label in enumerate(NAMES)
            )
            text = f"<annotation><filename>{name}.jpg</filename>{boxes}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(text)
    return root


@dataclass
class Fake(Workplace):
    """Runs no command, but leaves what it would leave; time passes by `pace` seconds a command."""

    generated_is_right: bool = True  # whether detectors that saw generated images find everything
    real_is_right: bool = False  # the same of those that saw real images alone
    broken: bool = False  # whether every command fails
    pace: float = 0.0
    clock: list[float] = field(default_factory=lambda: [0.0])  # shared by the lanes' copies
    ran: list[tuple[str, list[str]]] = field(default_factory=list)

    def run(self, command: Sequence[str]) -> None:
        self.clock[0] += self.pace
        self.left()
        if self.broken:
            raise ProofError("no luck")
        words = list(command)
        self.ran.append((self.stage, words))
        named = {word: words[place + 1] for place, word in enumerate(words[:-1]) if word.startswith("--")}
        verb = words[3] if words[1] == "-c" else Path(words[1]).name
        given = words[3] if verb == "tuning.py" else named.get("--work", "")
        out = Path(named.get("--out", given))
        out.mkdir(parents=True, exist_ok=True)
        getattr(self, f"_{verb.removesuffix('.py').replace('-', '_')}")(out, named, words)

    def _train_base(self, out: Path, named: dict[str, str], words: list[str]) -> None:
        write(out / "model_index.json", {})

    def _train_adapter(self, out: Path, named: dict[str, str], words: list[str]) -> None:
        figures = {"tune": {"generic": {"AP": 0.5, "AP50": 0.7}}, "thresholds": {"goal": 0.8, "a": {"tune_boxes": 12}}}
        write(out / "adapter.json", {"thresholds": {"a": 0.4}, "figures": figures})

    def _export(self, out: Path, named: dict[str, str], words: list[str]) -> None:
        write(out / "manifest.json", {})

    def _label(self, out: Path, named: dict[str, str], words: list[str]) -> None:
        if "--split" in named:
            names = [record.name for record in open_dataset(Path(words[4]), split=named["--split"]).records]
            write(out / "figures.json", {"figures": {"AP": 0.5, "AP50": 0.7, "AP75": 0.6}})
        else:
            score = parse_score_or_matched(named["--score"])
            assert score is not None
            label_rules(score, float(named.get("--uncertain", 0)), 1.0, {}, NAMES)  # raises for what it refuses
            names = [file.name for file in sorted(Path(words[4]).iterdir())]
        write_annotations(out, names)

    def _generate(self, out: Path, named: dict[str, str], words: list[str]) -> None:
        (out / "images").mkdir(exist_ok=True)
        write_annotations(out, [f"{number:08}.jpg" for number in range(int(named["--count"]))])

    def _finalize(self, out: Path, named: dict[str, str], words: list[str]) -> None:
        assert (Path(words[4]) / "annotations.json").exists()

    def _ablation(self, out: Path, named: dict[str, str], words: list[str]) -> None:
        row: dict[str, Any] = {
            "ap50": 0.5,
            "precision": 0.8,
            "recall": 0.8,
            "labels": 3.0,
            "images_per_second": None,
            "same": {},
        }
        rows = [
            row | {"setting": f"strength {value}", "f1": f1, "settings": {"strength": [value, value]}}
            for value, f1 in ((0.3, 0.80), (0.6, 0.78), (0.9, 0.5))
        ]
        (out / "ablation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def _ablation_rules(self, out: Path, named: dict[str, str], words: list[str]) -> None:
        row = {"setting": "score 0.3 for every class", "images": 12, "labels": 1.0, "excused": None, "repeats": {}}
        row |= {"precision": 0.8, "recall": 0.8, "f1": 0.8, "by_class": dict.fromkeys(NAMES, 1)}
        (out / "rules.jsonl").write_text(json.dumps(row) + "\n")

    def _tuning(self, out: Path, named: dict[str, str], words: list[str]) -> None:
        spec = json.loads(Path(words[2]).read_text())
        figures = {"AP": min(0.9, 100 * spec["lr"]), "AP50": 0.9}
        write(out / "detector" / "detector.json", {})
        write(out / "result.json", {"figures": figures, "curve": [{"step": 6, **figures}]})

    def _evaluate(self, out: Path, named: dict[str, str], words: list[str]) -> None:
        val = open_dataset(Path(named["--val"]), split="val-kept")
        counts = named["--amounts"].split(",") if "--amounts" in named else ["12"] if "--synthetic" in named else []
        for arm in ("real", *(f"generated{count}" for count in counts)):
            right = self.real_is_right if arm == "real" else self.generated_is_right
            found = [
                Detections(
                    record.boxes + np.float32(0 if right or place % 2 else 30),
                    np.ones(3, dtype=np.float32),
                    record.labels,
                )
                for place, record in enumerate(val.records)
            ]
            value = {
                "figures": mean_average_precision(val.records, found, val.class_names),
                "seconds": 1.0,
                "images": [record.name for record in val.records],
                "detections": [[one.boxes.tolist(), one.scores.tolist(), one.labels.tolist()] for one in found],
            }
            write(out / "trainings" / f"{arm}-seed{named['--seed']}" / "result.json", value)
        write(out / "comparison.json", {"data": {"left_out_of_val": ["copy_0.jpg"]}})


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_annotations(folder: Path, names: Sequence[str]) -> None:
    box = {"bbox": [1, 1, 5, 5], "score": 0.9, "category_id": 1, "iscrowd": 0}
    write(
        folder / "annotations.json",
        {
            "info": {"score": {"a": 0.4}},
            "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
            "categories": [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)],
            "annotations": [box | {"image_id": number} for number in range(len(names))],
        },
    )


def write_dataset(root: Path) -> Path:
    """20 train images, 3 val images, and one more of these that is a train image again."""
    train = [f"train_{number:02}" for number in range(20)]
    return write_voc(root, {"train": train, "val": ["copy_0", "val_0", "val_1", "val_2"]})


def make_place(root: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A fake proof in an empty folder; what would need pictures is a stand-in, too."""
    monkeypatch.setattr(pictures, "_draw_curves", lambda path, curves: None)  # a second after every stage
    row = {"labels": "pseudo", "strengths": None, "images": 2, "figures": {"precision/a": 0.5, "recall/a": 1.0}}
    monkeypatch.setattr(truth, "read_labels", lambda place, sources: {"rows": [row]})
    folder = root / "lists"
    folder.mkdir()
    names = [record.name[:-4] for record in open_dataset(dataset, split="train").records]
    for name, images in draw(names, PLAN).items():
        (folder / f"{name}.txt").write_text("\n".join(images))
    return Fake(root / "work", root / "results" / "proof", dataset, PLAN, folder, Path(sys.executable))


def start(
    place: Fake, *wanted: str, seconds: float = float("inf"), lanes: int = 1, **changes: Any
) -> list[tuple[Stage, str]]:
    """One start of the proof with a clock that commands move on."""
    given = replace(place, clock=[0.0], deadline=seconds, **changes)
    given.now = lambda: given.clock[0]
    return program.run(given, build(given.plan), set(wanted), lanes)
