"""An audit of the small dataset of `made_datasets`, as `dengine audit` writes one."""

import json
from pathlib import Path
from typing import Any

from made_datasets import CLASSES, SIZE


def write_audit(data: Path) -> Path:
    """Four findings, worst first."""
    images = [{"file": name, "width": SIZE[0], "height": SIZE[1]} for name in ("a.png", "b.png")]
    findings: list[dict[str, Any]] = [
        _finding(0, "missing", 0.95, box=[50, 20, 60, 30], label=0),
        _finding(0, "class", 0.9, box=[4, 6, 20, 30], label=1, given=0, given_box=[4, 6, 20, 30], given_label=0),
        _finding(0, "spurious", 0.8, given=2, given_box=[30, 2, 50, 12], given_label=0),
        _finding(1, "loose", 0.7, box=[4, 4, 28, 38], label=1, given=0, given_box=[2, 2, 30, 40], given_label=1),
    ]
    content = {"format": 1, "dataset": str(data), "classes": list(CLASSES), "images": images, "findings": findings}
    path = data / "audit.json"
    path.write_text(json.dumps(content), "utf-8")
    return path


def _finding(image: int, kind: str, confidence: float, **more: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("box", "label", "given", "given_box", "given_label"))
    return {"image": image, "kind": kind, "confidence": confidence, **nothing, **more}
