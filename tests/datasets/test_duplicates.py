"""Copies and near-copies among images."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from refusals import refused

from engines.common.rng import generator
from engines.datasets import duplicates
from engines.datasets.duplicates import (
    Thumbnails,
    fingerprints,
    mirrored,
    near_groups,
    near_pairs,
    pixel_hash,
    thumbnail,
)
from engines.errors import DatasetError


def picture(number: int, size: tuple[int, int] = (96, 72)) -> npt.NDArray[np.uint8]:
    """Coloured blobs; every number has its own."""
    small = generator(3, number).integers(0, 256, size=(9, 12, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def save(folder: Path, name: str, pixels: npt.NDArray[np.uint8]) -> Path:
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_equal_pixels_have_one_hash_whatever_the_file(tmp_path: Path) -> None:
    files = [save(tmp_path, name, picture(0)) for name in ("a.png", "b.bmp")]
    other = save(tmp_path, "c.png", picture(1))
    hashes = fingerprints([*files, other]).hashes
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_hash_knows_the_size() -> None:
    flat = np.zeros((4, 6, 3), dtype=np.uint8)
    assert pixel_hash(flat) != pixel_hash(flat.reshape(6, 4, 3))


@pytest.mark.parametrize("change", ["scaled", "compressed", "brighter", "mirrored"])
def test_a_changed_copy_is_near_its_original_alone(tmp_path: Path, change: str) -> None:
    originals = [save(tmp_path, f"{number}.png", picture(number)) for number in range(6)]
    pixels = picture(4)
    if change == "scaled":
        pixels = np.asarray(Image.fromarray(pixels).resize((160, 120), Image.Resampling.BILINEAR))
    elif change == "brighter":
        pixels = np.clip(pixels * 0.6 + 70, 0, 255).astype(np.uint8)
    elif change == "mirrored":
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    file = tmp_path / "changed.jpg"
    Image.fromarray(pixels).save(file, quality=40)
    found = list(near_pairs(fingerprints([file]).thumbnails, fingerprints(originals).thumbnails))
    assert [(pair.first, pair.second) for pair in found] == [(0, 4)]
    assert 0.95 <= found[0].correlation <= 1.0


def test_a_mirror_image_counts_only_where_it_is_asked_for() -> None:
    images = np.stack([thumbnail(picture(2)), thumbnail(np.ascontiguousarray(picture(2)[:, ::-1]))])
    assert list(near_pairs(images, mirror=False)) == []
    assert [(pair.first, pair.second) for pair in near_pairs(images)] == [(0, 1)]
    np.testing.assert_allclose(mirrored(images)[0], images[1], atol=1e-2)


def test_pairs_within_one_set_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", 2)
    images = np.stack([thumbnail(picture(number)) for number in (0, 1, 0, 2, 0)])
    assert sorted((pair.first, pair.second) for pair in near_pairs(images)) == [(0, 2), (0, 4), (2, 4)]


def test_pictures_that_are_near_by_others_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", 2)
    ends = thumbnail(picture(0)), thumbnail(picture(1))
    between = [ends[0] * (1 - share) + ends[1] * share for share in np.linspace(0, 1, 9)]
    chain = [row / np.linalg.norm(row) for row in between]
    images = np.stack([chain[8], thumbnail(picture(2)), *chain[:8], thumbnail(picture(3))])
    assert near_groups(images) == [[0, *range(2, 10)], [1], [10]]


def test_the_pairs_of_one_picture_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """`copies` names the first."""
    monkeypatch.setattr(duplicates, "_BLOCK", 3)
    same = np.stack([thumbnail(picture(0))] * 8)
    for number in range(8):
        assert [pair.second for pair in near_pairs(same, same) if pair.first == number] == list(range(8))


def some_pictures() -> Thumbnails:
    """Blobs, noise, and both together; near copies of them, some mirrored; and a picture of one colour."""
    rng = generator(5)
    blobs = np.stack([thumbnail(picture(number)) for number in range(40)])
    noise = rng.normal(size=(40, blobs.shape[1])).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    originals = np.concatenate([blobs, noise, blobs + noise])
    strength = rng.uniform(0.0, 0.05, size=(len(originals), 1)).astype(np.float32)
    copies = originals + strength * rng.normal(size=originals.shape).astype(np.float32)
    images = np.concatenate([originals, copies, mirrored(copies[::3]), np.zeros_like(blobs[:1])])
    images -= images.mean(axis=1, keepdims=True)
    return np.asarray(images / np.maximum(np.linalg.norm(images, axis=1, keepdims=True), 1e-12), dtype=np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize(("block", "many"), [(1024, 0.05), (32, 0.0), (32, 1.0)])
def test_pairs_are_those_of_every_comparison(
    monkeypatch: pytest.MonkeyPatch, mirror: bool, threshold: float, block: int, many: float
) -> None:
    """Whatever the sketches rule out, and whether a block is compared pair by pair or as a whole."""
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    monkeypatch.setattr(duplicates, "_MANY", many)
    images = some_pictures()
    exact = images.astype(np.float64)
    alike = exact @ exact.T
    if mirror:
        alike = np.maximum(alike, mirrored(images).astype(np.float64) @ exact.T)
    assert (abs(alike - threshold) > 1e-6)[np.triu_indices(len(images), 1)].all()
    between = {(int(i), int(j)) for i, j in np.argwhere(alike >= threshold)}
    found = list(near_pairs(images, None, threshold, mirror=mirror))
    assert sorted((pair.first, pair.second) for pair in found) == sorted(pair for pair in between if pair[0] < pair[1])
    assert all(abs(pair.correlation - min(1.0, alike[pair[:2]])) < 1e-5 for pair in found)
    across = near_pairs(images[:50], images, threshold, mirror=mirror)
    assert sorted((pair.first, pair.second) for pair in across) == sorted(pair for pair in between if pair[0] < 50)


def test_few_pairs_of_different_pictures_are_looked_at_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the search fast: the sketches rule nearly everything out."""
    monkeypatch.setattr(duplicates, "_MANY", 1.0)
    images = np.stack([thumbnail(picture(number)) for number in range(100)])
    looked_at: list[int] = []

    def look(rows: Thumbnails) -> Thumbnails:
        looked_at.append(len(rows))
        return mirrored(rows)

    monkeypatch.setattr(duplicates, "mirrored", look)
    assert list(near_pairs(images)) == []
    assert sum(looked_at) == len(images)  # each with itself


def test_pictures_of_one_colour_are_near_nothing() -> None:
    flat = thumbnail(np.full((20, 20, 3), 90, dtype=np.uint8))
    assert not flat.any()
    assert list(near_pairs(np.stack([flat, flat]))) == []


def test_no_images_have_no_pairs() -> None:
    none = fingerprints([]).thumbnails
    assert list(near_pairs(none, none)) == []
    assert near_groups(none) == []


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with refused(DatasetError, None, "broken.png"):
        fingerprints([tmp_path / "broken.png"])
