"""Prompts: the three kinds that training draws, and the words that counts become.

Knows: the wording. Training and generation share it, so that a prompt means the same in both.
Knows nothing about tokenizers or networks.

The wording follows DiffusionEngine ("a <style>, with <up to 4 class names> ..."), with a word for how many of each
class there are, so that a count can be asked for. An adapter must not read its labels off the prompt, hence the
generic and the empty kinds, and listings that sometimes name what is not there.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from engines.common.names import class_words

PromptKind = Literal["generic", "listing", "empty"]

COUNT_WORDS = ((1, "one"), (3, "few"), (8, "several"))  # up to this many; MANY beyond
MANY = "many"
WORDS = ("a", "with", "and", *(word for _, word in COUNT_WORDS), MANY)  # every fixed word of a prompt
MAX_LISTED = 4  # classes a prompt names at most, as in DiffusionEngine

KIND_PROBABILITIES: Mapping[PromptKind, float] = {"generic": 0.4, "listing": 0.5, "empty": 0.1}
ABSENT_PROBABILITY = 0.25  # of naming one class that is not there


def count_word(count: int) -> str:
    """One, few (2-3), several (4-8) or many: the word a prompt uses for a positive count."""
    return next((word for most, word in COUNT_WORDS if count <= most), MANY)


def generic_prompt(style: str) -> str:
    """`a <style>`: says what kind of picture it is, and nothing of what is in it."""
    return f"a {style}"


def listing_prompt(style: str, counts: Mapping[str, int]) -> str:
    """`a <style> with many rbc and one wbc`: classes with a positive count, in the mapping's order, four at most."""
    parts = [f"{count_word(count)} {class_words(name)}" for name, count in counts.items() if count > 0]
    return f"a {style} with {' and '.join(parts[:MAX_LISTED])}" if parts else generic_prompt(style)


def longest_listing(style: str, class_names: Sequence[str]) -> str:
    """The longest listing that a training may draw: the longest names, several of each."""
    longest = sorted(class_names, key=lambda name: len(class_words(name)), reverse=True)[:MAX_LISTED]
    return listing_prompt(style, dict.fromkeys(longest, COUNT_WORDS[-1][0]))


def training_prompt(
    rng: np.random.Generator,
    style: str,
    counts: Mapping[str, int],
    class_names: Sequence[str],
    probabilities: Mapping[PromptKind, float] = KIND_PROBABILITIES,
    absent_probability: float = ABSENT_PROBABILITY,
) -> str:
    """Draw the prompt of one training image: generic, listing or empty by `probabilities`.

    A listing names the classes in `counts` in random order and, with `absent_probability`, one class of `class_names`
    that is not there, with a count word of its own.
    """
    kinds = list(probabilities)
    kind = kinds[int(rng.choice(len(kinds), p=np.array([probabilities[k] for k in kinds])))]
    if kind == "empty":
        return ""
    if kind == "generic":
        return generic_prompt(style)
    named = [(name, count) for name, count in counts.items() if count > 0]
    absent = [name for name in class_names if counts.get(name, 0) == 0]
    if absent and rng.random() < absent_probability:
        named.append((absent[int(rng.integers(len(absent)))], int(rng.integers(1, 12))))
    order = rng.permutation(len(named))
    return listing_prompt(style, dict(named[i] for i in order))
