"""The pictures of proof.md: curves of the baseline, and a sheet of generated images.

Knows: how they are drawn and how large they may be. A picture that was made is kept until there is something newer, so
that a folder that is gone takes none with it. No image of the dataset is ever written. matplotlib is an extra: without
it there are no curves.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.proof.described import strengths
from benchmarks.proof.plan import FULL, Plan
from engines.common.files import write_atomic
from engines.runs.finalize import PREVIEW

CURVES = "curves.png"
_SHEET_WIDTH, _SHEET_HEIGHT = 1300, 1000  # pixels that are kept of a preview
_QUALITY = 80


def write(folder: Path, work: Path, records: Mapping[str, Mapping[str, Any]], plan: Plan) -> list[tuple[str, str]]:
    """Draw what can be drawn; returns file name and caption of every picture that `folder` has."""
    curves = {
        name: record["figures"]["curve"]
        for name, record in records.items()
        if name.startswith("tune-") and name.endswith("-long")
    }
    if curves:
        _draw_curves(folder / CURVES, curves)
    found = [(CURVES, "AP of the baselines on their tune parts, by optimiser step")]
    for name in (plan.lists[0], FULL):
        which = "all labels" if name == FULL else f"list {name}, a base that has seen no label"
        repainted = {f"{name}-{own}": f", strengths {strengths(how)}" for own, how in plan.repaints.items()}
        for images, painted in {name: "", **repainted}.items():
            sheet = work / f"generated-{images}" / PREVIEW
            if sheet.exists():
                _shrink(sheet, folder / f"generated-{images}.jpg")
            caption = f"Generated images with the adapter's labels ({which}{painted})"
            found.append((f"generated-{images}.jpg", caption))
    return [(file, caption) for file, caption in found if (folder / file).exists()]


def _draw_curves(path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    for axes, name in zip(panels, ("AP", "AP50"), strict=True):
        for stage, points in curves.items():
            label = stage.removeprefix("tune-").removesuffix("-long")
            axes.plot([point["step"] for point in points], [100 * point[name] for point in points], label=label)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(f"{name} on the tune part")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    content = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(content, metadata={"Software": None})
    write_atomic(path, content.getvalue())


def _shrink(sheet: Path, target: Path) -> None:
    """The upper part of a preview as a JPEG of some 200 kB."""
    with Image.open(sheet) as picture:
        part = picture.convert("RGB").crop((0, 0, picture.width, min(picture.height, _SHEET_HEIGHT)))
    if part.width > _SHEET_WIDTH:
        part = part.resize((_SHEET_WIDTH, round(part.height * _SHEET_WIDTH / part.width)), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    part.save(content, "JPEG", quality=_QUALITY)
    write_atomic(target, content.getvalue())
