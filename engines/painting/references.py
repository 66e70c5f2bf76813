"""The dataset whose images a run repaints.

Knows: which options of a run say how it is read, what the jobs take from it, and whether its labels can be taken over.
Knows nothing about what is done with it.
"""

from typing import TYPE_CHECKING

from engines.composing.composer import Composer, label_map, used_classes
from engines.datasets.dataset import Dataset, open_dataset
from engines.errors import DatasetError
from engines.painting.jobs import JobSource
from engines.painting.settings import PaintOptions

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle


def open_references(options: PaintOptions, *, skip_bad: bool | None = None) -> Dataset:
    """The references of a run that has some. Raises DatasetError.

    skip_bad: in place of the run's own; to look at them, what of them can be read is enough.
    """
    assert options.reference is not None
    return open_dataset(
        options.reference,
        split=options.reference_split,
        skip_bad=options.skip_bad if skip_bad is None else skip_bad,
        require_boxes=False,
        follow_links=options.follow_links,
        boxes=options.boxes,
    )


def job_source(options: PaintOptions, bundle: "Bundle", references: Dataset | None) -> JobSource:
    """What the jobs of a run have in common. Raises DatasetError where nothing can be composed of the references."""
    labels, composer = None, None
    if references is not None and (options.compose or options.labels != "adapter"):
        labels = _label_map(references, bundle)
    if references is not None and options.compose:
        composer = Composer(
            references.records, references.class_names, options.size, bundle.short_side,
            flip=options.flip, rotate=options.rotate,
            keep=options.repaint == "pasted" and options.strength != (0.0, 0.0),
        )  # fmt: skip
    return JobSource(
        frame=options.size,
        short_side=bundle.short_side,
        style=bundle.style,
        references=references.records if references else (),
        class_names=references.class_names if references else (),
        strength=options.strength or (1.0, 1.0),
        flip=options.flip,
        template=options.prompt_template,
        class_statistics=bundle.adapter_info.class_statistics,
        balance=options.balance,
        labels=labels,
        composer=composer,
    )


def settled_labels(asked: PaintOptions, bundle: "Bundle", references: Dataset | None) -> str:
    """Whose boxes are labels: as asked, else both the references' and the adapter's with `compose`, else the adapter's.

    Raises DatasetError for references whose labels cannot be taken over: without a box, or of classes that the bundle
    does not know.
    """
    labels: str = asked.labels or ("both" if asked.compose else "adapter")
    if references is None or (labels == "adapter" and not asked.compose):
        return labels
    field = "compose" if asked.compose else "labels"
    if not any(len(record.instances.single) for record in references.records):
        raise DatasetError(
            f"{references.root} ({references.source}) has no boxes, and `{field}` takes labels from there: give an "
            "annotated dataset, or leave it out.",
            field=field,
        )
    _label_map(references, bundle)
    return labels


def _label_map(references: Dataset, bundle: "Bundle") -> tuple[int, ...]:
    """The bundle's class for each of the references'."""
    return label_map(references.class_names, bundle.class_names, used_classes(references.records))
