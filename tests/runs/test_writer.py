"""The writer: whole files only, the same bytes for the same pixels, errors that reach the one who submits."""

import errno
import hashlib
import io
import os
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from engines.runs import writer as writer_module
from engines.runs.writer import ImageWriter, encode_image, writer_threads


def picture(seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_png_keeps_every_pixel_and_jpeg_nearly() -> None:
    smooth = np.tile(np.linspace(0, 255, 24).astype(np.uint8)[None, :, None], (16, 1, 3))
    for image_format, most in (("png", 0), ("jpeg", 6)):
        back = np.asarray(Image.open(io.BytesIO(encode_image(smooth, image_format, 95))), dtype=int)
        assert np.abs(back - smooth).max() <= most


def test_the_same_pixels_give_the_same_bytes() -> None:
    assert encode_image(picture(), "jpeg", 90) == encode_image(picture(), "jpeg", 90)
    assert encode_image(picture(), "jpeg", 90) != encode_image(picture(), "jpeg", 80)


def test_every_image_is_in_place_and_told_once_with_its_hash(tmp_path: Path) -> None:
    with ImageWriter(tmp_path, image_format="png", threads=3, waiting=2) as writer:
        told = []
        for i in range(20):
            writer.submit(f"{i}.png", picture(i))
            told += list(writer.finished())
        told += list(writer.drain())
    assert sorted(image.name for image in told) == names(tmp_path)
    assert len(told) == 20
    for image in told:
        assert hashlib.sha256((tmp_path / image.name).read_bytes()).hexdigest() == image.sha256


def test_a_full_disk_reaches_the_one_who_submits_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    def paint() -> None:
        with ImageWriter(tmp_path) as writer:
            for i in range(50):
                writer.submit(f"{i}.jpg", picture(i))

    with pytest.raises(OSError, match="No space left"):
        paint()
    assert names(tmp_path) == []


def test_an_error_outside_stops_the_threads_and_is_the_one_that_is_seen(tmp_path: Path) -> None:
    before = threading.active_count()

    def paint() -> None:
        with ImageWriter(tmp_path) as writer:
            writer.submit("0.jpg", picture())
            raise ValueError("outside")

    with pytest.raises(ValueError, match="outside"):
        paint()
    assert threading.active_count() == before
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]


def test_only_so_many_images_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def slow(pixels: npt.NDArray[np.uint8], image_format: str, quality: int | None) -> bytes:
        go.wait(10)
        return encode_image(pixels, image_format, quality)

    monkeypatch.setattr(writer_module, "encode_image", slow)
    submitted: list[int] = []
    with ImageWriter(tmp_path, threads=1, waiting=2) as writer:

        def submit() -> None:
            for i in range(6):
                writer.submit(f"{i}.jpg", picture(i))
                submitted.append(i)

        thread = threading.Thread(target=submit)
        thread.start()
        thread.join(0.3)
        assert len(submitted) <= 3  # one being encoded, two waiting
        go.set()
        thread.join(10)
        assert len(list(writer.drain())) == 6


@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (2, 2), (16, 14)])
def test_beside_a_gpu_images_are_written_by_as_many_threads_as_the_cores_allow(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    monkeypatch.setattr("engines.runs.writer.cpu_cores", lambda: cores)
    assert (writer_threads(True), writer_threads(False)) == (threads, 2)
