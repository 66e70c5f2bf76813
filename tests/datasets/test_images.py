"""Image files of every mode and orientation come in as upright 8-bit RGB."""

import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from refusals import refused

from engines.datasets.images import checked_header, image_size, read_image
from engines.datasets.tree import list_images
from engines.errors import DatasetError

_ORIENTATION = 0x0112
# How an upright image is stored, by EXIF orientation.
_STORED: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def _gradient(width: int = 24, height: int = 16) -> npt.NDArray[np.uint8]:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([columns * 10, rows * 15, columns * 0 + 77], axis=-1).astype(np.uint8)


def _save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_rgb_pixels_come_in_unchanged(tmp_path: Path) -> None:
    pixels = _gradient()
    read = read_image(_save(tmp_path / "a.png", Image.fromarray(pixels)))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "jpg"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    grey = np.full((8, 12), 200, dtype=np.uint8)
    read = read_image(_save(tmp_path / f"a.{suffix}", Image.fromarray(grey)))
    np.testing.assert_array_equal(read, np.full((8, 12, 3), 200))


def test_bilevel_becomes_black_and_white(tmp_path: Path) -> None:
    bits = np.array([[True, False], [False, True]])
    read = read_image(_save(tmp_path / "a.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(read[..., 0], [[255, 0], [0, 255]])


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, 0] = [255, 0, 0, 255]
    pixels[0, 1] = [0, 0, 0, 127]
    read = read_image(_save(tmp_path / "a.png", Image.fromarray(pixels)))
    np.testing.assert_array_equal(read[0, 0], [255, 0, 0])
    np.testing.assert_array_equal(read[1, 1], [255, 255, 255])
    assert abs(int(read[0, 1, 0]) - 128) <= 1


def test_grey_with_alpha_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 255], [10, 0]]], dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert image.mode == "LA"
    np.testing.assert_array_equal(read_image(_save(tmp_path / "a.png", image))[0, :, 1], [10, 255])


def test_palette_colours_and_its_transparent_entry_are_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    opaque = read_image(_save(tmp_path / "a.png", image))
    np.testing.assert_array_equal(opaque[0], [[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    clear = read_image(_save(tmp_path / "b.png", image, transparency=1))
    np.testing.assert_array_equal(clear[0], [[255, 0, 0], [255, 255, 255], [0, 0, 255]])


def test_a_transparent_colour_of_an_rgb_png_becomes_white(tmp_path: Path) -> None:
    pixels = np.array([[[1, 2, 3], [9, 9, 9]]], dtype=np.uint8)
    read = read_image(_save(tmp_path / "a.png", Image.fromarray(pixels), transparency=(1, 2, 3)))
    np.testing.assert_array_equal(read[0], [[255, 255, 255], [9, 9, 9]])


def test_cmyk_is_converted(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = read_image(_save(tmp_path / "a.jpg", image, quality=95))
    assert red[..., 0].min() > 240
    assert red[..., 1:].max() < 15


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_brightness(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    read = read_image(_save(tmp_path / f"a.{suffix}", Image.fromarray(values)))
    np.testing.assert_array_equal(read[0, :, 0], [0, 1, 128, 255])


def test_float_grey_is_taken_as_fractions_or_as_bytes(tmp_path: Path) -> None:
    fractions = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    octets = Image.fromarray(np.array([[0.0, 127.6, 300.0]], dtype=np.float32))
    np.testing.assert_array_equal(read_image(_save(tmp_path / "a.tif", fractions))[0, :, 0], [0, 128, 255])
    np.testing.assert_array_equal(read_image(_save(tmp_path / "b.tif", octets))[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.full((16, 32, 3), 255, dtype=np.uint8)
    upright[:8, :8] = 0  # one dark corner, top left
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(_STORED[orientation](upright)))
    path = _save(tmp_path / f"a.{suffix}", stored, exif=exif)
    assert image_size(path) == (32, 16)
    assert np.abs(read_image(path).astype(int) - upright).mean() < 6  # JPEG and WebP lose a little


def test_an_orientation_in_a_png_text_chunk_counts_for_the_size_too(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    path = _save(tmp_path / "a.png", Image.fromarray(_gradient(24, 16)), pnginfo=text)
    assert image_size(path) == (16, 24)
    assert read_image(path).shape == (24, 16, 3)


def test_unreadable_exif_is_no_reason_to_refuse_the_pixels(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.jpg", Image.fromarray(_gradient()), exif=b"Exif\x00\x00garbage" * 3)
    assert image_size(path) == (24, 16)
    assert read_image(path).shape == (16, 24, 3)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    path = tmp_path / "a.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(path).min() == 255


def test_the_size_comes_from_the_header_alone(tmp_path: Path) -> None:
    whole = _save(tmp_path / "a.jpg", Image.effect_noise((64, 48), 80.0))
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:-600])
    assert image_size(cut) == (64, 48)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
def test_a_file_cut_short_is_found(tmp_path: Path, suffix: str) -> None:
    whole = _save(tmp_path / f"a.{suffix}", Image.effect_noise((64, 48), 80.0).convert("RGB"))
    assert checked_header(whole).size == (64, 48)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with refused(DatasetError, None, "cut."):
        checked_header(cut)
    with refused(DatasetError, None, "cut."):
        read_image(cut)


def test_a_jpeg_without_its_end_mark_but_with_all_pixels_is_whole(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.jpg", Image.fromarray(_gradient()))
    path.write_bytes(path.read_bytes()[:-2] + b"\x00" * 2000)
    assert checked_header(path).size == (24, 16)


def test_damage_inside_a_png_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", Image.effect_noise((64, 64), 80.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with refused(DatasetError, None, "a.png"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_a_file_that_is_no_image_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (read_image, image_size, checked_header):
        with refused(DatasetError, None, "a.png"):
            read(path)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with refused(DatasetError, None, "a.png"):
        read_image(tmp_path / "a.png")
    with refused(DatasetError, None, tmp_path.name):
        image_size(tmp_path)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(tmp_path / "a.png", Image.new("L", (200, 200)))
    for limit in (30_000, 10_000):  # Pillow warns above the first, and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DatasetError, match="pixels; make it smaller"):
            image_size(path)


def test_images_are_listed_sorted_through_all_folders_but_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "a.png", "b/1.webp", ".hidden/x.png", ".y.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    listed = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert listed == ["a.png", "b/1.webp", "b/2.JPG"]


def test_listing_a_file_or_nothing_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with refused(DatasetError, None, "a.png"):
        list_images(tmp_path / "a.png")
    shutil.rmtree(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        list_images(tmp_path)


def test_threads_that_read_images_leave_the_warnings_of_the_process_as_they_were(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(8)]
    for number, file in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 255, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(read_image, files * 10))) == 80
    assert list(warnings.filters) == before
