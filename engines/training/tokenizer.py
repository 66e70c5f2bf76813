"""A small tokenizer in CLIPTokenizer's own format, for base models made from scratch.

Knows: how to build byte-pair merges that keep a given list of words whole.
Knows nothing about prompts' meaning. (The full CLIP vocabulary's embedding table alone would weigh 25 MB.)
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engines.common.files import write_json
from engines.common.tokenizer import write_vocabulary

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def write_tokenizer(folder: Path, words: Iterable[str], length: int) -> Any:
    """Write vocab.json, merges.txt and tokenizer_config.json for `words`, and return the CLIPTokenizer read back.

    Any other text still has a spelling: the byte alphabet comes first, as in CLIP. `length` is the padded length.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    pieces = sorted({piece for word in words for piece in re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", word.lower())})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        end_of_word_suffix=_WORD_END,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    model = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.train_from_iterator(pieces, trainer)
    merges = [(left, right) for left, right in json.loads(model.to_str())["model"]["merges"]]
    tokens = [
        *alphabet,
        *(letter + _WORD_END for letter in alphabet),
        *("".join(m) for m in merges),
        START,
        END,
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(folder, vocabulary, merges)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": length,
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": END,
        },
    )
    return CLIPTokenizer.from_pretrained(folder)
