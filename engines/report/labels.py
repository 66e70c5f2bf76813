"""What a folder of `label` comes to: how many boxes, how sure, how right where that is known, and pictures.

Knows: the files that `label` writes, `annotations.json` and `figures.json`. Memory does not grow with the number of
images: the first is read a line at a time, as it is written.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engines.common.files import read_json, safe_join
from engines.errors import DatasetError
from engines.labels.boxes import Instances
from engines.labels.rules import quality
from engines.labels.scores import FALLBACK
from engines.report.figures import BINS, SHOWN, UNSURE, Boxes, Draw, Picture
from engines.report.html import document, facts, section, table, top
from engines.report.parts import pictures, score_cards, shapes

ANNOTATIONS, FIGURES = "annotations.json", "figures.json"
_MEASURED = ("AP", "AP50", "precision", "recall")


def labelled_info(folder: Path) -> dict[str, Any] | None:
    """What the annotations of a folder say of themselves and their classes; None where `label` did not write them."""
    try:
        with (folder / ANNOTATIONS).open(encoding="utf-8") as file:
            head = json.loads(file.readline().rstrip().removesuffix(",") + "}")
        info = head["info"] | {"class_names": [one["name"] for one in head["categories"]]}
        return info if {"bundle_sha256", "prompt", "label_views"} <= info.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def labels_page(folder: Path, info: Mapping[str, Any]) -> tuple[str, int]:
    """The whole page, and how many images there are. Raises DatasetError for files that are not as `label` has them."""
    names, root = list(info["class_names"]), Path(str(info.get("images", folder)))
    found, scores, crowds = Boxes(), np.zeros((len(names), BINS), dtype=np.int64), 0
    sample, unsure = Draw(SHOWN), list[tuple[float, int, Picture]]()
    for file, size, boxes in _images(folder / ANNOTATIONS, len(names)):
        single = boxes.single
        crowds += len(boxes) - len(single)
        found.add(single, *size)
        np.add.at(scores, (single.labels, np.minimum((single.scores * BINS).astype(int), BINS - 1)), 1)
        drawn = single if "score" in info else single.take(single.scores >= FALLBACK)
        one = Picture(safe_join(root, file, DatasetError, str(folder / ANNOTATIONS)), drawn, size)
        sample.see(one)
        if len(single) and (len(unsure) < UNSURE or quality(single) < unsure[-1][0]):
            unsure = sorted([*unsure, (quality(single), found.images, one)], key=lambda row: row[:2])[:UNSURE]
    word = "labels" if "score" in info else "boxes"
    numbers = [("images", found.images), (word, sum(found.by_class.values()))]
    least = info.get("score")
    thresholds = [least.get(name) if isinstance(least, dict) else least for name in names]
    shown, doubtful = _there(sample.some(SHOWN)), _there([one for *_, one in unsure])
    told = [] if "score" in info else [f"Drawn are boxes that score {FALLBACK:g} or more."]
    notes = [] if shown else [f"The images are not shown: they are no longer in {root}."]
    parts = (
        top(folder.resolve().name, numbers + ([("regions to ignore", crowds)] if crowds else []), *notes),
        _classes(folder, names, found), score_cards(scores, names, thresholds, f"Scores of all {word}"),
        shapes(found, "found", None), pictures("Some of the images, drawn at random", shown, *told),
        pictures("Those it is least sure of", doubtful, *told), _asked(info),
    )  # fmt: skip
    return document(f"{folder.resolve().name} · dengine report", parts), found.images


def _there(each: list[Picture]) -> list[Picture]:
    return [one for one in each if one.file.is_file()]


def _classes(folder: Path, names: list[str], found: Boxes) -> str:
    figures: Any = {}
    if (folder / FIGURES).exists():
        figures = read_json(folder / FIGURES, DatasetError).get("figures", {})
    measured = [name for name in _MEASURED if any(key.partition("/")[0] == name for key in figures)]
    rows = []
    for label, name in enumerate(names):
        number = found.by_class[label]
        own = [f"{figures[f'{one}/{name}']:.3f}" if f"{one}/{name}" in figures else "-" for one in measured]
        rows.append([name, f"{number:,}", f"{number / max(1, found.images):.2f}", *own])
    if measured:
        number = sum(found.by_class.values())
        whole = [f"{number:,}", f"{number / max(1, found.images):.2f}"]
        rows.append(["all", *whole, *(f"{figures[one]:.3f}" if one in figures else "-" for one in measured)])
    note = (
        "Measured against the annotations that the images have, AP of all boxes, precision and recall of the labels. "
        "An object that those leave out counts as a mistake here."
    )
    head = ["Class", "Boxes", "An image", *(one[0].upper() + one[1:] for one in measured)]
    return section("Classes", table(head, rows), *([note] if measured else []))


def _asked(info: Mapping[str, Any]) -> str:
    values = {
        "bundle": str(info["bundle_sha256"])[:12], "prompt": info["prompt"], "looks at an image": info["label_views"],
        "score": info.get("score"), "ignored from": info.get("uncertain") or None, "images": info.get("images"),
    }  # fmt: skip
    return section("What was asked", facts(values.items()))


def _images(path: Path, classes: int) -> Iterator[tuple[str, tuple[int, int], Instances]]:
    """Each image's name, size and boxes, in the file's order, which is that of both of its lists."""
    boxes = _lines(path, '"annotations": [')
    row = next(boxes, None)
    for image in _lines(path, '"images": ['):
        own = []
        while row is not None and row["image_id"] == image["id"]:
            own.append(row)
            row = next(boxes, None)
        corners = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in own)]
        found = Instances.of(
            corners, [one["category_id"] - 1 for one in own], [one.get("score", 1.0) for one in own],
            [bool(one["iscrowd"]) for one in own],
        )  # fmt: skip
        if not all(0 <= label < classes for label in found.labels):
            raise ValueError("a box of no class")
        yield image["file_name"], (image["width"], image["height"]), found


def _lines(path: Path, head: str) -> Iterator[dict[str, Any]]:
    """The objects of one of the file's lists, each of which has a line of its own."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip() == head:
                break
        for line in file:
            if not line.startswith("{"):
                return
            yield json.loads(line.rstrip().removesuffix(","))
