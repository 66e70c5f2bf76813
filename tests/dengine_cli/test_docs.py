"""README.md and docs/ say what is: help texts, commands, options, targets of make, files; and the README is short."""

import os
import re
import shlex
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest

from dengine_cli import docs
from dengine_cli import main as program

ROOT = Path(__file__).parents[2]
README, CLI = ROOT / "README.md", ROOT / "docs" / "cli.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TRUE_TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]  # that one names what was, too
README_LINES = 150


def blocks(page: Path) -> list[str]:
    """The fenced blocks of a page, wherever they are indented."""
    return re.findall(r"^ *```\w*\n(.*?)^ *```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@cache
def help_of(verb: str) -> str:
    """A help text as a terminal of 100 columns shows it."""
    printed = StringIO()
    with mock.patch.dict(os.environ, COLUMNS="100"), redirect_stdout(printed), pytest.raises(SystemExit):
        program.app([*verb.split(), "--help"])
    return printed.getvalue()


def commands(page: Path) -> list[list[str]]:
    """Every command line of dengine in a page's blocks, in words."""
    lines = [line.strip() for block in blocks(page) if not block.startswith("Usage:") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("dengine ")]


@pytest.mark.parametrize("verb", ["", *program.VERBS])
def test_the_page_of_the_command_line_holds_the_help_that_is_printed(verb: str) -> None:
    assert help_of(verb) in blocks(CLI), "python -m dengine_cli.docs > docs/cli.md"


def test_the_page_of_the_command_line_is_the_one_that_is_generated() -> None:
    assert docs.page() == CLI.read_text("utf-8"), "python -m dengine_cli.docs > docs/cli.md"


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_has_a_verb_and_options_that_exist(page: Path) -> None:
    for words in commands(page):
        verb = next(word for word in words[1:] if not word.startswith("--"))
        assert verb in program.VERBS, words
        known = set(re.findall(r"--[a-z0-9-]+", help_of(verb) + help_of("")))
        assert {word for word in words if word.startswith("--")} <= known, words


def test_the_readme_shows_commands() -> None:
    assert {words[1] for words in commands(README)} >= {"train-adapter", "export", "generate", "evaluate"}


@pytest.mark.parametrize("page", TRUE_TODAY, ids=lambda page: page.name)
def test_every_option_that_is_named_exists(page: Path) -> None:
    """`--score` in running text, between backticks: of a verb, or of a script in benchmarks/."""
    known = {option for verb in ("", *program.VERBS) for option in re.findall(r"--[a-z0-9-]+", help_of(verb))}
    for script in (ROOT / "benchmarks").rglob("*.py"):
        known |= set(re.findall(r'"(--[a-z0-9-]+)"', script.read_text("utf-8")))
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = [span for span in re.findall(r"`([^`]+)`", text) if span.startswith(("--", "dengine ", *program.VERBS))]
    assert {option for span in spans for option in re.findall(r"(?<!\S)--[a-z0-9-]+", span)} <= known


def test_every_target_of_make_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    lines = [line.strip() for page in PAGES for block in blocks(page) for line in block.splitlines()]
    targets = {line.split()[1] for line in lines if re.match(r"make [a-z]", line)}
    assert {"demo", "test"} <= targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_linked_is_there(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).is_file()] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_named_by_the_readme_and_in_the_menu_of_the_site(page: Path) -> None:
    assert f"](docs/{page.name}" in README.read_text("utf-8")
    assert re.search(rf": {re.escape(page.name)}$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)


def test_the_picture_is_shown() -> None:
    assert "](docs/preview.png)" in README.read_text("utf-8")


@pytest.mark.parametrize("page", TRUE_TODAY, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    """`engines/labels/rules.py`, `docs/cli.md`: paths of this repository between backticks."""
    named = re.findall(r"`((?:dengine_cli|engines|export|benchmarks|tests|docs)/[^`\s*]+)`", page.read_text("utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []
