"""`dengine work`: paint chunks of a run that was begun elsewhere."""

from typing import Annotated

import typer

from dengine_cli import console
from dengine_cli.settings import settings_of
from engines.common.events import duration
from engines.common.interrupts import held
from engines.common.plurals import counted
from engines.errors import Interrupted

EXAMPLE = "dengine work s3://bucket/run"
AFTER_INTERRUPT = "the same command goes on, and others paint the chunk that was in work"
_FINISHING = "Finishing the chunk in work. Ctrl-C again stops at once; another worker then paints it."


def command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder or address that dengine generate --cluster workers was given.")
    ],
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Paint although this machine is not like the run's.")
    ] = False,
) -> None:
    """Paint chunks of a run that was begun elsewhere, until it has all it needs.

    Any number of these may work on one run, on any machines that see its folder or bucket: for SLURM arrays and
    Kubernetes jobs. Chunks of a worker that is gone are painted by another one.
    """
    parameters = locals()
    from engines.cluster.work import WorkSettings, work

    with console.ProgressBars() as bars, held(lambda: bars.line(_FINISHING)) as stop:
        summary = work(settings_of(WorkSettings, parameters), report=console.reporter(bars), stop=stop)
    chunks = f"{counted(summary.chunks, 'chunk')} with {counted(summary.painted, 'image')}"
    console.echo(
        f"painted {chunks} in {duration(summary.seconds)}; the run is {'over' if summary.over else 'not over'}"
    )
    if not summary.over:
        raise Interrupted(f"stopped after {counted(summary.chunks, 'chunk')}", kept=True)
