"""The tokenizer of a base model: read, checked, and built here from its vocabulary.

Knows: the files in which CLIP's tokenizers are kept (vocab.json and merges.txt, or tokenizer.json; settings and added
tokens beside them), what of them is believed, and how long a prompt may be. Knows nothing about what prompts mean.

transformers would make up a vocabulary of three tokens where a folder has none, and read every prompt as the same; it
is given the vocabulary that was found here, and no file names or settings that it could follow elsewhere.

B batch, L text length.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.common.files import LFS_POINTER, read_json, write_json
from engines.common.quote import quote, shorten
from engines.errors import ModelError

_SPECIAL = {"unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
_SPECIAL |= {"pad_token": "<|endoftext|>"}
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
_LARGEST_FILE = 64 << 20  # bytes; CLIP's own tokenizer.json has 3.6 million
_WORD_END = "</w>"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer is built from."""

    tokens: Mapping[str, int]  # token -> id
    merges: Sequence[tuple[str, str]]  # pairs that become one token, the most important first
    added: Sequence[str]  # tokens beyond the vocabulary, in the order of their ids
    special: Mapping[str, str]  # unk_token, bos_token, eos_token and pad_token
    length: int | None  # tokens in a padded prompt, where the folder says it


def load_tokenizer(folder: Path, vocabulary_size: int, longest: int) -> Any:
    """The transformers.CLIPTokenizer in `folder`.

    Args:
        folder: a base model's tokenizer/.
        vocabulary_size: ids that the text encoder knows.
        longest: tokens that it has places for: the length of a padded prompt unless the folder gives a smaller one.

    Raises ModelError, naming the file, for a folder without a vocabulary or with one that does not fit.
    """
    found = read_vocabulary(folder)
    highest = max(found.tokens.values()) + len(found.added)
    if highest >= vocabulary_size:
        raise ModelError(
            f"{folder} has tokens up to number {highest}, and the text encoder beside it knows {vocabulary_size}. "
            "They belong to different models."
        )
    from transformers import CLIPTokenizer

    length = longest if found.length is None else min(found.length, longest)
    try:
        tokenizer = CLIPTokenizer(
            vocab=dict(found.tokens), merges=list(found.merges), model_max_length=length, **found.special
        )
        if found.added:
            tokenizer.add_tokens(list(found.added))
        ids = tokenize(tokenizer, [*_LETTERS, ""])  # what has no token is read as the end, as nothing is
    except Exception as cause:  # the library under it raises plain exceptions
        raise ModelError(f"{folder} does not make a tokenizer: {shorten(cause, 200)}.") from cause
    if (
        ids.shape != (len(_LETTERS) + 1, length)
        or int(ids.max()) >= vocabulary_size
        or len(ids.unique(dim=0)) < len(ids)
    ):
        raise ModelError(f"{folder} is not CLIP's tokenizer: it reads some letters as the same tokens, or as none.")
    return tokenizer


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """Prompts to token ids, int64 [B, L], padded and cut to the tokenizer's length."""
    batch = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: torch.Tensor = batch.input_ids
    return ids


def read_words(tokenizer: Any, prompt: str) -> tuple[str, int]:
    """The beginning of a prompt that `tokenize` reads of it, and how many tokens the whole prompt has."""
    whole = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    tokens, length = len(whole.input_ids), tokenizer.model_max_length
    if tokens <= length:
        return prompt, tokens
    end = max(stop for _, stop in whole.offset_mapping[: length - 1])  # the last place is the end's
    return prompt[:end], tokens


def cut_remark(tokenizer: Any, prompt: str, kind: str = "prompt") -> str | None:
    """What to say of a prompt of which only the beginning is read; None for one that is read whole."""
    read, tokens = read_words(tokenizer, prompt)
    if read == prompt:
        return None
    lost = quote(prompt[len(read) :].strip())
    return f"a {kind} has {tokens} tokens, and {tokenizer.model_max_length} are read: {lost} changes nothing"


def read_vocabulary(folder: Path) -> Vocabulary:
    """What the files of a tokenizer's folder say, each checked. Raises ModelError."""
    settings = _read(folder / "tokenizer_config.json", {})
    whole = _read(folder / "tokenizer.json", {})
    kind = settings.get("tokenizer_class")
    if kind is not None and kind not in _CLASSES:
        raise ModelError(f"{folder} is a {quote(kind)}; a CLIPTokenizer was expected.")
    if (folder / "vocab.json").is_file():
        tokens = _tokens(_read(folder / "vocab.json"), folder / "vocab.json")
        merges = _merges(_read_lines(folder / "merges.txt"), tokens, folder / "merges.txt")
    else:
        model = whole.get("model")
        if not isinstance(model, dict) or not model.get("vocab"):
            raise ModelError(
                f"{folder} has no vocabulary: vocab.json with merges.txt, or tokenizer.json, was expected. Get the "
                "whole model again."
            )
        tokens = _tokens(model["vocab"], folder / "tokenizer.json")
        merges = _merges(model.get("merges"), tokens, folder / "tokenizer.json")
    special = {
        name: _special(settings, _read(folder / "special_tokens_map.json", {}), name, token, folder)
        for name, token in _SPECIAL.items()
    }
    added = _added(settings, whole, _read(folder / "added_tokens.json", {}), tokens, folder)
    if missing := [token for token in special.values() if token not in tokens and token not in added]:
        raise ModelError(f"{folder}: the special token {quote(missing[0])} is not in the vocabulary.")
    _check_merged(tokens, merges, {*added, *special.values()}, folder)
    return Vocabulary(tokens, merges, added, special, _length(settings, folder))


def write_vocabulary(folder: Path, tokens: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> None:
    """Write vocab.json and merges.txt: what every release of transformers reads, and none before 5 does without."""
    write_json(folder / "vocab.json", dict(tokens))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def complete_vocabulary(folder: Path) -> None:
    """Write the vocabulary beside a tokenizer.json that stands alone, as newer releases leave it."""
    if not (folder / "vocab.json").is_file():
        found = read_vocabulary(folder)
        write_vocabulary(folder, found.tokens, found.merges)


def _read(path: Path, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object of a bearable size; `absent` for a file that may be missing and is."""
    if absent is not None and not path.is_file():
        return absent
    _check_size(path)
    return read_json(path, ModelError)


def _read_lines(path: Path) -> list[str]:
    try:
        _check_size(path)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; it belongs to vocab.json. Get the whole model again.") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise ModelError(f"{path} cannot be read as text: {shorten(cause, 100)}.") from cause
    if text.startswith(LFS_POINTER):
        raise ModelError(f'{path} is a Git LFS pointer and not the file. Run "git lfs pull" where it came from.')
    return [line.rstrip("\r") for line in text.split("\n") if line.strip() and not line.startswith("#version")]


def _check_size(path: Path) -> None:
    if path.is_file() and path.stat().st_size > _LARGEST_FILE:
        raise ModelError(f"{path} has {path.stat().st_size} bytes: that is no tokenizer's.")


def _tokens(value: Any, path: Path) -> dict[str, int]:
    """A vocabulary: some tokens, each with a number of its own from 0 on."""
    if not isinstance(value, dict) or len(value) < len(_SPECIAL):
        raise ModelError(f"{path} holds no vocabulary of tokens and their numbers.")
    for token, number in value.items():
        if type(number) is not int or not 0 <= number < 2 * len(value):
            raise ModelError(f"{path}: token {quote(token)} has the number {quote(number)}, which cannot be.")
        if not _encodes(token):
            raise ModelError(f"{path}: token {quote(token)} is no text.")
    if len(set(value.values())) < len(value):
        raise ModelError(f"{path}: two tokens have the same number.")
    return value


def _merges(value: Any, tokens: Mapping[str, int], path: Path) -> list[tuple[str, str]]:
    """Merges, each of two tokens into a third."""
    if not isinstance(value, list):
        raise ModelError(f"{path} holds no list of merges.")
    merges = []
    for line in value:
        pair = tuple(line.split(" ")) if isinstance(line, str) else tuple(line) if isinstance(line, list) else ()
        if len(pair) != 2 or not all(isinstance(half, str) and half in tokens for half in pair):
            raise ModelError(f"{path}: the merge {quote(line)} is not one of two tokens of the vocabulary.")
        if "".join(pair) not in tokens:
            raise ModelError(f"{path}: the merge {quote(line)} gives a token that the vocabulary does not have.")
        merges.append((pair[0], pair[1]))
    return merges


def _check_merged(
    tokens: Mapping[str, int], merges: Sequence[tuple[str, str]], others: Collection[str], folder: Path
) -> None:
    """Raise ModelError where merges are missing: words that are tokens would be read letter by letter."""
    made = {"".join(pair) for pair in merges}
    lost = [
        token
        for token in tokens
        if len(token.removesuffix(_WORD_END)) > 1 and token not in made and token not in others
        if not (token[0] + token[-1] in ("<>", "[]") and not token.endswith(_WORD_END))
    ]
    if lost:
        raise ModelError(
            f"{folder}: {len(lost)} tokens of the vocabulary are made by no merge, {quote(lost[0])} first; the list of "
            "merges is cut short. Get the whole model again."
        )


def _special(settings: Mapping[str, Any], beside: Mapping[str, Any], name: str, usual: str, folder: Path) -> str:
    """A special token: as the settings have it, the file beside them, or as usual."""
    for source in (settings, beside):
        value = source.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if content is None:
            continue
        if not isinstance(content, str) or not content or len(content) > 100 or not _encodes(content):
            raise ModelError(f"{folder}: {name} is {quote(content)}; a token was expected.")
        return content
    return usual


def _added(
    settings: Mapping[str, Any],
    whole: Mapping[str, Any],
    beside: Mapping[str, Any],
    tokens: Mapping[str, int],
    folder: Path,
) -> list[str]:
    """Tokens beyond the vocabulary, as textual inversion adds them: numbered on from its end, without a gap."""
    found: dict[int, str] = {}
    decoder, entries = settings.get("added_tokens_decoder") or {}, whole.get("added_tokens") or []
    if not isinstance(decoder, dict) or not isinstance(entries, list):
        raise ModelError(f"{folder}: its added tokens are not a list of tokens.")
    pairs: list[tuple[Any, Any]] = [*((number, token) for token, number in beside.items())]
    pairs += [(number, entry.get("content") if isinstance(entry, dict) else None) for number, entry in decoder.items()]
    pairs += [(entry.get("id"), entry.get("content")) if isinstance(entry, dict) else (None, None) for entry in entries]
    for number, token in pairs:
        text = str(number)[:10] if isinstance(number, int | str) else ""
        if not isinstance(token, str) or not token or not text.isdecimal() or not _encodes(token):
            raise ModelError(f"{folder}: the added token {quote(token)} with number {quote(number)} cannot be.")
        if tokens.get(token, int(text)) != int(text) or found.setdefault(int(text), token) != token:
            raise ModelError(f"{folder}: the added token {quote(token)} has two numbers, or shares one.")
    fresh = sorted(number for number, token in found.items() if token not in tokens)
    first = max(tokens.values()) + 1
    if fresh != list(range(first, first + len(fresh))):
        raise ModelError(f"{folder}: its added tokens are not numbered on from the vocabulary's {first}.")
    return [found[number] for number in fresh]


def _length(settings: Mapping[str, Any], folder: Path) -> int | None:
    """The length of a padded prompt, where the settings have one: transformers writes 10^30 for none."""
    value = settings.get("model_max_length")
    if value is None or (type(value) in (int, float) and value >= 100_000):
        return None
    if type(value) is not int or value < 3:
        raise ModelError(f"{folder}: model_max_length is {quote(value)}; a whole number from 3 on was expected.")
    return value


def _encodes(text: str) -> bool:
    """Whether a text from JSON is one: half a surrogate pair is not."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
