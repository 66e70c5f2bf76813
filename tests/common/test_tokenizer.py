"""Tokenizers: the ids of transformers' own, and folders that would read every prompt as the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused as refuses
from transformers import CLIPTokenizer

from engines.common.tokenizer import complete_vocabulary, cut_remark, load_tokenizer, read_vocabulary, tokenize
from engines.diffusion.base_model import load_base
from engines.errors import ModelError

PROMPTS = ["a photo of many RBC, Café 10% 漢字", "", "it's <|endoftext|> two  wbc\n", "photo " * 90]


@pytest.fixture
def folder(toy_bases: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_bases["sd1"] / "tokenizer", tmp_path / "tokenizer"))


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def load(folder: Path) -> Any:
    return load_tokenizer(folder, 1000, 32)


def refused(folder: Path, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        load(folder)
    assert len(str(caught.value)) < 500


def test_ids_are_those_of_transformers_from_either_kind_of_file(folder: Path) -> None:
    theirs = tokenize(CLIPTokenizer.from_pretrained(folder), PROMPTS)
    assert torch.equal(tokenize(load(folder), PROMPTS), theirs)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    assert torch.equal(tokenize(load(folder), PROMPTS), theirs)


def test_tokens_that_were_added_keep_their_ids(folder: Path, tmp_path: Path) -> None:
    theirs = CLIPTokenizer.from_pretrained(folder)
    theirs.add_tokens(["<cat-toy>", "S*"])
    theirs.save_pretrained(tmp_path / "added")
    prompts = [*PROMPTS, "a <cat-toy> and S* photo"]
    assert torch.equal(tokenize(load(tmp_path / "added"), prompts), tokenize(theirs, prompts))


def test_the_files_that_older_releases_read_are_written_beside_a_tokenizer_json(folder: Path) -> None:
    known, merges = read_vocabulary(folder), (folder / "merges.txt").read_text("utf-8").split()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    complete_vocabulary(folder)
    (folder / "tokenizer.json").unlink()
    assert read_vocabulary(folder) == known
    assert (folder / "merges.txt").read_text("utf-8").split() == merges


def test_a_folder_without_its_vocabulary_is_refused(folder: Path) -> None:
    for name in ("vocab.json", "tokenizer.json"):
        (folder / name).unlink()
    refused(folder, "has no vocabulary: vocab.json with merges.txt, or tokenizer.json, was expected")


def test_a_vocabulary_without_its_merges_is_refused(folder: Path) -> None:
    (folder / "merges.txt").unlink()
    refused(folder, "merges.txt is missing")


def test_merges_that_are_cut_short_are_refused(folder: Path) -> None:
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    for kept in (1, 2, len(lines) - 2):
        (folder / "merges.txt").write_text("\n".join(lines[:kept]), "utf-8")
        with refuses(ModelError, None, folder, "merges"):
            load(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    whole = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    whole["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(whole), "utf-8")
    with refuses(ModelError, None, folder, "merges"):
        load(folder)


def test_a_vocabulary_without_some_letters_is_refused(folder: Path) -> None:
    tokens = json.loads((folder / "vocab.json").read_text("utf-8"))
    for letter in ("q", "q</w>"):
        del tokens[letter]
    (folder / "vocab.json").write_text(json.dumps(tokens), "utf-8")
    with refuses(ModelError, None, folder):
        load(folder)


def test_pointers_of_git_lfs_are_told_from_damaged_files(folder: Path) -> None:
    for name in ("merges.txt", "vocab.json"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with refuses(ModelError, None, folder / name, "git lfs pull"):
            load(folder)


@pytest.mark.parametrize("length", [None, 10**30, 1e30])
def test_without_a_length_the_text_encoders_is_taken(length: Any, folder: Path) -> None:
    change(folder / "tokenizer_config.json", model_max_length=length)
    assert tokenize(load(folder), ["a photo"]).shape == (1, 32)


def test_a_smaller_length_is_kept_and_a_larger_one_cut_to_the_text_encoders(folder: Path) -> None:
    for length, expected in ((16, 16), (77, 32)):
        change(folder / "tokenizer_config.json", model_max_length=length)
        assert tokenize(load(folder), ["a photo"]).shape == (1, expected)


@pytest.mark.parametrize(
    ("file", "value", "said"),
    [
        ("vocab.json", {"a": 0}, "holds no vocabulary"),
        ("vocab.json", {"a": 0, "b": 0, "c": 1, "d": 2}, "two tokens have the same number"),
        ("vocab.json", {"a": 0, "b": -1, "c": 1, "d": 2}, 'token "b" has the number -1'),
        ("vocab.json", {"a": 0, "b": 10**9, "c": 1, "d": 2}, 'token "b" has the number 1000000000'),
        ("vocab.json", {"a": 0, "b": 3, "c": 1, "d": 2}, "is not one of two tokens of the vocabulary"),
        ("tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, 'is a "T5Tokenizer"'),
        ("tokenizer_config.json", {"model_max_length": "77"}, 'model_max_length is "77"'),
        ("tokenizer_config.json", {"model_max_length": -1}, "model_max_length is -1"),
        ("tokenizer_config.json", {"eos_token": {"content": ["x"]}}, "eos_token is"),
        ("tokenizer_config.json", {"eos_token": "<nowhere>"}, 'the special token "<nowhere>" is not in the vocabulary'),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": "zz"}}}, "are not numbered on from"),
    ],
)
def test_files_that_are_no_tokenizers_are_refused_by_name(file: str, value: Any, said: str, folder: Path) -> None:
    (folder / file).write_text(json.dumps(value), "utf-8")
    refused(folder, said)


def test_files_elsewhere_are_not_followed(folder: Path, tmp_path: Path) -> None:
    expected = tokenize(load(folder), PROMPTS)
    (tmp_path / "vocab.json").write_text("{}")
    change(folder / "tokenizer_config.json", vocab_file="../vocab.json", auto_map={"AutoTokenizer": ["evil.py", None]})
    assert torch.equal(tokenize(load(folder), PROMPTS), expected)


def test_a_tokenizer_of_another_model_is_refused(toy_bases: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(toy_bases["sd1"], tmp_path / "base"))
    (base / "tokenizer" / "vocab.json").unlink()
    tokens = json.loads((base / "tokenizer" / "tokenizer.json").read_text("utf-8"))
    first = len(tokens["model"]["vocab"])
    tokens["added_tokens"].append({"id": first, "content": "<new>"})
    (base / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokens), "utf-8")
    with pytest.raises(ModelError, match="and the text encoder beside it knows"):
        load_base(base)


def test_a_prompt_that_is_cut_is_remarked_on_with_what_changes_nothing(folder: Path) -> None:
    change(folder / "tokenizer_config.json", model_max_length=8)
    tokenizer = load(folder)
    assert cut_remark(tokenizer, "a photo of many rbc") is None
    remark = cut_remark(tokenizer, "a photo of many rbc and few wbc with many platelets")
    assert remark == 'a prompt has 13 tokens, and 8 are read: "few wbc with many platelets" changes nothing'
