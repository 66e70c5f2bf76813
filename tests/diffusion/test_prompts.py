"""The wording of prompts, and how often training draws each kind."""

from collections import Counter

import numpy as np
import pytest

from engines.common.names import class_words
from engines.common.rng import generator, normal
from engines.diffusion.prompts import count_word, generic_prompt, listing_prompt, longest_listing, training_prompt


@pytest.mark.parametrize(
    ("count", "word"), [(1, "one"), (2, "few"), (3, "few"), (4, "several"), (8, "several"), (9, "many")]
)
def test_counts_become_words(count: int, word: str) -> None:
    assert count_word(count) == word


def test_a_listing_names_what_is_there_and_four_classes_at_most() -> None:
    assert listing_prompt("photo", {"RBC": 12, "WBC": 1, "none": 0}) == "a photo with many rbc and one wbc"
    assert listing_prompt("photo", dict.fromkeys("abcde", 1)).count("one") == 4
    assert listing_prompt("photo", {}) == generic_prompt("photo") == "a photo"


def test_class_names_are_spelt_as_words() -> None:
    assert class_words("Traffic_Light-red") == "traffic light red"


def test_training_prompts_come_in_the_asked_shares() -> None:
    drawn = Counter(training_prompt(generator(0, i), "photo", {"cat": 2}, ["cat", "dog"]) for i in range(2000))
    assert drawn[""] == pytest.approx(200, abs=50)
    assert drawn["a photo"] == pytest.approx(800, abs=90)
    lying = sum(count for text, count in drawn.items() if "dog" in text)
    assert lying == pytest.approx(250, abs=60)


def test_streams_depend_on_their_key_alone() -> None:
    assert np.array_equal(normal((3, 2), 1, 2), normal((3, 2), 1, 2))
    assert not np.array_equal(normal((3, 2), 1, 2), normal((3, 2), 2, 1))


def test_the_longest_listing_is_of_the_longest_names() -> None:
    names = ["a", "bb", "ccc", "dddd", "Eeeee_Eeeee"]
    assert longest_listing("photo", names).count("several") == 4
    assert "eeeee eeeee" in longest_listing("photo", names)
    assert " a " not in longest_listing("photo", names).removeprefix("a ")
