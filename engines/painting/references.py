"""The dataset whose images a run repaints.

Knows: which options of a run say how it is read. Knows nothing about what is done with it.
"""

from engines.datasets.dataset import Dataset, open_dataset
from engines.painting.settings import PaintOptions


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
