"""The page of a run: what was asked, what came out, how it compares, what it looks like.

Knows: the order and the words. Knows nothing about how figures come about.
"""

from html import escape

from engines.labels.boxes import LEAST_COUNTED
from engines.labels.rules import Rules
from engines.labels.scores import shown as shown_score
from engines.labels.scores import stored
from engines.painting.run_settings import RunSettings
from engines.report.draw import curves, picture, spread
from engines.report.figures import Figures, median
from engines.report.html import card, cards, document, facts, section, table, top
from engines.report.parts import keys, pictures, score_cards, shapes

_ASKED = ("count", "jobs", "seed", "size", "steps", "sampler", "guidance", "strength", "reference", "reference_split")
_COMPARED = (
    "Frequencies in training and in the references are those of their labels, which may leave objects out: more labels "
    "here can mean that the adapter finds what those miss. An audit says how complete they are."
)


def page(title: str, run: RunSettings, rules: Rules, found: Figures, command: str) -> str:
    """The whole file."""
    boxes = sum(found.labels.by_class.values())
    numbers = (("images in the dataset", found.labels.images), ("labels", boxes), ("images painted", found.painted))
    gone = [f"{number:,} not in it: {why}" for why, number in found.dropped.items()]
    parts = (
        top(title, numbers, *gone), _classes(found, run),
        score_cards(found.scores, found.class_names, list(rules.thresholds.values()), "Scores of all boxes"),
        shapes(found.labels, "painted", found.references, *found.notes), _looks(found), _memory(found),
        pictures("Some of its images, drawn at random", found.shown),
        pictures("Those it is least sure of", found.unsure), _asked(run, rules, command),
    )  # fmt: skip
    return document(f"{title} · dengine report", parts)


def _classes(found: Figures, run: RunSettings) -> str:
    expected, other, rows = run.frequencies or {}, found.references, []
    for label, name in enumerate(found.class_names):
        number = found.labels.by_class[label]
        row = [name, f"{number:,}", f"{number / max(1, found.labels.images):.2f}"]
        row.append(f"{expected[name]:.2f}" if name in expected else "-")
        if other is not None:
            row.append(f"{other.by_class[label] / max(1, other.images):.2f}")
        rows.append(row)
    head = ["Class", "Labels", "An image", "In training", *(["An image of the references"] if other else [])]
    note = f"A class with fewer than {LEAST_COUNTED} objects in training has no frequency there."
    return section("Classes", table(head, rows), note, *([_COMPARED] if expected or other else []))


def _looks(found: Figures) -> str:
    mine, other = found.look, found.look_references
    each, told = [], ""
    if found.likeness is not None:
        text = found.likeness.remark or f"What was painted has {found.likeness.figures}"
        told = f"<p>{escape(text[0].upper() + text[1:])}.</p>"
    for name in ("sharpness", "brightness", "colour"):
        ours, theirs = ([getattr(one, name) for one in look.seen] for look in (mine, other))
        first, second, low, high = spread(ours, theirs)
        pairs = [("painted", first)] + ([("references", second)] if theirs else [])
        medians = f"Median {median(ours):.1f}" + (f", of the references {median(theirs):.1f}" if theirs else "")
        drawn = curves(pairs, f"{low:.0f}", f"{high:.0f}", name.capitalize())
        each.append(card(name.capitalize(), drawn, f"{medians}."))
    lines = keys("painted", "references") if other.files else ""
    beside = f" and {len(other.files)} references, scaled as they were painted" if other.files else ""
    return section("Sharpness and colour", told + cards(each) + lines, f"Of {len(mine.files)} images{beside}.")


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
    if found.memory is not None:
        told = found.memory.remark or f"Correlation of thumbnails is {found.memory.words}"
        text += f"<p>{escape(told)}.</p>"
    return section("Repeats, and what was learned by heart", text)


def _asked(run: RunSettings, rules: Rules, command: str) -> str:
    values = {name.replace("_", " "): getattr(run.options, name) for name in _ASKED}
    values["size"] = "x".join(map(str, run.frame))
    values |= {"score": shown_score(stored(rules.thresholds)), "backend": run.backend, "bundle": run.bundle_hash[:12]}
    words = " ".join(f"<span>{escape(word)}</span>" for word in command.split(" "))  # none breaks behind its hyphens
    return section("What was asked", f"{facts(values.items())}<p>The same again:</p><code>{words}</code>")
