"""One training for a choice: on a list without its tune part, measured on the tune part as it goes.

    python benchmarks/proof/tuning.py SPEC.json OUT

SPEC.json holds the fields of `Spec`. OUT gets `detector/`, `curve.jsonl` (a line a measurement) and, last,
`result.json`. Run it again after an interruption: it goes on from its last checkpoint. It trains as `dengine evaluate`
does, with one difference: generated images that were painted from a tune image are left out, since they nearly show it.

Knows: how the images of such a training come together. Knows nothing about what is chosen.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.common.files import read_json, write_json
from engines.common.schema import from_object
from engines.datasets.dataset import Record, open_dataset
from engines.errors import UsageError
from engines.runs.journal import JOURNAL, read_entries
from engines.runs.run_folder import RUN, require_run
from engines.training.trainer import Progress
from engines.worth.detectors.batches import Sample
from engines.worth.detectors.config import DetectorOptions, preset
from engines.worth.detectors.model import load_detector
from engines.worth.detectors.train import Curve, TrainingSet, measure, train_detector

RESULT, CURVE = "result.json", "curve.jsonl"


@dataclass(frozen=True)
class Spec:
    """What is trained on what."""

    data: str  # Pascal VOC folder
    fit: str  # its split to train on
    tune: str  # its split to measure on
    kind: str  # of detector
    steps: int
    lr: float
    batch: int
    short_side: int  # pixels that the detector sees
    seed: int
    points: int  # measurements on the way
    synthetic: str | None = None  # a run, or a folder of pseudo-labelled images
    mix: float = 0.5  # probability of drawing one of its images
    device: str = "cpu"  # a torch device


def options_of(spec: Spec) -> DetectorOptions:
    """The detector of the preset that the final trainings use, with the same changes."""
    options, _ = preset("small", spec.kind)
    changes = {"steps": spec.steps, "lr": spec.lr, "batch": spec.batch, "turns": True, "device": spec.device}
    return from_object(DetectorOptions, json.loads(json.dumps(asdict(options))) | changes, UsageError, "options")


def synthetic_samples(folder: Path, class_names: Sequence[str], avoid: set[str], short_side: int) -> list[Sample]:
    """Images of a run or a labelled folder, at the scale of real ones; none that was painted from an image in `avoid`.

    avoid: names of reference images.
    """
    dataset = open_dataset(folder, class_names=class_names, require_boxes=False)
    if not (folder / RUN).exists():
        return [Sample(record, short_side) for record in dataset.records if record.name not in avoid]
    scale = require_run(folder).short_side
    if scale is None:
        raise UsageError(f"{folder} does not say its scale: generate it again.")
    sources = {entry.file: entry.reference for entry in read_entries(folder / JOURNAL) if entry.file}
    return [
        Sample(record, _side(record, short_side, scale))
        for record in dataset.records
        if sources[record.name] not in avoid
    ]


def _side(record: Record, short_side: int, scale: int) -> int:
    return round(min(record.width, record.height) * short_side / scale)


def train(spec: Spec, out: Path) -> dict[str, Any]:
    """Train, or go on; returns what `result.json` gets."""
    begun = time.monotonic()
    data = Path(spec.data)
    fit, tune = open_dataset(data, split=spec.fit), open_dataset(data, split=spec.tune)
    real = [Sample(record, spec.short_side) for record in fit.records]
    generated: list[Sample] = []
    if spec.synthetic is not None:
        avoid = {record.name for record in tune.records}
        generated = synthetic_samples(Path(spec.synthetic), fit.class_names, avoid, spec.short_side)
    options = options_of(spec)
    curve: dict[int, dict[str, float]] = {}
    path = out / CURVE
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        point = json.loads(line)
        curve[point.pop("step")] = point

    def report(progress: Progress) -> None:
        if "AP" in progress.details:
            curve[progress.step] = {name: progress.details[name] for name in ("AP", "AP50")}
            lines = [json.dumps({"step": step, **curve[step]}) for step in sorted(curve)]
            path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        if progress.step % 50 == 0:
            sys.stderr.write(f"{progress.step}/{progress.steps}, loss {progress.loss:.3f}\n")

    if (out / "detector" / "detector.json").exists():  # trained, but stopped before the result was written
        detector = load_detector(out / "detector", spec.device)
    else:
        detector = train_detector(
            TrainingSet(fit.class_names, real, generated, (spec.mix, spec.mix)),
            options,
            out / "detector",
            short_side=spec.short_side,
            seed=spec.seed,
            resume=True,
            report=report,
            curve=Curve(tune.records, max(10, spec.steps // spec.points // 10 * 10)),
        )
    return {
        "figures": measure(detector, tune.records),
        "curve": [{"step": step, **curve[step]} for step in sorted(curve)],
        "images": {"fit": len(real), "generated": len(generated), "tune": len(tune.records)},
        "seconds_of_last_start": round(time.monotonic() - begun, 1),
    }


def main() -> None:
    """Read SPEC.json, train into OUT."""
    spec_file, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    spec = from_object(Spec, read_json(spec_file, UsageError), UsageError, str(spec_file))
    write_json(out / RESULT, train(spec, out))


if __name__ == "__main__":
    main()
