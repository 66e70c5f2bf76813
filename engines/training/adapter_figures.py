"""What `adapter.json` says of a training: how it went, AP on the dev split, and how the thresholds came about.

Knows: the keys of its "figures". Knows nothing about how anything was trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engines.adapter.model import DetectionAdapter
from engines.datasets.dataset import Record, instances_of
from engines.diffusion import prompts
from engines.labels.thresholds import Choice
from engines.quality.look import Looks, look_at, looks_of, scaled
from engines.training.dev_split import noise
from engines.training.pyramids import DevSplit

LOOKED_AT = 200  # images


def training_figures(
    model: DetectionAdapter,
    dev_split: DevSplit,
    train: Sequence[Record],
    dev: Sequence[Record],
    class_names: Sequence[str],
    steps: int,
    best: Mapping[str, float],
) -> dict[str, Any]:
    """How training went, and AP on the dev split by kind of prompt: the prompt should not decide the labels."""
    figures: dict[str, Any] = {
        "train_images": len(train),
        "tune_images": len(dev),
        "steps": steps,
        "best_step": int(best.get("step", steps)),
    }
    if dev:
        figures["tune_interval"] = dict(noise(instances_of(dev), dev_split.detect(model), class_names))
        kinds: tuple[prompts.PromptKind, ...] = ("generic", "listing", "empty")
        figures["tune"] = {
            kind: {name: round(value, 4) for name, value in dev_split.evaluate(model, kind).items()} for kind in kinds
        }
    return figures


def looks(train: Sequence[Record], short_side: int) -> Looks:
    """What a sample of the training images shows at the scale that they are learned at."""
    step = max(1, -(-len(train) // LOOKED_AT))
    return looks_of([look_at(scaled(record.pixels(), short_side)) for record in train[::step]])


def threshold_figures(choices: Mapping[str, Choice], goal: float) -> dict[str, Any]:
    """How each class's score threshold came about; a class with too few boxes has its number of boxes alone."""
    found: dict[str, Any] = {"goal": goal}
    for name, choice in choices.items():
        found[name] = {"tune_boxes": choice.boxes}
        if choice.score is not None:
            found[name] |= {"precision": round(choice.precision, 4), "recall": round(choice.recall, 4)}
    return {"thresholds": found}
