"""Whether a run's folder says one thing everywhere: journal, COCO file, images on disk.

Knows: what must hold of every line, id, box and file, and how two folders are compared. It reads the files as anyone
would, so that a mistake of the code that wrote them shows. Knows nothing about how they were made.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.common.files import LOG_FILE, OWN, sha256_file

SHOWN = 5  # mistakes and files that a report names; all are counted


def find_mistakes(folder: Path, jobs: int) -> list[str]:
    """What is wrong with the dataset of a run of so many jobs whose kept images are all in it."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text("utf-8").splitlines()]
    coco = json.loads((folder / "annotations.json").read_text("utf-8"))
    run = json.loads((folder / "run.json").read_text("utf-8"))
    on_disk = {path.name: path for path in (folder / "images").iterdir()}
    return [
        *_wrong_lines(lines, jobs, on_disk),
        *_wrong_images(coco["images"], [line["file"] for line in lines if line["outcome"] == "kept"], on_disk),
        *_wrong_boxes(coco),
        *_wrong_labels(lines, coco, run["score"]),
    ]


def read_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but those that name it, report, log and a verb's options, by its path in it."""
    named = {folder / "report.html", folder / LOG_FILE, *(folder / OWN).glob("*.yaml")}
    files = (path for path in folder.rglob("*") if path.is_file() and path not in named)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def different_files(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names of files that are missing, new or changed."""
    names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    return [f"{name} differs" for name in names]


def _wrong_lines(lines: list[dict[str, Any]], jobs: int, on_disk: Mapping[str, Path]) -> Iterator[str]:
    """Every job has its line, in order, and every kept one its file, of the hash noted."""
    if [line["index"] for line in lines] != list(range(jobs)):
        yield f"the journal's indices are not 0 to {jobs - 1} in order"
    for line in lines:
        if line["outcome"] == "kept" and line["file"] not in on_disk:
            yield f"{line['file']} is in the journal, but not on disk"
        elif line["outcome"] == "kept" and sha256_file(on_disk[line["file"]]) != line["sha256"]:
            yield f"{line['file']} is not the file that the journal has the hash of"


def _wrong_images(images: list[dict[str, Any]], kept: list[str], on_disk: Mapping[str, Path]) -> Iterator[str]:
    """COCO lists every kept image once, in order, under an id of its own, and nothing else is on disk."""
    if [image["file_name"] for image in images] != kept:
        yield "the images of the COCO file are not those of the journal, each once and in order"
    yield from _repeated("image id", [image["id"] for image in images])
    yield from (f"{name} is on disk, but not in the journal" for name in sorted(on_disk.keys() - set(kept)))


def _wrong_boxes(coco: Mapping[str, Any]) -> Iterator[str]:
    """Every box has an id of its own, an image, a category and an area inside its image."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    categories = {category["id"] for category in coco["categories"]}
    yield from _repeated("annotation id", [box["id"] for box in coco["annotations"]])
    for box in coco["annotations"]:
        x, y, width, height = box["bbox"]
        right, bottom = sizes.get(box["image_id"], (0, 0))
        if box["image_id"] not in sizes or box["category_id"] not in categories:
            yield f"annotation {box['id']} has no image or no category"
        elif not (x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= right and y + height <= bottom):
            yield f"annotation {box['id']} is not inside its image"


def _wrong_labels(lines: list[dict[str, Any]], coco: Mapping[str, Any], score: Any) -> Iterator[str]:
    """Every image has as many boxes of each class as its line has detections from the class's score on."""
    names = [category["name"] for category in coco["categories"]]
    least = [score[name] if isinstance(score, Mapping) else score for name in names]
    ids = {image["file_name"]: image["id"] for image in coco["images"]}
    there = Counter((box["image_id"], box["category_id"]) for box in coco["annotations"])
    meant = Counter(
        (ids.get(line["file"]), int(label) + 1)
        for line in lines
        if line["outcome"] == "kept"
        for *_, confidence, label in line["boxes"]
        if confidence >= least[int(label)]
    )
    if there != meant:
        yield f"the COCO file has {there.total()} boxes where the journal has {meant.total()}, or others"


def _repeated(what: str, values: list[Any]) -> Iterator[str]:
    yield from (f"{what} {value} is there {times} times" for value, times in Counter(values).items() if times > 1)
