"""A dataset with splits of which none was named is said; one without is not."""

from pathlib import Path

import pytest
from made_data import make_data

from engines.datasets.dataset import Dataset, remark_on_splits
from engines.datasets.splits import mixed_splits


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["train/images/a.png", "valid/images/b.png"], ("train", "val")),
        (["images/train2017/a.png", "images/val2017/b.png", "images/test/c.png"], ("train", "val", "test")),
        (["train/a.png", "train/b.png"], ()),
        (["images/a.png", "other/b.png"], ()),
    ],
)
def test_folders_say_which_parts_there_are(tmp_path: Path, files: list[str], found: tuple[str, ...]) -> None:
    assert mixed_splits(tmp_path, [tmp_path / name for name in files]) == found


def test_what_lies_above_the_dataset_says_nothing(tmp_path: Path) -> None:
    root = tmp_path / "train" / "val"
    assert mixed_splits(root, [root / "images" / "a.png"]) == ()


def test_lists_of_image_sets_are_parts_and_a_named_split_is_not_remarked_on(tmp_path: Path) -> None:
    dataset: Dataset = make_data(tmp_path / "data")
    assert remark_on_splits(dataset, None) is None
    lists = tmp_path / "data" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in ("train", "val"):
        (lists / f"{name}.txt").write_text("1\n", "utf-8")
    said = remark_on_splits(dataset, None)
    assert said is not None
    assert "train, val" in said
    assert remark_on_splits(dataset, "train") is None
