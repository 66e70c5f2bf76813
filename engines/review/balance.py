"""How often each class comes, beside how often the adapter saw it, and the command that paints what is missing.

Knows: these figures and the command. Knows nothing about how they are shown.
"""

import math
from typing import Any

from engines.common.spell import command
from engines.review.sources import RunSource, Source

_ENOUGH = 0.8  # of the frequency in training, from which a class is not missing
_MOST = 5  # times the images that there are: what is proposed at most


def balance(source: Source, boxes: list[int], images: int) -> dict[str, Any]:
    """Labels an image of each class, what was expected, and what to paint for those that are short.

    boxes: labels of each class, in so many images.
    """
    run = source.run if isinstance(source, RunSource) else None
    expected = dict(run.frequencies or {}) if run is not None else {}
    rows, wanted = [], 0
    for name, number in zip(source.class_names, boxes, strict=True):
        rate, aim = number / max(images, 1), expected.get(name)
        rows.append({"name": name, "boxes": number, "rate": rate, "expected": aim})
        if aim and rate < _ENOUGH * aim:
            wanted = max(wanted, math.ceil((aim * images - number) / max(rate, aim / _MOST)))
    again = None
    if isinstance(source, RunSource) and wanted and images:
        again = _command(source, min(wanted, _MOST * images))
    return {"classes": rows, "images": images, "command": again}


def _command(source: RunSource, count: int) -> str:
    """`generate` on what the run was painted from, with another seed and classes drawn equally often."""
    options = source.run.options
    asked: dict[str, Any] = {"count": count, "balance": True, "seed": options.seed + 1}
    asked |= {name: getattr(options, name) for name in ("bundle", "reference", "reference_split")}
    asked["out"] = f"{source.folder}-more"
    return command("generate", asked)
