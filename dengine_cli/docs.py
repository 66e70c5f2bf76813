"""`docs/cli.md`: the help of every verb on one page. `python -m dengine_cli.docs > docs/cli.md` writes it anew.

Knows: the words round the help texts, and how wide they are set. Knows nothing about what a verb's help says.
"""

import sys

import typer

from dengine_cli.main import VERBS, app

_WIDTH = 98  # columns of text that `--help` prints on a terminal of 100 or more
_INTRODUCTION = """\
# The command line

This page is what `dengine VERB --help` prints. It is generated (`python -m dengine_cli.docs > docs/cli.md`), and a test
holds it against the program.

Every verb exits with 0 when it did its work, 2 when the command line was wrong, 130 after Ctrl-C, and 1 for any other
trouble. It then says in one line what is wrong. `dengine --debug VERB ...` shows the traceback. Results go to stdout,
progress and remarks to stderr.
"""


def page() -> str:
    """The whole page."""
    program = typer.main.get_command(app)
    context = program.make_context("dengine", [], resilient_parsing=True, terminal_width=_WIDTH)
    parts = [_INTRODUCTION, _block(program.get_help(context))]
    for name in VERBS:
        verb = program.commands[name]  # type: ignore[attr-defined]
        inner = verb.make_context(name, [], parent=context, resilient_parsing=True)
        parts += [f"## `dengine {name}`\n", _block(verb.get_help(inner))]
    return "\n".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(page())
