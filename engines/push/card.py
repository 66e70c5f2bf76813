"""The card of a pushed dataset, `README.md`: what is in it, how images and labels came about, the licence.

Knows: the words, and the header that the Hugging Face hub and `datasets` read. Knows nothing about where it goes.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from engines.adapter.info import read_info
from engines.bundle.bundle import Manifest
from engines.bundle.files import MANIFEST
from engines.common.files import read_json
from engines.common.plurals import counted, plural
from engines.datasets.imagefolder_writer import CARD, SIGNED, is_ours
from engines.diffusion.base_notes import bad_base
from engines.errors import BundleError, DengineError, UsageError
from engines.labels.scores import shown, stored
from engines.push.dataset import Dataset
from engines.runs.again import generate_command
from engines.runs.run_folder import RUN, bundle_of

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_ASKED = ("seed", "steps", "sampler", "guidance", "strength", "reference_split", "prompt_template", "tta", "balance")


def card_of(found: Dataset, title: str, licence: str | None, apart: bool) -> bytes:
    """The card. One that somebody wrote into the run's folder is theirs, and stays as it is.

    `apart`: whether the images lie in Parquet files alone. Raises UsageError for a licence beside a card of the user's.
    """
    own = found.folder / CARD
    if own.exists() and not is_ours(own):
        if licence is not None:
            raise UsageError(f"{own} is your own: say the licence there, and leave `licence` out.", field="licence")
        return own.read_bytes()
    parts = [_header(found, licence), f"# {title}\n", _summary(found, apart), _classes(found), _made(found)]
    return "\n".join([*parts, _labels(found), _settings(found), _licence(licence), SIGNED, ""]).encode()


def _header(found: Dataset, licence: str | None) -> str:
    """What programs read: the licence, the kind of data, and how `datasets` reads it, as the run's own card says."""
    number = len(found.images)
    size = next((name for most, name in _SIZES if number < most), "n>1M")
    lines = ["---", f"license: {licence or 'unknown'}", "task_categories:", "- object-detection"]
    lines += ["tags:", "- synthetic", "- dengine", "size_categories:", f"- {size}", *_configs(found.folder / CARD)]
    return "\n".join([*lines, "---", ""])


def _configs(card: Path) -> Sequence[str]:
    """The lines of a card's header."""
    lines = card.read_text("utf-8").splitlines() if card.exists() else []
    return lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []


def _summary(found: Dataset, apart: bool) -> str:
    number, boxes = len(found.images), sum(found.boxes.values())
    width, height = found.run.frame
    text = f"{number:,} {plural(number, 'image')} of {width}x{height} pixels with {boxes:,} {plural(boxes, 'box')}"
    text += f" of {counted(len(found.run.class_names), 'class')}, made by dengine, not photographed."
    if found.run.options.strength == (0.0, 0.0):
        text = text.replace("made by dengine, not photographed", "put together of photographs by dengine")
    where = "`parquet/` (`annotations.json` names them)" if apart else "`images/`"
    files = f"The images are in {where}, COCO's labels in `annotations.json`. Formats: {', '.join(found.formats)}."
    ignored = f" {found.ignored:,} regions are marked as crowds, to be ignored." if found.ignored else ""
    return f"{text}{ignored}\n\n{files} `journal.jsonl` and `run.json` say how each image came about.\n"


def _classes(found: Dataset) -> str:
    number = max(1, len(found.images))
    rows = [
        (name, f"{found.boxes[label]:,}", f"{found.boxes[label] / number:.2f}")
        for label, name in enumerate(found.run.class_names)
    ]
    return f"## Classes\n\n{_table(('class', 'boxes', 'an image'), rows)}"


def _made(found: Dataset) -> str:
    options = found.run.options
    from_what = "from text alone"
    if options.reference is not None:
        from_what = f"as variations of the images of `{options.reference.name}`"
        if options.strength == (0.0, 0.0):
            from_what = f"of the images of `{options.reference.name}`, unpainted"
        if options.compose:
            from_what += ", into which objects of others were pasted"
    text = f"The images were made {from_what}, by a diffusion model whose weights are frozen.\n"
    return f"## How the images were made\n\n{text}\n{_table(('model', 'what it is'), _model(found))}"


def _model(found: Dataset) -> Iterator[tuple[str, str]]:
    """What is known of base and adapter: little, where the bundle is not on this machine any more."""
    run = found.run
    name = "the one that comes with dengine" if run.options.bundle is None else f"`{run.options.bundle.name}`"
    yield "bundle", f"{name}, SHA-256 of its manifest {run.bundle_hash}"
    if (folder := bundle_of(run)) is None:
        return
    try:
        manifest = Manifest.from_json(read_json(folder / MANIFEST, BundleError))
        info, bad = read_info(folder / "adapter"), bad_base(folder)
    except (DengineError, OSError):
        return
    loras = f"; LoRA: {', '.join(manifest.loras)}" if manifest.loras else ""
    yield "base", f"{manifest.style}, SHA-256 of its weights {manifest.base_hash}{loras}"
    if bad is not None:
        yield "its quality", bad.partition(" is not good enough: ")[2] or "not good enough"
    learned = f"{info.labelled_images:,} labelled images" if info.labelled_images else "labelled images"
    objects = ", ".join(f"{number:,} {name}" for name, number in info.objects.items())
    yield "adapter", f"{info.config.head}, learned from {learned}" + (f" ({objects})" if objects else "")


def _labels(found: Dataset) -> str:
    options, rules = found.run.options, found.rules
    adapter = "read off the diffusion model's features by the Detection-Adapter"
    how = {
        "adapter": f"Boxes were {adapter}. No person drew them.",
        "reference": "Boxes are those of the references, moved with their images.",
        "both": "Boxes are those of the references, moved with their images; where the adapter saw nothing, they are "
        f"regions to ignore. Boxes of further objects were {adapter}.",
    }[rules.labels]
    lines = [how]
    if rules.labels != "reference":
        lines.append(f"A box of the adapter is a label where it scores at least {shown(stored(rules.thresholds))}.")
    if rules.ignore_score and rules.labels != "reference":
        lines.append(f"Those from {rules.ignore_score:g} on are regions to ignore.")
    if rules.min_quality:
        lines.append(f"Images whose boxes are less sure than {rules.min_quality:g} as a whole were left out.")
    if options.near_duplicates:
        alike = f"correlation of {options.near_duplicates:g}"
        lines.append(f"Images that nearly repeat another or a reference ({alike}) were left out.")
    person = f"A person looked at some of it: {counted(found.reviewed, 'decision')} of a review are in it."
    lines.append(person if found.reviewed else "No person reviewed them.")
    return "## How the labels were made\n\n" + " ".join(lines) + "\n"


def _settings(found: Dataset) -> str:
    run = found.run
    rows = [(name, str(value)) for name in _ASKED if (value := getattr(run.options, name)) not in (None, False, "")]
    rows.append(("backend", run.backend))
    command = generate_command(run, paths=False)
    text = f"All of them are in `{RUN}`. The same again, with the same bundle and references:\n\n```\n{command}\n```\n"
    return f"## Settings\n\n{_table(('setting', 'value'), rows)}\n{text}"


def _licence(licence: str | None) -> str:
    said = "None was stated by whoever pushed it." if licence is None else f"{licence}, as whoever pushed it stated."
    return f"## Licence\n\n{said} The model's and the references' own licences may bind, too.\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in lines)
