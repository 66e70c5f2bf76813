"""Trains the detector that judges labels: on real images alone, by pixels alone, without the base model or the adapter.

    python benchmarks/independent_detector.py --data DATA --split train --val-split val --out DETECTOR

What comes out is a folder for `--detector` of speed.py and ablation.py. The same command goes on after an
interruption. Prints AP on the validation images, which decide nothing, as one JSON line last.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engines.datasets.dataset import open_dataset
from engines.training.trainer import Progress
from engines.worth.detectors.batches import Sample
from engines.worth.detectors.config import INFO_FILE, preset
from engines.worth.detectors.model import load_detector
from engines.worth.detectors.train import TrainingSet, measure, train_detector


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labelled dataset: COCO, Pascal VOC or YOLO")
    parser.add_argument("--split", default="train", help="part of it to train on")
    parser.add_argument("--val-split", default="val", help="part of it to measure on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the detector")
    parser.add_argument("--preset", default="small", help="quick, small or paper")
    parser.add_argument("--steps", type=int, help="optimiser steps, in place of the preset's")
    parser.add_argument("--turns", action="store_true", help="turned images are as likely as upright ones")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data = open_dataset(given.data, split=given.split)
    val = open_dataset(given.data, split=given.val_split, class_names=data.class_names)
    options, _ = preset(given.preset, "rt_detr")
    options = dataclasses.replace(options, turns=given.turns, steps=given.steps or options.steps)
    if (given.out / INFO_FILE).exists():
        detector = load_detector(given.out)
    else:
        real = [Sample(record, options.short_side) for record in data.records]
        detector = train_detector(
            TrainingSet(data.class_names, real), options, given.out, short_side=options.short_side, seed=given.seed,
            resume=(given.out / "training").exists(), report=_report,
        )  # fmt: skip
    figures = measure(detector, val.records)
    print(json.dumps({"images": len(val.records), **{name: round(value, 4) for name, value in figures.items()}}))


def _report(progress: Progress) -> None:
    left = f"{progress.seconds_left / 60:.0f} min left"
    print(f"step {progress.step}/{progress.steps}, loss {progress.loss:.3f}, {left}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
