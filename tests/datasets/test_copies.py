"""Copies among sets of images: the same, nearly the same, parts, and none where there are none."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from quality_pictures import photograph
from refusals import refused

from engines.datasets import copies
from engines.datasets.copies import Seen, known_from, known_to
from engines.datasets.dataset import Record, open_images, readable
from engines.datasets.duplicates import fingerprints
from engines.datasets.learned import LEARNED, read_learned, write_learned
from engines.errors import DatasetError, ModelError
from engines.training.adapter_figures import looks

NUMBER = 20


def _save(folder: Path, images: dict[str, Image.Image]) -> list[Record]:
    folder.mkdir(parents=True)
    for name, image in images.items():
        image.save(folder / name, quality=88)
    return list(open_images(folder).records)


def _part(image: Image.Image, number: int) -> Image.Image:
    """A cut of 45% to 85% of the sides, at another scale."""
    rng = np.random.default_rng(number)
    share = rng.uniform(0.45, 0.85, 2) if number % 5 == 0 else np.repeat(rng.uniform(0.45, 0.85), 2)
    wide, high = image.width * share[0], image.height * share[1]
    x, y = rng.uniform(0, image.width - wide), rng.uniform(0, image.height - high)
    scale = rng.uniform(0.6, 1.4)
    return image.resize(
        (round(wide * scale), round(high * scale)), Image.Resampling.BICUBIC, (x, y, x + wide, y + high)
    )


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("val") / "images"
    return _save(folder, {f"{n:02}.png": Image.fromarray(photograph(n, (240, 180))) for n in range(NUMBER)})


def _others() -> dict[str, Image.Image]:
    return {f"other-{n:02}.png": Image.fromarray(photograph(100 + n, (240, 180))) for n in range(NUMBER)}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["copy", "pressed", "part"])
def test_every_photograph_that_is_known_is_found_and_no_other(tmp_path: Path, val: list[Record], way: str) -> None:
    images: dict[str, Image.Image] = {}
    for number, record in enumerate(val):
        image = Image.fromarray(record.pixels())
        name = f"{number:02}.{'jpg' if way == 'pressed' else 'png'}"
        images[name] = _part(image, number) if way == "part" else image
    prints = fingerprints(val)
    known = _save(tmp_path / "known", images)
    sets = [(known, set(range(NUMBER)))] + ([(_save(tmp_path / "others", _others()), set())] if way == "part" else [])
    for others, expected in sets:
        write_learned(tmp_path / LEARNED, others)
        learned = read_learned(tmp_path / LEARNED)
        assert learned is not None
        assert set(known_to(val, prints, learned, crops=way == "part")) == expected
        found = known_from(val, prints, others, fingerprints(others), crops=way == "part")
        assert set(found) == expected
        assert all(others[row].name in words for row, words in found.items())


@pytest.mark.slow
def test_photographs_that_are_parts_of_known_ones_are_found(tmp_path: Path, val: list[Record]) -> None:
    parts = _save(
        tmp_path / "parts", {f"{n:02}.png": _part(Image.fromarray(one.pixels()), n) for n, one in enumerate(val)}
    )
    found = known_from(parts, fingerprints(parts), val, fingerprints(val), crops=True)
    assert found == {row: f"is a part of {record.name}" for row, record in enumerate(val)}


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    assert read_learned(tmp_path / LEARNED) is None
    (tmp_path / LEARNED).write_bytes(b"no tensors")
    with refused(ModelError, None, str(tmp_path / LEARNED)):
        read_learned(tmp_path / LEARNED)
    save_file({name: np.zeros((2, 3), np.uint8) for name in ("hashes", "thumbnails", "sizes")}, tmp_path / LEARNED)
    with refused(ModelError, None, str(tmp_path / LEARNED)):
        read_learned(tmp_path / LEARNED)


def test_what_a_model_learned_from_is_seen_as_images_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_BLOCK", 2)
    records = _save(tmp_path / "all", {f"{n}.png": Image.fromarray(photograph(n, (120, 90))) for n in range(5)})
    write_learned(tmp_path / LEARNED, [records[4], records[1]])
    for learned, expected in ((read_learned(tmp_path / LEARNED), ("1.png", "4.png")), (None, ())):
        seen = Seen(learned)
        assert seen.among(records) == ()
        for record in reversed(records):
            seen.look(record, record.pixels())
        assert seen.among(records) == expected


def test_an_image_that_cannot_be_read_is_left_out_of_what_was_learned_from(tmp_path: Path) -> None:
    records = _save(tmp_path / "all", {f"{n}.png": Image.fromarray(photograph(n, (60, 40))) for n in range(3)})
    spoil(records[1].file)
    write_learned(tmp_path / LEARNED, records)
    learned, kept = read_learned(tmp_path / LEARNED), fingerprints([records[0], records[2]])
    assert learned is not None
    assert len(learned.hashes) == len(learned.thumbnails) == len(learned.aspects) == 2
    assert list(known_to((), kept, learned, crops=False)) == [0, 1]
    assert looks(records, 40).images == 2


def test_images_whose_pixels_cannot_be_read_are_listed_as_left_out(tmp_path: Path) -> None:
    _save(tmp_path / "all", {f"{n}.png": Image.fromarray(photograph(n, (60, 40))) for n in range(3)})
    spoil(tmp_path / "all" / "1.png")
    dataset = open_images(tmp_path / "all", skip_bad=True)
    assert len(dataset.records) == 3, "its header and its end are whole"
    left = readable(dataset)
    assert [record.name for record in left.records] == ["0.png", "2.png"]
    assert len(left.skipped) == 1
    assert "1.png" in left.skipped[0]
    for name in ("0.png", "2.png"):
        spoil(tmp_path / "all" / name)
    with refused(DatasetError, None, "0.png"):
        readable(dataset)


def spoil(file: Path) -> None:
    """Damage the pixels of a PNG, and neither its header nor its end."""
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = b"\x55" * 40
    file.write_bytes(bytes(data))
