"""COCO's average precision of detections against annotations.

Knows: how annotations and detections become what faster-coco-eval reads, and which of its figures matter here.
Knows nothing about models or files.

AP is the mean over IoU thresholds 0.50, 0.55 ... 0.95, AP50 and AP75 at one threshold; each is the mean over the
classes that the annotations hold. Crowd boxes are ignored, at most 100 detections an image count. N boxes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.labels.boxes import Instances

MAX_DETECTIONS = 100


def mean_average_precision(
    annotations: Sequence[Instances], detections: Sequence[Instances], class_names: Sequence[str]
) -> dict[str, float]:
    """AP of `detections[i]` against `annotations[i]`.

    Returns:
        `AP`, `AP50`, `AP75` in 0..1, then `AP/<class>` and `AP50/<class>` for each class that is annotated at least
        once; classes without annotations count nowhere. All three are 0 where nothing is annotated.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth = {
        "info": {},
        "images": [{"id": i + 1} for i in range(len(annotations))],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(class_names)],
        "annotations": _annotation_rows(annotations),
    }
    evaluator = COCOeval_faster(
        COCO(truth), COCO(truth).loadRes(_detection_rows(detections)), "bbox", print_function=_silent
    )
    evaluator.params.maxDets = [1, 10, MAX_DETECTIONS]
    evaluator.evaluate()
    evaluator.accumulate()
    # [thresholds, recalls, classes, areas, limits]; all areas, the last limit; -1 where a class has no annotation.
    precision: npt.NDArray[np.float64] = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]
    return _figures(precision, class_names)


def _figures(precision: npt.NDArray[np.float64], class_names: Sequence[str]) -> dict[str, float]:
    """Means of precision [10 thresholds, recalls, classes]."""
    by_class = precision.mean(axis=1)
    present = by_class.min(axis=0) > -1
    if not present.any():
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    figures = {
        "AP": float(by_class[:, present].mean()),
        "AP50": float(by_class[0, present].mean()),
        "AP75": float(by_class[5, present].mean()),
    }
    for index in np.flatnonzero(present).tolist():
        figures[f"AP/{class_names[index]}"] = float(by_class[:, index].mean())
        figures[f"AP50/{class_names[index]}"] = float(by_class[0, index])
    return figures


def _annotation_rows(annotations: Sequence[Instances]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for image_id, found in enumerate(annotations, start=1):
        for box, label, crowd in zip(found.boxes, found.labels, found.crowd, strict=True):
            bbox = _bbox(box)
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": image_id,
                    "category_id": int(label) + 1,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": int(crowd),
                }
            )
    return rows


def _detection_rows(detections: Sequence[Instances]) -> list[Mapping[str, Any]]:
    return [
        {"image_id": image_id, "category_id": int(label) + 1, "bbox": _bbox(box), "score": float(score)}
        for image_id, found in enumerate(detections, start=1)
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]


def _bbox(box: npt.NDArray[Any]) -> list[float]:
    x0, y0, x1, y1 = (float(value) for value in box)
    return [x0, y0, x1 - x0, y1 - y0]


def _silent(*_: Any) -> None:
    return None
