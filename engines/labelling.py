"""`dengine label`: the adapter's boxes on real images.

Knows: how images of any size are brought to the scale the adapter was trained at and through vae_encoder, label pass
and adapter in batches of one shape, and how the boxes get back into the originals' pixels, into a COCO file, and,
where the images have annotations, into figures. Knows nothing about generating.

H/W pixels of a padded frame, h/w its latents, Z latent channels, N boxes.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from engines.adapter.looks import TTA_LOOKS, TTA_WANTED, check_looks
from engines.common.events import Event, EventKind, Report, note, silent
from engines.common.files import write_json
from engines.common.names import class_words
from engines.common.schema import AnyPath, settle
from engines.common.verbs import verb
from engines.datasets.copies import Seen
from engines.datasets.dataset import Dataset, Record, open_dataset
from engines.datasets.learned import LEARNED, read_learned
from engines.datasets.records import image_folder
from engines.datasets.writers import AnnotatedImage, write_coco
from engines.diffusion.prompts import MAX_LISTED, generic_prompt, listing_prompt
from engines.errors import DatasetError, RunError, UsageError, refuse
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.labels.findings import Picture
from engines.labels.gaps import looks_incomplete
from engines.labels.matched import check_frequencies, matched_score
from engines.labels.rules import Rules, chosen, is_label, label_rules
from engines.labels.scores import ScoreKind, ScoreLike, ScorePolicy, StoredScore, stored
from engines.labels.thresholds import precision_and_recall
from engines.painting.needs import label_needs
from engines.painting.networks import TextEncoder
from engines.painting.reader import Reader, batch_for, padded_size
from engines.runs.run_folder import run_errors

if TYPE_CHECKING:
    from engines.backends.base import Backend
    from engines.bundle.bundle import Bundle

ANNOTATIONS = "annotations.json"
FIGURES = "figures.json"
DESCRIPTION = "labelled by dengine"  # in the info of what is written
_SPOOL = ".labels.spool"
PROMPT_KINDS = ("generic", "listing", "empty")


@dataclass(frozen=True)
class LabelSettings:
    """What `label` is asked for. Paths may be text. Raises UsageError that lists every mistake at once.

    >>> LabelSettings("photographs", out="labels", score=0.5).prompt
    'generic'
    """

    images: AnyPath  # a folder of images, or a dataset
    out: AnyPath  # folder for the labels, without any so far
    bundle: AnyPath | None = None  # None: the bundled model
    prompt: str = "generic"  # of PROMPT_KINDS; listing names each image's own annotated classes
    split: str | None = None  # of the dataset
    engine: str = "auto"  # a backend's name
    precision: str = "auto"  # of the backend's arithmetic
    threads: int | None = None  # of the backend, on a CPU; None: its own choice
    device: str | None = None  # cpu, cuda or cuda:N; None: what the engine is fastest on
    skip_bad: bool = False  # leave broken images out, instead of stopping
    follow_links: bool = False  # follow links that lead outside the folder
    boxes: str = "auto"  # what the numbers of its boxes mean, see `open_dataset`
    tta: int = 1  # test-time augmentation: looks that boxes are read from, of TTA_LOOKS
    score: ScoreLike | None = None  # for pseudo-labels: a box below is left out; None: all boxes are in
    ignore_score: float = 0.0  # with a score: a box from this up to it makes its region one to ignore; 0: none does
    max_overlap: float = 1.0  # with a score: of two labels of a class that overlap more, the surer stays; 1: both do

    def __post_init__(self) -> None:
        settle(self)
        checks = (
            (
                "prompt",
                self.prompt in PROMPT_KINDS,
                f"`prompt` is {self.prompt}; one of {', '.join(PROMPT_KINDS)} was expected",
            ),
            (
                "tta",
                self.tta in TTA_LOOKS,
                f"`tta` is {self.tta}; {TTA_WANTED} was expected",
            ),
            (
                "precision",
                self.precision != "int8",
                "`precision=int8` is for painting: it would cost labels accuracy; use `precision=auto`",
            ),
            (
                "ignore_score",
                not self.ignore_score or self.score is not None,
                "`ignore_score` without `score`: it says from which score below that a box makes a region to ignore",
            ),
            (
                "max_overlap",
                self.max_overlap == 1.0 or self.score is not None,
                "`max_overlap` without `score`: it says which labels go, and without a score all boxes stay",
            ),
            (
                "max_overlap",
                0.0 < self.max_overlap <= 1.0,
                f"`max_overlap` is {self.max_overlap:g}; a number above 0, up to 1 (off), was expected",
            ),
        )
        refuse((name, text) for name, fits, text in checks if not fits)


@dataclass(frozen=True)
class LabelSummary:
    """What `label` found.

    >>> dengine.label(dengine.LabelSettings("run/images", out="found", score=0.5)).boxes >= 0
    True
    """

    annotations: Path  # the COCO file
    images: int
    boxes: int  # all that score at least `inference.SCORE_FLOOR`, or with a score the labels
    boxes_by_class: Mapping[str, int]  # every class, in the bundle's order
    ignored: int  # regions to ignore, beside the boxes
    skipped: tuple[str, ...]  # bad annotations and broken images that were left out
    unreadable: tuple[str, ...]  # those of them that showed when their pixels were read
    score: StoredScore | None  # what a label scores at least; None: all boxes are in
    annotated: bool  # whether the images have annotations, of crowds alone perhaps
    figures: Mapping[str, float]  # AP, AP50, AP75, AP/<class>, ...; of labels precision/<class>; {} without annotations
    unknown_classes: tuple[str, ...]  # annotated, but not among the bundle's: counted nowhere
    seconds: float
    backend: str  # one line: engine, device, precision, threads
    own_score: StoredScore | None = None  # what `generate` takes as the least score of a label, without another
    own_figures: Mapping[str, float] = field(
        default_factory=dict
    )  # precision/<class> and recall/<class> of labels by it
    seen: tuple[str, ...] = ()  # images that the adapter learned from, as its fingerprints say


@verb
def label(settings: LabelSettings, *, report: Report | None = None) -> LabelSummary:
    """Open the bundle and the images, and label them; see `label_images`. Raises DengineError of every kind.

    >>> label(LabelSettings("run/images", out="labels"), report=print).images
    opening the bundle
    ...
    2
    """
    from engines.backends.registry import open_backend
    from engines.bundle.bundle import default_bundle, open_bundle

    report = report or silent
    _check_out(settings.out)
    report(note("opening the bundle"))
    bundle = open_bundle(settings.bundle or default_bundle())
    rules, matched = None, False
    if settings.score is not None:
        thresholds = bundle.adapter_info.thresholds
        matched = ScorePolicy.of(settings.score).kind is ScoreKind.MATCHED
        if matched:
            check_frequencies(bundle.adapter_info.frequencies)
        rules = label_rules(settings.score, settings.ignore_score, settings.max_overlap, thresholds, bundle.class_names)
    report(note("reading the images' headers"))
    dataset = open_dataset(
        settings.images, split=settings.split, skip_bad=settings.skip_bad, require_boxes=False,
        follow_links=settings.follow_links, boxes=settings.boxes,
    )  # fmt: skip
    dataset.tell(report)
    sizes = {padded_size(record.width, record.height, bundle, record.name) for record in dataset.records}
    backend = open_backend(
        bundle, settings.engine, precision=settings.precision, threads=settings.threads, device=settings.device,
        needs=label_needs(bundle, sizes), told=lambda line: report(note(line)),
    )  # fmt: skip
    prompt: Any = settings.prompt
    return label_images(
        bundle, backend, dataset, settings.out, prompt, rules=rules, matched=matched,
        tta=settings.tta, skip_bad=settings.skip_bad, report=report,
    )  # fmt: skip


def label_images(
    bundle: "Bundle",
    backend: "Backend",
    dataset: Dataset,
    out: Path,
    prompt: Literal["generic", "listing", "empty"] = "generic",
    *,
    rules: Rules | None = None,
    matched: bool = False,
    tta: int = 1,
    skip_bad: bool = False,
    report: Report | None = None,
) -> LabelSummary:
    """Write `out/annotations.json`: boxes scoring at least 0.05, at most 100 an image, in the images' own pixels.

    With `rules` it holds the boxes that are labels, and regions to ignore as crowds; every image stays in. With
    `matched`, too, the rules' score is the least of every class, and `matched_score` finds the one taken. Where the
    dataset has boxes, `out/figures.json` holds AP of all boxes against them, and with `rules` precision and recall of
    the labels; classes are matched by name. An image's boxes depend on that image alone, and so do its labels, but
    where scores are matched. `annotations.json` comes last: a folder without it is begun anew. Memory stays flat.
    Raises UsageError for "listing" without annotations and "matched" without frequencies, RunError for an `out` with
    labels, DatasetError for a broken image (unless `skip_bad`), NumericalError.
    """
    started, report = time.monotonic(), report or silent
    _check_out(out)
    annotated = any(len(record.instances.single) for record in dataset.records)
    _check_prompt(prompt, annotated, dataset)
    found, seen = _Found(), Seen(read_learned(bundle.folder / "adapter" / LEARNED))
    with run_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        try:
            with (out / _SPOOL).open("w+b") as spool:
                words = [_prompt(prompt, bundle.style, dataset, record) for record in dataset.records]
                every = detect(
                    bundle, backend, dataset.records, words, tta, found.skipped if skip_bad else None, report, seen.look
                )
                rules = _spooled(spool, every, found, bundle, rules, matched)
                figures, unknown = _figures(spool, found, dataset, bundle, rules, report) if annotated else ({}, ())
                own = _own_rules(bundle) if figures and rules is None else None
                by_own = {} if own is None else _figures(spool, found, dataset, bundle, own, silent)[0]
                info = {"bundle_sha256": bundle.digest, "prompt": prompt, "label_views": tta}
                _write(out, spool, found, dataset, bundle.class_names, rules, figures, info)
        finally:
            (out / _SPOOL).unlink(missing_ok=True)
    return LabelSummary(
        annotations=out / ANNOTATIONS,
        images=len(found.offsets), boxes=found.boxes.total(),
        boxes_by_class={name: found.boxes[label] for label, name in enumerate(bundle.class_names)},
        ignored=found.ignored,
        skipped=(*dataset.skipped, *found.skipped),
        unreadable=tuple(found.skipped),
        score=None if rules is None else stored(rules.thresholds),
        annotated=any(len(record.instances) for record in dataset.records),
        figures=figures, unknown_classes=unknown,
        seconds=time.monotonic() - started,
        backend=backend.description,
        own_score=None if own is None else stored(own.thresholds),
        own_figures={name: by_own[name] for name in by_own if name not in figures},
        seen=seen.among(dataset.records),
    )  # fmt: skip


def _spooled(
    spool: IO[bytes], every: Iterable[tuple[int, Instances]], found: "_Found", bundle: "Bundle", rules: Rules | None,
    matched: bool,
) -> Rules | None:  # fmt: skip
    """Keep all boxes, and return the rules, whose score is then settled."""
    for index, boxes in every:
        found.keep(spool, index, boxes)
    return found.matched(spool, rules, bundle.adapter_info.frequencies) if rules is not None and matched else rules


def _own_rules(bundle: "Bundle") -> Rules:
    """The rules by which `generate` takes a box for a label, where it is told nothing else."""
    score = bundle.generate_defaults.get("score", {})
    return label_rules(score, 0.0, 1.0, bundle.adapter_info.thresholds, bundle.class_names)


def _write(
    out: Path,
    spool: IO[bytes],
    found: "_Found",
    dataset: Dataset,
    class_names: Sequence[str],
    rules: Rules | None,
    figures: Mapping[str, float],
    info: Mapping[str, Any],
) -> None:
    """The folder's files, the annotations last."""
    (out / FIGURES).unlink(missing_ok=True)  # of a start that was killed
    info = {"description": DESCRIPTION, **info, "images": str(image_folder(dataset.records))}
    if figures:
        write_json(out / FIGURES, {**info, "images": len(found.offsets), "figures": figures})
    if rules is not None:
        kept = {"uncertain": rules.ignore_score, "max_overlap": rules.max_overlap}
        info = {**info, "score": stored(rules.thresholds), **kept}
    images = (found.annotated(dataset.records[index], boxes, rules) for index, boxes in found.read(spool))
    write_coco(out / ANNOTATIONS, images, class_names, info)


@dataclass
class _Found:
    """The detections so far: in a file, so that memory stays flat; here only where each image's line begins."""

    offsets: dict[int, int] = field(default_factory=dict)  # record -> place in the spool
    boxes: Counter[int] = field(default_factory=Counter)  # class -> boxes that are labels
    ignored: int = 0
    skipped: list[str] = field(default_factory=list)

    def keep(self, spool: IO[bytes], index: int, found: Instances) -> None:
        self.offsets[index] = spool.tell()
        spool.write(json.dumps(found.to_rows()).encode() + b"\n")

    def read(self, spool: IO[bytes]) -> Iterator[tuple[int, Instances]]:
        """Every image's detections, in the order of the records."""
        for index in sorted(self.offsets):
            spool.seek(self.offsets[index])
            yield index, Instances.from_rows(json.loads(spool.readline()))

    def matched(self, spool: IO[bytes], rules: Rules, frequencies: Mapping[str, float]) -> Rules:
        """The rules with the thresholds by which labels are as frequent as that."""
        every = (answer for _, answer in self.read(spool))
        return replace(rules, thresholds=matched_score(every, rules, frequencies))

    def annotated(self, record: Record, found: Instances, rules: Rules | None) -> AnnotatedImage:
        """What is written of an image; counts it."""
        kept = chosen(found, rules)
        self.boxes.update(kept.single.labels.tolist())
        self.ignored += int(kept.crowd.sum())
        return AnnotatedImage(record.name, record.width, record.height, kept)


def _check_prompt(prompt: str, annotated: bool, dataset: Dataset) -> None:
    if prompt == "listing" and not annotated:
        raise UsageError(
            f"`prompt=listing` needs annotations, and {dataset.root} has none: take generic.", field="prompt"
        )


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; give a folder for the labels.", field="out")
    if (out / ANNOTATIONS).exists():
        raise RunError(f"{out / ANNOTATIONS} exists already and is not overwritten: give another folder.", field="out")


def _prompt(kind: str, style: str, dataset: Dataset, record: Record) -> str:
    if kind == "empty":
        return ""
    if kind == "generic":
        return generic_prompt(style)
    counts = Counter(record.instances.single.labels.tolist())
    return listing_prompt(style, {dataset.class_names[label]: n for label, n in counts.most_common(MAX_LISTED)})


def detect(
    bundle: "Bundle",
    backend: "Backend",
    records: Sequence[Record],
    prompts: Sequence[str],
    looks: int,
    skipped: list[str] | None,
    report: Report,
    look: Callable[[Record, npt.NDArray[np.uint8]], None] = lambda record, pixels: None,
) -> Iterator[tuple[int, Instances]]:
    """(record, its detections), shape by shape, so that networks are prepared once for each shape; `look` is shown
    every image.

    A broken image is left out and said in `skipped`; where that is None, it is a DatasetError. Raises UsageError for
    looks that the adapter did not learn.
    """
    check_looks(looks, bundle.adapter_info.rotate)
    text = TextEncoder(bundle, backend, lambda line: report(note(line)))
    for prompt in dict.fromkeys(prompts):
        text.read(prompt)
    sizes = [padded_size(record.width, record.height, bundle) for record in records]
    done = 0
    for size, members in groupby(sorted(range(len(records)), key=sizes.__getitem__), key=sizes.__getitem__):
        indices = list(members)
        report(note(f"preparing for frames of {size[0]}x{size[1]}"))
        reader = Reader(bundle, backend, size, batch_for(backend, len(indices)), looks)
        for start in range(0, len(indices), reader.batch):
            batch = []
            for index in indices[start : start + reader.batch]:
                try:
                    batch.append((index, _checked_image(records[index])))
                    look(records[index], batch[-1][1])
                except DatasetError as cause:
                    if skipped is None:
                        raise DatasetError(f"{cause} Or leave broken images out with `skip_bad=True`.") from cause
                    skipped.append(str(cause))
            if batch:
                states = [text(prompts[index]) for index, _ in batch]
                names = [records[index].name for index, _ in batch]
                results = reader([image for _, image in batch], states, names)
                yield from zip([index for index, _ in batch], results, strict=True)
            done += min(reader.batch, len(indices) - start)
            report(Event(EventKind.PROGRESS, "labelling", done=done, total=len(records)))


def _checked_image(record: Record) -> npt.NDArray[np.uint8]:
    image = record.pixels()
    if image.shape[:2] != (record.height, record.width):
        raise DatasetError(f"{record.file} is not of the size it had when the run began; do not change it meanwhile.")
    return image


def _figures(
    spool: IO[bytes], found: _Found, dataset: Dataset, bundle: "Bundle", rules: Rules | None, report: Report
) -> tuple[dict[str, float], tuple[str, ...]]:
    """AP against the dataset's boxes, precision and recall of labels, and the dataset's classes that have no match.

    Where the dataset's boxes look incomplete, that is reported. Classes are matched by name as prompts spell it.
    """
    own = {class_words(name): label for label, name in enumerate(bundle.class_names)}
    mapping = [own.get(class_words(name), -1) for name in dataset.class_names]
    unknown = tuple(name for name, label in zip(dataset.class_names, mapping, strict=True) if label < 0)
    if len(unknown) == len(mapping):
        return {}, unknown
    order = np.array(mapping, dtype=np.int64)
    truth, answers, pictures = [], [], []
    for index, answer in found.read(spool):
        record = dataset.records[index]
        truth.append(_known(record.instances, order))
        answers.append(answer)
        pictures.append(Picture(record.width, record.height, truth[-1], answer))
    if not any(len(one.single) for one in truth):
        return {}, unknown
    if remark := looks_incomplete(pictures, bundle.class_names, dataset.root):
        report(note(remark))
    figures = mean_average_precision(truth, answers, bundle.class_names)
    if rules is not None:
        labels = [answer.take(is_label(answer, rules)) for answer in answers]
        figures |= precision_and_recall(truth, labels, rules.class_names)
    return figures, unknown


def _known(annotated: Instances, order: npt.NDArray[np.int64]) -> Instances:
    """Annotations with the bundle's labels; classes that the bundle does not know, -1 in `order`, are left out."""
    mapped = replace(annotated, labels=order[annotated.labels])
    return mapped.take(mapped.labels >= 0)
