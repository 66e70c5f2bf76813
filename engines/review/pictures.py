"""The pictures that a page shows: thumbnails, kept from one look to the next, and crops round a box.

Knows: how they are made and where thumbnails are kept. Knows nothing about boxes' classes or decisions.
"""

import hashlib
import io
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from engines.datasets.images import read_image
from engines.errors import DatasetError
from engines.review.log import OWN

SIDE = 320  # pixels of a thumbnail's long side, at most
CROP = 192  # of a crop's sides
_SMALL = 40_000  # bytes of a file that is its own thumbnail
_AROUND = 0.35  # of a box's longer side that a crop shows round it, each way
_OUTSIDE = (128, 130, 132)  # what lies beyond the image
_LEAST = 24  # pixels that a crop shows, at least
_SHOWN = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}


def thumbnail(folder: Path, file: Path) -> tuple[bytes, str]:
    """A small picture of an image file, and its media type; what was made is kept in `folder`.

    Raises DatasetError for a file that is no image.
    """
    stat = _stat(file)
    kind = _SHOWN.get(file.suffix.lower())
    if kind is not None and stat.st_size <= _SMALL and kind != "image/gif":
        return file.read_bytes(), kind
    name = hashlib.sha256(f"{file}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:32]
    kept = folder / OWN / "thumbnails" / name[:2] / f"{name}.jpg"
    try:
        return kept.read_bytes(), "image/jpeg"
    except OSError:
        data = _jpeg(_reduced(file), 82)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f".{name}.{os.getpid()}.{os.urandom(3).hex()}.tmp")
        part.write_bytes(data)
        part.replace(kept)
    except OSError:
        pass  # a disk that is full or may not be written: the next look makes it again
    return data, "image/jpeg"


def whole(file: Path) -> tuple[bytes, str]:
    """An image as a browser can show it, upright, and its media type. Raises DatasetError."""
    _stat(file)
    kind = _SHOWN.get(file.suffix.lower())
    if kind is not None:
        return file.read_bytes(), kind
    return _jpeg(Image.fromarray(read_image(file)), 92), "image/jpeg"


@lru_cache(maxsize=2048)
def crop(file: Path, box: tuple[float, float, float, float]) -> tuple[bytes, tuple[float, float, float, float]]:
    """A square JPEG round a box in an image's pixels, and where the box is in it, each 0 to 1. Raises DatasetError."""
    picture = Image.fromarray(_pixels(file))
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = max(max(box[2] - box[0], box[3] - box[1]) * (0.5 + _AROUND), _LEAST / 2)
    extent = (x - half, y - half, x + half, y + half)
    shown = picture.transform(
        (CROP, CROP), Image.Transform.EXTENT, extent, Image.Resampling.BILINEAR, fillcolor=_OUTSIDE
    )
    corners = [(box[i] - (x, y)[i % 2] + half) / (2 * half) for i in range(4)]
    return _jpeg(shown, 85), (corners[0], corners[1], corners[2], corners[3])


@lru_cache(maxsize=16)
def _pixels(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The last few images: the crops of one come together."""
    return read_image(file)


def _reduced(file: Path) -> Image.Image:
    """The image with its long side at SIDE or less; large JPEG files are decoded small."""
    try:
        with Image.open(file) as image:
            if image.format == "JPEG" and image.mode == "RGB" and max(image.size) > 2 * SIDE:
                turn = image.getexif().get(274, 1)
                image.draft("RGB", (2 * SIDE, 2 * SIDE))
                if turn == 1:
                    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
                    return image.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass  # `read_image` says what is wrong
    found = Image.fromarray(read_image(file))
    found.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    return found


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as cause:
        raise DatasetError(f"{file} cannot be read: {cause.strerror}.") from cause
