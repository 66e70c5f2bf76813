"""Datasets as decided, for other tools, and corrections that come back from them.

Knows: COCO as every trainer reads it, COCO with CVAT's attributes, Label Studio's tasks, and how the boxes of a file
that comes back are turned into decisions. Knows nothing about pages.

What goes out has each box's place among the image's labels; what comes back is compared with the labels as they stand:
a box that is gone is deleted, one of another class or place changed, a new one drawn. FiftyOne and others read the COCO
file themselves.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.common.files import write_atomic
from engines.common.quote import quote
from engines.common.schema import walked
from engines.datasets.coco_boxes import read_bbox
from engines.datasets.fields import identity, read_json
from engines.datasets.paths import parts_of
from engines.datasets.readings import SIDES
from engines.datasets.records import Findings
from engines.datasets.writers import AnnotatedImage, bboxes, on_grid, write_coco
from engines.errors import DatasetError, UsageError
from engines.labels.boxes import Instances, iou_matrix
from engines.review.filters import REJECT
from engines.review.session import Session
from engines.runs.decision import FARTHEST, Corners, Decision, Do, Was
from engines.runs.decisions import labels_of

FORMATS = ("coco", "cvat", "labelstudio")
_SAME = 0.02  # pixels, and a part of the side: what tools round away
_LEAST_IOU = 0.3  # of a box that was moved with what it was
_PREFIX = re.compile(r"[0-9a-f]{6,8}-")  # what Label Studio puts before the name of an uploaded file


@dataclass(frozen=True)
class Imported:
    """What a file came to."""

    images: int  # that it names and that are here
    decisions: list[Decision]
    unknown: int  # images that are not here


def images_of(session: Session) -> Iterator[AnnotatedImage]:
    """Every image that is not rejected, as decided, with its labels."""
    view, _ = session.overlay()
    outside = session.reasons(list(session.rules.thresholds.values()))
    for row in range(len(view)):
        if outside[row]:
            continue
        look = session.look(row)
        if look.verdict == REJECT:
            continue
        item = look.item
        labels = labels_of(look.instances, look.sure, session.rules)
        scored = session.source.kind == "run"
        yield AnnotatedImage(item.name, item.width, item.height, labels, scored=scored, prompt=item.prompt)


def export(session: Session, kind: str, file: Path) -> int:
    """Write all images in one of FORMATS; gives how many there are. Raises UsageError for another format."""
    if kind not in FORMATS:
        raise UsageError(f"`format` is {kind!r:.60}; one of {', '.join(FORMATS)} was expected.", field="format")
    names = session.source.class_names
    file.parent.mkdir(parents=True, exist_ok=True)
    images = list(images_of(session))
    if kind == "labelstudio":
        tasks = [_task(image, names) for image in images]
        write_atomic(file, (json.dumps(tasks, ensure_ascii=False, indent=1) + "\n").encode())
        return len(images)
    write_coco(file, images, names, {"description": "as decided in dengine review"})
    if kind == "cvat":
        content = read_json(file)
        for one in content["annotations"]:  # what CVAT's own COCO files have beside the box
            one["attributes"] = {"occluded": False, "rotation": 0.0, "score": one.get("score", 1.0)}
            one["segmentation"] = []
        write_atomic(file, (json.dumps(content, ensure_ascii=False) + "\n").encode())
    return len(images)


def read_corrections(session: Session, file: Path) -> Imported:
    """The decisions that make the labels here those of a file from another tool.

    The same file again gives the same decisions, which count once. Raises DatasetError that names what is wrong.
    """
    found, decisions, unknown = 0, list[Decision](), 0
    for name, boxes in _images_in(file, session.source.class_names):
        row = _row(session, name)
        if row is None:
            unknown += 1
            continue
        found += 1
        look = session.look(row)
        now = labels_of(look.instances, look.sure, session.rules).single
        decisions += _differences(look.item.name, now, boxes, session.source.class_names)
    return Imported(found, decisions, unknown)


def _row(session: Session, name: str) -> int | None:
    """The image of that name, or of its end where a tool put folders before it, or Label Studio's prefix."""
    parts, _ = parts_of(name)
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    for one in [name, *ends, *(_PREFIX.sub("", end) for end in ends[-1:])]:
        if (row := session.row_of(one)) is not None:
            return row
    return None


def _differences(name: str, now: Instances, wanted: Instances, names: Sequence[str]) -> Iterator[Decision]:
    """Each wanted box with the one that it was: the same place first, then what overlaps most."""
    left = list(range(len(now)))
    overlaps = iou_matrix(wanted.boxes.astype(np.float64), now.boxes.astype(np.float64))
    pairs: dict[int, int] = {}
    order = np.argsort(-(overlaps + 1e-3 * (wanted.labels[:, None] == now.labels[None, :])), axis=None)
    for flat in order.tolist():
        mine, other = divmod(flat, max(1, len(now)))
        if mine not in pairs and other in left and overlaps[mine, other] >= _LEAST_IOU:
            pairs[mine] = other
            left.remove(other)
    for other in left:
        yield _decision(Do.DELETE, name, _was(now, other, names), None, None)
    for mine in range(len(wanted)):
        box, label = _corners(wanted, mine), names[wanted.labels[mine]]
        if mine not in pairs:
            yield _decision(Do.DRAW, name, None, box, label)
            continue
        was = _was(now, pairs[mine], names)
        side = max(was.box[2] - was.box[0], was.box[3] - was.box[1])
        if was.label != label or np.abs(np.subtract(box, was.box)).max() > max(_SAME, _SAME * side / 4):
            yield _decision(Do.CHANGE, name, was, box, label)


def _decision(do: Do, name: str, was: Was | None, box: Corners | None, label: str | None) -> Decision:
    """A decision whose id follows from what it says."""
    told = json.dumps([do, name, None if was is None else [was.box, was.label], box, label])
    key = "import-" + hashlib.sha256(told.encode()).hexdigest()[:24]
    return Decision(key, do, (name,), was=was, box=box, label=label)


def _was(found: Instances, place: int, names: Sequence[str]) -> Was:
    return Was(_corners(found, place), names[found.labels[place]])


def _corners(found: Instances, place: int) -> Corners:
    x0, y0, x1, y1 = (round(float(one), 3) for one in found.boxes[place])
    return x0, y0, x1, y1


def _task(image: AnnotatedImage, names: Sequence[str]) -> dict[str, Any]:
    """One of Label Studio's tasks: boxes in percent of the image, as annotations that can be edited."""
    found = on_grid(image, len(names)).single
    size = np.array([image.width, image.height] * 2)
    results = []
    for place, (box, label) in enumerate(zip(bboxes(found), found.labels.tolist(), strict=True)):
        x, y, width, height = (np.array(box) / size * 100).tolist()
        value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [names[label]]}
        results.append({
            "id": f"box{place}", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value,
            "original_width": image.width, "original_height": image.height, "image_rotation": 0,
        })  # fmt: skip
    data = {"image": image.file_name, "file": image.file_name, "prompt": image.prompt}
    return {"data": data, "annotations": [{"result": results}]}


def _images_in(file: Path, names: Sequence[str]) -> Iterator[tuple[str, Instances]]:
    """Each image's name and boxes, from Label Studio's JSON or a COCO file."""
    content = read_json(file)
    with walked(DatasetError, f"{file}: not as its format has it."):
        if isinstance(content, list):
            for place, task in enumerate(content):
                if (found := _from_task(task, names, f"{file}, task {place}")) is not None:
                    yield found
        elif isinstance(content, Mapping) and "images" in content and "annotations" in content:
            yield from _from_coco(content, names, str(file))
        else:
            raise DatasetError(f"{file}: a COCO file, or the JSON of Label Studio, was expected.")


def _from_task(task: Mapping[str, Any], names: Sequence[str], where: str) -> tuple[str, Instances] | None:
    """Of the last annotation that was submitted; None where none was, which says nothing about the labels."""
    data = task["data"]
    name = str(data.get("file") or data["image"])
    kept = [one for one in task.get("annotations", []) if not one.get("was_cancelled")]
    if not kept:
        return None
    rows, labels = [], []
    for result in kept[-1]["result"]:
        kind = str(result.get("type"))
        if kind != "rectanglelabels":
            if kind.endswith("labels"):
                raise DatasetError(f"{where}: {quote(kind)} is no rectangle, which a label here must be.")
            continue
        value, width, height = result["value"], result["original_width"], result["original_height"]
        if value.get("rotation"):
            raise DatasetError(f"{where}: a box is turned, which a label here cannot be.")
        x0, y0 = value["x"] / 100 * width, value["y"] / 100 * height
        rows.append([x0, y0, x0 + value["width"] / 100 * width, y0 + value["height"] / 100 * height])
        labels.append(_label(value["rectanglelabels"][0], names, where))
    return name, _instances(rows, labels, where)


def _from_coco(content: Mapping[str, Any], names: Sequence[str], where: str) -> Iterator[tuple[str, Instances]]:
    """Ids are numbers or text, and boxes of whatever dress a dataset's may have."""
    classes = {identity(one, "id", f"{where}, categories"): str(one["name"]) for one in content["categories"]}
    mine: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for place, one in enumerate(content["annotations"]):
        spot = f"{where}, annotations[{place}]"
        mine.setdefault(identity(one, "image_id", spot), []).append((spot, one))
    for place, image in enumerate(content["images"]):
        rows, labels = [], []
        for spot, one in mine.pop(identity(image, "id", f"{where}, images[{place}]"), []):
            if one.get("iscrowd") in (1, "1"):
                continue
            rows.append(_corners_of(one, spot))
            labels.append(_label(classes[identity(one, "category_id", spot)], names, where))
        name = str(image["file_name"])
        yield name, _instances(rows, labels, f"{where}, {quote(name)}")
    for spot, _ in next(iter(mine.values()), []):
        raise DatasetError(f"{spot}.image_id is not the id of any image.")


def _corners_of(annotation: Mapping[str, Any], where: str) -> list[float]:
    """The box of a COCO annotation as corners; DatasetError for one that is none."""
    row, reading = read_bbox(annotation, Findings(skip_bad=False), where)
    if row is None:
        raise DatasetError(f"{where}.bbox is {quote(annotation.get('bbox'))}; x, y, width, height were expected.")
    found: list[float] = (reading or SIDES).corners(np.array([row]), (1, 1))[0].tolist()
    return found


def _label(name: str, names: Sequence[str], where: str) -> int:
    if name not in names:
        raise DatasetError(f'{where}: class "{name:.60}" is none of {", ".join(names):.100}.')
    return list(names).index(name)


def _instances(rows: list[list[float]], labels: list[int], where: str) -> Instances:
    """The boxes; DatasetError for one that no decision could be about."""
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
    good = (np.abs(boxes) < FARTHEST).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not good.all():
        wrong = boxes[int(np.flatnonzero(~good)[0])].tolist()
        raise DatasetError(f"{where}: {quote(wrong)} is no box x0, y0, x1, y1 with an area.")
    return Instances.of(boxes, labels)
