"""`dengine report`: a run in one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from dengine_cli import console
from dengine_cli.settings import settings_of

EXAMPLE = "dengine report runs/first"
SETTINGS = "engines.report.report:ReportSettings"
AFTER_INTERRUPT = "the same command begins anew: a report is written whole or not at all"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of dengine generate.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file.  [default: report.html in the run]")
    ] = None,
) -> None:
    """Write what a run came to as one HTML file, to look at or to send.

    It needs no network: pictures and charts are in it.
    """
    parameters = locals()
    from engines.report.report import ReportSettings, report

    with console.ProgressBars() as bars:
        summary = report(settings_of(ReportSettings, parameters), report=console.reporter(bars))
    console.echo(f"report       {summary.file} ({summary.images} images, {summary.bytes / 1e6:.1f} MB)")
    console.next_step("evaluate", "--real", "TRAIN-SET", "--synthetic", run, "--val", "VAL-SET", "--out", "worth")
