"""Opens a dataset folder, whatever its format.

Knows: the formats there are, and how a folder of each looks. Each format's own file knows how to read it;
`records` has the form that all of them end in. Images are never read here, only their headers.

A folder that looks like several formats is read as the first of COCO, Pascal VOC, YOLO.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from engines.datasets.coco import find_coco, read_coco
from engines.datasets.images import list_images
from engines.datasets.records import (
    Classes,
    Dataset,
    Findings,
    Record,
    build_record,
    instances_of,
    measured,
    visible_folders,
)
from engines.datasets.voc import find_voc, read_voc
from engines.datasets.yolo import find_yolo, read_yolo
from engines.errors import DatasetError

__all__ = ["Dataset", "Record", "instances_of", "list_images", "open_dataset"]

_EXPECTED = (
    "a COCO .json (with images, annotations, categories) in it or in annotations/, "
    "Pascal VOC Annotations/*.xml, or YOLO labels/*.txt beside images/"
)


def open_dataset(
    path: Path | str,
    *,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    skip_bad: bool = False,
    require_boxes: bool = True,
) -> Dataset:
    """Read a dataset's annotations and the headers of its images.

    split: a list of ImageSets (VOC), a key of data.yaml or a folder (YOLO), a word in the file's name (COCO);
        None reads everything, but for COCO where several files are there.
    class_names: the classes to expect, in the order of their indices; any other class is a bad annotation.
        None takes the dataset's own: COCO by category id, VOC by the alphabet, YOLO by index.
    skip_bad: bad images and annotations are left out and listed in `Dataset.skipped`, in place of an error.
    require_boxes: a folder of images alone, or annotations without one box, is an error.

    Degenerate boxes (no area, or outside the image) are always dropped and listed in `Dataset.dropped`.
    Raises DatasetError, naming file and field, for everything that is not as its format has it.
    """
    root = Path(path)
    findings = Findings(skip_bad)
    try:
        dataset = _read(root, split, class_names, findings)
    except OSError as cause:
        raise DatasetError(f"{root} cannot be read: {cause}.") from cause
    if not dataset.records:
        why = f" All of it was bad, beginning with: {dataset.skipped[0]}" if dataset.skipped else ""
        raise DatasetError(f"{root} ({dataset.source}) has no images; add some or name another split.{why}")
    if require_boxes and not any(len(record.instances.boxes) for record in dataset.records):
        raise DatasetError(f"{root} ({dataset.source}) has no boxes; a labelled dataset is needed here.")
    return dataset


def _read(root: Path, split: str | None, class_names: Sequence[str] | None, findings: Findings) -> Dataset:
    if not root.exists():
        raise DatasetError(f"{root} does not exist; give the folder of a dataset.")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file; give the folder that holds the dataset.")
    if coco_files := find_coco(root):
        return read_coco(root, coco_files, split, class_names, findings)
    if voc_folders := find_voc(root):
        return read_voc(root, voc_folders, split, class_names, findings)
    if find_yolo(root):
        return read_yolo(root, split, class_names, findings)
    return _read_plain(root, split, class_names, findings)


def _read_plain(root: Path, split: str | None, class_names: Sequence[str] | None, findings: Findings) -> Dataset:
    """A folder of images without annotations (of its folder `split`, where one is named)."""
    folder = root / split if split and (root / split).is_dir() else root
    files = list_images(folder)
    if not files:
        raise DatasetError(f"{folder} holds no dataset: {_content(folder)}; expected {_EXPECTED}.{_hint(folder)}")
    if split and folder == root:
        raise DatasetError(f'{root} has no split "{split}": it is a folder of images without annotations.')
    records: list[Record] = []
    for file in files:
        with findings.item():
            name = file.relative_to(folder).as_posix()
            records.append(build_record(file, name, measured(file, name), [], findings))
    return Dataset(
        root=root,
        class_names=Classes((), class_names).names,
        records=records,
        dropped=(),
        skipped=tuple(findings.skipped),
        source="images without annotations",
    )


def _content(folder: Path) -> str:
    """What a folder has, in a few words: "it is empty", "it has 2 folders, 12 .csv"."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    counts = Counter("folders" if entry.is_dir() else entry.suffix or "other files" for entry in entries)
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())[:6])
    return f"it has {shown}" if shown else "it is empty"


def _hint(folder: Path) -> str:
    for inner in visible_folders(folder):
        if find_coco(inner) or find_voc(inner) or find_yolo(inner):
            return f" Did you mean {inner}?"
    return ""
