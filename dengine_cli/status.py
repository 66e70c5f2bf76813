"""`dengine status`: how far a run on many machines is."""

import dataclasses
from typing import Annotated

import typer

from dengine_cli import console
from engines.common.plurals import counted

EXAMPLE = "dengine status s3://bucket/run"
AFTER_INTERRUPT = "the same command begins anew"


def command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder or address that dengine generate was given with --cluster.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say how far a run on many machines is, from anywhere that sees its folder or bucket."""
    from engines.cluster.status import StatusSettings, status

    found = status(StatusSettings(run))
    if json:
        console.echo_json(dataclasses.asdict(found))
        return
    console.echo(f"{found.done} of {found.target}: {'over' if found.over else 'not over'}")
    console.echo(f"{counted(found.chunks, 'chunk')} committed, {found.whole} from the first on without a gap")
    if found.workers is not None:
        speed = "" if found.images_per_second is None else f", {found.images_per_second:.2f} images/s"
        console.echo(f"as its driver last said: {counted(found.workers, 'worker')}{speed}, {found.lost or 0} lost")
