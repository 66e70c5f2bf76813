"""`dengine finalize`: write a run's dataset again."""

from pathlib import Path
from typing import Annotated

import typer

from dengine_cli.generate import show_dataset
from dengine_cli.options import parse_list

EXAMPLE = "dengine finalize runs/first --score 0.5 --format coco,yolo"
AFTER_INTERRUPT = "Run the same command again; the dataset files are the old ones until the new ones are whole."


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of dengine generate.")],
    score: Annotated[
        float | None, typer.Option(help="Boxes below this score are left out.  [default: the run's]")
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="LIST", help="Of coco (always written), yolo, imagefolder.  [default: the run's]"
        ),
    ] = None,
    keep_empty: Annotated[
        bool | None, typer.Option("--keep-empty/--drop-empty", help="Keep images without a box.  [default: the run's]")
    ] = None,
) -> None:
    """Write a run's dataset again, with another threshold or other formats.

    Nothing is painted."""
    from engines.generation.finalize import finalize

    summary = finalize(run, score=score, formats=parse_list(formats) or None, keep_empty=keep_empty)
    show_dataset(summary)
