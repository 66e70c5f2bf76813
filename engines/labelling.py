"""`dengine label`: the adapter's boxes on real images.

Knows: how images of any size are brought to the scale the adapter was trained at and through vae_encoder, label pass
and adapter in batches of one shape, and how the boxes get back into the originals' pixels, into a COCO file, and,
where the images have annotations, into figures. Knows nothing about generating.

H/W pixels of a padded frame, h/w its latents, Z latent channels, N boxes.
"""

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from engines.adapter.inference import LABEL_VIEWS, prepare_frame, resized_size, view_detections
from engines.backends.tensorrt.plans import BUILT_AHEAD
from engines.common.files import write_json
from engines.common.names import class_words
from engines.datasets.dataset import Dataset, Record, open_dataset
from engines.datasets.images import read_image
from engines.datasets.writers import Annotated, write_coco
from engines.diffusion.prompts import MAX_LISTED, generic_prompt, listing_prompt
from engines.errors import DatasetError, RunError, UsageError
from engines.labels.average_precision import Detections, mean_average_precision
from engines.labels.choose import choose, journal_boxes, label_rules
from engines.labels.matched import check_frequencies, matched_score
from engines.labels.rules import Rules
from engines.labels.scores import Matched, Score
from engines.labels.thresholds import precision_and_recall
from engines.painting.needs import label_needs
from engines.painting.networks import LARGEST_BATCH, Labeller, TextEncoder, check_finite, fill, prepare
from engines.runs.events import Labelled, PromptCut, Report, Stage
from engines.runs.run_folder import run_errors

if TYPE_CHECKING:
    from engines.backends.base import Backend, Call
    from engines.bundle.bundle import Bundle

ANNOTATIONS = "annotations.json"
FIGURES = "figures.json"
DESCRIPTION = "labelled by dengine"  # in the info of what is written
_SPOOL = ".labels.spool"
PROMPT_KINDS = ("generic", "listing", "empty")


@dataclass(frozen=True)
class LabelSettings:
    """What `dengine label` was asked for. Raises UsageError for what cannot be meant."""

    images: Path  # a folder of images, or a dataset
    out: Path  # folder for the labels, without any so far
    bundle: Path | None = None  # None: the bundled model
    prompt: str = "generic"  # of PROMPT_KINDS; listing names each image's own annotated classes
    split: str | None = None  # of the dataset
    engine: str = "auto"  # a backend's name
    precision: str = "auto"  # of the backend's arithmetic
    threads: int | None = None  # of the backend, on a CPU; None: its own choice
    device: str | None = None  # cpu, cuda or cuda:N; None: what the engine is fastest on
    skip_bad: bool = False  # leave broken images out, instead of stopping
    label_views: int = 1  # looks that boxes are read from: 2 is with the mirror image
    score: Score | Matched | None = None  # for pseudo-labels: a box below is left out; None: all boxes are in
    uncertain: float = 0.0  # with a score: a box from this up to it marks its region as uncertain; 0: none does
    max_overlap: float = 1.0  # with a score: of two labels of a class that overlap more, the surer stays; 1: both do

    def __post_init__(self) -> None:
        if self.prompt not in PROMPT_KINDS:
            raise UsageError(f"--prompt is {self.prompt}; one of {', '.join(PROMPT_KINDS)} was expected.")
        if self.label_views not in LABEL_VIEWS:
            raise UsageError(f"--label-views is {self.label_views}; 1 or 2 was expected.")
        if self.precision == "int8":
            raise UsageError("--precision int8 is for painting: it would cost labels accuracy. Use --precision auto.")
        if self.uncertain and self.score is None:
            raise UsageError("--uncertain without --score: it says which boxes below that are uncertain.")
        if self.max_overlap != 1.0 and self.score is None:
            raise UsageError(
                "--max-overlap without --score: it says which labels go, and without a score all boxes stay."
            )
        if not 0.0 < self.max_overlap <= 1.0:
            raise UsageError(f"--max-overlap is {self.max_overlap:g}; a number above 0, up to 1 (off), was expected.")


@dataclass(frozen=True)
class LabelSummary:
    """What was found."""

    annotations: Path  # the COCO file
    images: int
    boxes: int  # all that score at least `inference.SCORE_FLOOR`, or with a score the labels
    boxes_by_class: Mapping[str, int]  # every class, in the bundle's order
    uncertain: int  # regions marked as uncertain, beside the boxes
    skipped: tuple[str, ...]  # broken images that were left out
    score: Score | None  # what a label scores at least; None: all boxes are in
    figures: Mapping[str, float]  # AP, AP50, AP75, AP/<class>, ...; of labels precision/<class>; {} without annotations
    unknown_classes: tuple[str, ...]  # annotated, but not among the bundle's: counted nowhere
    seconds: float
    backend: str  # one line: engine, device, precision, threads


def label(settings: LabelSettings, *, report: Report = lambda event: None) -> LabelSummary:
    """Open the bundle and the images, and label them; see `label_images`. Raises DengineError of every kind."""
    from engines.backends import open_backend
    from engines.bundle.bundle import default_bundle, open_bundle

    _check_out(settings.out)
    report(Stage("opening the bundle"))
    bundle = open_bundle(settings.bundle or default_bundle())
    rules, matched = None, isinstance(settings.score, str)
    if settings.score is not None:
        thresholds = bundle.adapter_info.thresholds
        if matched:
            check_frequencies(bundle.adapter_info.frequencies)
        rules = label_rules(settings.score, settings.uncertain, settings.max_overlap, thresholds, bundle.class_names)
    report(Stage("reading the images' headers"))
    dataset = open_dataset(settings.images, split=settings.split, skip_bad=settings.skip_bad, require_boxes=False)
    sizes = {_padded_size(record, bundle.short_side, bundle.size_multiple) for record in dataset.records}
    backend = open_backend(
        bundle, settings.engine, precision=settings.precision, threads=settings.threads, device=settings.device,
        needs=label_needs(bundle, sizes), told=lambda line: report(Stage(line)),
    )  # fmt: skip
    prompt: Any = settings.prompt
    return label_images(
        bundle, backend, dataset, settings.out, prompt, rules=rules, matched=matched,
        label_views=settings.label_views, skip_bad=settings.skip_bad, report=report,
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
    label_views: int = 1,
    skip_bad: bool = False,
    report: Report = lambda event: None,
) -> LabelSummary:
    """Write `out/annotations.json`: boxes scoring at least 0.05, at most 100 an image, in the images' own pixels.

    With `rules` it holds the boxes that are labels, and uncertain ones as crowds; every image stays in. With `matched`,
    too, the rules' score is the least of every class, and `matched_score` finds the one taken. Where the dataset has
    boxes, `out/figures.json` holds AP of all boxes against them, and with `rules` precision and recall of the labels;
    classes are matched by name. An image's boxes depend on that image alone, and so do its labels, but where scores
    are matched. `annotations.json` comes last: a folder without it is begun anew. Memory does not grow with the number
    of images, figures aside.
    Raises UsageError for "listing" without annotations and for "matched" without frequencies, RunError for an `out`
    that has labels already, DatasetError for a broken image (unless `skip_bad`), NumericalError.
    """
    started = time.monotonic()
    annotated = any(len(record.boxes) for record in dataset.records)
    if prompt == "listing" and not annotated:
        raise UsageError(f"--prompt listing needs annotations, and {dataset.root} has none: take generic.")
    _check_out(out)
    prompts = [_prompt(prompt, bundle.style, dataset, record) for record in dataset.records]
    with run_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        found = _Found(skipped=list(dataset.skipped))
        try:
            with (out / _SPOOL).open("w+b") as spool:
                for index, boxes in _labels(
                    bundle, backend, dataset.records, prompts, label_views, skip_bad, found, report
                ):
                    found.keep(spool, index, boxes)
                if rules is not None and matched:
                    every = (journal_boxes(boxes) for _, boxes in found.read(spool))
                    rules = replace(rules, score=matched_score(every, rules, bundle.adapter_info.frequencies))
                figures, unknown = _figures(spool, found, dataset, bundle, rules) if annotated else ({}, ())
                info: dict[str, Any] = {
                    "description": DESCRIPTION,
                    "bundle_sha256": bundle.digest,
                    "prompt": prompt,
                    "label_views": label_views,
                }
                (out / FIGURES).unlink(missing_ok=True)  # of a start that was killed
                if figures:
                    write_json(out / FIGURES, {**info, "images": len(found.offsets), "figures": figures})
                if rules is not None:
                    info |= {"score": rules.score, "uncertain": rules.uncertain, "max_overlap": rules.max_overlap}
                images = (found.annotated(dataset.records[index], boxes, rules) for index, boxes in found.read(spool))
                write_coco(out / ANNOTATIONS, images, bundle.class_names, info)
        finally:
            (out / _SPOOL).unlink(missing_ok=True)
    return LabelSummary(
        annotations=out / ANNOTATIONS,
        images=len(found.offsets),
        boxes=found.boxes.total(),
        boxes_by_class={name: found.boxes[label] for label, name in enumerate(bundle.class_names)},
        uncertain=found.uncertain,
        skipped=tuple(found.skipped),
        score=None if rules is None else rules.score,
        figures=figures,
        unknown_classes=unknown,
        seconds=time.monotonic() - started,
        backend=backend.description,
    )


@dataclass
class _Found:
    """The detections so far: in a file, so that memory stays flat; here only where each image's line begins."""

    offsets: dict[int, int] = field(default_factory=dict)  # record -> place in the spool
    boxes: Counter[int] = field(default_factory=Counter)  # class -> boxes that are labels
    uncertain: int = 0
    skipped: list[str] = field(default_factory=list)

    def keep(self, spool: IO[bytes], index: int, found: Detections) -> None:
        self.offsets[index] = spool.tell()
        arrays = (found.boxes, found.scores, found.labels)
        spool.write(json.dumps([array.tolist() for array in arrays]).encode() + b"\n")

    def read(self, spool: IO[bytes]) -> Iterator[tuple[int, Detections]]:
        """Every image's detections, in the order of the records."""
        for index in sorted(self.offsets):
            spool.seek(self.offsets[index])
            boxes, scores, labels = json.loads(spool.readline())
            yield (
                index,
                Detections(
                    np.array(boxes, dtype=np.float32).reshape(-1, 4),
                    np.array(scores, dtype=np.float32),
                    np.array(labels, dtype=np.int64),
                ),
            )

    def annotated(self, record: Record, found: Detections, rules: Rules | None) -> Annotated:
        """What is written of an image; counts it."""
        labels, crowds = choose(found, rules)
        self.boxes.update(found.labels[labels].tolist())
        self.uncertain += int(crowds.sum())
        rows = labels | crowds
        boxes, classes, scores = found.boxes[rows], found.labels[rows], found.scores[rows]
        return Annotated(record.name, record.width, record.height, boxes, classes, scores, crowds[rows])


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; give a folder for the labels.")
    if (out / ANNOTATIONS).exists():
        raise RunError(f"{out / ANNOTATIONS} exists already and is not overwritten: give another folder.")


def _prompt(kind: str, style: str, dataset: Dataset, record: Record) -> str:
    if kind == "empty":
        return ""
    if kind == "generic":
        return generic_prompt(style)
    counts = Counter(record.labels[~record.iscrowd].tolist())
    return listing_prompt(style, {dataset.class_names[label]: n for label, n in counts.most_common(MAX_LISTED)})


def _padded_size(record: Record, short_side: int, multiple: int) -> tuple[int, int]:
    """(width, height) of the frame that `prepare_frame` makes of an image."""
    width, height, _ = resized_size(record.width, record.height, short_side)
    return math.ceil(width / multiple) * multiple, math.ceil(height / multiple) * multiple


def _labels(
    bundle: "Bundle",
    backend: "Backend",
    records: Sequence[Record],
    prompts: Sequence[str],
    views: int,
    skip_bad: bool,
    found: _Found,
    report: Report,
) -> Iterator[tuple[int, Detections]]:
    """(record, its detections), shape by shape, so that networks are prepared once for each shape."""
    text = TextEncoder(bundle, backend, lambda *what: report(PromptCut(*what)))
    for prompt in dict.fromkeys(prompts):
        text.read(prompt)
    sizes = [_padded_size(record, bundle.short_side, bundle.size_multiple) for record in records]
    done = 0
    for size, members in groupby(sorted(range(len(records)), key=sizes.__getitem__), key=sizes.__getitem__):
        indices = list(members)
        report(Stage(f"preparing for frames of {size[0]}x{size[1]}"))
        batch_size = LARGEST_BATCH if backend.name in BUILT_AHEAD else min(LARGEST_BATCH, len(indices))
        reader = _Reader(bundle, backend, size, batch_size, views)
        for start in range(0, len(indices), reader.batch):
            batch = []
            for index in indices[start : start + reader.batch]:
                try:
                    batch.append((index, _checked_image(records[index])))
                except DatasetError as cause:
                    if not skip_bad:
                        raise DatasetError(f"{cause} Or leave broken images out with --skip-bad.") from cause
                    found.skipped.append(str(cause))
            if batch:
                states = [text(prompts[index]) for index, _ in batch]
                names = [records[index].name for index, _ in batch]
                results = reader([image for _, image in batch], states, names)
                yield from zip([index for index, _ in batch], results, strict=True)
            done += min(reader.batch, len(indices) - start)
            report(Labelled(done, len(records)))


def _checked_image(record: Record) -> npt.NDArray[np.uint8]:
    image = read_image(record.file)
    if image.shape[:2] != (record.height, record.width):
        raise DatasetError(f"{record.file} is not of the size it had when the run began; do not change it meanwhile.")
    return image


class _Reader:
    """Images of one padded size to detections, at a fixed batch."""

    def __init__(self, bundle: "Bundle", backend: "Backend", size: tuple[int, int], batch: int, views: int) -> None:
        self._bundle, self._size, self.batch = bundle, size, batch
        w, h = (side // bundle.vae_stride for side in size)
        self._encoder: Call = prepare(bundle, backend, "vae_encoder", {"B": batch, "h": h, "w": w})
        self._labeller = Labeller(bundle, backend, batch, h, w, views)

    def __call__(
        self, images: Sequence[npt.NDArray[np.uint8]], states: Sequence[torch.Tensor], names: Sequence[str]
    ) -> list[Detections]:
        """Detections of n <= batch images, uint8 [H_i, W_i, 3] each, in their own pixels."""
        frames = [prepare_frame(image, self._bundle.short_side, self._bundle.size_multiple) for image in images]
        fill(self._encoder.inputs["pixels"], [torch.from_numpy(pixels) for pixels, _, _ in frames])
        self._encoder.run()
        latents = self._encoder.outputs["latents"][: len(images)].float()
        check_finite("vae_encoder", latents, names)
        keys = [(0, _noise_key(name)) for name in names]
        logits, boxes = self._labeller(list(latents), states, keys, names)
        found = []
        for i, (image, (_, scale, padded)) in enumerate(zip(images, frames, strict=True)):
            height, width = image.shape[:2]
            corners, scores, labels = view_detections(logits[:, i], boxes[:, i], padded, scale, (width, height))
            found.append(Detections(corners, scores, labels))
        return found


def _noise_key(name: str) -> int:
    """A number that depends on an image's name alone, for the noise of its label pass."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _figures(
    spool: IO[bytes], found: _Found, dataset: Dataset, bundle: "Bundle", rules: Rules | None
) -> tuple[dict[str, float], tuple[str, ...]]:
    """AP against the dataset's boxes, precision and recall of labels, and the dataset's classes that have no match.

    Classes are matched by name as prompts spell it.
    """
    own = {class_words(name): label for label, name in enumerate(bundle.class_names)}
    mapping = [own.get(class_words(name), -1) for name in dataset.class_names]
    unknown = tuple(name for name, label in zip(dataset.class_names, mapping, strict=True) if label < 0)
    if len(unknown) == len(mapping):
        return {}, unknown
    truth, answers = [], []
    for index, answer in found.read(spool):
        truth.append(_Truth.of(dataset.records[index], np.array(mapping, dtype=np.int64)))
        answers.append(answer)
    figures = mean_average_precision(truth, answers, bundle.class_names)
    if rules is not None:
        labels = [_labels_alone(one, rules) for one in answers]
        figures |= precision_and_recall(truth, labels, rules.class_names)
    return figures, unknown


def _labels_alone(found: Detections, rules: Rules) -> Detections:
    rows, _ = choose(found, rules)
    return Detections(found.boxes[rows], found.scores[rows], found.labels[rows])


@dataclass(frozen=True, eq=False)
class _Truth:
    """A record's boxes with the bundle's labels; classes that the bundle does not know are left out."""

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    iscrowd: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, record: Record, mapping: npt.NDArray[np.int64]) -> "_Truth":
        labels = mapping[record.labels]
        known = labels >= 0
        return cls(record.boxes[known], labels[known], record.iscrowd[known])
