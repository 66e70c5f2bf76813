"""Dataset files, spoilt by the hundred, and what opening their folder does each time.

Knows: a small folder of every format, how text files are spoilt beyond their bytes, and what must hold of a dataset
that opened all the same: no file of another folder, numbers inside their images, names that writers can write.
Knows nothing about how datasets are read.

`python tests/helpers/fuzz_datasets.py 20000 7` tries so many mutations with that seed.
"""

import contextlib
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from fuzz import Report, judge, mutated_file
from made_datasets import (
    PICTURES,
    coco_content,
    make_coco,
    make_voc,
    make_yolo,
    picture,
    text,
    write_coco_file,
)
from PIL import Image

from engines.datasets.dataset import open_dataset
from engines.datasets.writers import AnnotatedImage, on_grid
from engines.errors import DatasetError

_TOKENS = re.compile(r"[A-Za-z_]\w*|-?\d[\d.eE+-]*")
_WORDS = (
    "", "0", "-1", "1", "2", "7", "0.5", "1e308", "-1e308", "nan", "inf", "9" * 400, "1e-320", "x" * 3000, "a\nb", "é",
    "a.png", "b.png", "../secret.png", "/etc/passwd", "..\\secret.png", "D:\\a.png", "\x00", "\ud7ff", "%s", "{x}", "[",
    "*a", "&a", "!!python/object:os.system", "<!ENTITY x 'y'>", "&x;", "\u202e", "null", "true", "~", "0x10", "1_000",
)  # fmt: skip


def mutated_text(data: bytes, rng: random.Random) -> bytes:
    """A copy of a text file with words and numbers replaced, or lines repeated and taken away; or with spoilt bytes."""
    if rng.random() < 0.3:
        return mutated_file(data, rng)
    content = data.decode("utf-8")
    for _ in range(rng.choice((1, 1, 2, 4))):
        if rng.random() < 0.2:
            lines = content.splitlines(keepends=True)
            at = rng.randrange(len(lines) or 1)
            lines[at : at + 1] = lines[at : at + 1] * rng.choice((0, 2, 40))
            content = "".join(lines)
        elif matches := list(_TOKENS.finditer(content)):
            match = rng.choice(matches)
            content = content[: match.start()] + rng.choice(_WORDS) + content[match.end() :]
    return content.encode("utf-8", "surrogatepass")


def _yolo(root: Path) -> None:
    make_yolo(root, "images/train", "labels/train", None)
    text(
        root / "data.yaml",
        "path: .\ntrain: train.txt\nval: images/train\nnames:\n  0: cat\n  1: dog\nkpt_shape: [2, 3]\n",
    )
    text(root / "train.txt", "./images/train/a.png\n/home/x/images/train/b.png\n")


def _darknet(root: Path) -> None:
    make_yolo(root, "obj_train_data", "obj_train_data", "obj.names")
    text(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    text(root / "train.txt", "data/obj_train_data/a.png\ndata/obj_train_data/b.png\n")


def _voc(root: Path) -> None:
    make_voc(root)
    text(root / "ImageSets" / "Main" / "train.txt", "a\nb\n")


def _coco(root: Path) -> None:
    content = coco_content()
    content["annotations"][0] |= {"segmentation": [[4, 6, 20, 6, 20, 30]], "attributes": {"rotation": 20.0}}
    content["annotations"][1] = {"image_id": 1, "category_id": 2, "segmentation": {"counts": [9, 40], "size": [48, 64]}}
    content["images"][1]["coco_url"] = "http://x/val/b.png"
    make_coco(root, content)


def _captions(root: Path) -> None:
    make_coco(root)
    told = [{"image_id": 1, "id": 1, "caption": "two cats and a dog"}, {"image_id": 2, "id": 2, "caption": "a dog"}]
    (root / "annotations" / "instances.json").rename(root / "annotations" / "instances_x.json")
    write_coco_file(root / "annotations" / "captions_x.json", {"images": [], "annotations": told})


def _labelstudio(root: Path) -> None:
    make_yolo(root, names=None)
    names = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    write_coco_file(root / "notes.json", {"categories": names, "info": {"year": 2020}})


def _tables(root: Path) -> None:
    rows = [
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf",
        "a,/m/cat,0.1,0.4,0.2,0.6,0",
        "b,/m/dog,0.5,0.9,0.1,0.2,1",
    ]
    for name in PICTURES:
        picture(root / "train" / name)
    text(root / "train-annotations-bbox.csv", "\n".join(rows))
    text(root / "class-descriptions-boxable.csv", "/m/cat,cat\n/m/dog,dog\n")


def _cvat(root: Path) -> None:
    for name in PICTURES:
        picture(root / "images" / name)
    text(
        root / "annotations.xml",
        '<annotations><image name="a.png" width="64" height="48"><box label="cat" xtl="1" ytl="2" xbr="9" ybr="9" '
        'rotation="30"/><polygon label="dog" points="1,2;3,4;5,1"/><ellipse label="dog" cx="9" cy="9" rx="3" ry="4"/>'
        "</image></annotations>",
    )


def _labelme(root: Path) -> None:
    for name in PICTURES:
        picture(root / name)
        shapes = [{"label": "cat", "points": [[1, 2], [30, 20]], "shape_type": "rectangle"}]
        write_coco_file(
            root / f"{name[:-4]}.json", {"shapes": shapes, "imagePath": name, "imageWidth": 64, "imageHeight": 48}
        )


def _pictures(root: Path) -> None:
    picture(root / "images" / "a.png", orientation=6)
    picture(root / "images" / "b.jpg", orientation=8)
    picture(root / "images" / "c.gif")
    Image.new("I;16", (64, 48), 4000).save(root / "images" / "d.tif")
    picture(root / "images" / "e.webp")
    picture(root / "images" / "f.bmp")
    for name in "abcdef":
        text(root / "labels" / f"{name}.txt", "0 0.5 0.5 0.2 0.2\n")


MAKERS: dict[str, Callable[[Path], None]] = {
    "coco": _coco, "captions": _captions, "labelstudio": _labelstudio, "voc": _voc, "yolo": _yolo, "darknet": _darknet,
    "csv": _tables, "cvat": _cvat, "labelme": _labelme, "pictures": _pictures,
}  # fmt: skip


def read(root: Path, skip_bad: bool, split: str | None = None) -> None:
    """Open a folder, and see that what came in may be believed and written. Warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = open_dataset(root, skip_bad=skip_bad, split=split, require_boxes=False)
        for line in dataset.lines():
            assert len(line) <= 500, line[:600]
            assert "\n" not in line, line
        for name in dataset.class_names:
            assert name.encode() == " ".join(name.split()).encode(), name
        for record in dataset.records:
            assert record.file.resolve().is_relative_to(root.resolve()), record.file
            record.name.encode()
            image = AnnotatedImage(record.name, record.width, record.height, record.instances)
            on_grid(image, len(dataset.class_names))
            with contextlib.suppress(DatasetError):  # of damage that a header does not show
                record.pixels()


def targets(folder: Path) -> Iterator[tuple[Path, Path]]:
    """(dataset folder, a file of it), of every format."""
    picture(folder / "secret.png")
    for name, make in MAKERS.items():
        make(folder / name)
        for file in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
            if name == "pictures" or file.suffix != ".png":
                yield folder / name, file


def fuzz_datasets(folder: Path, count: int, seed: int = 0) -> Report:
    """Spoil the files of every format in `count` ways in all, one at a time, and judge what opening the folder does."""
    report, number = Report(), 0
    every = list(targets(folder))
    while number < count:
        root, file = every[number % len(every)]
        before = file.read_bytes()
        name = f"{file.relative_to(folder)} number {number} of seed {seed}"
        rng = random.Random(f"{seed}/{file.relative_to(folder)}/{number}")
        is_text = file.suffix not in (".png", ".jpg", ".gif", ".tif", ".webp", ".bmp", ".json")
        file.write_bytes(mutated_text(before, rng) if is_text else mutated_file(before, rng))
        split = "train" if rng.random() < 0.3 else None
        judge(partial(read, root, rng.random() < 0.5, split), name, report, root)
        file.write_bytes(before)
        number += 1
    return report


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(fuzz_datasets(Path(place), int(sys.argv[1]), int(sys.argv[2])))  # noqa: T201
