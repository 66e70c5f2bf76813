"""The README says what is: help texts, commands, files, and no figure left open."""

import os
import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest

from dengine_cli import main as program

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def help_of(*verb: str) -> str:
    """A help text as a terminal of 100 columns shows it."""
    printed = StringIO()
    with mock.patch.dict(os.environ, COLUMNS="100"), redirect_stdout(printed), pytest.raises(SystemExit):
        program.app([*verb, "--help"])
    return printed.getvalue()


def commands() -> list[list[str]]:
    """Every command line of dengine in the README's own blocks, in words."""
    lines = [line for block in BLOCKS if not block.startswith("Usage:") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("dengine ")]


@pytest.mark.parametrize("verb", ["", *program.VERBS])
def test_the_help_text_is_the_one_that_is_printed(verb: str) -> None:
    assert help_of(*verb.split()) in BLOCKS, f"put what COLUMNS=100 dengine {verb} --help prints there"


def test_every_command_has_a_verb_and_options_that_exist() -> None:
    assert len(commands()) > 5
    for _, verb, *words in commands():
        assert verb in program.VERBS
        known = set(re.findall(r"--[a-z-]+", help_of(verb)))
        assert {word for word in words if word.startswith("--")} <= known, (verb, words)


def test_every_target_of_make_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = [line.split()[1] for block in BLOCKS for line in block.splitlines() if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_every_file_that_is_linked_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert "docs/preview.png" in links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_no_figure_is_left_open() -> None:
    assert re.findall(r"<!-- ?figure.*", README) == []
