"""The fixed lists of labelled images, their tune parts, and the data folder that every stage reads.

Knows: how a list is drawn from the train split by a seed, which of its images are its tune part, and how the dataset is
laid out with one split a list. Knows nothing about models.

The lists lie in `label_lists/`, one image name a line: 10-0, 10-1 and 10-2 are disjoint tenths of train, 5-0 is the
first half of 10-0, and 25-0 holds 10-0. Drawing them again must give the same files: `check` holds both against each
other.

    WORK/data/                 a copy of the dataset (Pascal VOC), with these splits in ImageSets/Main beside its own:
        <list>, <list>-fit, <list>-tune     all of a list, what is trained on for choices, and its tune part
        full-fit, full-tune                 the same of the whole train split
        val-kept                            val without near-copies of train images
    WORK/train-images/         the train images alone, without annotations: references, and what the base learns from
    WORK/pseudo-<list>/images/ the train images that are not in the list, without annotations
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.proof.plan import FULL, Plan
from engines.common.files import write_atomic
from engines.common.rng import generator
from engines.datasets.dataset import Record, open_dataset
from engines.datasets.duplicates import NEAR, fingerprints, near_pairs
from engines.errors import DatasetError

LISTS = Path(__file__).parent / "label_lists"
SPLITS = Path("ImageSets") / "Main"


def draw(names: Sequence[str], plan: Plan) -> dict[str, tuple[str, ...]]:
    """The names of every list, sorted: consecutive parts of one random order of `names`."""
    order = [sorted(names)[place] for place in generator(plan.seed).permutation(len(names)).tolist()]
    drawn = {}
    for name in (*plan.lists, *plan.extra_lists):
        percent, number = name.split("-")
        size = round(plan.shares[percent] * len(names))
        drawn[name] = tuple(sorted(order[int(number) * size : (int(number) + 1) * size]))
    return drawn


def read_list(name: str, folder: Path = LISTS) -> tuple[str, ...]:
    """The image names of a committed list. Raises DatasetError where it is missing."""
    path = folder / f"{name}.txt"
    try:
        return tuple(path.read_text("utf-8").split())
    except OSError as cause:
        raise DatasetError(f"{path} cannot be read: {cause}; it belongs to the repository.") from cause


def check(records: Sequence[Record], class_names: Sequence[str], val: Sequence[str], plan: Plan, folder: Path) -> None:
    """DatasetError unless the committed lists are what the seed draws, know no val image, and show every class."""
    by_name = {Path(record.name).stem: record for record in records}
    for name, drawn in draw(list(by_name), plan).items():
        found = read_list(name, folder)
        if found != drawn:
            raise DatasetError(f"{folder / name}.txt is not what seed {plan.seed} draws from this train split.")
        if shared := sorted(set(found) & set(val)):
            raise DatasetError(f"{folder / name}.txt names validation images, {shared[0]} first.")
        shown = {label for image in found for label in by_name[image].labels.tolist()}
        if missing := [name for label, name in enumerate(class_names) if label not in shown]:
            raise DatasetError(f"{folder / name}.txt shows no {', '.join(missing)}: take another seed.")


def tune_fraction(names: Sequence[str], images: int) -> float:
    """The `--tune-fraction` of train-adapter that puts exactly `images` of `names` (with suffixes) into the tune part.

    Its rule: an image belongs there when the SHA-256 of its name, as a number in 0..1, lies below the fraction.
    """
    places = sorted(int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16 for name in names)
    if not 0 < images < len(places):
        raise DatasetError(f"A tune part of {images} cannot be cut out of {len(places)} images.")
    return (places[images - 1] + places[images]) / 2


def fraction_of(name: str, plan: Plan, folder: Path = LISTS) -> float:
    """The tune fraction of a list, or of the whole train split."""
    if name == FULL:
        return plan.tune_full
    return tune_fraction([f"{image}.jpg" for image in read_list(name, folder)], plan.tune_images[name.split("-")[0]])


def prepare(dataset: Path, work: Path, plan: Plan, folder: Path = LISTS) -> dict[str, object]:
    """Check the lists, and lay out everything under `work` that the module's docstring names; returns what there is."""
    from engines.training.adapter import split_tune

    train, val = open_dataset(dataset, split="train"), open_dataset(dataset, split="val")
    val_names = [Path(record.name).stem for record in val.records]
    check(train.records, train.class_names, val_names, plan, folder)
    splits: dict[str, Sequence[str]] = {}
    by_name = {Path(record.name).stem: record for record in train.records}
    for name in (*plan.lists, *plan.extra_lists, FULL):
        chosen = list(train.records) if name == FULL else [by_name[image] for image in read_list(name, folder)]
        fit, tune = split_tune(chosen, fraction_of(name, plan, folder))
        splits |= {name: _stems(chosen), f"{name}-fit": _stems(fit), f"{name}-tune": _stems(tune)}
    prints = [fingerprints(record.file for record in part.records) for part in (val, train)]
    copies = {pair.first for pair in near_pairs(prints[0].thumbnails, prints[1].thumbnails, NEAR)}
    splits["val-kept"] = [name for index, name in enumerate(val_names) if index not in copies]
    _copy(dataset, work / "data", splits)
    _copy_images([record.file for record in train.records], work / "train-images")
    for name in (*plan.lists, *plan.extra_lists):
        rest = [record.file for stem, record in by_name.items() if stem not in splits[name]]
        _copy_images(rest, work / f"pseudo-{name}" / "images")
    return {
        "images": {name: len(images) for name, images in splits.items()},
        "left_out_of_val": [val_names[index] for index in sorted(copies)],
        "boxes": {name: _boxes([by_name[image] for image in splits[name]], train.class_names) for name in plan.lists},
        "tune_boxes": {
            name: _boxes([by_name[image] for image in splits[f"{name}-tune"]], train.class_names) for name in plan.lists
        },
    }


def _stems(records: Sequence[Record]) -> list[str]:
    return [Path(record.name).stem for record in records]


def _boxes(records: Sequence[Record], class_names: Sequence[str]) -> dict[str, int]:
    labels = [label for record in records for label in record.labels.tolist()]
    return {name: labels.count(label) for label, name in enumerate(class_names)}


def _copy(dataset: Path, folder: Path, splits: Mapping[str, Sequence[str]]) -> None:
    for part in ("JPEGImages", "Annotations", str(SPLITS)):
        shutil.copytree(dataset / part, folder / part, dirs_exist_ok=True)
    for name, images in splits.items():
        write_atomic(folder / SPLITS / f"{name}.txt", "".join(f"{image}\n" for image in images).encode())


def _copy_images(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not (folder / file.name).exists():
            shutil.copy2(file, folder / file.name)
