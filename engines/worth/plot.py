"""The picture of a comparison: bars with error bars, and AP against the amount of generated data.

Knows: how arms are drawn with matplotlib, which is imported when a picture is made. Knows nothing about trainings.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.common.files import write_atomic
from engines.worth.figures import Arm, Spread, arm_name

_FIGURES = ("AP", "AP50", "AP75")


def plot(path: Path, sets: Mapping[str, Sequence[Arm]], real: int) -> bool:
    """Write a PNG, a row for each validation set by its name; False where matplotlib is not installed.

    Error bars are standard deviations over the seeds; with one seed there are none. The curve is drawn where there
    are three arms or more.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    curve = any(len(arms) > 2 for arms in sets.values())
    columns = 2 if curve else 1
    figure = Figure(figsize=(10.0 if curve else 6.0, 4.0 * len(sets)), layout="constrained")
    panels: Any = figure.subplots(len(sets), columns, squeeze=False)
    for row, (name, arms) in zip(panels, sets.items(), strict=True):
        _bars(row[0], arms, real)
        if curve:
            _curve(row[1], arms)
        if len(sets) > 1:
            row[0].set_title(name, fontsize="small")
    content = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(content, metadata={"Software": None})
    write_atomic(path, content.getvalue())
    return True


def _bars(axes: Any, arms: Sequence[Arm], real: int) -> None:
    width = 0.8 / len(arms)
    for place, arm in enumerate(arms):
        spreads = [arm.figures[name] for name in _FIGURES]
        middle = [index + (place - (len(arms) - 1) / 2) * width for index in range(len(_FIGURES))]
        heights = [spread.mean for spread in spreads]
        axes.bar(middle, heights, width, yerr=_errors(spreads), capsize=3, label=arm_name(arm.generated, real))
    axes.set_xticks(range(len(_FIGURES)), _FIGURES)
    axes.set_ylabel("on the validation images")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")


def _curve(axes: Any, arms: Sequence[Arm]) -> None:
    amounts = [arm.generated for arm in arms]
    for name in _FIGURES[:2]:
        spreads = [arm.figures[name] for arm in arms]
        means = [spread.mean for spread in spreads]
        axes.errorbar(amounts, means, _errors(spreads), marker="o", capsize=3, label=name)
    axes.set_xlabel("generated images beside the real ones")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _errors(spreads: Sequence[Spread]) -> list[float] | None:
    """Deviations over the seeds; None, not a bar of no length, where there is one seed."""
    return None if any(spread.sd is None for spread in spreads) else [spread.sd or 0.0 for spread in spreads]
