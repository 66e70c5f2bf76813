"""The report's page: what was asked, what came out, how it compares, what it looks like.

Knows: the order and the words. Knows nothing about how figures come about.
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path

from engines.labels.boxes import LEAST_COUNTED
from engines.labels.rules import Rules
from engines.labels.scores import shown as shown_score
from engines.labels.scores import stored
from engines.painting.run_settings import RunSettings
from engines.report.draw import bars, cells, curves, hex_colour, picture, spread
from engines.report.figures import Figures, Picture, median

STYLE = Path(__file__).with_name("style.css")
_ASKED = (
    "count", "jobs", "seed", "size", "steps", "sampler", "guidance", "strength", "reference", "reference_split",
    "labels", "compose",
)  # fmt: skip


def page(title: str, run: RunSettings, rules: Rules, found: Figures, command: str) -> str:
    """The whole file."""
    parts = [
        _top(title, found), _classes(found, run), _scores(found, rules), _shapes(found), _looks(found), _memory(found),
        _shots("Some of its images, drawn at random", found.shown), _shots("Those it is least sure of", found.unsure),
        _asked(run, rules, command),
    ]  # fmt: skip
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · dengine report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{STYLE.read_text('utf-8')}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _top(title: str, found: Figures) -> str:
    boxes = sum(found.labels.by_class.values())
    rows = (("images in the dataset", found.labels.images), ("labels", boxes), ("images painted", found.painted))
    shown = "".join(f"<div><dt>{name}</dt><dd>{number:,}</dd></div>" for name, number in rows)
    gone = "".join(f"<p class=quiet>{number:,} not in it: {escape(why)}</p>" for why, number in found.dropped.items())
    return f'<header><h1>{escape(title)}</h1><dl class="big">{shown}</dl>{gone}</header>'


def _classes(found: Figures, run: RunSettings) -> str:
    expected = run.frequencies or {}
    rows = []
    for label, name in enumerate(found.class_names):
        number = found.labels.by_class[label]
        rate = number / max(1, found.labels.images)
        other = found.references
        cells_ = [f"{number:,}", f"{rate:.2f}", f"{expected[name]:.2f}" if name in expected else "-"]
        if other is not None:
            cells_.append(f"{other.by_class[label] / max(1, other.images):.2f}")
        rows.append(f"<tr><th scope=row>{escape(name)}</th>{''.join(f'<td class=n>{c}</td>' for c in cells_)}</tr>")
    head = ["Class", "Labels", "An image", "In training", *(["An image of the references"] if found.references else [])]
    told = "".join(f"<th scope=col>{text}</th>" for text in head)
    note = f"A class with fewer than {LEAST_COUNTED} objects in training has no frequency there."
    table = f"<table><thead><tr>{told}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return _section("Classes", f'<div class="classes">{table}</div>', note)


def _scores(found: Figures, rules: Rules) -> str:
    cards = []
    for label, name in enumerate(found.class_names):
        drawn = bars(found.scores[label], hex_colour(label), f"Scores of {name}")
        least = rules.thresholds[name]
        cards.append(
            f'<div class="card"><h3>{escape(name)}</h3>{drawn}<p class=quiet>A label from {least:g} on.</p></div>'
        )
    return _section("Scores of all boxes", _cards(cards), "Heights are roots of the numbers.")


_KEYS = '<p class=quiet><span class="key">painted</span>, <span class="key other">references (dashed)</span></p>'


def _shapes(found: Figures) -> str:
    pairs = [("painted", found.labels.sizes)]
    if found.references is not None:
        pairs.append(("references", found.references.sizes))
    sizes = curves(pairs, "0", "the whole image", "Box sizes")
    fields = f"<div><h3>Places, painted</h3>{cells(found.labels.places, 'Where boxes are')}</div>"
    if found.references is not None:
        fields += f"<div><h3>Places, references</h3>{cells(found.references.places, 'Where reference boxes are')}</div>"
    keys = _KEYS if found.references is not None else ""
    cards = [f"<h3>Side, as a share of the image</h3>{sizes}{keys}", f'<div class="pair">{fields}</div>']
    return _section("Boxes: sizes and places", _cards(f'<div class="card">{one}</div>' for one in cards), *found.notes)


def _looks(found: Figures) -> str:
    mine, other = found.look, found.look_references
    cards = []
    told = ""
    if found.likeness is not None:
        text = found.likeness.remark or f"What was painted has {found.likeness.figures}"
        told = f"<p>{escape(text[0].upper() + text[1:])}.</p>"
    for name in ("sharpness", "brightness", "colour"):
        ours, theirs = getattr(mine, name), getattr(other, name)
        first, second, low, high = spread(ours, theirs)
        pairs = [("painted", first)] + ([("references", second)] if theirs else [])
        medians = f"Median {median(ours):.1f}" + (f", of the references {median(theirs):.1f}" if theirs else "")
        drawn = curves(pairs, f"{low:.0f}", f"{high:.0f}", name.capitalize())
        cards.append(f'<div class="card"><h3>{name.capitalize()}</h3>{drawn}<p class=quiet>{medians}.</p></div>')
    keys = _KEYS if other.files else ""
    beside = f" and {len(other.files)} references, scaled as they were painted" if other.files else ""
    return _section("Sharpness and colour", told + _cards(cards) + keys, f"Of {len(mine.files)} images{beside}.")


def _memory(found: Figures) -> str:
    looked = len(found.look.files)
    share = found.repeats / looked if looked else 0.0
    text = (
        f"<p>{share:.1%} of {looked} images nearly repeat another of them (correlation of thumbnails 0.95 or more).</p>"
    )
    if found.closest is not None:
        painted, reference, alike = found.closest
        shots = picture(painted, None, "painted image") + picture(reference, None, "reference")
        text += (
            f"<p>The closest pair of a painted image and a reference correlates by {alike:.3f}: {escape(painted.name)} "
            f'and {escape(reference.name)}.</p><div class="shots">{shots}</div>'
        )
    return _section("Repeats, and what was learned by heart", text)


def _shots(title: str, shots: list[Picture]) -> str:
    drawn = "".join(picture(one.file, one.instances, one.file.name) for one in shots)
    return _section(title, f'<div class="shots">{drawn}</div>') if shots else ""


def _asked(run: RunSettings, rules: Rules, command: str) -> str:
    values = {name: getattr(run.options, name) for name in _ASKED}
    values |= {"score": shown_score(stored(rules.thresholds)), "backend": run.backend, "bundle": run.bundle_hash[:12]}
    rows = "".join(
        f"<tr><th scope=row>{name.replace('_', ' ')}</th><td>{escape(str(value))}</td></tr>"
        for name, value in values.items()
        if value is not None
    )
    table = f"<table><tbody>{rows}</tbody></table>"
    return _section("What was asked", f"{table}<p>The same again:</p><code>{escape(command)}</code>")


def _section(title: str, content: str, *notes: str) -> str:
    told = "".join(f"<p class=quiet>{escape(note)}</p>" for note in notes)
    return f"<section><h2>{escape(title)}</h2>{content}{told}</section>"


def _cards(cards: Iterable[str]) -> str:
    return f'<div class="cards">{"".join(cards)}</div>'
