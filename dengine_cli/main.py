"""The program: its verbs, and the only place where an error becomes one line and an exit code.

Knows: which verbs there are, and how trouble is shown. Knows nothing about what a verb does.
Nothing heavy is imported here or at the top of a verb's file, so that `dengine --help` answers at once.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed_version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from dengine_cli import console
from dengine_cli.flags import with_flags
from dengine_cli.verb import Verb, flags_of
from dengine_cli.verbs import VERBS as VERBS
from engines.common.interrupts import terminable
from engines.common.quote import shorten
from engines.errors import DengineError, Interrupted

_LONGEST = 300  # characters of what others say in an error
COMPLETE = "_DENGINE_COMPLETE"  # set by the shell: what it wants
EXIT_USAGE = 2
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


class Program(TyperGroup):
    """The verbs as one command that reports its errors itself, for the shell and for the tests alike."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command line `args` and exit with its code; or answer a shell that completes one."""
        if COMPLETE in os.environ:
            from typer._completion_classes import completion_init

            completion_init()
            self._main_shell_completion({}, "dengine", COMPLETE)
        try:
            code = self._run(list(sys.argv[1:] if args is None else args))
        finally:
            console.end_log()
        sys.exit(code)

    def _run(self, args: list[str]) -> int:
        debug = os.environ.get("DENGINE_DEBUG", "0") not in ("", "0")
        verb = ""
        told: Callable[[], bool] = bool  # False, until the verb runs
        try:
            with self.make_context("dengine", args) as context:
                debug = debug or bool(context.params.get("debug"))
                _quiet_libraries(debug)
                try:
                    with terminable() as told:
                        self.invoke(context)
                finally:
                    verb = context.invoked_subcommand or ""
        except typer.Exit as done:
            return done.exit_code
        except typer.TyperException as mistake:
            return _fail(
                f"{shorten(mistake.format_message().rstrip('.'), _LONGEST)}. See: {f'dengine {verb}'.strip()} --help",
                EXIT_USAGE,
            )
        except KeyboardInterrupt as stop:
            return _stopped(stop, verb)
        except BrokenPipeError:
            return _reader_left()
        except Exception as error:
            if told() or _was_interrupted(error):  # what Ctrl-C cut short raises errors of any kind
                return _stopped(error, verb)
            if debug:
                raise
            text = with_flags(_in_one_line(error), flags_of(verb))
            return _fail(text, getattr(error, "exit_code", EXIT_ERROR))
        return 0


app = typer.Typer(
    cls=Program,
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def dengine(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings.")] = False,
) -> None:
    """Turn a Stable Diffusion checkpoint and a labelled detection dataset into new labelled images.

    A first try, with the small model that is built in: dengine generate --count 32 --out demo
    """
    if version:
        typer.echo(f"dengine {installed_version('dengine')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _name, _module in VERBS.items():
    app.command(_name, cls=Verb)(_module.command)


def main() -> None:
    """The console script."""
    app()


def _in_one_line(error: Exception) -> str:
    """What is said of an error: a message of ours as it is, the system's with the file and a way out."""
    text = " ".join(str(error).splitlines())
    if isinstance(error, DengineError):
        return text
    if isinstance(error, OSError) or "os error 28" in text:
        return _system_error(error)
    said = f"{type(error).__name__}: {shorten(text, _LONGEST)}"
    return f"{said} (not foreseen: please report it with what dengine --debug shows)"


def _system_error(error: Exception) -> str:
    number = getattr(error, "errno", None)
    file = getattr(error, "filename", None)
    where = f" at {file}" if file else ""
    if number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):  # safetensors passes 28 on as text
        return f"no space left{where}; free some and run the same command again."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"permission denied{where}; choose a folder that you may write to, or change its rights."
    if number == errno.ENOTDIR:
        return f"a file stands where a folder is due{where}; name another folder, or move the file away."
    return f"{getattr(error, 'strerror', None) or error}{where}."


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an error came of a Ctrl-C."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _stopped(stop: BaseException, verb: str) -> int:
    """Say where Ctrl-C stopped a verb, and what goes on from there."""
    after = str(getattr(VERBS.get(verb), "AFTER_INTERRUPT", "nothing was begun"))
    if isinstance(stop, Interrupted) and not stop.kept:
        after = "the same command begins anew"
    console.note(f"{stop if isinstance(stop, Interrupted) else 'stopped'}; {after}")
    return EXIT_INTERRUPTED


def _fail(message: str, code: int) -> int:
    console.complain(message)
    return code


def _reader_left() -> int:
    """`dengine ... | head` closed our output: not worth a message, nor a second one when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_ERROR


def _quiet_libraries(debug: bool) -> None:
    """Keep the libraries' warnings out of our output; settings that the user made stay."""
    if debug:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
