"""Writes datasets as Hugging Face imagefolder: `images/metadata.jsonl`, and a card with the classes' names.

Knows: the fields of both. Knows nothing about where the labels came from.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.common.files import write_atomic
from engines.datasets.writers import IMAGES, Add, AnnotatedImage, bboxes, on_grid, one_line, replacing_text, scores
from engines.labels.boxes import Instances

METADATA, CARD = "metadata.jsonl", "README.md"
_CONFIGS = ("---", "configs:", "- config_name: default", "  data_files:", "  - split: train", f"    path: {IMAGES}/**")
SIGNED = "Images with the boxes of their objects, written by dengine."


def write_imagefolder(folder: Path, images: Iterable[AnnotatedImage], class_names: Sequence[str]) -> None:
    """Write `images/metadata.jsonl` and `README.md`: see `writing_imagefolder`."""
    with writing_imagefolder(folder, class_names) as add:
        for image in images:
            add(image)


@contextmanager
def writing_imagefolder(folder: Path, class_names: Sequence[str]) -> Iterator[Add]:
    """`images/metadata.jsonl` and `README.md`, for `datasets.load_dataset(folder)`, to which each image is added.

    A line has `file_name`, `width`, `height`, `prompt` where there is one, and `objects` with the lists `id` (of the
    annotations in order, from 1, as in `writing_coco`), `bbox` ([x, y, width, height]), `category` (index into the
    class names, which the card makes a ClassLabel), `category_name`, `area`, `iscrowd`, and `score` where images have
    scores. `load_dataset("imagefolder", data_dir=folder/images)` reads the same, but for the ClassLabel.
    """
    annotations, prompts, scored = 0, False, False
    with replacing_text(folder / IMAGES / METADATA) as file:

        def add(image: AnnotatedImage) -> None:
            nonlocal annotations, prompts, scored
            objects = objects_of(on_grid(image, len(class_names)), class_names, annotations + 1, image.scored)
            annotations += len(objects["id"])
            entry = {"file_name": image.file_name, **fields_of(image)}
            prompts, scored = prompts or image.prompt is not None, scored or image.scored
            file.write(one_line(entry | {"objects": objects}) + "\n")

        yield add
    write_atomic(folder / CARD, _card(class_names, prompts, scored).encode())


def objects_of(found: Instances, class_names: Sequence[str], first: int, scored: bool) -> dict[str, list[Any]]:
    """The lists of an image's boxes, on the grid already; ids count from `first`."""
    boxes = bboxes(found)
    objects: dict[str, list[Any]] = {
        "id": list(range(first, first + len(boxes))),
        "bbox": boxes,
        "category": found.labels.tolist(),
        "category_name": [class_names[label] for label in found.labels.tolist()],
        "area": [width * height for _, _, width, height in boxes],
        "iscrowd": found.crowd.astype(int).tolist(),
    }
    if scored:
        objects["score"] = scores(found)
    return objects


def fields_of(image: AnnotatedImage) -> dict[str, Any]:
    """What is said of an image as a whole."""
    size = {"width": image.width, "height": image.height}
    return size if image.prompt is None else {**size, "prompt": image.prompt}


def write_card(folder: Path, data: str = f"{IMAGES}/**") -> None:
    """Write a `README.md` by which `datasets.load_dataset(folder)` reads `data`; the images alone, unless told."""
    lines = [line.replace(f"{IMAGES}/**", data) for line in _CONFIGS]
    write_atomic(folder / CARD, "\n".join([*lines, "---", "", SIGNED, ""]).encode())


def _card(class_names: Sequence[str], prompts: bool, scored: bool) -> str:
    """What `datasets` reads beside the files: which of them are data, and the type of each field."""
    fields = [("image", "image"), ("width", "int64"), ("height", "int64"), *([("prompt", "string")] if prompts else [])]
    lines = [*_CONFIGS, "  features:"]
    lines += [line for name, kind in fields for line in (f"  - name: {name}", f"    dtype: {kind}")]
    lines += ["  - name: objects", "    struct:", "    - name: id", "      list: int64"]
    lines += ["    - name: bbox", "      list:", "        list: float64", "    - name: category", "      list:"]
    lines += ["        class_label:", "          names:"]
    lines += [f"            '{index}': {one_line(name)}" for index, name in enumerate(class_names)]
    lists = [("category_name", "string"), ("area", "float64"), ("iscrowd", "int64")]
    lists += [("score", "float64")] if scored else []
    lines += [line for name, kind in lists for line in (f"    - name: {name}", f"      list: {kind}")]
    return "\n".join([*lines, "---", "", SIGNED, ""])


def is_ours(card: Path) -> bool:
    """Whether a card is one of `write_imagefolder`'s (or missing), which may be replaced, and not somebody's own."""
    return not card.exists() or SIGNED in card.read_text(encoding="utf-8", errors="replace")
