"""Writes datasets whose images lie in a few large files: Parquet as Hugging Face reads it, tars as WebDataset does.

Knows: the fields of both, and how large a file becomes. The same images give the same bytes. Knows nothing about where
the labels came from.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from engines.common.files import replacing
from engines.datasets.imagefolder_writer import fields_of, objects_of, write_card
from engines.datasets.writers import AnnotatedImage, on_grid, one_line
from engines.errors import RunError

PARQUET, WEBDATASET = "parquet", "webdataset"
FILE_BYTES = 384 << 20  # of images in a Parquet file, about
SHARD_BYTES = 256 << 20  # of a tar, about
_GROUP, _GROUP_BYTES = 256, 64 << 20  # rows, and bytes of images, of a row group at most
Pictures = Iterable[tuple[AnnotatedImage, Path]]  # each with its file


def write_parquet(folder: Path, images: Pictures, class_names: Sequence[str], limit: int = FILE_BYTES) -> None:
    """Write `parquet/train-00000.parquet` and so on, and `README.md`, for `datasets.load_dataset(folder)`.

    A row has `image` (bytes and name), `width`, `height`, `prompt`, and `objects` with the lists of `write_imagefolder`
    but for the names of classes: `category` is a ClassLabel. The features stand in each file, so that it is read as
    such wherever it lies. Raises RunError where pyarrow is not installed.
    """
    arrow, parquet = _pyarrow()
    schema = _schema(arrow, class_names)
    (folder / PARQUET).mkdir()
    rows = _rows(images, class_names)
    first = next(rows, None)
    number = 0
    while first is not None or number == 0:
        path = folder / PARQUET / f"train-{number:05d}.parquet"
        with replacing(path) as part, parquet.ParquetWriter(part, schema, compression="none") as file:
            written = 0
            while first is not None and written < limit:
                group, size = [first], len(first["image"]["bytes"])
                while (first := next(rows, None)) is not None and len(group) < _GROUP and size < _GROUP_BYTES:
                    group.append(first)
                    size += len(first["image"]["bytes"])
                file.write_table(arrow.Table.from_pylist(group, schema=schema), row_group_size=_GROUP)
                written += size
        number += 1
    write_card(folder, f"{PARQUET}/*.parquet")


def write_webdataset(folder: Path, images: Pictures, class_names: Sequence[str], limit: int = SHARD_BYTES) -> None:
    """Write `webdataset/train-000000.tar` and so on: each image, and behind it a JSON file of the same name.

    The JSON has `width`, `height`, `prompt`, and `objects` with the lists of `write_imagefolder`; `classes.json` in the
    folder has the names of the classes in order. No time is in a tar.
    """
    (folder / WEBDATASET).mkdir()
    (folder / WEBDATASET / "classes.json").write_text(one_line(list(class_names)) + "\n", "utf-8")
    number, annotations = 0, 0
    source = iter(images)
    one = next(source, None)
    while one is not None or number == 0:
        path = folder / WEBDATASET / f"train-{number:06d}.tar"
        with replacing(path) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as file:
            written = 0
            while one is not None and written < limit:
                image, place = one
                objects = objects_of(on_grid(image, len(class_names)), class_names, annotations + 1, image.scored)
                annotations += len(objects["id"])
                data = place.read_bytes()
                text = one_line({**fields_of(image), "objects": objects}).encode()
                for name, content in ((image.file_name, data), (f"{Path(image.file_name).stem}.json", text)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
                written += len(data) + len(text)
                one = next(source, None)
        number += 1


def _rows(images: Pictures, class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    annotations = 0
    for image, place in images:
        objects = objects_of(on_grid(image, len(class_names)), class_names, annotations + 1, image.scored)
        annotations += len(objects["id"])
        del objects["category_name"]
        picture = {"bytes": place.read_bytes(), "path": image.file_name}
        yield {"image": picture, **fields_of(image), "objects": objects}


def _schema(arrow: Any, class_names: Sequence[str]) -> Any:
    """Arrow's types, with the features that `datasets` reads in their metadata."""
    numbers = {"id": "int64", "category": "int64", "area": "float64", "iscrowd": "int64", "score": "float64"}
    kinds = {name: arrow.list_(arrow.int64() if kind == "int64" else arrow.float64()) for name, kind in numbers.items()}
    kinds["bbox"] = arrow.list_(arrow.list_(arrow.float64()))
    features: dict[str, Any] = {name: _list(_value(kind)) for name, kind in numbers.items()}
    features["category"] = _list({"names": list(class_names), "_type": "ClassLabel"})
    features["bbox"] = _list(_list(_value("float64")))
    info = {
        "image": {"_type": "Image"},
        "width": _value("int64"),
        "height": _value("int64"),
        "prompt": _value("string"),
        "objects": features,
    }
    types = [
        ("image", arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])),
        ("width", arrow.int64()),
        ("height", arrow.int64()),
        ("prompt", arrow.string()),
        ("objects", arrow.struct(list(kinds.items()))),
    ]
    return arrow.schema(types, metadata={"huggingface": json.dumps({"info": {"features": info}})})


def _value(kind: str) -> dict[str, Any]:
    return {"dtype": kind, "_type": "Value"}


def _list(feature: dict[str, Any]) -> dict[str, Any]:
    return {"feature": feature, "_type": "List"}


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as cause:
        raise RunError(
            'pyarrow is not installed. Install it with "pip install dengine[formats]"; the images stay as they are.',
            field="formats",
        ) from cause
    return pyarrow, pyarrow.parquet
