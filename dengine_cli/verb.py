"""What all verbs have: options that are shared, a file of options, settings shown as flags.

Knows: how a verb's command line is read, and what is left in the folder that it wrote. Knows nothing about what a verb
does.
"""

import shlex
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dengine_cli import config_file, console
from dengine_cli.flags import renewed
from dengine_cli.planned import show_plan
from dengine_cli.settings import settings_of_file
from dengine_cli.verbs import VERBS
from dengine_cli.wrapped import in_lines
from engines.common.files import OWN, write_atomic
from engines.errors import Interrupted

_CONFIG = "YAML file with any of these options; flags go first. dengine config prints one."
_PLANNING = "dry_run"
_SETTINGS = "dengine settings"  # in a context's `meta`: what its file says beside options
_SENTENCE = 1000  # characters that no verb's first sentence has
_INDENT = 2  # of what stands below a help's heading
_ARGS = "dengine arguments"  # there: the command line behind the verb


def _of_all(
    config: Annotated[Path | None, typer.Option(metavar="FILE", help=_CONFIG)] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", callback=console.be_quiet, help="Show results, and no progress.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", callback=console.be_verbose, help="Show all that is done, with times.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", callback=console.be_dry, help="Say what would be done, and write nothing."),
    ] = False,
) -> None:
    """Options of every verb that has settings; those in _PLANNING only where its module says `PLANS`."""


class Verb(TyperCommand):
    """A verb, whose texts show the settings of the library as its own flags."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.own_params = list(self.params)
        self.module = VERBS[self.name or ""]
        if hasattr(self.module, "SETTINGS"):
            plans = getattr(self.module, "PLANS", False)
            self.params = [*self.own_params, *(one for one in _shared_options() if plans or one.name != _PLANNING)]

    def get_short_help_str(self, limit: int = 0) -> str:
        """What the verb does, in the program's list of verbs: a whole sentence, on as many lines as it takes."""
        return super().get_short_help_str(_SENTENCE)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The verb's example, ready to copy."""
        words = shlex.split(self.module.EXAMPLE, posix=False)
        self.epilog = f"\b\nExample:\n{in_lines(words, formatter.width - _INDENT)}"
        super().format_epilog(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line, and the file that it names; a flag's old name counts as the new one, and is said."""
        known = {name for parameter in self.params for name in getattr(parameter, "opts", ())}
        args, renamed = renewed(args, known)
        for old, new in renamed:
            console.note(f"{old} is called {new} now; the old name goes with the next release")
        ctx.meta[_ARGS] = tuple(args)
        if config_file.OPTION not in known:
            return super().parse_args(ctx, args)
        file, args = config_file.taken(args)
        given = config_file.Given() if file is None else config_file.read(file, self.module, self.own_params)
        ctx.default_map, ctx.meta[_SETTINGS] = given.options, given.settings
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as mistake:
            if getattr(mistake.param, "name", None) in given.options:
                mistake.message += f" (if it is of {file}, mend it there)"
            raise

    def invoke(self, ctx: Any) -> Any:
        """Do what the verb does, and leave the file that repeats it in the folder that it wrote."""
        more = ctx.meta.get(_SETTINGS, {})
        self._keep_log(ctx)
        with console.speaking(partial(flags_of, self.name or "")), settings_of_file(more):
            try:
                result = super().invoke(ctx)
            except console.PlannedError as only:
                show_plan(only.plan, ctx.params.get(self.module.WRITES))
                return None
            except Interrupted as stop:
                if stop.kept:
                    self._leave_file(ctx, more)
                    console.log_begins()
                raise
            self._leave_file(ctx, more)
            console.log_begins()
            return result

    def _keep_log(self, ctx: Any) -> None:
        """Have what is shown kept in the folder that the verb writes."""
        folder = ctx.params.get(getattr(self.module, "WRITES", ""))
        command = shlex.join(["dengine", self.name or "", *ctx.meta[_ARGS]])
        console.keep_log(None if folder is None else Path(folder), command, plans=getattr(self.module, "PLANS", False))

    def _leave_file(self, ctx: Any, more: Mapping[str, Any]) -> None:
        folder = ctx.params.get(getattr(self.module, "WRITES", ""))
        if folder is not None and Path(folder).is_dir():
            (Path(folder) / OWN).mkdir(exist_ok=True)
            text = config_file.repeated(self.name or "", ctx, more, console.settled())
            write_atomic(Path(folder) / OWN / f"{self.name}.yaml", text.encode())


@cache
def _shared_options() -> tuple[Any, ...]:
    """The options of `_of_all`, which no verb sees."""
    options = typer.Typer(add_completion=False)
    options.command()(_of_all)
    found = tuple(one for one in typer.main.get_command(options).params if one.name != "help")
    for one in found:
        one.expose_value = False
    return found


@cache
def flags_of(verb: str) -> dict[str, str]:
    """The flag of each setting: of `verb` first, then of the other verbs, which its messages may advise.

    What a verb's own arguments are called is shown as in its usage line, `IMAGES`.
    """
    from dengine_cli.main import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    flags: dict[str, str] = {}
    for name in sorted(commands, key=lambda name: name == verb):
        for parameter in commands[name].params:
            if parameter.param_type_name == "option":
                flags[str(parameter.name)] = max(parameter.opts, key=len)
            elif name == verb:
                flags[str(parameter.name)] = str(parameter.metavar)
    for module in VERBS.values():
        for field, option in getattr(module, "FIELDS", {}).items():
            flags.setdefault(field, flags[option])
    return flags | {field: flags[option] for field, option in getattr(VERBS.get(verb), "FIELDS", {}).items()}
