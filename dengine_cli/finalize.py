"""`dengine finalize`: write a run's dataset again."""

from pathlib import Path
from typing import Annotated

import typer

from dengine_cli import console
from dengine_cli.generate import show_dataset
from dengine_cli.reporting import NoReport, draw_report
from dengine_cli.settings import settings_of

EXAMPLE = "dengine finalize runs/first --score 0.5 --format coco,yolo"
SETTINGS = "engines.runs.finalize:FinalizeSettings"
WRITES = "run"  # the parameter with its folder
AFTER_INTERRUPT = "give the same command again: where annotations.json is missing, the dataset waits for it"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of dengine generate.")],
    score: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE",
            help="Boxes below are left out: a number, CLASS=NUMBER,... or, with matched, what makes labels as frequent "
            "as the annotations that the adapter learned from, the run's own at least: what those left out, matched "
            "leaves out, too.  [default: the run's]",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="WHOSE", help="Whose boxes are labels: adapter, reference or both.  [default: the run's]"),
    ] = None,
    ignore_score: Annotated[
        float | None,
        typer.Option(help="Boxes from here up to --score become COCO crowds; 0: none.  [default: the run's]"),
    ] = None,
    min_quality: Annotated[
        float | None,
        typer.Option(help="Drop images whose boxes are less sure as a whole, 0 to 1.  [default: the run's]"),
    ] = None,
    max_overlap: Annotated[
        float | None,
        typer.Option(help="Of two boxes of a class with a larger IoU, the surer stays.  [default: the run's]"),
    ] = None,
    near_duplicates: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="Images that nearly repeat another or a reference: keep, drop, or a correlation.  "
            "[default: the run's]",
        ),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Drop images that nearly repeat one of these, which the model learned from."
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="LIST", help="Of coco (always written), yolo, imagefolder.  [default: those there]"
        ),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="About what share of the images YOLO's files call validation, by reference.  [default: as it is]"
        ),
    ] = None,
    keep_empty: Annotated[
        bool | None, typer.Option("--keep-empty/--drop-empty", help="Keep images without a box.  [default: the run's]")
    ] = None,
    no_report: NoReport = False,
) -> None:
    """Write a run's dataset again, with other thresholds or formats.

    Nothing is painted. The rules stay with the run: generate and merge keep them, until the next finalize."""
    parameters = locals()
    from engines.labels.scores import shown
    from engines.runs.finalize import FinalizeSettings, finalize

    with console.ProgressBars() as bars:
        summary = finalize(settings_of(FinalizeSettings, parameters), report=console.reporter(bars))
    console.echo(f"labels score at least {shown(summary.score)}")
    show_dataset(summary)
    draw_report(summary.folder, no_report)
    console.next_step("report", run)
