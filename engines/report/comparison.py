"""What generated data was worth: the arms of a comparison with their intervals, set by set.

Knows: `comparison.json` and `comparison.png` as `evaluate` writes them. Knows nothing about detectors.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from engines.common.files import read_json
from engines.errors import RunError
from engines.report.draw import embedded
from engines.report.html import document, facts, section, table, top

COMPARISON, PLOT = "comparison.json", "comparison.png"


def comparison_page(folder: Path) -> tuple[str, int]:
    """The whole page, and how many images were measured on."""
    found = read_json(folder / COMPARISON, RunError)
    data, sets, seeds = found["data"], found["sets"], len(found["seeds"])
    numbers = [("real images", data["real_images"]), ("generated images", data["generated_images"])]
    numbers += [("trainings of each arm", seeds), ("validation images", sum(one["images"] for one in sets))]
    asked = {
        "real": data["real"], "generated": ", ".join(data["synthetic"]) or None,
        "detector": found["detector"]["network"]["kind"], "steps": found["detector"]["steps"],
        "short side": data["short_side"], "mix": found["mix"], "weights": found["weights"],
    }  # fmt: skip
    plot = folder / PLOT
    drawn = (
        section("At a glance", f'<div class="paper">{embedded(plot, "AP of each arm")}</div>') if plot.is_file() else ""
    )
    parts = (
        top(folder.resolve().name, numbers, *data["notes"]), *(_set(one, seeds) for one in sets), drawn,
        section("What was asked", facts(asked.items())),
    )  # fmt: skip
    return document(f"{folder.resolve().name} · dengine report", parts), sum(one["images"] for one in sets)


def _set(found: Mapping[str, Any], seeds: int) -> str:
    arms = found["arms"]
    head, rows = ["Figure"], [[name] for name in arms[0]["figures"]]
    for arm in arms:
        head.append("real" if not arm["generated"] else f"with {arm['generated']:,} generated")
        for row in rows:
            row.append(_spread(arm["figures"].get(row[0])))
        if arm["differences"]:
            head.append("difference")
            for row in rows:
                row.append(_difference(arm["differences"].get(row[0])))
    notes = [f"{found['images']:,} images."]
    if len(arms) > 1:
        notes.append("Brackets hold the 95% interval of the difference over draws of these images.")
    notes.append(f"Means and deviations over {seeds} trainings." if seeds > 1 else "One training: its luck is unknown.")
    if found["left_out"]:
        notes.append(f"{len(found['left_out'])} images are left out, since they nearly repeat training images.")
    gains = "".join(f"<p>{escape(line)}</p>" for line in map(_gain, arms) if line)
    return section(str(found["name"]), gains + table(head, rows), *notes)


def _gain(arm: Mapping[str, Any]) -> str:
    """What an arm's AP says, in a sentence; a gain is one where the interval leaves out 0."""
    found = arm["differences"].get("AP")
    if found is None:
        return ""
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    word = "A gain" if low > 0 else "A loss" if high < 0 else "No gain that can be measured"
    return f"{word} with {arm['generated']:,} generated images: {mean:+.1f} AP, 95% interval {low:+.1f} to {high:+.1f}."


def _spread(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['mean']:.3f}" + ("" if found["sd"] is None else f" ± {found['sd']:.3f}")


def _difference(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
