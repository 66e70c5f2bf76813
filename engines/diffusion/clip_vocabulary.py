"""CLIP's vocabulary, written from its merges.

Knows: in which order the tokens follow from the merges. Knows nothing about text encoders.
"""

import gzip
import json
from pathlib import Path

_MERGES = Path(__file__).parent / "configs" / "clip_merges.txt.gz"  # see NOTICE.md there


def write_clip_tokenizer(folder: Path) -> None:
    """Write CLIP's vocab.json and merges.txt to `folder`, from the merges shipped here.

    The vocabulary is the 256 byte letters, the same at a word's end, one token a merge, and the two special tokens,
    in this order (openai/CLIP, clip/simple_tokenizer.py).
    """
    with gzip.open(_MERGES, "rt", encoding="utf-8") as file:
        merges = file.read().splitlines()
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte, in the vocabulary's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = len(set(range(256)) - set(printable))
    return [chr(code) for code in [*printable, *range(256, 256 + others)]]
