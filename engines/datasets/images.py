"""Image files in: any mode, any orientation, to 8-bit RGB.

Knows: how to turn a file into upright RGB pixels, how to read its upright size from the header alone, and how
to tell a whole file from a cut one without decoding it. Knows nothing about boxes, datasets or networks.

Shapes: H, W pixels of the upright image, that is, after the EXIF orientation has been applied. Every box in
dengine is in pixels of the upright image, which is what viewers and labelling tools show.
Colour profiles are not applied.
"""

import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from engines.common.quote import shorten
from engines.errors import DatasetError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm"}
    | {".jp2", ".avif"}
)
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _EXIF_ORIENTATION = 256, 257, 258, 274
_PNG_DEPTH = 24  # where a PNG says how many bits a sample has
_QUARTER_TURNS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_METADATA = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})  # chunks that may hold an orientation
_DEEP_LIMIT = 40 * 10**6  # pixels of more than 8 bits, some seconds of work
_JPEG_END = b"\xff\xd9"


@dataclass(frozen=True)
class Header:
    """What a file says of its image before a pixel is decoded."""

    size: tuple[int, int]  # (width, height) of the upright image
    stored: tuple[int, int]  # the same before the EXIF orientation is applied
    orientation: int  # of EXIF, 1 to 8
    deep: bool  # more than 8 bits a sample


def read_image(path: Path | str, white: float | None = None) -> npt.NDArray[np.uint8]:
    """Pixels of an image file: uint8 [H, W, 3] RGB, upright.

    EXIF orientation is applied. Grey becomes three equal channels; transparency is laid on white; CMYK is
    converted; of an animation the first frame is read. Files of more than 8 bits a sample are scaled so that `white`
    becomes 255; without it, integers are taken as 0..65535, floats as 0..1 when no value is above 1, else as 0..255.
    Raises DatasetError naming the file.
    """
    with _opened(Path(path)) as image:
        return pixels_of(image, white)


def pixels_of(image: Image.Image, white: float | None = None) -> npt.NDArray[np.uint8]:
    """Pixels of an open Pillow image, as `read_image` gives those of a file: uint8 [H, W, 3] RGB, upright.

    >>> pixels_of(Image.new("L", (4, 3), 255)).shape
    (3, 4, 3)
    """
    deep = white is not None and _is_deep(image)
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    rgb = np.asarray(_to_rgb(image if turn is None else image.transpose(turn), white), dtype=np.uint8)
    if deep and white is not None and image.mode[0] not in "IF":  # colour, of which Pillow keeps the upper 8 bits
        rgb = np.clip(np.rint(rgb * (255.0 / max(int(white) >> 8, 1))), 0, 255).astype(np.uint8)
    return np.array(rgb)


def highest_value(path: Path | str) -> tuple[float, bool]:
    """The highest value of a file of more than 8 bits a sample, and whether its values are floats; DatasetError.

    Of colour files Pillow keeps the upper 8 of 16 bits: what is given is the highest value that these may stand for.
    """
    with _opened(Path(path)) as image:
        image.load()
        values = np.asarray(image)
        if image.mode[0] not in "IF":
            colours = values[..., :-1] if image.mode in ("LA", "RGBA") else values
            return float(colours.max(initial=0)) * 256 + 255, False
        return float(np.nan_to_num(values, posinf=0.0).max(initial=0)), image.mode == "F"


def image_header(path: Path | str) -> Header:
    """Sizes and depth from the file's header; raises DatasetError naming the file."""
    file = Path(path)
    with _opened(file) as image:
        stored, orientation = image.size, 1
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # newer Pillows have turned `size` already
            stored = int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT])
            tag = image.tag_v2.get(_EXIF_ORIENTATION, 1)
            orientation = _turn(tag)
        elif image.format != "PNG" or _png_chunks(file) & _PNG_METADATA:
            orientation = _orientation(image)  # asking Pillow for the EXIF of a PNG decodes all its pixels
        deep = _is_deep(image)
    turned = orientation in _QUARTER_TURNS
    return Header(stored[::-1] if turned else stored, stored, orientation, deep)


def image_size(path: Path | str) -> tuple[int, int]:
    """(width, height) of the upright image, from the file's header; raises DatasetError naming the file."""
    return image_header(path).size


def checked_header(path: Path | str) -> Header:
    """`image_header`, and a DatasetError for a file that was cut short.

    JPEG and PNG files are judged by their end marks; only where these are missing, and for other formats,
    are the pixels decoded. Damage inside a file of full length shows in `read_image`.
    """
    file = Path(path)
    header = image_header(file)
    if not _has_end(file):
        with _opened(file) as image:
            image.load()
    return header


class _Quiet:
    """No warnings while files are read, and too large images an error. Python's filters are the whole process's: so the
    first reader of several threads sets them, and the last one puts back what was there.
    """

    def __init__(self) -> None:
        self._lock, self._readers, self._before = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._before.__exit__(None, None, None)


_QUIET = _Quiet()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The open image; whatever Pillow raises inside the block becomes a DatasetError that names the file."""
    try:
        with _QUIET, Image.open(path) as image:
            if image.width * image.height > _DEEP_LIMIT and _is_deep(image):
                raise DatasetError(
                    f"{path} has {image.width * image.height / 1e6:.0f} million pixels of more than 8 bits; up to "
                    f"{_DEEP_LIMIT // 10**6} million are read. Make it smaller, or 8 bits deep, first."
                )
            yield image
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise DatasetError(f"{path} has more than {limit} million pixels; make it smaller first.") from None
    except UnidentifiedImageError:
        raise DatasetError(f"{path} is not an image that can be read; replace or remove it.") from None
    except MemoryError:
        raise DatasetError(f"{path} does not fit in memory; make it smaller first.") from None
    except Exception as cause:  # Pillow's decoders raise many kinds: OSError, SyntaxError, struct.error, ...
        raise DatasetError(f"{path} is a broken image ({shorten(cause, 200)}); replace or remove it.") from cause


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; unreadable metadata count as none, as in every viewer."""
    try:
        return _turn(image.getexif().get(_EXIF_ORIENTATION, 1))
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error):
        return 1


def _turn(tag: object) -> int:
    """An orientation as files have it; what is none, such as the 0 that cameras write, turns nothing."""
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def _is_deep(image: Image.Image) -> bool:
    """Whether an opened file holds more than 8 bits a sample."""
    if image.mode[0] in "IF":
        return True
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits: Any = image.tag_v2.get(_TIFF_BITS, 8)
        return int(max(bits if isinstance(bits, tuple) else (bits,))) > 8
    name = getattr(image, "filename", "")
    if image.format != "PNG" or not name:
        return False
    with open(name, "rb") as file:
        return file.read(_PNG_DEPTH + 1)[_PNG_DEPTH:] == b"\x10"


def _png_chunks(path: Path) -> set[bytes]:
    """Names of a PNG's chunks; `IEND` is among them only if the file holds all that it announces."""
    names: set[bytes] = set()
    with path.open("rb") as file:
        end = file.seek(0, 2)
        position = file.seek(8)
        while position + 12 <= end:
            file.seek(position)
            length, name = struct.unpack(">I4s", file.read(8))
            position += 12 + length
            if position <= end:
                names.add(name)
            if name == b"IEND":
                break
    return names


def _has_end(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(b"\xff\xd8"):
            file.seek(max(file.seek(0, 2) - 1024, 0))
            return _JPEG_END in file.read()
    return start == b"\x89PNG\r\n\x1a\n" and b"IEND" in _png_chunks(path)


def _to_rgb(image: Image.Image, white: float | None) -> Image.Image:
    if image.mode[0] in "IF":
        return Image.fromarray(_grey_8bit(np.asarray(image), white)).convert("RGB")
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_8bit(values: npt.NDArray[np.generic], white: float | None) -> npt.NDArray[np.uint8]:
    """Grey values of Pillow's modes I;16 and I (0..65535) and F (0..1 or 0..255) -> uint8; `white` stands for 255."""
    grey = np.nan_to_num(values.astype(np.float64))
    if white is not None:
        grey *= 255.0 / white
    elif values.dtype.kind in "iu":
        grey /= 257.0
    elif grey.max(initial=0.0) <= 1.0:
        grey *= 255.0
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)
