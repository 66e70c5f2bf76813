"""Prompts that are longer than the text encoder reads: said once before anything is painted, and journalled as read."""

from pathlib import Path

import pytest
from fakes import FakeBackend, FakeBundle, make_bundle
from painting import Generate, make_paint, make_references

from engines.common.events import Event, EventKind
from engines.common.tokenizer import load_tokenizer, read_words, tokenize
from engines.labelling import LabelSettings, label
from engines.runs.journal import JOURNAL, read_entries

LENGTH = 8


@pytest.fixture
def paint(toy_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generate:
    """`generate` with a real tokenizer of eight tokens."""
    tokenizer = load_tokenizer(toy_bases["sd1"] / "tokenizer", 1000, LENGTH)
    monkeypatch.setattr(FakeBundle, "tokenizer", lambda self: tokenizer)
    return make_paint(tmp_path, monkeypatch)


def test_what_is_read_of_a_prompt_gives_the_same_tokens_and_one_word_more_does_not_count(
    toy_bases: dict[str, Path],
) -> None:
    tokenizer = load_tokenizer(toy_bases["sd1"] / "tokenizer", 1000, LENGTH)
    for prompt in ("a Photo  of many rbc and few wbc with many platelets", "a photo, \n(many) Café 漢字 rbc" * 3):
        read, tokens = read_words(tokenizer, prompt)
        assert prompt.startswith(read)
        assert read != prompt
        assert tokens > LENGTH
        assert tokenize(tokenizer, [read]).tolist() == tokenize(tokenizer, [prompt]).tolist()
        assert read_words(tokenizer, read) == (read, LENGTH)
    assert read_words(tokenizer, "x" * 40) == ("x" * 6, 42)  # inside a word
    assert read_words(tokenizer, "a photo of many rbc wbc") == ("a photo of many rbc wbc", LENGTH)
    assert read_words(tokenizer, "") == ("", 2)


def cuts(events: list[Event]) -> list[str]:
    return [event.text for event in events if "are read:" in event.text]


def test_a_long_template_is_said_once_before_painting_and_journalled_as_read(paint: Generate, tmp_path: Path) -> None:
    template = "a {style} with many rbc and few wbc"
    events: list[Event] = []
    paint(tmp_path / "run", count=8, prompt_template=template, events=events)
    (said,) = cuts(events)
    assert said.startswith(f'a prompt has 11 tokens, and {LENGTH} are read: "and few wbc" changes nothing')
    kinds = [event.kind for event in events]
    assert [event.text for event in events].index(said) < kinds.index(EventKind.STARTED)
    read = "a microscope photo with many rbc"
    assert {entry.prompt for entry in read_entries(tmp_path / "run" / JOURNAL)} == {read}


def test_a_long_negative_prompt_is_said_too_and_short_ones_are_not(paint: Generate, tmp_path: Path) -> None:
    events: list[Event] = []
    long = "many rbc with many wbc and many platelets"
    paint(tmp_path / "run", count=8, prompt_template="a {style}", negative_prompt=long, events=events)
    (said,) = cuts(events)
    assert said.startswith("a negative prompt has 10 tokens")
    events.clear()
    paint(tmp_path / "short", count=8, prompt_template="a {style}", events=events)
    assert cuts(events) == []
    assert {entry.prompt for entry in read_entries(tmp_path / "short" / JOURNAL)} == {"a microscope photo"}


def test_label_says_it_of_its_own_prompt(paint: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle", style="photo of many rbc and many wbc")
    monkeypatch.setattr("engines.bundle.bundle.open_bundle", lambda folder: bundle)
    monkeypatch.setattr("engines.backends.registry.open_backend", lambda *_, **__: FakeBackend())
    events: list[Event] = []
    images = make_references(tmp_path / "images", 3)
    label(LabelSettings(images=images, out=tmp_path / "labels", bundle=tmp_path), report=events.append)
    (said,) = cuts(events)
    assert said.startswith(f'a prompt has 10 tokens, and {LENGTH} are read: "many wbc"')
    assert [event.text for event in events].index(said) < [event.kind for event in events].index(EventKind.PROGRESS)
