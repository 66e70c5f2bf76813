"""What `adapter.json` says of a training: how it went, AP on the dev split, and how the thresholds came about.

Knows: the keys of its "figures". Knows nothing about how anything was trained.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from engines.adapter.model import DetectionAdapter
from engines.datasets.dataset import Record, instances_of
from engines.diffusion import prompts
from engines.errors import DatasetError
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.labels.thresholds import Choice
from engines.quality.look import Looks, look_at, looks_of, scaled
from engines.training.dev_split import noise
from engines.training.whole_images import DevSplit

LOOKED_AT = 200  # images


def training_figures(
    model: DetectionAdapter,
    dev_split: DevSplit,
    train: Sequence[Record],
    judged: Sequence[Record],
    found: Sequence[Instances],
    class_names: Sequence[str],
    steps: int,
    best: Mapping[str, float],
) -> dict[str, Any]:
    """How training went, and AP on images that were not learned from, by what was `found` there.

    On a dev split it is told by kind of prompt, too: the prompt should not decide the labels.
    """
    figures: dict[str, Any] = {
        "train_images": len(train),
        "tune_images": len(judged),
        "steps": steps,
        "best_step": int(best.get("step", steps)),
    }
    if judged:
        truth = instances_of(judged)
        figures["tune_interval"] = dict(noise(truth, found, class_names))
        measured = {"generic": mean_average_precision(truth, found, class_names)}
        kinds: tuple[prompts.PromptKind, ...] = ("listing", "empty") if len(dev_split) else ()
        measured |= {kind: dev_split.evaluate(model, kind) for kind in kinds}
        figures["tune"] = {
            kind: {name: round(value, 4) for name, value in one.items()} for kind, one in measured.items()
        }
    return figures


def looks(train: Sequence[Record], short_side: int) -> Looks:
    """What a sample of the training images shows at the scale that they are learned at. One that cannot be read was
    never learned from: no finished training is lost to it.
    """
    step, seen = max(1, -(-len(train) // LOOKED_AT)), []
    for record in train[::step]:
        with contextlib.suppress(DatasetError):
            seen.append(look_at(scaled(record.pixels(), short_side)))
    return looks_of(seen)


def threshold_figures(choices: Mapping[str, Choice], goal: float) -> dict[str, Any]:
    """How each class's score threshold came about; a class with too few boxes has its number of boxes alone."""
    found: dict[str, Any] = {"goal": goal}
    for name, choice in choices.items():
        found[name] = {"tune_boxes": choice.boxes}
        if choice.score is not None:
            found[name] |= {"precision": round(choice.precision, 4), "recall": round(choice.recall, 4)}
    return {"thresholds": found}
