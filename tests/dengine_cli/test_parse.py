"""How values that are written as text are read, and what is said of wrong ones."""

import pytest

from dengine_cli.parse import (
    parse_amounts,
    parse_batches,
    parse_list,
    parse_near_duplicates,
    parse_range,
    parse_score,
    parse_shard,
    parse_size,
    parse_sizes,
)
from engines.errors import UsageError
from engines.labels.scores import ScoreLike, StoredScore, shown
from engines.worth.settings import Times


def test_ranges_sizes_and_lists_are_read() -> None:
    assert parse_range("0.4:0.8", "--x") == (0.4, 0.8)
    assert parse_range("0.6", "--x") == (0.6, 0.6)
    assert parse_range(None, "--x") is None
    assert parse_size("320x256", "--x") == (320, 256)
    assert parse_list(" coco, yolo,,coco") == ("coco", "yolo")


@pytest.mark.parametrize("text", ["", "a:b", "0.4:", ":0.8", "0.4-0.8"])
def test_a_wrong_range_names_its_option(text: str) -> None:
    with pytest.raises(UsageError, match="--strength is"):
        parse_range(text, "--strength")


@pytest.mark.parametrize("text", ["", "320", "320x", "x256", "-1x2", "3.5x2", "1x2x3"])
def test_a_wrong_size_names_its_option(text: str) -> None:
    with pytest.raises(UsageError, match="--size is"):
        parse_size(text, "--size")


def test_ranges_of_numbers_and_sizes_are_read() -> None:
    assert (parse_batches("8", "--batch"), parse_batches("1:8:16", "--batch")) == ((8, 8, 8), (1, 8, 16))
    assert (parse_batches(None, "--batch"), parse_sizes(None, "--size")) == (None, None)
    assert parse_sizes("64x32", "--size") == ((64, 32),) * 3
    assert parse_sizes("64x32:64X64:96x64", "--size") == ((64, 32), (64, 64), (96, 64))
    for wrong in ("1:2", "a", "", "1:2:3:4", "-1"):
        with pytest.raises(UsageError, match=r"--batch is .*least:usual:most"):
            parse_batches(wrong, "--batch")
    for wrong in ("64x32:64x32", "64", "1x2:3x4:5x"):
        with pytest.raises(UsageError, match="--size is"):
            parse_sizes(wrong, "--size")


def test_a_shard_is_two_numbers() -> None:
    assert (parse_shard("2/4"), parse_shard(None)) == ((2, 4), None)
    for text in ("", "2", "2/", "/4", "a/b", "-1/2", "1/2/3"):
        with pytest.raises(UsageError, match="--shard is"):
            parse_shard(text)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("0.5", 0.5),
        ("RBC=0.5, WBC=.3", {"RBC": 0.5, "WBC": 0.3}),
        ("a=b=0.2", {"a=b": 0.2}),
        ("bolt, hex=0.5,nut=1", {"bolt, hex": 0.5, "nut": 1.0}),
    ],
)
def test_a_score_is_a_number_or_one_for_each_class(text: str, score: StoredScore) -> None:
    assert parse_score(text) == score
    assert parse_score(None) is None
    assert parse_score(shown(score)) == score


@pytest.mark.parametrize("word", ["adapter", "matched"])
def test_a_score_may_be_a_word_for_where_it_comes_from(word: ScoreLike) -> None:
    assert parse_score(str(word)) == word


@pytest.mark.parametrize("text", ["", "high", "RBC=", "=0.5", "RBC=0.5,", "RBC=0.5,WBC", "RBC=0.5,RBC=0.6"])
def test_a_score_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--score is .*CLASS=NUMBER"):
        parse_score(text)


def test_near_duplicates_are_kept_dropped_or_measured() -> None:
    assert [parse_near_duplicates(text) for text in ("keep", "drop", "0.9")] == [0.0, 0.95, 0.9]
    with pytest.raises(UsageError, match="keep, drop, or a correlation"):
        parse_near_duplicates("maybe")


def test_amounts_are_numbers_of_images_or_multiples_of_the_real_ones() -> None:
    assert parse_amounts("0, 1x,20,0.5x") == (0, Times(1.0), 20, Times(0.5))
    assert parse_amounts(None) == ()
    for text in ("many", "-1", "x", "1.5", "1xx"):
        with pytest.raises(UsageError, match=f'--amounts holds "{text}"'):
            parse_amounts(text)
