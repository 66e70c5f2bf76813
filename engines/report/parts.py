"""Parts of a page that several reports have.

Knows: how counted boxes and pictures are shown. Knows nothing about where they come from.
"""

from collections.abc import Sequence

from engines.report.draw import bars, cells, curves, hex_colour, picture
from engines.report.figures import Boxes, Counts, Picture
from engines.report.html import card, cards, section, shots


def score_cards(
    scores: Counts, class_names: Sequence[str], thresholds: Sequence[float | None], title: str, *notes: str
) -> str:
    """Histograms [K, BINS] of scores, a card a class, each with the score from which on a box is a label."""
    each = []
    for label, (name, least) in enumerate(zip(class_names, thresholds, strict=True)):
        told = () if least is None else (f"A label from {least:g} on.",)
        each.append(card(name, bars(scores[label], hex_colour(label), f"Scores of {name}"), *told))
    return section(title, cards(each), "Heights are roots of the numbers.", *notes)


def shapes(mine: Boxes, word: str, other: Boxes | None, *notes: str) -> str:
    """Sizes and places of boxes, beside those of the references where there are any."""
    pairs = [(word, mine.sizes)] + ([] if other is None else [("references", other.sizes)])
    fields = f"<div><h3>Places, {word}</h3>{cells(mine.places, 'Where boxes are')}</div>"
    if other is not None:
        fields += f"<div><h3>Places, references</h3>{cells(other.places, 'Where reference boxes are')}</div>"
    sizes = curves(pairs, "0", "the whole image", "Box sizes") + ("" if other is None else keys(word, "references"))
    whole = card("Side, as a share of the image", sizes) + f'<div class="card"><div class="pair">{fields}</div></div>'
    return section("Boxes: sizes and places", cards([whole]), *notes)


def keys(first: str, second: str) -> str:
    """Which of two lines is which."""
    full, dashed = f'<span class="key">{first}</span>', f'<span class="key other">{second} (dashed)</span>'
    return f"<p class=quiet>{full}, {dashed}</p>"


def pictures(title: str, each: Sequence[Picture], *notes: str) -> str:
    """A section of images with their boxes; nothing where there are none."""
    return shots(title, [picture(one.file, one.instances, one.file.name, one.size) for one in each], *notes)
