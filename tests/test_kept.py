"""Folders that the tests keep from one run to the next."""

from collections.abc import Callable
from pathlib import Path

import kept as keeper
import pytest
from kept import kept


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Writes a file that counts its calls; what is kept lies in a folder of the test's own."""
    monkeypatch.setattr(keeper, "FOLDER", tmp_path / "kept")
    calls: list[Path] = []

    def write(folder: Path) -> None:
        calls.append(folder)
        folder.mkdir()
        (folder / "count").write_text(str(len(calls)), "utf-8")

    return write


def count(folder: Path) -> str:
    return (folder / "count").read_text("utf-8")


def test_a_folder_is_made_once_and_every_copy_is_its_owners(make: Callable[[Path], None], tmp_path: Path) -> None:
    first = kept("toy", tmp_path / "first", make)
    (first / "count").write_text("spoilt", "utf-8")
    assert count(kept("toy", tmp_path / "second", make)) == "1"
    assert count(kept("other", tmp_path / "third", make)) == "2"


def test_what_must_be_fresh_is_made_again_in_another_run_and_once_in_this(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert count(kept("toy", tmp_path / "kept here", make)) == "1"
    assert count(kept("toy", tmp_path / "this run", make, fresh=True)) == "1"
    monkeypatch.setattr(keeper, "_RUN", "another")
    assert count(kept("toy", tmp_path / "not asked", make)) == "1"
    assert count(kept("toy", tmp_path / "asked", make, fresh=True)) == "2"
    assert count(kept("toy", tmp_path / "again", make, fresh=True)) == "2"


def test_the_earlier_one_is_there_while_a_fresh_one_is_made(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept("toy", tmp_path / "kept here", make)
    monkeypatch.setattr(keeper, "_RUN", "another")

    def slowly(folder: Path) -> None:
        assert count(kept("toy", tmp_path / "meanwhile", make)) == "1"
        make(folder)

    assert count(kept("toy", tmp_path / "fresh", slowly, fresh=True)) == "2"


def test_a_change_of_the_sources_makes_it_again_and_the_oldest_keys_are_forgotten(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(keeper.MOST_KEYS + 2):
        source = tmp_path / "toy.py"
        source.write_text(f"SEED = {number}", "utf-8")
        monkeypatch.setattr(keeper, "ROOT", tmp_path)
        monkeypatch.setattr(keeper, "SOURCES", ("toy.py",))
        keeper._key.cache_clear()
        assert count(kept("toy", tmp_path / str(number), make)) == str(number + 1)
    keeper._key.cache_clear()
    assert len(list((tmp_path / "kept").iterdir())) == keeper.MOST_KEYS


def test_what_could_not_be_made_is_not_kept(make: Callable[[Path], None], tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        make(folder)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        kept("toy", tmp_path / "out", fail)
    assert not (tmp_path / "out").exists()
    assert count(kept("toy", tmp_path / "out", make)) == "2"
