"""How a training went: losses and average precision by step, thresholds, and the samples of a base model.

Knows: what lies in the folder of an adapter and of a base model. Knows nothing about trainings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.adapter.info import INFO_FILE, AdapterInfo
from engines.common.files import read_json
from engines.common.training_log import Row, read_log
from engines.diffusion.base_model import BASE_NOTES
from engines.errors import ModelError
from engines.report.draw import embedded, traces
from engines.report.html import card, cards, document, facts, section, table, top
from engines.report.parts import keys

_SHEETS = ("samples.png", "sheet.png")  # in the folder of a base model
_WORDS = {"vae": "the autoencoder", "unet": "the denoiser", "adapter": "the adapter"}


def adapter_page(folder: Path) -> tuple[str, int]:
    """The page of an adapter, and how many labelled images it learned from. Raises ModelError, TrainingError."""
    info = AdapterInfo.from_json(read_json(folder / INFO_FILE, ModelError), str(folder / INFO_FILE))
    figures = info.figures
    numbers = [("labelled images", info.labelled_images), ("objects", sum(info.objects.values()))]
    numbers += [
        (name, int(figures[key])) for name, key in (("steps", "steps"), ("best at step", "best_step")) if key in figures
    ]
    asked = {
        "style": info.style, "short side": info.short_side, "frame": "x".join(map(str, info.frame)),
        "head": info.config.head, "queries": info.config.queries, "base": info.base_hash[:12],
        "training images": figures.get("train_images"),
        "measured on" if figures.get("folds") else "dev images": figures.get("tune_images"),
        "by adapters that did not see them": figures.get("folds"), "of steps": figures.get("fold_steps"),
        "pseudo-labelled images": figures.get("pseudo_images"),
    }  # fmt: skip
    parts = (
        top(folder.resolve().name, numbers), _curves(read_log(folder)), _prompts(figures),
        _thresholds(info), section("What was asked", facts(asked.items())),
    )  # fmt: skip
    return document(f"{folder.resolve().name} · dengine report", parts), info.labelled_images


def base_page(folder: Path) -> tuple[str, int]:
    """The page of a base model; it says nothing of images. Raises ModelError, TrainingError."""
    notes = read_json(folder / BASE_NOTES, ModelError) if (folder / BASE_NOTES).exists() else {}
    logs = read_log(folder)
    numbers = [(f"steps of {_WORDS.get(name, name)}", int(rows[-1]["step"])) for name, rows in logs.items() if rows]
    quality = notes.get("quality")
    verdict = [str(quality["verdict"])] if isinstance(quality, dict) and "verdict" in quality else []
    names = notes.get("class_names")
    asked = {
        "style": notes.get("style"), "short side": notes.get("short_side"),
        "classes": ", ".join(map(str, names)) if isinstance(names, list) and names else None,
    }  # fmt: skip
    sheet = next((folder / name for name in _SHEETS if (folder / name).is_file()), None)
    samples = "" if sheet is None else section("Samples", embedded(sheet, "Photographs and what it makes of them"))
    parts = (
        top(folder.resolve().name, numbers, *verdict), samples, _curves(logs),
        section("What was asked", facts(asked.items())),
    )  # fmt: skip
    return document(f"{folder.resolve().name} · dengine report", parts), 0


def _curves(logs: Mapping[str, Sequence[Row]]) -> str:
    each = []
    for name, rows in logs.items():
        word = _WORDS.get(name, name)
        losses = [(row["step"], row["loss"]) for row in rows]
        if losses:
            each.append(card(f"Loss of {word}", traces([("loss", losses)], f"Loss of {word} by step"),
                             f"Means of ten steps at most; the last is {losses[-1][1]:.4g}."))  # fmt: skip
        measured = {one: [(row["step"], row[one]) for row in rows if one in row] for one in ("AP50", "AP")}
        if measured["AP"]:
            best = max(measured["AP"], key=lambda point: point[1])
            drawn = traces(list(measured.items()), "Average precision by step", 1.0) + keys("AP50", "AP")
            each.append(card("On the dev split", drawn, f"AP is best at step {best[0]:,.0f}: {best[1]:.3f}."))
    return section("How it went", cards(each)) if each else ""


def _prompts(figures: Mapping[str, Any]) -> str:
    if not (measured := figures.get("tune", {})):
        return ""
    names = list(next(iter(measured.values())))
    rows = [[kind, *(f"{of[name]:.3f}" if name in of else "-" for name in names)] for kind, of in measured.items()]
    note = "By kind of prompt: it should not decide the labels, so rows should hardly differ."
    if folds := figures.get("folds"):
        note = f"Of {folds} adapters, each on images that it did not see; this one learned from all of them."
    where = "images not seen" if folds else "the dev split"
    return section(f"Average precision on {where}", table(["Prompt", *names], rows), note)


def _thresholds(info: AdapterInfo) -> str:
    chosen: Any = info.figures.get("thresholds", {})
    rows = []
    for name in info.class_names:
        own = chosen.get(name, {})
        least = f"{info.thresholds[name]:.2f}" if name in info.thresholds else "-"
        rates = [f"{own[rate]:.3f}" if rate in own else "-" for rate in ("precision", "recall")]
        rows.append([name, least, *rates, f"{own.get('tune_boxes', 0):,}", f"{info.objects.get(name, 0):,}"])
    where, boxes = ("images not seen", "Boxes") if info.figures.get("folds") else ("the dev split", "Dev boxes")
    notes = [f"Chosen for a precision of {chosen['goal']:g} on {where}."] if "goal" in chosen else []
    notes.append("An object that the labels leave out counts as a mistake there, and lowers the precision.")
    return section("Classes", table(["Class", "Score", "Precision", "Recall", boxes, "Objects"], rows), *notes)
