"""Opens a dataset folder, whatever its format.

Knows: what is asked of every dataset, and that a folder may lie one or two below the one that was given. Which formats
there are is in `formats`; each format's own file knows how to read it. Images are never read here, only their headers
(but for files of more than 8 bits, see `assemble`).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engines.common.files import OWN
from engines.common.quote import shorten
from engines.datasets.evidence import check_boxes
from engines.datasets.formats import FORMATS, detect
from engines.datasets.plain import images_alone, read_plain
from engines.datasets.records import Dataset, Findings, ReadOptions, Record, instances_of, readable
from engines.datasets.splits import is_split, mixed_splits
from engines.datasets.tree import Tree, list_images
from engines.errors import DatasetError

__all__ = [
    "Dataset", "Record", "instances_of", "list_images", "open_dataset", "open_images", "readable", "remark_on_splits",
]  # fmt: skip

_DEEPEST = 2  # folders below the one given, in which a dataset is looked for


def remark_on_splits(dataset: "Dataset", split: str | None) -> str | None:
    """What is to be said where a dataset has splits, and all of it is learned from."""
    found = () if split else mixed_splits(dataset.root, (record.file for record in dataset.records))
    if not found:
        return None
    return f"{dataset.root} has the parts {', '.join(found)}, and all are learned from: `split={found[0]}` takes one"


def open_dataset(
    path: Path | str,
    *,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    skip_bad: bool = False,
    require_boxes: bool = True,
    follow_links: bool = False,
    boxes: str = "auto",
) -> Dataset:
    """Read a dataset's annotations and the headers of its images.

    split: a list of ImageSets (VOC), a key of data.yaml or a folder (YOLO), a word in the file's name (COCO);
        None reads everything, but for COCO where several files are there.
    class_names: the classes to expect, in the order of their indices; any other class is a bad annotation.
        None takes the dataset's own: COCO by category id, YOLO by index, the others by the alphabet.
    skip_bad: bad images and annotations are left out and listed in `Dataset.skipped`, in place of an error.
    require_boxes: a folder of images alone, or annotations without one box of a single object, is an error.
    follow_links: links out of the folder are followed; else they are refused by name, but for those into the store that
        the folder lies in (the blobs of a Hugging Face cache).
    boxes: what the numbers of boxes mean, one of `readings.BOXES`; "auto" lets the file's own evidence say.

    Degenerate boxes (no area, no numbers, or outside the image) are always dropped and listed in `Dataset.dropped`.
    What was corrected, passed over or taken for something is in `Dataset.remarks`. Raises DatasetError, naming file and
    field, for everything that is not as its format has it, UsageError for a `boxes` that is none.
    """
    root = Path(path)
    check_boxes(boxes)
    wanted = None if class_names is None else tuple(class_names)
    options = ReadOptions(split, wanted, skip_bad, follow_links, boxes)
    try:
        dataset = _read(root, options)
    except OSError as cause:
        raise DatasetError(f"{root} cannot be read: {cause}.") from cause
    if not dataset.records:
        links = "".join(f" {line}" for line in dataset.remarks if "`follow_links`" in line)
        why = f" All of it was bad, beginning with: {dataset.skipped[0]}" if dataset.skipped else links
        raise DatasetError(f"{root} ({dataset.source}) has no images; add some or name another split.{why}")
    if require_boxes and not any((~record.instances.crowd).any() for record in dataset.records):
        crowds = sum(len(record.instances) for record in dataset.records)
        aside = f" but {crowds} crowds (iscrowd), which teach nothing" if crowds else ""
        last = " ".join(dataset.remarks[-1:]) if not any(len(one.instances) for one in dataset.records) else ""
        why = f" The first that was dropped: {dataset.dropped[0]}" if dataset.dropped else f" {last}".rstrip()
        raise DatasetError(f"{root} ({dataset.source}) has no boxes{aside}; a labelled dataset is needed here.{why}")
    return dataset


def open_images(path: Path | str, *, skip_bad: bool = False, follow_links: bool = False) -> Dataset:
    """The images below a folder, whatever annotations are there; as `open_dataset` else."""
    root, findings = Path(path), Findings(skip_bad)
    try:
        tree = Tree(root, follow_links)
        return images_alone(tree, "", ReadOptions(skip_bad=skip_bad, follow_links=follow_links), findings)
    except OSError as cause:
        raise DatasetError(f"{root} cannot be read: {cause}.") from cause


def _read(root: Path, options: ReadOptions) -> Dataset:
    findings = Findings(options.skip_bad)
    tree = Tree(root, options.follow_links)
    found = detect(tree)
    if found is None:
        inner = _inner_datasets(tree, options.split)
        chosen = len(inner) == 1 and options.split is not None and is_split(inner[0], options.split)
        if len(inner) > 1 or (inner and tree.images and not chosen and not _holds_all(tree, inner[0])):
            shown = " or ".join(str(tree.path(name)) for name in inner[:3])
            raise DatasetError(f"{root} is no dataset itself, but holds {len(inner)}: did you mean {shown}?")
        if inner:
            findings.remark(f"{root} holds the dataset in {shorten(inner[0])}, which is read.")
            options = replace(options, split=None) if chosen else options
            tree = Tree(tree.path(inner[0]), options.follow_links)
            found = detect(tree)
    if tree.outside:
        findings.remark(
            f"{len(tree.outside)} links lead outside {root} and are not followed (`follow_links` does; first: "
            f"{shorten(tree.outside[0])})."
        )
    if found is None:
        return read_plain(tree, options, findings, [one.looks for one in FORMATS])
    if not (tree.root / OWN).is_dir():  # the formats of what a verb wrote say the same
        for other in FORMATS:
            if other is not found[0] and other.find(tree):
                findings.remark(f"Annotations of another format are there, too, and are not read: {other.looks}.")
    return replace(found[0].read(tree, found[1], options, findings), root=tree.root)


def _inner_datasets(tree: Tree, split: str | None) -> list[str]:
    """The folders below that are datasets, those of the split alone where there are such."""
    for depth in range(_DEEPEST):
        folders = [name for name in tree.folders if name.count("/") == depth]
        found = [name for name in folders if detect(Tree(tree.path(name))) is not None]
        found = [name for name in found if tree.inside(name) or not tree.images]  # no folders of annotations alone
        if found:
            mine = [name for name in found if split and is_split(name, split)]
            return mine or found
    return []


def _holds_all(tree: Tree, folder: str) -> bool:
    return len(tree.inside(folder)) == len(tree.images)
