"""`dengine report`: what a verb left in a folder, in one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from dengine_cli import console
from dengine_cli.settings import settings_of

EXAMPLE = "dengine report runs/first"
SETTINGS = "engines.report.report:ReportSettings"
AFTER_INTERRUPT = "the same command begins anew: a report is written whole or not at all"


def command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of a run, of labels, an adapter, a base model or a comparison."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file.  [default: report.html in the folder]")
    ] = None,
) -> None:
    """Write what a run or a training came to as one HTML file, to look at or to send.

    It needs no network: pictures and charts are in it. The verbs write it themselves when they are done.
    """
    parameters = locals()
    from engines.report.report import ReportSettings, report
    from engines.runs.run_folder import RUN

    with console.ProgressBars() as bars:
        summary = report(settings_of(ReportSettings, parameters), report=console.reporter(bars))
    images = f"{summary.images} images, " if summary.images else ""
    console.echo(f"report       {summary.file} ({images}{summary.bytes / 1e6:.1f} MB)")
    if (folder / RUN).exists():
        console.next_step(
            "evaluate", "--real", "TRAIN-SET", "--synthetic", folder, "--val", "VAL-SET", "--out", "worth"
        )
