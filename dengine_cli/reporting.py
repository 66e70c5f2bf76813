"""The report that verbs end with.

Knows: when it is drawn, and that a verb which did its work has not failed where its report has. What is in a report is
`engines.report`'s matter.
"""

from pathlib import Path
from typing import Annotated

import typer

from dengine_cli import console

NoReport = Annotated[bool, typer.Option("--no-report", help="Draw no report.html of what came out.")]


def draw_report(folder: Path, no_report: bool, name: str = "report       ") -> None:
    """Draw the report of a verb's folder, and say where it is after its `name`; what goes wrong is a line."""
    if no_report:
        return
    from engines.report.report import ReportSettings, report

    try:
        summary = report(ReportSettings(folder))
    except Exception as cause:  # whatever it is: the verb's own work is done and on the disk
        console.note(f"no report was drawn: {' '.join(str(cause).split()) or type(cause).__name__}")
    else:
        console.echo(f"{name}{summary.file}")
