"""`dengine config`: a file of options, to fill in."""

from typing import Annotated

import typer

from dengine_cli import config_file, console
from engines.errors import UsageError

EXAMPLE = "dengine config generate > run.yaml"
AFTER_INTERRUPT = "nothing was begun"


def command(
    context: typer.Context,
    verb: Annotated[str, typer.Argument(metavar="VERB", help="Whose options, such as generate.")],
) -> None:
    """Print a YAML file with every option of a verb.

    Each comes with what it means and its default. dengine VERB --config FILE reads such a file; flags go first. Every
    verb leaves the file that repeats it as .dengine/VERB.yaml in the folder that it wrote.
    """
    from dengine_cli.main import VERBS

    commands = context.find_root().command.commands  # type: ignore[attr-defined]
    module = VERBS.get(verb)
    if module is None or not hasattr(module, "SETTINGS"):
        known = ", ".join(name for name, one in VERBS.items() if hasattr(one, "SETTINGS"))
        raise UsageError(f"VERB is {verb!r:.60}; one of {known} was expected.")
    console.echo_file(config_file.explained(verb, module, commands[verb].own_params).rstrip("\n"))
