"""`audit.html`: the worst images with both sets of boxes, in one file that opens without a network.

Knows: which images come first, and how they are drawn: the picture as a small JPEG in the page, boxes as SVG over it.
Knows nothing about how findings came about.
"""

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from engines.common.files import write_atomic
from engines.datasets.dataset import Record
from engines.labels.boxes import Instances
from engines.labels.findings import Finding, FindingKind, Judgement, Picture
from engines.report.html import document, table, top

LARGEST_PAGE = 4_500_000  # bytes; images that would go beyond are left out
_SIDE = 640  # pixels of a picture's long side, at most
_QUALITY = 80
_LISTED = 12  # findings in words below an image
_WORDS = {
    FindingKind.MISSING: "no label",
    FindingKind.SPURIOUS: "nothing found",
    FindingKind.CLASS: "another class",
    FindingKind.LOOSE: "loose box",
    FindingKind.DUPLICATE: "labelled twice",
    FindingKind.OUTSIDE: "leaves the picture",
}

STYLE = Path(__file__).with_name("page.css")
_KEY = (
    ("given", "labels", "solid"),
    ("found", "finds with a label", "dashed"),
    ("suspect", "finds without a label, or unlike it", "solid"),
    ("wrong", "labels that look wrong", "solid"),
)
_COLOURS = {"given": "#009ef0", "found": "#00be78", "suspect": "#f08200", "wrong": "#dc3c96"}


def write_page(
    path: Path,
    records: Sequence[Record],
    pictures: Sequence[Picture],
    judgement: Judgement,
    class_names: Sequence[str],
    worst: int,
    confidence: float,
) -> None:
    """Write the page: a table of the findings that are at least so sure, then at most `worst` images."""
    by_image: dict[int, list[Finding]] = defaultdict(list)
    for one in judgement.findings:
        if one.confidence >= confidence:
            by_image[one.image].append(one)
    # Worst first: by how many wrong labels are to be expected.
    order = sorted(by_image, key=lambda index: -sum(one.confidence for one in by_image[index]))
    figures, size = [], 0
    for index in order[:worst]:
        figure = _figure(records[index], pictures[index], by_image[index], class_names)
        size += len(figure.encode())
        if size > LARGEST_PAGE:
            break
        figures.append(figure)
    shown = f"{len(figures)} of {len(by_image)} images with findings, the worst first" if figures else "no findings"
    page = _document(_counted(by_image, judgement, class_names), shown, figures, len(records), confidence)
    write_atomic(path, page.encode())


def _document(counted: str, shown: str, figures: Sequence[str], images: int, confidence: float) -> str:
    key = "".join(
        f'<label><input type="checkbox" id="{name}" checked> '
        f'<i style="border-color:{_COLOURS[name]};border-style:{line}"></i>{words}</label>'
        for name, words, line in _KEY
    )
    told = f"Counted are findings with a confidence of {confidence:g} or more."
    parts = (
        top("What these labels may miss or have wrong", [("images judged", images)], told), counted,
        f'<div class="key-line">{key}</div>', f'<section><p>{shown}</p>\n<div class="images">\n{"".join(figures)}</div>'
        "</section>",
    )  # fmt: skip
    return document("dengine audit", parts, STYLE.read_text("utf-8"))


def _counted(by_image: dict[int, list[Finding]], judgement: Judgement, class_names: Sequence[str]) -> str:
    counts = Counter(
        (one.kind, one.label if one.given_label is None else one.given_label)
        for findings in by_image.values()
        for one in findings
    )
    rows = [[_WORDS[kind], *(str(counts[kind, label]) for label in range(len(class_names)))] for kind in FindingKind]
    shares = ("-" if one is None else f"{one:.0%}" for one in judgement.completeness)
    return table(["Finding", *class_names], [*rows, ["labelled, about", *shares]])


def _figure(record: Record, picture: Picture, findings: Sequence[Finding], class_names: Sequence[str]) -> str:
    wrong = {one.given for one in findings if one.given is not None}
    boxes = []
    for place, (corners, label) in enumerate(zip(picture.truth.boxes, picture.truth.labels, strict=True)):
        kind = "wrong" if place in wrong else "given"
        boxes.append(_rectangle(kind, corners.tolist(), f"label: {class_names[label]}"))
    suspects = [(one.box, one) for one in findings if one.box is not None]
    taken = {box for box, _ in suspects}
    boxes += _labelled_finds(picture.found, picture.truth, taken, class_names)
    for box, one in suspects:
        found = class_names[one.label] if one.label is not None else ""
        words = f"{_WORDS[one.kind]}: {found}, confidence {one.confidence:.2f}"
        boxes.append(_rectangle("suspect", box, words))
    lines = [f"<li>{_sentence(one, class_names)}</li>" for one in findings[:_LISTED]]
    more = len(findings) - len(lines)
    lines += [f"<li>and {more} more</li>"] if more else []
    return (
        f'<figure><div><img alt="{escape(record.name)}" src="data:image/jpeg;base64,{_jpeg(record)}">'
        f'<svg viewBox="0 0 {record.width} {record.height}" preserveAspectRatio="none">{"".join(boxes)}</svg></div>'
        f"<figcaption><b>{escape(record.name)}</b><ul>{''.join(lines)}</ul></figcaption></figure>\n"
    )


def _labelled_finds(
    found: Instances, truth: Instances, taken: set[tuple[float, float, float, float]], class_names: Sequence[str]
) -> list[str]:
    """Finds that overlap a label of their class by half."""
    from engines.labels.boxes import iou_matrix
    from engines.labels.thresholds import MATCH_IOU

    same = (found.labels[:, None] == truth.labels[None]) & (iou_matrix(found.boxes, truth.boxes) >= MATCH_IOU)
    rows = []
    for row in same.any(axis=1).nonzero()[0].tolist():
        box = tuple(round(float(value), 2) for value in found.boxes[row])
        if box not in taken:
            rows.append(_rectangle("found", box, f"found: {class_names[found.labels[row]]}, {found.scores[row]:.2f}"))
    return rows


def _rectangle(kind: str, corners: Sequence[float], words: str) -> str:
    x0, y0, x1, y1 = corners
    return (
        f'<rect class="{kind}" x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}">'
        f"<title>{escape(words)}</title></rect>"
    )


def _sentence(one: Finding, class_names: Sequence[str]) -> str:
    given = "" if one.given_label is None else class_names[one.given_label]
    found = "" if one.label is None else class_names[one.label]
    which = f"{given}, found {found}" if one.kind is FindingKind.CLASS else given or found
    return f"{_WORDS[one.kind]}: {escape(which)} ({one.confidence:.2f})"


def _jpeg(record: Record) -> str:
    image = Image.fromarray(record.pixels())
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
