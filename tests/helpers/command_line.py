"""Runs a command line in the test's own process."""

import shlex

import typer
from typer.testing import CliRunner, Result

from dengine_cli import main as program


def dengine(*arguments: object) -> Result:
    """Run a command line in this process."""
    return CliRunner().invoke(program.app, [str(argument) for argument in arguments])


def assert_fails(result: Result, code: int, *words: str) -> None:
    """One line on stderr that begins with "error:" and holds `words`, this exit code, and no traceback."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[0]


def next_command(result: Result) -> list[str]:
    """The command in a result's last line, which its verb takes."""
    last = result.stdout.splitlines()[-1]
    assert last.startswith("next: dengine "), result.stdout
    words = shlex.split(last.removeprefix("next: dengine "))
    commands = typer.main.get_command(program.app).commands  # type: ignore[attr-defined]
    commands[words[0]].make_context(words[0], words[1:])
    return words
